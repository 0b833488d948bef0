"""Which runs a study asks for, and the tidy tables it gives back."""

import hashlib
import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import load
import numpy as np
import pandas as pd
import pytest
import torch

from ltkd import RunRecord, Study, files, pool, run
from ltkd.cli import NOTEBOOKS
from ltkd.data import load as load_data
from ltkd.methods import ABLATIONS
from ltkd.params import ParameterError, RunSpec, load_parameters
from ltkd.pool import with_teachers
from ltkd.report import build, tables
from ltkd.runs import identity
from ltkd.study import PARTS, Pair
from ltkd.train import learning_rate

SMALL = {"methods": ["student", "kd", "ltkd"], "seeds": [0, 1], "epochs": 1,
         "ablations": ["within_only"],
         "group_counts": [1, 3], "pairs": ["resnet8-resnet8"]}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory, forked):
    study = Study(outputs=tmp_path_factory.mktemp("outputs"), name="small", **SMALL)
    study.make(jobs=2, quiet=True)
    return study


def names(study, part=None):
    return {identity(spec) for _, spec in study.specs(part)}


def test_the_quick_study_is_a_teacher_and_a_hundred_students():
    values = load_parameters(Path(__file__).parent.parent / "params" / "quick.yaml")
    study = Study(**values.model_dump())
    assert {part: len(names(study, part)) for part in PARTS} == {
        "teachers": 1, "distillation": 40, "ablations": 25, "group_count": 20,
        "sweep": 45}  # fmt: skip
    # kd and ltkd of the ablation, and ltkd with 3 groups, are runs of the distillation part;
    # three of the nine settings of the sweep are cells of the ablation
    assert len(with_teachers([spec for _, spec in study.specs()])) == 1 + 40 + 15 + 15 + 30


def test_a_student_of_two_pairs_counts_once(tmp_path, forked):
    pairs = {"pairs": ["resnet8-resnet8", "resnet20-resnet8"], "methods": ["student", "kd"]}
    study = Study(outputs=tmp_path, name="two", **(SMALL | pairs | {"seeds": [0]}))
    study.make([spec for _, spec in study.specs("distillation")], jobs=2, quiet=True)
    frame = study.results("distillation")
    assert sorted(frame.method) == ["kd", "kd", "student"]
    for _, runs in tables.settings(study, "distillation"):
        assert sorted(runs.method) == ["kd", "student"]
    specs, rows = study.row_of("student")
    assert (len(specs), len(rows)) == (1, 1)


def test_the_schedule_that_a_page_states_is_the_runs_own():
    pairs = ["resnet8-resnet8", "resnet8-mobilenetv2"]  # the second trains at a fifth of the rate
    study = Study(**SMALL | {"pairs": pairs, "dataset": "cifar100", "lr": 0.05})
    rates = {learning_rate(s, 50, 200) for _, s in study.specs("distillation")}  # the peak's step
    stated = sorted({s.peak_lr for _, s in study.specs("distillation")})
    assert stated == pytest.approx([0.01, 0.05])
    assert max(rates) == pytest.approx(0.05, rel=0.01)
    assert min(rates) < 0.0101
    small = Study(dataset="imagenet", pairs=["resnet34_imagenet-resnet18_imagenet"],
                  methods=["kd", "reviewkd"], schedule="steps")  # fmt: skip
    of = {spec.method: spec for _, spec in small.specs("distillation")}
    assert (of["kd"].batch, of["kd"].lr, of["reviewkd"].batch, of["reviewkd"].lr) == (
        512,
        0.2,
        256,
        0.1,
    )
    assert of["kd"].teacher_spec == of["reviewkd"].teacher_spec


def test_adding_a_method_or_moving_a_folder_changes_no_run(tmp_path):
    few = Study(**SMALL)
    more = Study(**(SMALL | {"methods": ["balanced_softmax", *SMALL["methods"]], "device": "cpu",
                             "data_root": str(tmp_path)}), outputs=tmp_path)  # fmt: skip
    assert names(few) < names(more)


def test_overrides_go_where_they_belong():
    study = Study(**SMALL, alpha=2, temperature=3, method_args={"kd": {"ce_weight": 0.5}})
    by_method = {spec.method: spec.method_args for _, spec in study.specs("distillation")}
    assert by_method["kd"] == {"ce_weight": 0.5, "kd_weight": 0.9, "temperature": 3.0}
    assert by_method["ltkd"]["alpha"] == 2.0
    assert by_method["student"] == {}


def test_every_run_has_the_studys_parameters():
    given = {"split_seed": 3, "holdout": 2, "threads": 2, "eval_every": 3, "clip_norm": 1.5,
             "precision": "bf16", "schedule": "steps"}  # fmt: skip
    study = Study(**(SMALL | given | {"batch": 24, "lr": 0.07, "groups": 4}), teacher_seed=5,
                  sweep={"ltkd": [{"alpha": [2.0]}]})  # fmt: skip
    specs = study.runs()
    assert {spec.method for spec in specs} == {"teacher", "student", "kd", "ltkd"}
    for spec in specs:
        about = spec.model_dump()
        own = {"epochs": 1, "batch": 24, "lr": 0.07, "gamma": 20.0, "dataset": "digits"}
        assert {key: about[key] for key in (*given, *own)} == given | own
        assert spec.teacher_seed == (5 if spec.teacher else 0)
        assert spec.method != "teacher" or spec.seed == 5
    assert {s.groups for _, s in study.specs("distillation") if s.method == "ltkd"} == {4}


