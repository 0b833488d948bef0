"""The prior taken out afterwards: against Bayes' rule, literal loops, and the records."""

import errno
import json
import math
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch.utils._python_dispatch import TorchDispatchMode

from ltkd import Study, adjust_logits, files, fit_tau
from ltkd.methods import METHODS
from ltkd.objective import build
from ltkd.prior import TAUS, adjusted_counts, fitted_counts, known_or_kept
from ltkd.report import curves

CPU = torch.device("cpu")
SMALL = {"methods": ["student", "kd", "balanced_softmax", "balanced_softmax_kd_biased"],
         "seeds": [0], "epochs": 3, "ablations": [], "group_counts": [],
         "pairs": ["resnet20-resnet8"]}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory, forked):
    study = Study(outputs=tmp_path_factory.mktemp("outputs"), name="small", **SMALL)
    study.make(jobs=2, quiet=True)
    return study


def records(study):
    return {spec.method: study.store.get(spec) for _, spec in study.specs("distillation")}


def test_bayes_rule_is_undone_exactly():
    # Logits of the posterior under a long-tailed prior; without it, that of equal priors.
    rng = np.random.default_rng(0)
    counts, likelihood = np.array([500, 50, 5]), rng.random((20, 3))
    posterior = likelihood * counts / (likelihood * counts).sum(1, keepdims=True)
    logits = torch.tensor(np.log(posterior) + rng.normal(size=(20, 1)))
    balanced = likelihood / likelihood.sum(1, keepdims=True)
    found = adjust_logits(logits, torch.tensor(counts)).softmax(1)
    np.testing.assert_allclose(found, balanced, rtol=1e-12)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_adjusted_logits_against_a_loop(tau, dtype):
    torch.manual_seed(0)
    logits, counts = torch.randn(4, 3, dtype=dtype), torch.tensor([90, 9, 1])
    found = adjust_logits(logits, counts, tau)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    for row in range(4):
        for c, n in enumerate((90, 9, 1)):
            expected = logits[row, c].item() - tau * math.log(n / 100)
            near = 1e-12 if dtype == torch.float64 else 1e-5
            assert found[row, c].item() == pytest.approx(expected, abs=near)


def test_scores_in_half_precision_do_not_tie():
    logits, counts = torch.tensor([[9.0625, 4.46875]], dtype=torch.bfloat16), [990, 10]
    exact = [z - math.log(n / 1000) for z, n in zip((9.0625, 4.46875), counts, strict=True)]
    assert exact[0] < exact[1]
    assert adjust_logits(logits, counts).argmax(1).tolist() == [1]


@pytest.mark.parametrize(
    ("counts", "tau", "message"),
    [([9], 1.0, "counts has 1 classes, the logits 3"), ([[5, 4, 3]], 1.0, "counts has shape"),
     ([0.5, 0.3, 0.2], 1.0, "it must hold whole numbers"), ([5, 4, 3], math.nan, "tau is nan"),
     ([5, 4, -3], 1.0, r"counts\[2\] is -3"), ([5, 4, 3], None, "tau is None; it must be a finite"),
     ([5, 4, 3], "1", "tau is '1'"), ([5, 4, 3], math.inf, "tau is inf")],
)  # fmt: skip
def test_counts_and_tau_that_are_none_are_refused(counts, tau, message):
    with pytest.raises(ValueError, match=message):
        adjust_logits(torch.zeros(2, 3), torch.tensor(counts), tau)


@pytest.mark.parametrize(
    ("logits", "message"),
    [(torch.tensor(0.5), r"logits has shape \[\]; it must be \[B, C\]"),
     (torch.zeros(3), r"logits has shape \[3\]"),
     (torch.zeros(2, 3, 3, 3), r"logits has shape \[2, 3, 3, 3\]"),
     (torch.zeros(2, 3, dtype=torch.int64), "logits is torch.int64; .* floating dtype"),
     (np.zeros((2, 3)), "logits is of type ndarray")],
)  # fmt: skip
def test_logits_that_are_none_are_refused(logits, message):
    with pytest.raises(ValueError, match=message):
        adjust_logits(logits, [5, 4, 3])


