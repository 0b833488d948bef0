"""The library's trainer against the textbook's loop, on the same order, views and weights."""

import copy
from itertools import islice

import numpy as np
import oracle
import pytest
import torch

from ltkd.data import LongTailed, load, stream
from ltkd.params import RunSpec
from ltkd.teacher import Teacher, views_of_epoch
from ltkd.train import Trainer, initial_model, initial_objective, learning_rate

STEPS = 20


class Double(LongTailed):
    """The same set, normalised in float64."""

    def scale(self, device):
        channels = torch.tensor([self.mean, self.std], dtype=torch.float64, device=device)
        return channels.view(2, 1, 3, 1, 1) * 255


def spec_of(method, teacher_source="table", **changes):
    alone = method in ("student", "balanced_softmax")
    teacher = {} if alone else {"teacher": "resnet20", "teacher_source": teacher_source}
    base = {"dataset": "digits", "gamma": 20.0, "student": "resnet8", "method": method,
            "groups": 3 if method == "ltkd" else None, "epochs": 5, "batch": 32, "lr": 0.05,
            "schedule": "one_cycle"}  # fmt: skip
    return RunSpec(**(base | teacher | changes))


def both(tmp_path, method, steps, dtype=torch.float32, source="live", **changes):
    """Losses of the trainer and of the oracle, [steps] each, and their students."""
    spec = spec_of(method, teacher_source=source, **changes)
    data = load("digits", 20.0)
    if dtype == torch.float64:
        data = Double(**vars(data))
    model = None
    if spec.teacher:
        torch.manual_seed(7)
        model = initial_model(spec.teacher_spec, 10).to(dtype).eval()
    feed = data.feed(torch.device("cpu"))
    folder = tmp_path if source == "table" else None
    teacher = Teacher(model, spec, feed, folder) if model else None
    objective = initial_objective(spec, data, model)
    trainer = Trainer(spec, data, objective, teacher, feed, tmp_path / "none")
    trainer.model.to(dtype), trainer.objective.to(dtype)
    # In the same memory format: in the other one, equal fp32 gradients are some 1e-4 apart.
    plain = copy.deepcopy(trainer.model)

    view, rows = views_of_epoch(data, spec.seed, 1), None
    if teacher:
        teacher.begin_epoch(view)
        if source == "table":
            table = np.load(tmp_path / "logits.npy")["answer"].reshape(-1, len(view), 10)
            rows = torch.from_numpy(table[view, np.arange(len(view))])
    order = stream("order", spec.seed, 1).permutation(len(view))
    rates = [learning_rate(spec, step, trainer.steps) for step in range(steps)]
    given = {"order": order.tolist(), "view": view, "rates": rates, "rows": rows,
             "clip": spec.clip_norm, "decay": spec.weight_decay}  # fmt: skip
    slow = list(oracle.train(data, plain, method, teacher=model, dtype=dtype, **given))

    fast, total = [], 0.0
    trainer.look(view)
    trainer.model.train()
    while len(fast) < steps:
        batches = torch.from_numpy(order.astype(np.int64)).split(spec.batch)[: trainer.steps]
        for index in islice(batches, steps - len(fast)):
            trainer.step(index, 1.0)
            trainer.at.step += 1
            fast.append(trainer.sums[0].item() - total)
            total = trainer.sums[0].item()
    return np.array(fast), np.array(slow), trainer.model, plain


@pytest.mark.parametrize(
    ("method", "source"),
    [("student", "live"), ("kd", "live"), ("kd", "table"), ("ltkd", "live"), ("ltkd", "table"),
     ("kd_adjusted", "table"), ("balanced_softmax", "live")],
)  # fmt: skip
def test_in_float64_the_curves_agree(tmp_path, method, source):
    fast, slow, *_ = both(tmp_path, method, STEPS, torch.float64, source)
    assert np.abs(fast - slow).max() < 1e-9
    assert slow[-5:].mean() < slow[:5].mean()  # it trains, so that there is a curve to agree on


def test_in_float64_clipped_curves_agree(tmp_path):
    """At the last of a few steps the gradient is still cut, to the norm that was asked for."""
    asked = {"clip_norm": 0.4, "weight_decay": 1e-2}
    fast, slow, *nets = both(tmp_path, "student", 5, torch.float64, **asked)
    assert np.abs(fast - slow).max() < 1e-9
    for net in nets:
        norm = torch.cat([p.grad.flatten() for p in net.parameters()]).norm().item()
        assert norm == pytest.approx(0.4, rel=1e-5)


def test_the_fusion_of_reviewkd_is_clipped_with_the_student(tmp_path):
    spec, data = spec_of("reviewkd", clip_norm=0.4, teacher_source="live"), load("digits", 20.0)
    model = initial_model(spec.teacher_spec, 10)
    feed, objective = data.feed(torch.device("cpu")), initial_objective(spec, data, model)
    teacher = Teacher(model, spec, feed, None)
    trainer = Trainer(spec, data, objective, teacher, feed, tmp_path / "none")
    trainer.step(torch.arange(32), 1.0)
    own, fusion = (
        sum(p.grad.double().square().sum().item() for p in part.parameters())
        for part in (trainer.model, objective)
    )
    assert min(own, fusion) > 1e-4  # both have a part in it
    assert own + fusion == pytest.approx(0.4**2, rel=1e-4)


@pytest.mark.parametrize("method", ["student", "kd", "ltkd"])
def test_in_fp32_the_first_loss_and_gradient_agree(tmp_path, method):
    fast, slow, model, plain = both(tmp_path, method, 1)
    assert abs(fast[0] - slow[0]) < 1e-5 * abs(slow[0])
    own, other = (torch.cat([p.grad.flatten() for p in net.parameters()]) for net in (model, plain))
    assert (own - other).norm() < 1e-5 * other.norm()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fifty_steps_stay_within_the_spread_of_seeds(tmp_path, precision):
    def course(curve):
        return curve[-20:].mean()

    runs = [both(tmp_path, "ltkd", 50, seed=seed, precision=precision) for seed in (0, 1, 2)]
    plain = [course(slow) for _, slow, *_ in runs]
    apart = [abs(course(fast) - course(slow)) for fast, slow, *_ in runs]
    assert max(apart) < max(plain) - min(plain)


def test_the_rounding_of_the_table_is_a_thousandth_of_the_loss(tmp_path):
    table, _, *_ = both(tmp_path, "ltkd", 1, torch.float64, "table")
    live, _, *_ = both(tmp_path, "ltkd", 1, torch.float64, "live")
    assert abs(table[0] - live[0]) < 1e-3 * live[0]