@pytest.mark.parametrize("own", [{"split_seed": 1}, {"holdout": 3}], ids=str)
def test_a_run_and_its_study_have_the_images_that_are_asked_for(own, tiny, tmp_path):
    asked, plain = load_data("digits", 20.0, **own), load_data("digits", 20.0)
    drawn = hashlib.sha256(asked.indices.astype("<i8").tobytes()).hexdigest()
    assert asked.indices.tolist() != plain.indices.tolist()
    about = run(tiny(epochs=1, **own), outputs=tmp_path).values["data"]
    assert about["split_sha256"] == drawn
    assert about["counts"] == asked.counts.tolist()
    assert about["test_counts"] == asked.test_labels.bincount().tolist()
    kept = np.load(tmp_path / "splits" / f"{drawn[:16]}.npy", allow_pickle=False)
    assert kept.tolist() == asked.indices.tolist()
    study = Study(outputs=tmp_path, **(SMALL | own))
    for found in (study.data(), study.data(20.0)):
        assert found.indices.tolist() == asked.indices.tolist()
        assert torch.equal(found.test_images, asked.test_images)
        assert found.test_labels.tolist() == asked.test_labels.tolist()
    assert study.size(20.0).counts == asked.counts.tolist()
    assert study.size(20.0).tests == len(asked.test_labels)


def test_a_split_of_its_own_goes_with_held_out_images(tmp_path):
    """Which are drawn by the split's seed, too: three images a class, thirty in all."""
    own = {"split_seed": 1, "holdout": 3}
    found = Study(outputs=tmp_path, **(SMALL | own)).data()
    assert found.test_labels.bincount().tolist() == [3] * 10
    others = [load_data("digits", 20.0, **(own | {key: 0})) for key in own]
    for other in others:
        assert not torch.equal(found.test_images, other.test_images)
    assert torch.equal(found.test_images, load_data("digits", 20.0, **own).test_images)


def test_results_are_a_row_a_run_with_macro_means(study):
    frame = study.results("distillation")
    assert len(frame) == 6
    assert frame["run"].is_unique
    row = frame[(frame.method == "ltkd") & (frame.seed == 1)].iloc[0]
    per_class = study.per_class("distillation")
    own = per_class[per_class.run == row["run"]]
    assert np.isclose(row["tail"], own[own.group == 2].accuracy.mean())
    truth = study.data().test_labels.numpy()
    hit = study.predictions("distillation")[row["run"]] == truth
    assert np.isclose(row["all"], 100 * hit.mean())
    assert np.isclose(own.set_index("class_id").accuracy[3], 100 * hit[truth == 3].mean())
    assert row["pair"] == "ResNet8-ResNet8"
    assert len(study.learning_curves("distillation")) == 6
    assert study.missing().empty
    assert set(study.results("ablations").variant) == {"within_only"}
    assert sorted(set(study.results("group_count").n_groups)) == [1, 3]


def test_rows_and_curves_of_a_history_by_hand(monkeypatch):
    # Classes 1 and 3 are the head, 2 and 5 the medium, 0 and 4 the tail. Epoch 4 is the best.
    about = {"counts": [3, 60, 20, 50, 2, 10], "test_counts": [10, 20, 10, 40, 5, 15]}
    evaluated = {2: [0, 20, 0, 30, 0, 0], 4: [5, 18, 8, 24, 1, 6], 6: [4, 19, 6, 26, 0, 3]}
    losses = ("loss", "label_loss", "distillation_loss")
    history = [{"epoch": e} | {name: e + k / 4 for k, name in enumerate(losses)}
               | ({"correct": evaluated[e]} if e in evaluated else {})
               for e in range(1, 7)]  # fmt: skip
    values = {"run": "x", "data": about, "history": history, "teacher_sha256": None,
              "seconds": 1.0, "device": "cpu", "hardware": "a machine"}  # fmt: skip
    study = Study(**SMALL)
    (_, spec), *_ = study.specs("distillation")
    record = RunRecord(spec, values, Path())
    monkeypatch.setattr(study, "_records", lambda part: [("", record)])
    (row,) = study.results("distillation").to_dict("records")
    assert row["best_epoch"] == 4
    own = {"all": 58, "head": (95 + 65) / 2, "medium": (60 + 20) / 2, "tail": (40 + 0) / 2}
    best = {"all": 62, "head": (90 + 60) / 2, "medium": (80 + 40) / 2, "tail": (50 + 20) / 2}
    expected = own | {f"best_{metric}": value for metric, value in best.items()}
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    # Each epoch has its own losses, and its own accuracies where it was evaluated.
    curves = study.learning_curves("distillation").set_index("epoch")
    assert curves.index.tolist() == [1, 2, 3, 4, 5, 6]
    for k, name in enumerate(losses):
        assert curves[name].tolist() == [e + k / 4 for e in range(1, 7)]
    first = {"all": 50, "head": (100 + 75) / 2, "medium": 0, "tail": 0}
    for epoch, wanted in {2: first, 4: best, 6: own}.items():
        assert curves.loc[epoch, list(wanted)].to_dict() == pytest.approx(wanted)
    assert curves.loc[[1, 3, 5], list(own)].isna().all(axis=None)