def test_the_logits_device_gets_the_prior_in_their_own_precision():
    """Not every GPU has float64. The meta device stands for one: it has dtypes, no numbers."""
    there = set()

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.is_meta:
                there.add(out.dtype)
            return out

    with Seen():
        found = adjust_logits(torch.zeros(2, 3, device="meta"), [90, 9, 1])
    assert (found.device.type, found.shape) == ("meta", (2, 3))
    assert there == {torch.float32}


def test_a_class_without_an_image_has_no_prior():
    with pytest.raises(ValueError, match=r"classes \[1\] have no image"):
        adjust_logits(torch.zeros(2, 3), [5, 0, 1])


def test_each_method_stands_where_its_loss_left_it(study):
    frame = study.adjusted("distillation")
    assert len(frame) == len(TAUS) * len(SMALL["methods"])
    for method, record in records(study).items():
        own = frame[(frame["method"] == method) & frame["as_trained"]]
        assert own["tau"].tolist() == [float(METHODS[method].balanced)]
        about, right = study.data(), record.correct()
        assert own["all"].item() == pytest.approx(100 * right.sum() / len(about.test_labels))


def test_class_by_class_it_is_the_same(study):
    by_class, whole = study.adjusted_per_class("distillation"), study.adjusted("distillation")
    tests = study.data().test_labels.bincount().tolist()
    for row in whole.to_dict("records"):
        own = by_class[(by_class["run"] == row["run"]) & (by_class["tau"] == row["tau"])]
        assert own["class_id"].tolist() == [*range(len(tests))]
        assert own["count"].tolist() == study.data().counts.tolist()
        assert set(own["as_trained"]) == {row["as_trained"]}
        assert np.average(own["accuracy"], weights=tests) == pytest.approx(row["all"])
        tail = own.loc[own["group"] == 2, "accuracy"].mean()
        assert tail == pytest.approx(row["tail"])


@pytest.mark.parametrize("tau", [-0.7, 0.0, 1.0, 2.5])
@pytest.mark.parametrize("alike", [True, False])
def test_the_share_of_the_prior_in_exact_logits_is_found(tau, alike):
    # So many images of class c look like x; whoever sees x alone has these odds, and a prior more.
    seen, counts = np.array([[6, 1, 2], [1, 6, 1], [2, 2, 6]]), [500, 50, 5]
    if not alike:
        seen = seen * [1, 3, 10]
    prior = np.log(np.array(counts) / sum(counts))
    logits = torch.tensor((np.log(seen) + tau * prior).repeat(seen.sum(1), axis=0))
    given = {} if alike else {"frequencies": seen.sum(0)}
    assert fit_tau(logits + torch.randn(len(logits), 1), counts, **given) == pytest.approx(
        tau, abs=2e-6
    )


