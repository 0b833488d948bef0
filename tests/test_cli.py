"""The command line: exit codes, budget, messages; nothing done twice."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import pytest

from ltkd import Study, cli, files, load_model, params
from ltkd.files import sealed, unsealed
from ltkd.methods import METHODS
from ltkd.prior import TAUS
from ltkd.report import build, curves
from ltkd.report.intervals import Interval
from ltkd.runs import identity

SPEC = """dataset: digits
gamma: 20
student: resnet8
method: student
epochs: {}
schedule: one_cycle
"""
TINY = "name: tiny\nseeds: [0]\nepochs: 1\nablations: [baseline]\ngroup_counts: [3]\n"
LTKD = [sys.executable, "-m", "ltkd.cli"]


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text(SPEC.format(2))
    return path


def call(*arguments):
    return subprocess.run(
        [*LTKD, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


def test_train_makes_a_record_and_the_second_call_makes_nothing(spec, tmp_path):
    first = call("train", spec, "--outputs", tmp_path)
    assert first.returncode == 0, first.stderr
    assert re.search(r"student resnet8 gamma 20 seed 0: \d+\.\d\d % test accuracy", first.stdout)
    assert "epoch 2/2" in first.stderr  # a line an epoch where there is no terminal
    again = call("train", spec, "--outputs", tmp_path)
    assert again.stdout == first.stdout
    assert again.stderr == ""


def test_a_spent_budget_exits_75_and_the_next_call_goes_on(tmp_path):
    path = tmp_path / "long.yaml"
    path.write_text(SPEC.format(60))
    cut = call("train", path, "--outputs", tmp_path, "--budget", "6s")
    assert cut.returncode == 75, cut.stderr
    assert "the same command goes on from here" in cut.stdout
    done = call("train", path, "--outputs", tmp_path)
    assert done.returncode == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, number, code):
    path = tmp_path / "long.yaml"
    path.write_text(SPEC.format(400))
    process = subprocess.Popen([*LTKD, "train", str(path), "--outputs", str(tmp_path)], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    limit = time.monotonic() + 120
    while not list(tmp_path.rglob("progress.json")):
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.1)
    os.kill(process.pid, number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert "the same command goes on from here" in said
    assert len(list(tmp_path.rglob("checkpoint.safetensors"))) == 1
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "the following arguments are required: parameters"),
        (["run", "nowhere.yaml"], "there is no such file"),
        (["run", "params/quick.yaml", "--only", "99"], "no notebook starts so"),
        (["run", "params/quick.yaml", "--run", "0"], "ltkd status params/quick.yaml --ids"),
        (["run", "params/quick.yaml", "--run", "0", "--only", "03"], "not allowed with argument"),
        (["run", "params/quick.yaml", "--as-is", "--run", "0"], "not allowed with --run"),
        (["run", "params/quick.yaml", "--as-is", "--dry-run"], "not allowed with --dry-run"),
        (["run", "params/quick.yaml", "--jobs", "0"], "should be 'auto' or a number"),
        (["run", "params/quick.yaml", "--budget", "soon"], "should be a time such as 90s"),
        (["run", "params/quick.yaml", "--job", "2"], "unrecognized arguments"),
        (["train", "params/quick.yaml"], "unknown key"),
        (
            ["run", "params/quick.yaml", "-p", "seedss", "[0]"],
            "params/quick.yaml -p seedss: seedss: unknown key. Did you mean 'seeds'?",
        ),
        (
            ["run", "params/quick.yaml", "-p", "seeds", "0", "-p", "lr", "fast"],
            "-p seeds -p lr: seeds = 0: input should be a valid list",
        ),
        (["status", "params/quick.yaml", "-p", "seeds", "[0"], "-p seeds '[0': not plain YAML"),
        (["run", "params/quick.yaml", "-p", "lr", "!!python/none x"], "not plain YAML"),
        (
            ["run", "params/quick.yaml", "-p", "lr", "1", "-p", "lr", "2"],
            "-p lr: stands there twice",
        ),
        (
            ["run", "params/quick.yaml", "-p", "group_pairs", "[vgg13-vgg8]"],
            "group_pairs: 'vgg13-vgg8' is not among pairs. Allowed: resnet20-resnet8. Where pairs "
            "are others, group_pairs should be, too, or null: all of them",
        ),
        (["run", "params/quick.yaml", "-p", "seeds"], "expected 2 arguments"),
        (["data", "check", "cifar100", "--data-root", "nowhere"], "ltkd data prepare cifar100"),
        (["data", "check", "mnist"], "invalid choice: 'mnist'"),
        (["fly"], "invalid choice: 'fly'"),
    ],
)
def test_wrong_calls_exit_2_with_the_mend(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    try:
        code = cli.main(arguments)
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("9m", 540), ("1.5h", 5400)]
)
def test_budgets(text, seconds):
    assert cli._budget(text) == seconds


def test_a_budget_counts_from_the_start_of_the_command(tmp_path, monkeypatch):
    class Seen(Exception):
        pass

    def stop(budget, began):
        raise Seen(budget, time.monotonic() - began)

    path, study = tmp_path / "tiny.yaml", cli._study
    path.write_text(TINY)
    with monkeypatch.context() as patch:
        patch.setattr(cli, "Stop", stop)
        patch.setattr(cli, "_study", lambda given: time.sleep(0.2) or study(given))
        with pytest.raises(Seen) as seen:
            cli.main(["run", str(path), "--outputs", str(tmp_path / "o"), "--budget", "9s"])
    budget, spent = seen.value.args
    assert budget == 9
    assert spent > 0.2
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert not cli.Stop(9, time.monotonic() - 5)()
    assert cli.Stop(9, time.monotonic() - 10)()


def test_a_reader_that_goes_away_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*LTKD, "methods"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == ""


def test_missing_data_stops_a_study_before_any_work(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("name: study\ndataset: cifar100\npairs: [vgg13-vgg8]\n")
    done = call("run", path, "--outputs", tmp_path / "o", "--data-root", tmp_path / "none")
    assert done.returncode == 2
    assert "ltkd data prepare cifar100" in done.stderr
    assert str(tmp_path / "none") in done.stderr
    assert not (tmp_path / "o").exists()


def test_status_and_methods(tmp_path, capsys):
    path = tmp_path / "study.yaml"
    path.write_text("name: study\nseeds: [0]\n")
    assert cli.main(["status", str(path), "--outputs", str(tmp_path)]) == 0
    assert "0 of 15 runs are there" in capsys.readouterr().out
    assert cli.main(["methods"]) == 0
    said = capsys.readouterr().out
    assert "balanced_softmax_kd_adjusted" in said
    own = METHODS["dkd"].by_pair["vgg13-vgg8"]["beta"]  # a pair's own, below the method's
    assert re.search(rf"^dkd .*beta=8.*\n( +\S+ .*\n)* +vgg13-vgg8 beta={own}$", said, re.M)


@pytest.mark.parametrize(("file", "name"), [("mine", "mine"), ("My-birds 2", "my_birds_2")])
def test_a_file_without_a_name_has_a_folder_of_its_own_name(tmp_path, capsys, file, name):
    path = tmp_path / f"{file}.yaml"
    path.write_text("seeds: [0]\n")
    assert cli.main(["status", str(path), "--outputs", str(tmp_path)]) == 0
    assert f"runs are there, in {tmp_path}/{name}\n" in capsys.readouterr().out
    assert params.load_parameters(path).name == name


def test_without_notebooks_nothing_is_trained(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "NOTEBOOKS", tmp_path / "site-packages/notebooks")
    path = tmp_path / "study.yaml"
    path.write_text("name: study\nseeds: [0]\n")
    assert cli.main(["run", str(path), "--outputs", str(tmp_path / "o")]) == 2
    assert "no notebooks; should be a checkout, installed with `pip" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    for needs_none in (["status"], ["run", "--dry-run"]):
        assert cli.main([*needs_none, str(path), "--outputs", str(tmp_path / "o")]) == 0


def test_a_parameter_of_the_command_goes_over_the_files(tmp_path, capsys):
    path = tmp_path / "study.yaml"
    path.write_text("name: study\nseeds: [0]\n")
    over = ["-p", "seeds", "[0, 7]", "-p", "gammas", "[10]", "-p", "lr", "1e-2"]
    given = cli._arguments().parse_args(["run", str(path), "--outputs", str(tmp_path), *over])
    study, values = cli._study(given)
    # ``values`` are what the notebooks get.
    assert values == {"name": "study", "seeds": [0, 7], "gammas": [10], "lr": 0.01}
    assert {spec.lr for _, spec in study.specs()} == {0.01}
    assert cli.main(["status", str(path), "--outputs", str(tmp_path), *over]) == 0
    said = capsys.readouterr().out
    assert "0 of 29 runs are there" in said
    assert "kd resnet20-resnet8 gamma 10 seed 7: not begun" in said


def test_runs_one_by_one_by_their_identity(tmp_path, capsys):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY + "methods: [student, kd]\n")
    outputs = ["--outputs", str(tmp_path / "o")]

    def left():
        assert cli.main(["status", str(path), *outputs, "--ids"]) == 0
        return capsys.readouterr().out.split()

    ids = left()
    assert len(ids) == len(set(ids)) == 4
    records = [tmp_path / "o" / "tiny" / "runs" / name / "record.json" for name in ids]
    some = call("run", path, *outputs, "--run", ids[-1], "--run", ids[1])
    assert some.returncode == 0, some.stderr
    # A student's teacher comes with it, unasked.
    assert set(some.stdout.split()) == {str(records[0]), str(records[-1]), str(records[1])}
    assert all(record.exists() == (record != records[2]) for record in records)
    assert json.loads(records[0].read_text())["spec"]["method"] == "teacher"
    assert left() == [ids[2]]
    assert not (tmp_path / "o" / "tiny" / "reports").exists()
    assert not (tmp_path / "o" / "tiny" / "index.html").exists()


MADE = TINY + "methods: [student, kd]\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory, forked):
    """A study with all of its four runs, and no page."""
    study = Study(outputs=tmp_path_factory.mktemp("made"), **params.parse_yaml(MADE, ""))
    assert not study.make(jobs=1, quiet=True).failed
    return study


@pytest.fixture
def copied(made, tmp_path):
    """The file of that study, and its folder to change: outputs/tiny."""
    path = tmp_path / "tiny.yaml"
    path.write_text(MADE)
    shutil.copytree(made.folder, tmp_path / "outputs" / "tiny")
    return path, tmp_path / "outputs" / "tiny"


def of(study, method):
    return [identity(spec) for spec in study.runs() if spec.method == method]


@pytest.mark.slow
def test_reports_of_what_is_there_and_later_of_the_rest(copied, made, forked, capsys, monkeypatch):
    path, folder = copied
    (lost,) = of(made, "kd")
    shutil.rmtree(folder / "runs" / lost)
    command = ["run", str(path), "--outputs", str(folder.parent), "--only", "03", "--jobs", "1"]
    with monkeypatch.context() as patch:
        patch.setattr("ltkd.pool.ProcessPoolExecutor", None)
        assert cli.main([*command, "--as-is"]) == 0
    said = capsys.readouterr()
    assert "tiny: 3 runs there, 1 not, 1 report made" in said.out
    assert said.err == ""
    assert not (folder / "runs" / lost).exists()
    page = folder / "reports" / "03_distillation.html"
    assert "1 of 2 runs finished" in page.read_text()
    for text in (page.read_text(), (folder / "index.html").read_text()):
        assert "kd resnet20-resnet8 gamma 20 seed 0: not made yet" in text
    assert cli.main([*command, "--as-is"]) == 0
    assert "3 runs there, 1 not, nothing to do: every report is" in capsys.readouterr().out
    assert cli.main(command) == 0
    assert "tiny: 4 runs, 1 report made" in capsys.readouterr().out
    assert (folder / "runs" / lost / "record.json").exists()
    for text in (page.read_text(), (folder / "index.html").read_text()):
        assert "not made yet" not in text


def test_reports_as_is_of_no_run_at_all_are_refused(tmp_path, capsys):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    assert cli.main(["run", str(path), "--outputs", str(tmp_path / "o"), "--as-is"]) == 2
    said = capsys.readouterr().err
    assert re.search(r"^--as-is: none of the \d+ runs of tiny is in .*/o/tiny; make them", said)
    assert not (tmp_path / "o").exists()


def test_without_a_teacher_there_are_no_pages(copied, made, capsys):
    path, folder = copied
    next((folder / "teachers").iterdir()).unlink()
    assert cli.main(["run", str(path), "--outputs", str(folder.parent), "--as-is"]) == 2
    (name,) = of(made, "teacher")
    told = capsys.readouterr().err
    assert "teacher resnet20 gamma 20 seed 0 is not there" in told
    assert told.endswith(f"--run {name}\n")


def test_a_hole_that_was_tried_since_is_another_page(copied, made):
    path, folder = copied
    (name,) = of(made, "kd")
    (folder / "runs" / name).rename(folder / "away")
    study = cli.study_of(["run", str(path), "--outputs", str(folder.parent)])
    seen = [study.inputs("03_distillation")]
    study.as_is(study.runs())
    seen.append(study.inputs("03_distillation"))
    study._failed[name]["reason"] = "kd: out of memory"
    seen.append(study.inputs("03_distillation"))
    assert len(set(seen)) == 3


def test_a_run_that_comes_in_time_is_no_hole_of_the_pages(copied, made):
    path, folder = copied
    (name,) = of(made, "kd")
    (folder / "runs" / name).rename(folder / "away")
    study = cli.study_of(["run", str(path), "--outputs", str(folder.parent)])
    study.as_is(study.runs())
    assert list(study.failed) == [name]
    (folder / "away").rename(folder / "runs" / name)
    assert study.failed == {}


@pytest.mark.slow
def test_a_stop_between_runs_and_one_between_reports(tmp_path, forked, capsys, monkeypatch):
    path, outputs = tmp_path / "tiny.yaml", tmp_path / "o"
    path.write_text(MADE)
    command = ["run", str(path), "--outputs", str(outputs), "--only", "03", "--jobs", "1"]

    class After(cli.Stop):
        runs = 1

        def __call__(self):
            return len(list(outputs.glob("tiny/runs/*/record.json"))) >= self.runs

    with monkeypatch.context() as patch:
        patch.setattr(cli, "Stop", After)
        assert cli.main(command) == 75
        said = capsys.readouterr().out
        assert re.search(r"^tiny: [123] runs? there, [123] left; the same command goes on", said)
        assert not (outputs / "tiny" / "reports").exists()
        After.runs = 4
        assert cli.main(command) == 75
        said = capsys.readouterr().out
        assert "tiny: stopped before all reports were made; the same command goes on." in said
        assert not list((outputs / "tiny" / "reports").glob("*.html"))
    assert cli.main(command) == 0
    assert "tiny: 4 runs, 1 report made" in capsys.readouterr().out


def test_tables_of_all_runs_and_of_the_curves_that_are_known(copied, made, monkeypatch):
    path, folder = copied
    again = ["run", str(path), "--outputs", str(folder.parent)]
    expected = cli.study_of(again).adjusted("distillation")  # LTKD is of another part
    monkeypatch.setattr("ltkd.prior.predict", None)
    less = cli.study_of([*again, "-p", "methods", "[kd]", "-p", "device", "cuda"])
    build.write_runs(less)
    table = pd.read_csv(folder / "runs.csv", keep_default_na=False)
    assert set(table.loc[table["part"] == "", "method"]) == {"student"}
    assert set(table["split_seed"]) == {0}
    assert set(table["schedule"]) == {"one_cycle"}
    record = made.store.get(made.runs()[0])
    assert set(table["hardware"]) == {"; ".join(record.hardware)}
    known = pd.read_csv(folder / "adjusted.csv")
    assert list(known) == ["run", "pair", "method", "label", "variant", "seed", "tau",
                            "as_trained", "all", "head", "medium", "tail"]  # fmt: skip
    assert set(known["run"]) == {*of(made, "kd"), *of(made, "student")} <= set(table["run"])
    assert len(known) == 2 * len(TAUS)
    both = [one.set_index(["run", "tau"]).sort_index() for one in (known, expected)]
    same = ["label", "as_trained", "all", "head", "medium", "tail"]
    pd.testing.assert_frame_equal(both[0][same], both[1][same].round(4))
    fits = pd.read_csv(folder / "fitted.csv").set_index("run").sort_index()
    wanted = cli.study_of(again).fitted("distillation").set_index("run").sort_index().round(4)
    assert set(fits.index) == set(known["run"])
    pd.testing.assert_frame_equal(fits[["tau", *same[2:]]], wanted[["tau", *same[2:]]])


def test_a_gpu_is_asked_for_only_where_something_is_to_be_computed(copied, monkeypatch):
    path, folder = copied
    again = ["run", str(path), "--outputs", str(folder.parent)]
    cli.study_of(again).adjusted("distillation")
    study = cli.study_of([*again, "-p", "device", "cuda"])
    assert len(study.adjusted("distillation")) == 2 * len(TAUS)
    for curve in folder.glob("runs/*/adjusted.json"):
        curve.unlink()
    with pytest.raises(ValueError, match="no GPU that torch can use"):
        study.adjusted("distillation")


def test_a_page_seals_the_inputs_and_the_code_of_its_beginning(copied, made, monkeypatch):
    path, folder = copied
    (name,) = of(made, "kd")
    (folder / "runs" / name).rename(folder / "away")
    study = cli.study_of(["run", str(path), "--outputs", str(folder.parent)])
    study.as_is(study.runs())
    before, sealed_ones = study.inputs("03_distillation"), []

    def pages(notebooks, parameters, reports, *, env, **options):
        with monkeypatch.context() as patch:
            patch.setenv("LTKD_INPUTS", env["LTKD_INPUTS"])
            patch.setenv("LTKD_FAILED", env["LTKD_FAILED"])
            files.library_sha256.cache_clear()
            files.code_version.cache_clear()
            page = Study.from_notebook(parameters)
            page.store, page.folder = study.store, study.folder
            (folder / "away").rename(folder / "runs" / name)  # meanwhile a run comes,
            patch.setattr(files, "sha256", lambda data: "0" * 64)  # and all files are edited
            sealed_ones.append(page.manifest("03_distillation"))
        return []

    own = files.code_version()
    monkeypatch.setattr(build, "execute_all", pages)
    build.build(study, [cli.NOTEBOOKS / "03_distillation.ipynb"], params.parse_yaml(MADE, ""))
    (manifest,) = sealed_ones
    assert manifest["inputs"] == before != study.inputs("03_distillation")
    assert manifest["code"] == own


def test_a_dry_run_tells_what_is_left_and_makes_nothing(tmp_path, capsys):
    path, outputs = tmp_path / "tiny.yaml", tmp_path / "o"
    path.write_text(TINY + "methods: [student, kd, dkd, reviewkd, catkd]\n")
    call = ["run", str(path), "--outputs", str(outputs), "--jobs", "2"]
    assert cli.main([*call, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "tiny: 0 of 7 runs are there" in said
    assert re.search(r"^  kd +resnet20-resnet8 +20 +0 +0 +1  \d", said, re.M)
    assert re.search(r"^  ltkd +resnet20-resnet8 +20 +0 +0 +1  \d", said, re.M)
    for kind in (
        "resnet8",
        "resnet8, logits",
        "resnet8 with resnet20, maps",
        "resnet8 with resnet20, features",
    ):
        assert re.search(rf"^  {kind}, batch 32 +\d+\.\d ms a step", said, re.M), kind
    assert "Measured here, on c" in said
    assert "7 runs left" in said
    assert "2 side by side" in said
    assert not outputs.exists()


def test_a_dry_run_counts_what_finished_seeds_drew_among_the_rows_there(
    tmp_path, forked, monkeypatch
):
    from ltkd import estimate

    path = tmp_path / "tiny.yaml"
    path.write_text(TINY + "methods: [kd]\n")
    call = ["run", str(path), "--outputs", str(tmp_path / "o"), "-p", "seeds", "[0, 1, 2]"]
    study = cli.study_of(call)
    first, *_ = (spec for spec in study.runs() if spec.teacher)
    assert len(study.make([first], jobs=1, quiet=True).records) == 2
    monkeypatch.setattr(estimate, "image_costs", lambda *_: (0.0, 0.0))
    monkeypatch.setattr(estimate, "fill_cost", lambda *_: 1.0)  # a second a row
    said = "\n".join(estimate.report(study, 1))
    size = study.size(20.0)
    images, views = sum(size.counts), size.views
    expected = images * views * (1 - (1 - 1 / views) ** 3) - images  # an epoch of each seed
    assert f"of which {files.clock(expected)} for teachers' tables" in said


def test_a_dry_run_of_what_is_done_measures_nothing(tmp_path, forked, capsys, monkeypatch):
    from ltkd import estimate

    path = tmp_path / "tiny.yaml"
    path.write_text(TINY + "methods: [student, kd]\n")
    given = cli._arguments().parse_args(["run", str(path), "--outputs", str(tmp_path / "o")])
    study, _ = cli._study(given)
    assert not study.make(quiet=True, jobs=1).failed
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "o").rglob("*")}
    monkeypatch.setattr(estimate, "stand_in", None)
    assert cli.main(["run", str(path), "--outputs", str(tmp_path / "o"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "tiny: 4 of 4 runs are there" in said
    assert "ms a step" not in said
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "o").rglob("*")} == before


@pytest.mark.parametrize(("name", "images"), [("cifar100", 10_847), ("tiny_imagenet", 21_549)])
def test_a_dry_run_knows_how_many_images_a_set_has_without_it(tmp_path, name, images):
    from ltkd.data import size_of

    about = size_of(name, 100.0, 0, str(tmp_path / "none"))
    assert (sum(about.counts), about.tests) == (images, 10_000)


def test_a_row_is_made_anew_and_held_against_its_prediction_interval(
    tmp_path, forked, capsys, monkeypatch
):
    path = tmp_path / "two.yaml"
    path.write_text(TINY.replace("[0]", "[0, 1]") + "methods: [kd]\n")
    again = ["reproduce", str(path), "kd", "--outputs", str(tmp_path)]
    assert cli.main(again) == 2
    assert "kd: 0 of 2 records are in" in capsys.readouterr().err
    assert not (tmp_path / "reproduced").exists()
    study = Study(outputs=tmp_path, **params.load_parameters(path).model_dump())
    study.make(quiet=True)
    stated = []

    def about(values, m):
        stated.append((list(values), m))
        mean = values.mean()
        return Interval(mean, mean - 1, mean + 1, len(values))

    monkeypatch.setattr(curves, "prediction", about)
    assert cli.main(again) == 0
    said = capsys.readouterr().out.splitlines()
    rows = study.results("distillation")
    after = curves.prior_removed(study.adjusted("distillation"))
    each = [(how, frame, metric) for how, frame in (("", rows), (", prior removed", after))
            for metric in ("all", "tail")]  # fmt: skip
    assert stated == [(list(frame[metric]), 2) for _, frame, metric in each]
    top1 = f"{study.results('teachers')['all'].item():.2f} %"
    ends = f"{top1}; the interval holds for the study's, {top1}"
    assert said.pop() == f"teacher resnet20 gamma 20 seed 0: {ends}"
    for (how, frame, metric), line in zip(each, said, strict=True):  # one machine: the same mean
        mean = frame[metric].mean()
        expected = f"{mean:.2f} %; expected {mean - 1:.2f} to {mean + 1:.2f}: inside"
        assert line == f"kd{how}, ResNet20-ResNet8, gamma 20, {metric}: {expected}"
    for curve in (tmp_path / "tiny" / "runs").glob("*/adjusted.json"):
        curve.unlink()
    for network in (tmp_path / "tiny" / "runs").glob("*/model.safetensors"):
        network.unlink()
    assert cli.main(again) == 0  # of the study's row nothing is known after training
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2
    assert len(list((tmp_path / "reproduced" / "tiny" / "runs").iterdir())) == 3
    monkeypatch.setattr(curves, "prediction", lambda values, m: Interval(99, 98, 100, 2))
    assert cli.main(again) == 1
    said = capsys.readouterr().out
    assert "expected 98.00 to 100.00: OUTSIDE" in said
    where = tmp_path / "reproduced" / "tiny"
    assert f"2 of 2 runs made before this call; to make them anew, remove {where}" in said
    for made in (tmp_path / "reproduced/tiny/runs").glob("*/record.json"):
        values = unsealed(json.loads(made.read_text()))
        if values["spec"]["method"] == "kd":  # as one that came to no number
            values |= {"status": "diverged", "reason": "the loss is nan", "files": {}}
            made.write_text(json.dumps(sealed(values)))
    assert cli.main(again) == 1
    assert capsys.readouterr().err.count("failed: the loss is nan") == 2
    shutil.rmtree(tmp_path / "reproduced")
    monkeypatch.setattr(curves, "prediction", lambda values, m: Interval(7, n=2))
    assert cli.main(again) == 0
    assert "7.00 % for every seed, so no interval is stated" in capsys.readouterr().out
    assert cli.main(["reproduce", str(path), "kdd", "--outputs", str(tmp_path)]) == 2
    assert "kdd: no row of tiny. Did you mean 'kd'?" in capsys.readouterr().err


def test_one_seed_states_no_interval_to_reproduce(tmp_path, forked, capsys):
    path = tmp_path / "one.yaml"
    path.write_text(TINY + "methods: [kd]\ngammas: [20.0, 10.0]\n")
    study = Study(outputs=tmp_path, **params.load_parameters(path).model_dump())
    study.make(quiet=True)
    assert cli.main(["reproduce", str(path), "kd", "--outputs", str(tmp_path)]) == 2
    assert "an interval needs all of at least two seeds" in capsys.readouterr().err
    assert not (tmp_path / "reproduced").exists()


def test_a_card_names_the_best_method_and_its_lines_load_the_network(
    tmp_path, forked, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "two.yaml"
    path.write_text(TINY.replace("[0]", "[1, 0]") + "methods: [student, kd, ltkd]\n")
    again = ["card", str(path), "--outputs", "outputs"]
    assert cli.main(again) == 2
    assert "tiny: no method has all its 2 seeds" in capsys.readouterr().err
    study = Study(outputs=tmp_path / "outputs", **params.load_parameters(path).model_dump())
    study.make(quiet=True)
    assert cli.main(again) == 0
    assert capsys.readouterr().out == f"{tmp_path}/outputs/tiny/best/README.md\n"
    card = (tmp_path / "outputs/tiny/best/README.md").read_text()
    rows = study.results("distillation").groupby("label", sort=False)
    best = rows["all"].mean().idxmax()
    assert f"resnet8, {best}: Digits-LT" in card
    own = rows.get_group(best).query("seed == 0").iloc[0]
    assert f"| this network | {own['all']:.1f} | {own['head']:.1f} |" in card
    others = card.split("all classes: ")[1].split(".\n\n")[0].split("; ")
    for other, (label, part) in zip(others, rows, strict=True):
        assert other.startswith(f"{label} (")
        assert f") {part['all'].mean():.1f} " in other
    lines = card.split("```python\n")[1].split("```")[0]
    assert len(lines.splitlines()) == 4
    images, there = study.data().test_images / 255, {}
    exec(lines, {"images": images}, there)
    assert (
        there["logits"].argmax(1).tolist() == study.predictions("distillation")[own["run"]].tolist()
    )
    with monkeypatch.context() as patch:  # a full disk between the two files
        patch.setattr("ltkd.report.card.write_atomic", Mock(side_effect=[None, OSError("full")]))
        assert cli.main(again) == 1
    assert not (study.folder / "best" / "README.md").exists()
    capsys.readouterr()
    weights = study.folder / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ValueError, match="not a network that ltkd saved, or damaged"):
        load_model(weights)
    (study.folder / "runs" / own["run"] / "model.safetensors").unlink()
    assert cli.main(again) == 1
    said = capsys.readouterr().err
    assert "model.safetensors" in said
    assert said.endswith(f"remove {study.folder / 'runs' / own['run']} and run the spec\n")


def test_data_check_digits(capsys):
    assert cli.main(["data", "check", "digits"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Digits: 1201 training and 596 test images, sha256 ")
    assert said.endswith(": good\n")