def test_the_teacher_and_its_logits(study):
    model, record = study.teacher(Pair("resnet8", "resnet8"))
    logits = study.logits(model, study.data().test_images)
    assert logits.shape == (596, 10)
    seen = (logits.argmax(1) == study.data().test_labels).sum().item()
    assert seen == sum(record["history"][-1]["correct"])


def test_the_teachers_logits_are_computed_once_and_damage_is_seen(study, monkeypatch):
    pair, data = Pair("resnet8", "resnet8"), study.data()
    model, record = study.teacher(pair)
    sets = {"train": (data.train_images, data.train_labels),
            "test": (data.test_images, data.test_labels)}  # fmt: skip
    for part, (images, labels) in sets.items():
        logits, told = study.teacher_logits(pair, part)
        assert torch.equal(logits, study.logits(model, images))
        assert torch.equal(told, labels)
    asked = []

    def last(model, images):
        asked.append(len(images))
        return logits[-1:]

    monkeypatch.setattr(study, "logits", last)
    assert torch.equal(study.teacher_logits(pair, "test")[0], logits)
    assert asked == []
    kept = study.folder / "tables" / f"{record['run']}-{record['model_sha256'][:12]}"
    path = kept / "test_images.npy"
    raw = bytearray(path.read_bytes())
    raw[-9] ^= 1  # a bit of the last image's logits
    path.write_bytes(raw)
    assert torch.equal(study.teacher_logits(pair, "test")[0], logits)
    assert asked == [1]

    def unwritable(*given):
        raise PermissionError("read-only")

    monkeypatch.setattr("ltkd.study.Table", unwritable)
    computed = logits[-1:].expand_as(logits)  # ``last`` answers each image so
    assert torch.equal(study.teacher_logits(pair, "test")[0], computed)
    assert asked == [1, len(data.test_labels)]


def test_the_manifest_names_everything_and_seals_itself(study, monkeypatch):
    from ltkd.files import canonical, hardware, sha256

    study.results("distillation")
    manifest = study.manifest("03_distillation")
    body = {k: v for k, v in manifest.items() if k != "seal"}
    assert manifest["seal"] == sha256(canonical(body))
    assert manifest["data"]["train_images"] == {"20": 390}
    assert len(manifest["records"]) >= 7
    assert "data_root" not in manifest["parameters"]
    # A report may be made elsewhere than its runs were: both machines are named.
    record = next(iter(study._used.values()))
    monkeypatch.setitem(record.values, "hardware", "the machine of the runs")
    elsewhere = study.manifest("03_distillation")
    assert "the machine of the runs" in elsewhere["hardware"]
    assert elsewhere["executed_on"] == hardware()
    alone = Study(**SMALL).manifest("00_data")
    assert (alone["hardware"], alone["device"], alone["executed_on"]) == ("", "", hardware())


def test_from_notebook_takes_parameters_and_refuses_strangers():
    cell = {
        "name": "x1",
        "seeds": [4],
        "Study": Study,
        "np": np,
        "_": 3,
        "In": [],
        "exit": object(),
    }
    study = Study.from_notebook(cell)
    assert study.parameters.seeds == [4]
    with pytest.raises(ParameterError, match=r"seedz: unknown key\. Did you mean 'seeds'"):
        Study.from_notebook(cell | {"seedz": [1]})
    for own in ("outputs", "source"):  # of Study itself, not of the schema
        with pytest.raises(ParameterError, match=f"{own}: unknown key"):
            Study.from_notebook(cell | {own: "x"})