def test_the_fitted_tau_is_that_of_least_cross_entropy_whatever_the_labels():
    torch.manual_seed(0)
    logits, counts = 3 * torch.randn(90, 4, dtype=torch.float64), [90, 30, 9, 1]
    labels = torch.tensor([0, 1, 2, 3, 3, 1]).repeat(15)
    found = fit_tau(logits, counts, labels.bincount())
    for order in (slice(None), torch.randperm(90)):
        best = minimize_scalar(
            lambda tau, y: F.cross_entropy(adjust_logits(logits, counts, tau), y).item(),
            args=(labels[order],), tol=1e-10,
        )  # fmt: skip
        assert found == pytest.approx(best.x, abs=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"counts": [5, 5, 5]}, "counts are all equal"), ({"counts": [5, 4]}, "counts has 2 classes"),
     ({"frequencies": [1, 1]}, r"frequencies is \[1, 1\]; it must be \[3\]"),
     ({"frequencies": [1, -1, 3]}, "none negative"), ({"frequencies": "abc"}, "frequencies is 'a"),
     ({"frequencies": [0, 0, 0]}, "not all zero"), ({"frequencies": [0, 0, 2]}, "no single tau"),
     ({"frequencies": [1, math.nan, 1]}, "finite"), ({"logits": torch.zeros(0, 3)}, "of one image"),
     ({"counts": [500, 500, 5], "frequencies": [0.3, 0.6, 0]}, "no single tau is best"),
     ({"counts": [90, 9, 9], "frequencies": [0, 0.3, 0.1]}, "no single tau is best"),
     ({"logits": torch.full((2, 3), math.inf)}, "must be finite"),
     ({"logits": torch.zeros(3)}, r"logits has shape \[3\]")],
)  # fmt: skip
def test_what_no_tau_can_be_fitted_to_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        fit_tau(**({"logits": torch.zeros(2, 3), "counts": [9, 3, 1]} | given))


def test_logits_of_any_size_have_a_fitted_tau():
    logits = 1e12 * torch.tensor([[3.0, 1.0, -4.0], [2.0, 2.5, 1.0]], dtype=torch.float64)
    tau, prior = fit_tau(logits, [90, 9, 1]), torch.tensor([0.9, 0.09, 0.01]).double().log()
    assert tau > 1e10
    below, above = (
        ((logits - part * tau * prior).softmax(1) @ prior).mean() for part in (0.999, 1.001)
    )
    assert below > prior.mean() > above


def test_classes_that_are_all_as_large_have_a_curve_and_no_fitted_tau(tmp_path):
    about = SMALL | {"methods": ["kd"], "gammas": [1.0], "epochs": 1}
    level = Study(outputs=tmp_path, name="level", **about)
    level.make(jobs=1, quiet=True)
    assert level.fitted("distillation").empty
    curve = level.adjusted("distillation")
    assert len(curve) == len(TAUS)
    assert curve["all"].nunique() == 1
    spec = level.specs("distillation")[0][1]
    assert known_or_kept(level.store, level.store.get(spec)) == ["correct", "fitted"]


def test_the_fitted_tau_of_a_run_has_the_least_cross_entropy(study):
    data = study.data()
    counts, rows = data.counts.tolist(), study.fitted("distillation").set_index("method")
    for method, record in records(study).items():
        with torch.inference_mode():
            logits = study.store.load_model(record.spec)(data.normalise(data.test_images)).double()
        own = float(METHODS[method].balanced)
        best = minimize_scalar(
            lambda tau, z, own: F.cross_entropy(
                adjust_logits(z, counts, tau - own), data.test_labels
            ).item(), args=(logits, own), tol=1e-10,
        )  # fmt: skip
        tau, correct = fitted_counts(study.store, record, data, CPU)
        assert tau == pytest.approx(best.x, abs=1e-3)  # of logits in fp32, in batches
        right = adjust_logits(logits, counts, tau - own).argmax(1) == data.test_labels
        wanted = data.test_labels[right].bincount(minlength=10).numpy()
        assert abs(wanted - correct).sum() <= 1
        assert rows.loc[method, "tau"] == tau
        shares = 100 * correct / data.test_labels.bincount().numpy()
        assert rows.loc[method, "all"] == pytest.approx(100 * correct.sum() / len(right))
        assert rows.loc[method, "tail"] == pytest.approx(shares[data.groups(3) == 2].mean())