def test_a_page_that_runs_again_in_one_kernel_is_no_other_study():
    cells = ['name: str = "x1"\nseeds: list = [4]', "study = ...", "tau = 4.0\nrows = {}"]
    left = {"name": "x1", "seeds": [4], "tau": 4.0, "rows": {}, "study": object()}
    again = left | {"In": ["", *cells, *cells[:2]]}
    assert Study.from_notebook(again).parameters.seeds == [4]
    added = cells[0] + "\nseedz: list = [1]"
    injected = "# Parameters\nseedz = [1]"
    for now in ([added, cells[1]], [cells[0], injected, cells[1]]):
        with pytest.raises(ParameterError, match=r"seedz: unknown key"):
            Study.from_notebook(left | {"seedz": [1], "In": ["", *cells, *now]})
    # An own hand at the cell: a comment on top, and no annotation.
    for own in ('# mine\nname: str = "x1"\nseedz: list = [1]', 'name = "x1"\n\nseedz = [1]'):
        with pytest.raises(ParameterError, match=r"seedz: unknown key"):
            Study.from_notebook(left | {"seedz": [1], "In": ["", *cells, own, cells[1]]})
    plain = 'name = "x1"\nseeds = [4]'
    assert Study.from_notebook(left | {"In": ["", *cells, plain, cells[1]]}).name == "x1"
    # What papermill injects goes over the cell, and a name of the user's own is no such cell.
    named = [cells[0], '# Parameters\nname = "x2"', cells[1], 'name = "y"']
    again = Study.from_notebook(left | {"name": "x2", "In": ["", *named]})
    assert (again.name, again.parameters.seeds) == ("x2", [4])


def test_only_the_studys_own_factors_give_data(study):
    assert study.data(20.0).gamma == 20.0
    with pytest.raises(ValueError, match=r"gamma = 50.0: not of this study; allowed: \[20.0\]"):
        study.data(50.0)


def test_a_cell_of_the_ablation_is_what_it_is_called(tmp_path):
    own = {"method_args": {"ltkd": {"rebalance": False}}, "ablations": list(ABLATIONS)}
    study = Study(outputs=tmp_path, name="own", **(SMALL | own))
    kept = {cell: spec.method_args["rebalance"] for cell, spec in study.specs("ablations")
            if spec.method == "ltkd" and cell != "within_only"}  # fmt: skip
    assert kept == {"cross_biased": False, "cross_rebalanced": True, "cross_and_within": True}


def test_titles_tell_settings_apart(tmp_path):
    values = load_parameters(Path(__file__).parent.parent / "params" / "cifar100_lt_short.yaml")
    study = Study(outputs=tmp_path, **values.model_dump())
    titles = [spec.title for spec in study.runs()]
    assert len(set(titles)) == len(titles) == 82
    assert "ltkd vgg13-vgg8 gamma 100 seed 0, temperature 2" in titles
    assert "ltkd vgg13-vgg8 gamma 100 seed 2, n = 10" in titles
    assert "teacher vgg13 gamma 100 seed 0" in titles


def test_one_failed_run_stops_no_other_and_is_said(tmp_path, forked):
    bad = SMALL | {
        "epochs": 2,
        "methods": ["student", "kd"],
        "seeds": [0],
        "ablations": [],
        "group_counts": [],
    }
    study = Study(outputs=tmp_path, name="bad", **bad, method_args={"kd": {"kd_weight": 1e4}})
    out = study.make(jobs=1, quiet=True)
    assert len(out.records) == 3
    missing = study.missing("distillation")
    assert "the loss is" in missing.set_index("method").reason["kd"]
    assert "kd" not in set(study.results("distillation").method)


def test_a_run_that_failed_is_not_tried_at_every_look(tmp_path, forked, monkeypatch):
    study = Study(outputs=tmp_path, name="x", **(SMALL | {"seeds": [0]}))
    tried = []

    def fails(specs, *_, **__):
        tried.extend(spec.method for spec in specs)
        return pool.Outcome(failed={identity(spec): "killed" for spec in specs})

    monkeypatch.setattr("ltkd.study.pool.make", fails)
    for look in (study.results, study.learning_curves, study.per_class, study.predictions):
        assert len(look("distillation")) == 0
    assert sorted(tried) == ["kd", "ltkd", "student"]
    assert len(study.missing("distillation")) == 3
    study.make()  # asked for by name they are
    assert len(tried) > 3
    monkeypatch.undo()
    study.make(jobs=2, quiet=True)  # this time they come to an end
    assert len(study.results("distillation")) == 3
    assert study.missing().empty


def test_a_page_does_not_try_again_what_has_failed(tmp_path, monkeypatch):
    first = Study(outputs=tmp_path, name="x", **(SMALL | {"seeds": [0]}))
    lost = {identity(spec): "killed" for spec in first.runs()}
    monkeypatch.setattr("ltkd.study.pool.make", lambda *_, **__: pool.Outcome(failed=lost))
    first.make()
    (tmp_path / "failed.json").write_text(json.dumps(first.failed))
    monkeypatch.setenv("LTKD_FAILED", str(tmp_path / "failed.json"))
    monkeypatch.setattr(
        "ltkd.study.pool.make", lambda specs, *_, **__: pool.Outcome() if not specs else 1 / 0
    )
    page = Study(outputs=tmp_path, name="x", **(SMALL | {"seeds": [0]}))
    assert len(page.results("distillation")) == 0
    assert set(page.missing()["reason"]) == {"killed"}
    with pytest.raises(RuntimeError, match="killed"):
        page.teachers()
    with pytest.raises(RuntimeError, match="killed"):
        page.teacher()


def test_students_of_another_teacher_stand_beside_it_in_no_table(tmp_path, study):
    shutil.copytree(study.folder, tmp_path / "small")
    again = Study(outputs=tmp_path, name="small", **SMALL)
    spec = next(spec for _, spec in again.specs("distillation") if spec.method == "kd")
    path = again.store.run_folder(spec) / "record.json"
    values = files.unsealed(json.loads(path.read_text()))
    path.write_text(json.dumps(files.sealed(values | {"teacher_sha256": "f" * 64})))
    left = again.results("distillation")
    assert identity(spec) in set(study.results("distillation")["run"]) - set(left["run"])
    assert len(left) == 5
    (row,) = again.missing().to_dict("records")
    there = study.results("distillation").set_index("method")["teacher_sha256"]["ltkd"].iloc[0]
    assert row["run"] == identity(spec)
    teacher = identity(spec.teacher_spec)
    for text in (f"another teacher (sha256 {'f' * 12}) than the one that is there ({there})",
                 f"put runs/{teacher} and teachers/{teacher}.safetensors of that one back",
                 f"remove runs/{identity(spec)} to make the run anew"):  # fmt: skip
        assert text in row["reason"]
    assert len(again.row_of("kd")[1]) == 1
    assert list(again.there(again.runs()).failed) == [identity(spec)]


def test_a_teacher_that_diverged_leaves_a_hole_and_says_why(tmp_path, forked):
    study = Study(outputs=tmp_path, name="x", **SMALL, lr=1e4, schedule="steps")
    assert study.results("teachers").empty
    for ask in (study.teacher, study.teachers):
        with pytest.raises(RuntimeError, match=r"the loss is"):
            ask()


def test_a_page_is_stale_when_curves_come(tmp_path, study):
    shutil.copytree(study.folder, tmp_path / "small")
    again = Study(outputs=tmp_path, name="small", **SMALL)
    before = again.inputs("03_distillation")
    networks = list((tmp_path / "small").rglob("model.safetensors"))
    for network in networks:
        network.rename(network.with_suffix(".away"))
    assert networks
    assert again.inputs("03_distillation") != before
    for network in networks:
        network.with_suffix(".away").rename(network)
    assert again.inputs("03_distillation") == before


def test_a_report_is_fresh_only_whole_and_of_these_runs_and_parameters(tmp_path):
    name, given = "03_distillation", SMALL | {"outputs": tmp_path, "name": "small"}
    study, reports = Study(**given), tmp_path / "small/reports"
    page, manifest = reports / f"{name}.html", reports / f"{name}.manifest.json"
    reports.mkdir(parents=True)
    page.write_text("whole")
    assert not build.fresh(study, name)
    sealed = {"inputs": study.inputs(name), "files": {page.name: files.sha256(page)}}
    manifest.write_text(json.dumps(sealed))
    assert build.fresh(study, name)
    assert not build.fresh(study, "04_ablations")
    for other in ({"seeds": [0, 1, 2]}, {"alpha": 2.0}):
        assert not build.fresh(Study(**given | other), name)
    page.write_text("hole.")
    assert not build.fresh(study, name)
    page.unlink()
    assert not build.fresh(study, name)
    manifest.write_text(json.dumps(sealed | {"files": {}}))
    assert not build.fresh(study, name)


def test_notebooks_look_for_data_where_the_command_was_given(tmp_path, study, monkeypatch):
    """They run in a folder of their own, where a relative LTKD_DATA would be another one."""
    seen, pages = {}, sorted(NOTEBOOKS.glob("*.ipynb"))
    monkeypatch.setattr(build, "execute_all", lambda *_, env, **__: seen.update(env) or [])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LTKD_DATA", "here")
    shutil.copytree(study.folder, "there/small")  # its runs are not made anew
    build.build(Study(outputs="there", name="small", **SMALL), pages, {})
    there = {"LTKD_DATA": str(tmp_path / "here"), "LTKD_OUTPUTS": str(tmp_path / "there")}
    assert Path(seen.pop("LTKD_FAILED")).name == "failed.json"
    assert Path(seen.pop("LTKD_INPUTS")).name == "inputs.json"
    assert seen == there


def test_one_study_at_a_time_writes_the_index_of_all(tmp_path, study, monkeypatch):
    held, lock = [], tmp_path / "index.lock"
    monkeypatch.setattr(build, "execute_all", lambda *_, **__: [])
    monkeypatch.setattr(build.page, "write_studies_index", lambda _: held.append(lock.exists()))
    shutil.copytree(study.folder, tmp_path / "small")
    again = Study(outputs=tmp_path, name="small", **SMALL)
    pages = sorted(NOTEBOOKS.glob("*.ipynb"))
    build.build(again, pages, {})
    assert held == [True]
    assert not lock.exists()