def test_an_older_curve_is_completed_where_its_network_is_kept(study):
    data, record = study.data(), records(study)["kd"]
    whole = fitted_counts(study.store, record, data, CPU)
    path, model = record.folder / "adjusted.json", study.store.model_path(record.spec)
    weights, text = model.read_bytes(), path.read_text()
    older = {k: v for k, v in files.unsealed(json.loads(text)).items() if k != "fitted"}
    path.write_text(json.dumps(files.sealed(older)))
    model.unlink()
    assert fitted_counts(study.store, record, data, CPU) is None
    assert "kd" not in set(study.fitted("distillation")["method"])
    assert "kd" in set(study.adjusted("distillation")["method"])
    before = study.inputs("06_summary")
    model.write_bytes(weights)
    assert study.inputs("06_summary") != before  # the page would show more now
    counts = adjusted_counts(study.store, record, data, CPU)
    assert counts.tolist() == older["correct"]
    assert "fitted" not in json.loads(path.read_text())  # it is read, no more
    tau, correct = fitted_counts(study.store, record, data, CPU)
    assert (tau, correct.tolist()) == (whole[0], whole[1].tolist())
    assert json.loads(path.read_text()) == json.loads(text)


def test_a_curve_of_other_shares_is_left_alone_and_made_anew_where_it_can_be(study, monkeypatch):
    data, record = study.data(), records(study)["kd"]
    path, model = record.folder / "adjusted.json", study.store.model_path(record.spec)
    first = adjusted_counts(study.store, record, data, CPU)
    weights, text = model.read_bytes(), path.read_text()
    monkeypatch.setattr("ltkd.prior.TAUS", TAUS[:5])
    model.unlink()
    assert known_or_kept(study.store, record) == []
    assert adjusted_counts(study.store, record, data, CPU) is None
    assert path.read_text() == text  # the only one there may be
    model.write_bytes(weights)
    assert (adjusted_counts(study.store, record, data, CPU) == first[:5]).all()
    monkeypatch.undo()
    assert (adjusted_counts(study.store, record, data, CPU) == first).all()
    assert path.read_text() == text