def test_a_failure_that_a_good_report_refutes_is_forgotten(tmp_path, study, monkeypatch):
    monkeypatch.setattr(build, "execute_all", lambda *_, **__: [])
    monkeypatch.setattr(build, "fresh", lambda _, name: name == "03_distillation")
    shutil.copytree(study.folder, tmp_path / "small")
    reports = tmp_path / "small/reports"
    reports.mkdir(exist_ok=True)
    for name in ("03_distillation", "04_ablations"):
        (reports / f"{name}.failed.html").touch()
    pages = sorted(NOTEBOOKS.glob("*.ipynb"))
    build.build(Study(outputs=tmp_path, name="small", **SMALL), pages, {})
    assert [path.name for path in reports.glob("*.failed.*")] == ["04_ablations.failed.html"]
    assert "03_distillation.failed" not in (tmp_path / "small/index.html").read_text()


def test_another_split_is_said_on_the_pages(tmp_path):
    first, second = (Study(outputs=tmp_path, split_seed=seed, **SMALL) for seed in (0, 3))
    assert first.drawn == "imbalance factor 20"
    assert second.drawn == "imbalance factor 20, split seed 3"
    assert "imbalance factor 20, split seed 3" in second._repr_html_()


def test_a_sweep_compares_settings_of_methods(tmp_path, forked):
    grid = {"ltkd": [{"alpha": [1, 2], "beta": [1, 4]}, {"temperature": 2}],
            "kd": [{"ce_weight": [0.5]}]}  # fmt: skip
    study = Study(outputs=tmp_path, name="sweep", **(SMALL | {"seeds": [0]}), sweep=grid)
    found = [(label, spec.method_args) for label, spec in study.specs("sweep")]
    assert [label for label, _ in found] == [
        "LTKD, alpha 1, beta 1", "LTKD, alpha 1, beta 4", "LTKD, alpha 2, beta 1",
        "LTKD, alpha 2, beta 4", "LTKD, temperature 2", "KD, ce_weight 0.5"]  # fmt: skip
    assert (found[3][1]["alpha"], found[3][1]["beta"], found[4][1]["temperature"]) == (2, 4, 2)
    ids = {identity(spec) for _, spec in study.specs("sweep")}
    assert len(ids) == 6
    assert len(ids & {identity(s) for _, s in study.specs("distillation")}) == 1  # LTKD at 1, 1
    study.make([spec for _, spec in study.specs("sweep")], jobs=2, quiet=True)
    ((_, runs),) = tables.settings(study, "sweep")
    assert runs["variant"].tolist() == [label for label, _ in found]
    assert set(runs.loc[runs["method"] == "ltkd", "alpha"]) == {1.0, 2.0}
    plane = tables.plane(runs)  # neither the other temperature's cell nor KD's
    assert plane["variant"].tolist() == [label for label, _ in found[:4]]
    assert tables.plane(runs[runs["alpha"] != 2]).empty


def test_each_value_in_a_sweeps_list_is_checked():
    with pytest.raises(ParameterError, match="temperature = 0"):
        Study(**SMALL, sweep={"kd": [{"temperature": [4, 0]}]})


def test_a_table_is_made_where_it_fits_and_pays():
    def sources(**given):
        study = Study(**(SMALL | {"methods": ["kd", "catkd", "reviewkd"]} | given))
        return [spec.teacher_source for _, spec in study.specs("distillation")][:3]

    assert sources(epochs=24) == ["table", "live", "live"]  # of 25 views
    assert sources(epochs=24, seeds=list(range(9))) == ["table", "live", "live"]  # the same runs
    assert sources(epochs=25) == ["table", "table", "live"]
    assert sources(epochs=25, teacher_source="live") == ["live"] * 3
    # 390 images x 25 views x (10 logits or 10 x 4 values in fp16, and 4 bytes)
    assert sources(epochs=25, table_gb=390 * 25 * 24 / 1e9) == ["table", "live", "live"]
    assert sources(epochs=25, table_gb=390 * 25 * 23 / 1e9) == ["live"] * 3


def test_pairs_of_a_part_are_all_where_none_are_named_and_none_where_the_list_is_empty():
    study = Study(**SMALL)
    assert all(study.specs(part) for part in ("ablations", "group_count"))
    none = Study(**SMALL, ablation_pairs=[], group_pairs=[], sweep={"ltkd": [{"alpha": 2.0}]})
    assert not any(none.specs(part) for part in ("ablations", "group_count", "sweep"))
    assert len(none.specs("distillation")) == len(study.specs("distillation"))


def test_unknown_part():
    with pytest.raises(ValueError, match=r"part = 'teacher': unknown\. Did you mean 'teachers'"):
        Study(**SMALL).specs("teacher")


def test_only_the_recipe_on_the_test_set_is_named_as_the_papers_schedule(tmp_path):
    def named(**given):
        return Study(outputs=tmp_path, **(SMALL | {"schedule": "steps"} | given)).schedule

    assert named() == "steps"
    assert named(lr=0.1) == named(batch=16) == named(clip_norm=5) == "steps, own values"
    assert named(lr=0.05) == named(batch=32) == "steps"  # of the recipe of digits, written out
    assert named(holdout=2) == "steps, held-out images"
    assert named(temperature=4.0) == "steps"
    theirs = {"dataset": "imagenet", "pairs": ["resnet34_imagenet-resnet18_imagenet"]}
    assert named(**theirs) == "steps"
    assert named(**theirs, temperature=4.0) == "steps, own values"  # KD, DKD and DIST have 1 there
    assert named(schedule="one_cycle", lr=0.1) == "one_cycle"


def test_the_cifar_study_is_the_shipped_one(tmp_path):
    p = load_parameters(Path(__file__).parent.parent / "params" / "cifar100_lt_quick.yaml")
    study = Study(outputs=tmp_path, **p.model_dump())
    specs = with_teachers([spec for _, spec in study.specs()])
    assert len(specs) == 1 + 3 * (14 + 3 + 1)  # teacher; methods, own ablation cells, n = 10
    assert p.epochs <= 8


ROOT = Path(__file__).resolve().parent.parent


def committed():
    """Where records are committed, and their names: {folder of a study: {run}}."""
    asked = ["git", "ls-files", "outputs"]
    listed = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    found = {}
    for path in map(Path, listed):
        if path.name == "record.json":
            found.setdefault(str(path.parents[2]), set()).add(path.parent.name)
    return found


COMMITTED = committed()


def read(folder):
    """The records of a study's folder as they are: the store would set a damaged one aside."""
    paths = (ROOT / folder / "runs" / run / "record.json" for run in COMMITTED[folder])
    return {path.parent: json.loads(path.read_text()) for path in paths}


def test_every_committed_study_is_looked_at():
    if not COMMITTED:
        pytest.skip("not a git checkout")
    assert {f"outputs/cifar100_lt{name}" for name in (
        "", "_quick", "_short", "_split1", "_split2", "_tune")} <= set(COMMITTED)  # fmt: skip
    assert sum(map(len, COMMITTED.values())) >= 272