def test_where_nothing_can_be_written_a_curve_is_computed_at_each_call(study, monkeypatch):
    data, record = study.data(), records(study)["kd"]
    path, first = record.folder / "adjusted.json", adjusted_counts(study.store, record, data, CPU)
    text = path.read_text()
    path.unlink()

    def refuse(number):
        def write(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("ltkd.files.write_atomic", write)

    for number in (errno.EROFS, errno.EACCES):
        refuse(number)
        assert (adjusted_counts(study.store, record, data, CPU) == first).all()
        assert fitted_counts(study.store, record, data, CPU)
    refuse(errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        adjusted_counts(study.store, record, data, CPU)
    path.write_text(text)


def test_exact_logits_want_one_less_s_off_whatever_the_test_classes():
    # So many images of class c look like x, of 600 a class; in training they have a prior more.
    seen, counts = np.array([[400, 50, 150], [100, 500, 50], [100, 50, 400]]), [500, 50, 5]
    log_pi = np.log(np.array(counts) / sum(counts))
    kind, labels = np.nonzero(seen)
    times = seen[kind, labels]
    logits = (np.log(seen) + log_pi)[kind].repeat(times, axis=0)
    found = curves.fitted_elsewhere(logits, labels.repeat(times), counts)
    assert found.index.tolist() == ["s = 1", "s = 0.5", "s = −0.5"]
    assert found["images"].tolist() == ["666", "850", "850"]
    for s, (tau, spread) in zip((1, 0.5, -0.5), found["τ"].str.split(" ± "), strict=True):
        assert float(tau.replace("−", "-")) == pytest.approx(1 - s, abs=0.05)
        assert float(spread) < 0.05
    assert curves.fitted_elsewhere(logits, labels.repeat(times), [5, 5, 5]).empty
    few = curves.fitted_elsewhere(logits, labels.repeat(times), [5000, 50, 5])
    assert few.index.tolist() == ["s = 0.5", "s = −0.5"]  # of 600 images 0.6 in a thousand
    assert curves.fitted_elsewhere(logits[:400], np.zeros(400, int), counts).empty


def test_accuracies_for_other_test_classes_by_hand():
    # All images alike: the odds become the classes' own, and the more frequent class the answer.
    logits, labels, counts = np.tile([0.0, 0.1], (200, 1)), np.repeat([0, 1], 100), [90, 10]
    found = curves.fitted_elsewhere(logits, labels, counts)
    expected = {
        "s = 1": ("111", "−1.05 ± 0.00", "90.1", "+80.2", "+80.2", "+80.2, τ 0"),
        "s = 0.5": ("133", "−0.55 ± 0.00", "75.2", "+50.4", "+50.4", "+50.4, τ 0"),
        "s = −0.5": ("133", "0.46 ± 0.00", "75.2", "+0.0", "+0.0", "+0.0, τ 0"),
    }
    assert {s: tuple(row) for s, row in zip(found.index, found.to_numpy(), strict=True)} == expected


def test_the_prior_is_taken_out_of_the_network_s_own_logits(study):
    data, model_of = study.data(), study.store.load_model
    counts = [int(n) for n in data.counts]
    for method, record in records(study).items():
        x = data.normalise(data.test_images)
        with torch.inference_mode():
            logits = model_of(record.spec)(x).tolist()
        for row, tau in zip(adjusted_counts(study.store, record, data, CPU), TAUS, strict=True):
            shift = tau - METHODS[method].balanced
            right = [0] * len(counts)
            for z, label in zip(logits, data.test_labels.tolist(), strict=True):
                scores = [z[c] - shift * math.log(n / sum(counts)) for c, n in enumerate(counts)]
                right[label] += scores.index(max(scores)) == label
            assert abs(np.array(right) - row).sum() <= 1, (method, tau)  # a tie in fp32 may fall


def test_what_was_computed_once_is_read_and_damage_is_not(study, capsys):
    data, record = study.data(), records(study)["kd"]
    first = adjusted_counts(study.store, record, data, CPU)
    path, model = record.folder / "adjusted.json", study.store.model_path(record.spec)
    weights, text = model.read_bytes(), path.read_text()
    model.unlink()
    assert (adjusted_counts(study.store, record, data, CPU) == first).all()  # no network needed
    kept = json.loads(text)
    kept["correct"][0][0] += 1
    for damage in (json.dumps(kept), text[:-9], "[]", "{}", "3"):
        path.write_text(damage)
        assert adjusted_counts(study.store, record, data, CPU) is None
        said = capsys.readouterr().err
        assert f"{path}: damaged" in said
        assert "kept as adjusted.json.damaged, its network is not there any more" in said
        assert known_or_kept(study.store, record) == []
    assert "kd" not in set(study.adjusted("distillation")["method"])
    model.write_bytes(weights)
    path.write_text(text[:-9])
    assert (adjusted_counts(study.store, record, data, CPU) == first).all()
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("corrected", "plain"),
    [("balanced_softmax", "student"), ("balanced_softmax_kd_biased", "kd_ce1")],
)
def test_a_corrected_loss_is_the_plain_one_with_a_shifted_classifier(corrected, plain):
    # CE(z + log n) and KD(z + log pi) depend on z + log pi alone: what a bias of log pi in the
    # last layer would give. So the prior may as well be taken out when training is over.
    torch.manual_seed(0)
    counts, targets = [90, 9, 1], torch.tensor([0, 0, 1, 2])
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    teacher, found = torch.randn(4, 3, dtype=torch.float64), []
    prior = (torch.tensor(counts, dtype=torch.float64) / sum(counts)).log()
    for name, shift in ((corrected, 0.0), (plain, prior)):
        objective = build(METHODS[name], METHODS[name].args, counts).double()
        z = logits + shift
        given = (z, teacher) if METHODS[name].loss else (None, None)
        loss = torch.stack(objective(z, *given, targets))
        found.append((loss.detach(), *torch.autograd.grad(loss.sum(), logits)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