@pytest.mark.parametrize("folder", COMMITTED)
def test_the_committed_records_are_whole(folder):
    found = read(folder)
    teachers = {values["run"]: values["model_sha256"] for values in found.values()
                if values["spec"]["method"] == "teacher"}  # fmt: skip
    for place, values in found.items():
        files.unsealed(values)
        spec = RunSpec(**values["spec"])
        assert identity(spec) == place.name == values["run"]
        for name, digest in values["files"].items():
            assert hashlib.sha256((place / name).read_bytes()).hexdigest() == digest, place / name
        if (place / "adjusted.json").exists():
            curve = files.unsealed(json.loads((place / "adjusted.json").read_text()))
            assert curve["model_sha256"] == values["model_sha256"]
        if spec.teacher:
            assert values["teacher_sha256"] == teachers[identity(spec.teacher_spec)]
        split = values["data"]["split_sha256"]
        kept = np.load(ROOT / folder / "splits" / f"{split[:16]}.npy", allow_pickle=False)
        assert hashlib.sha256(kept.astype("<i8").tobytes()).hexdigest() == split
    for name, digest in teachers.items():
        network = ROOT / folder / "teachers" / f"{name}.safetensors"
        assert hashlib.sha256(network.read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("folder", [f for f in COMMITTED if (ROOT / f / "runs.csv").exists()])
def test_the_committed_table_is_that_of_the_records(folder):
    table = pd.read_csv(ROOT / folder / "runs.csv", keep_default_na=False)
    found = {values["run"]: values for values in read(folder).values()}
    assert set(table["run"]) == {run for run, v in found.items() if v["status"] == "done"}
    for row in table.to_dict("records"):
        values = found[row["run"]]
        spec, about = values["spec"], values["data"]
        assert [row[key] for key in ("method", "student", "seed", "epochs", "holdout")] == [
            spec["method"], spec["student"], spec["seed"], spec["epochs"], spec.get("holdout", 0)
        ]  # fmt: skip
        assert about["counts"] == sorted(about["counts"], reverse=True)  # a class's id is its rank
        right, of = np.array(values["history"][-1]["correct"]), np.array(about["test_counts"])
        groups = np.split(right / of, [33, 67])  # head, medium, tail
        expected = [right.sum() / of.sum(), *(group.mean() for group in groups)]
        shown = [row[name] for name in ("all", "head", "medium", "tail")]
        assert shown == pytest.approx([100 * part for part in expected], abs=1e-4)


def test_the_committed_records_saw_the_images_of_their_split(cifar100):
    cases = [item for folder in COMMITTED for item in read(folder).items()]

    def which(spec):
        return spec["gamma"], spec["split_seed"], spec.get("holdout", 0)

    sets, drawn = {which(values["spec"]) for _, values in cases}, {}
    for one in sets:
        data = load_data("cifar100", one[0], split_seed=one[1], holdout=one[2])
        digest = hashlib.sha256(data.indices.astype("<i8").tobytes()).hexdigest()
        drawn[one] = digest, data.counts.tolist(), data.test_labels.numpy()
    assert len({digest for digest, *_ in drawn.values()}) == len(sets)
    for place, values in cases:
        spec, about = values["spec"], values["data"]
        assert spec["dataset"] == "cifar100"
        split, counts, truth = drawn[which(spec)]
        assert (about["split_sha256"], about["counts"]) == (split, counts)
        assert about["test_counts"] == np.bincount(truth).tolist()
        if values["status"] == "done":
            told = np.load(place / "predictions.npy", allow_pickle=False)
            hit = np.bincount(truth[told == truth], minlength=len(counts))
            assert hit.tolist() == values["history"][-1]["correct"], place


@pytest.mark.parametrize("name", ["quick", "short", "split1", "split2", "tune"])
def test_the_committed_records_are_what_the_parameter_file_asks_for(name, tmp_path):
    p = load_parameters(ROOT / "params" / f"cifar100_lt_{name}.yaml")
    study = Study(outputs=tmp_path, **p.model_dump())
    table = pd.read_csv(ROOT / "outputs" / p.name / "runs.csv", keep_default_na=False)
    for part in PARTS:
        asked = dict.fromkeys((variant, identity(spec)) for variant, spec in study.specs(part))
        rows = table.loc[table["part"] == part, ["variant", "run"]]
        assert [*map(tuple, rows.to_numpy().tolist())] == [*asked]


def test_the_committed_student_is_that_of_its_card():
    card = (ROOT / "outputs/cifar100_lt/best/README.md").read_text()
    network = hashlib.sha256((ROOT / "outputs/cifar100_lt/best/model.safetensors").read_bytes())
    assert re.findall(r"Weights: safetensors, sha256 ([0-9a-f]{64})", card) == [network.hexdigest()]
    (name,) = re.findall(r"Run `([0-9a-f]{16})`", card)
    values = json.loads((ROOT / "outputs/cifar100_lt/runs" / name / "record.json").read_text())
    assert values["model_sha256"] == network.hexdigest()
    assert f"(sha256 {values['data']['split_sha256'][:16]})" in card
    (shown,) = re.findall(r"this network \| (.*) \|$", card, re.MULTILINE)
    right = np.array(values["history"][-1]["correct"])  # of a hundred test images of each class
    parts = [right.sum() / 100, *(group.mean() for group in np.split(right, [33, 67]))]
    assert shown == " | ".join(f"{part:.1f}" for part in parts)


def test_runs_of_other_parameters_follow_in_the_table_without_a_part(study, tmp_path):
    shutil.copytree(study.folder, tmp_path / "small")
    (tmp_path / "small/runs" / ("0" * 16)).mkdir()
    (tmp_path / "small/runs" / ("0" * 16) / "record.json").write_text("{}")
    less = Study(outputs=tmp_path, name="small", **SMALL | {"seeds": [0], "ablations": []})
    build.write_runs(less)
    table = pd.read_csv(less.folder / "runs.csv", keep_default_na=False).set_index("run")
    own, rest = (table[table["part"] != ""], table[table["part"] == ""])
    assert set(own.index) == names(less)
    assert set(rest.index) == names(study) - names(less)
    told = pd.concat([study.results(part) for part in PARTS]).drop_duplicates("run")
    told = told.set_index("run").loc[rest.index]
    assert np.allclose(rest[["all", "tail"]], told[["all", "tail"]], atol=1e-4)


def test_three_hundred_runs_are_read_once_each_and_chosen_without_a_search(tmp_path, monkeypatch):
    record = run(load.study(tmp_path, 4).specs("distillation")[0][1], outputs=tmp_path / "a")
    first, second = (load.study(tmp_path, 300) for _ in range(2))
    monkeypatch.setattr(pool, "ProcessPoolExecutor", load.AtOnce(first.store, record))
    reads, looks = Counter(), Counter()
    read_text, teacher_of, choose = Path.read_text, RunSpec.teacher_spec, pool._next
    choosing = []

    def counted(path, *args, **kwargs):
        reads[path] += path.name == "record.json"
        return read_text(path, *args, **kwargs)

    def looked(spec):  # one with a teacher: any other is chosen as soon as it is looked at
        looks[identity(spec)] += bool(choosing)
        return teacher_of.fget(spec)

    def chosen(*given):
        choosing.append(1)
        try:
            return choose(*given)
        finally:
            choosing.pop()

    monkeypatch.setattr(Path, "read_text", counted)
    monkeypatch.setattr("os.fsync", lambda _: None)  # a busy disk's time is not asked for
    monkeypatch.setattr(RunSpec, "teacher_spec", property(looked))
    monkeypatch.setattr(pool, "_next", chosen)
    assert len(first.make(quiet=True, jobs=2).records) == 301
    assert set(looks) >= {identity(s) for _, s in first.specs("distillation") if s.teacher}
    assert max(looks.values()) <= 4
    reads.clear()
    out = second.make(quiet=True)
    load.report(second)
    assert len(out.records) == 301
    (teacher,) = {second.store.run_folder(spec) for _, spec in second.specs("teachers")}
    once = [n for path, n in reads.items() if n and path.parent != teacher]
    assert once == [1] * 300
    assert len(second.results("distillation")) == 300
