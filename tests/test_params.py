"""One schema for parameter files and specs: what is wrong is named, with the mend."""

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from cells import parameters_cell

from ltkd.methods import METHODS
from ltkd.models import create_model, list_models
from ltkd.params import (
    FIVE_LEVELS,
    NETWORKS,
    ParameterError,
    RunSpec,
    StudyParameters,
    load_parameters,
    load_spec,
    read_yaml,
)

ROOT = Path(__file__).resolve().parent.parent

# file content -> what the message must say
MALFORMED = {
    "misspelt key": ("seedss: [0]", "seedss: unknown key. Did you mean 'seeds'?"),
    "misspelt key of a key": (
        "images: {folder: a, sise: 32}",
        "images.sise: unknown key. Did you mean 'size'? Allowed: folder, size,",
    ),
    "pair that ReviewKD cannot compare": (
        "pairs: [resnet32x4-vgg8]\nmethods: [kd, reviewkd]",
        "method 'reviewkd' compares features level by level, of which resnet32x4-vgg8 have 4 and 5",
    ),
    "old name of a key": ("gamma: 20", "gamma: unknown key. Did you mean 'gammas'?"),
    "text for a number": ("epochs: many", "epochs = 'many': input should be a valid integer"),
    "float for a whole number": ("epochs: 2.5", "epochs = 2.5: input should be a valid integer"),
    "number as text": ("lr: '0.1'", "lr = '0.1': input should be a valid number"),
    "yes for a number": ("threads: yes", "threads = True: input should be a valid integer"),
    "number for a list": ("seeds: 3", "seeds = 3: input should be a valid list"),
    "list of the wrong thing": ("seeds: [a]", "seeds.0 = 'a': input should be a valid integer"),
    "gamma below one": (
        "gammas: [0.01]",
        "gammas.0 = 0.01: input should be greater than or equal to 1",
    ),
    "NaN": ("lr: .nan", "lr = nan: input should be a finite number"),
    "infinity": ("alpha: .inf", "alpha = inf: input should be"),
    "negative weight": ("beta: -1", "beta = -1: input should be greater than or equal to 0"),
    "zero temperature": ("temperature: 0", "temperature = 0: input should be greater than 0"),
    "zero epochs": ("epochs: 0", "epochs = 0: input should be greater than or equal to 1"),
    "negative seed": ("seeds: [-1]", "seeds.0 = -1: input should be greater than or equal to 0"),
    "no seeds": ("seeds: []", "seeds = []: list should have at least 1 item"),
    "repeated seeds": ("seeds: [1, 1]", "seeds = [1, 1]: each value may stand there once"),
    "batch of one": ("batch: 1", "batch = 1: input should be greater than or equal to 2"),
    "unknown data set": ("dataset: cifar1000", "dataset = 'cifar1000': input should be 'digits'"),
    "unknown network": (
        "pairs: [vgg31-vgg8]",
        "unknown network in pairs: 'vgg31'. Did you mean 'vgg13'?",
    ),
    "pair without a student": ("pairs: [vgg13]", "pairs: 'vgg13' should be teacher-student"),
    "unknown method": ("methods: [lkd]", "unknown method in methods: 'lkd'. Did you mean 'ltkd'?"),
    "nothing to distil": ("methods: [student]", "none has a teacher; add one, such as 'kd'"),
    "teacher as a method": ("methods: [teacher]", "unknown method in methods: 'teacher'"),
    "unknown ablation": ("ablations: [cross]", "unknown cell in ablations: 'cross'"),
    "more groups than classes": ("groups: 11", "11 groups, but digits has 10 classes"),
    "more group counts than classes": (
        "group_counts: [3, 20]",
        "20 groups, but digits has 10 classes",
    ),
    "unknown argument": ("method_args: {kd: {tau: 1}}", "unknown argument of method 'kd': 'tau'"),
    "argument out of range": ("method_args: {kd: {kd_weight: -1}}", "should be from 0 to 10000"),
    "unknown precision": ("precision: fp8", "precision = 'fp8': input should be 'fp32' or 'bf16'"),
    "a name that leaves the folder": ("name: ../x", "name = '../x': string should match pattern"),
    "an empty file": ("", "the file is empty; it should be lines of `key: value`"),
    "only comments": ("# nothing\n", "the file is empty"),
    "a list": ("- a\n- b", "the file is a list"),
    "a word": ("quick", "the file is a str"),
    "duplicate keys": ("name: a\nname: b", "line 2: the key 'name' stands there twice"),
    "a tag that would run code": (
        "name: !!python/object/apply:os.system ['false']",
        "not plain YAML",
    ),
    "an unclosed bracket": ("seeds: [0, 1", "not plain YAML"),
    "a tab": ("\tname: x", "not plain YAML"),
    "a key that is a list": ("? [a, b]\n: 1", "line 1: a key should be a word"),
    "an endless alias": ("a: &a [*a]", "not plain YAML"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused_with_the_mend(tmp_path, case):
    text, message = MALFORMED[case]
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ParameterError) as error:
        load_parameters(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_a_missing_file_names_the_nearest():
    with pytest.raises(ParameterError, match=r"there is no such file\. Did you mean .*quick\.yaml"):
        load_parameters(ROOT / "params" / "quik.yaml")


@pytest.mark.parametrize("text", ["seedss: [0]", "gammas: [0.01]", "- a", "name: !!python/none x"])
def test_refusal_is_fast_and_without_a_traceback(tmp_path, text):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(
        [sys.executable, "-m", "ltkd.cli", "run", str(path), "--outputs", str(tmp_path)],
        capture_output=True, text=True)  # fmt: skip
    # Processor time, so that a busy machine fails no test.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 5
    assert done.returncode == 2
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["wrong.yaml"]


def test_the_parameters_load_no_torch_and_no_papermill():
    code = (
        "import sys, ltkd.cli; sys.exit(bool({'torch', 'papermill', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E3", 1e3), ("5.e-2", 5e-2), (".5e-2", 5e-3), ("0.05", 0.05)],
)
def test_scientific_notation_is_a_number(tmp_path, text, value):
    (tmp_path / "x.yaml").write_text(f"lr: {text}")
    assert load_parameters(tmp_path / "x.yaml").lr == value


def test_a_number_in_a_string_stays_a_string(tmp_path):
    (tmp_path / "x.yaml").write_text("name: '1e3'")
    assert load_parameters(tmp_path / "x.yaml").name == "1e3"


def test_the_quick_file_is_the_default_and_a_sweep():
    quick = load_parameters(ROOT / "params" / "quick.yaml")
    assert quick.model_copy(update={"sweep": {}}) == StudyParameters()


def test_a_teacher_that_its_processes_cannot_share_is_refused():
    about = {"dataset": "imagenet", "images": {"folder": "imagenet", "size": 64}, "gamma": 100.0,
             "student": "resnet18_imagenet", "teacher": "resnet34_imagenet", "method": "kd",
             "epochs": 1, "lr": 0.1}  # fmt: skip
    for batch, processes in ((510, 3), (384, 6)):
        with pytest.raises(ValueError, match=f"batch = {batch}, with which the teacher has 256"):
            RunSpec(**about, batch=batch, processes=processes)
    assert RunSpec(**about, batch=512, processes=4).teacher_spec.batch == 256


def test_the_parameters_cell_holds_exactly_the_schema():
    tree = ast.parse(parameters_cell())
    cell = {node.target.id: ast.literal_eval(node.value) for node in tree.body}
    assert cell == {k: f.default for k, f in StudyParameters.model_fields.items()}


def test_networks_are_those_that_exist():
    assert set(NETWORKS) == set(list_models())


@pytest.mark.parametrize("name", NETWORKS)
def test_levels_are_those_of_the_networks(name):
    model = create_model(name, 10)
    assert len(model.taps) == len(model.pre_taps)
    assert len(model.taps) + 1 == (5 if name in FIVE_LEVELS else 4)


# ---- run specs


def test_a_spec_writes_out_its_methods_arguments(tiny):
    spec = tiny(method="ltkd", teacher="resnet20", groups=3, method_args={"beta": 2})
    assert spec.method_args == METHODS["ltkd"].args | {"beta": 2.0}


def test_the_teachers_spec_shares_data_and_schedule(tiny):
    spec = tiny(method="kd", teacher="resnet20", seed=7, teacher_seed=3, precision="bf16")
    teacher = spec.teacher_spec
    assert (teacher.student, teacher.method, teacher.seed) == ("resnet20", "teacher", 3)
    assert (
        teacher
        == tiny(
            method="kd", teacher="resnet20", seed=8, teacher_seed=3, precision="bf16"
        ).teacher_spec
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "resnet20"}, "method 'student' has no teacher"),
        ({"method": "ltkd", "teacher": "resnet20", "groups": 11}, "digits has 10 classes"),
        (
            {"method": "reviewkd", "teacher": "vgg13", "teacher_source": "live"},
            "vgg13-resnet8 have 5 and 4; should be a pair with as many",
        ),
        ({"student": "resnet9"}, "unknown network 'resnet9'. Did you mean 'resnet8'?"),
        ({"method": "kdd"}, "unknown method 'kdd'"),
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"lr": float("nan")}, "finite"),
        ({"colour": 1}, "Extra inputs are not permitted"),
    ],
)
def test_incoherent_specs_are_refused(tiny, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_a_spec_file_takes_the_data_sets_recipe(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text("dataset: digits\ngamma: 20\nstudent: resnet8\nmethod: student\n")
    assert load_spec(path) == RunSpec(
        dataset="digits", gamma=20.0, student="resnet8", method="student",
        epochs=25, batch=32, lr=0.05,
    )  # fmt: skip
    for method, batch, lr in (("kd", 512, 0.2), ("reviewkd", 256, 0.1), ("dist", 256, 0.1)):
        path.write_text("dataset: imagenet\ngamma: 5\nteacher: resnet34_imagenet\n"
                        "student: resnet18_imagenet\nteacher_source: live\n"
                        f"method: {method}\n")  # fmt: skip
        assert (load_spec(path).batch, load_spec(path).lr) == (batch, lr)
    path.write_text("student: resnet8\nmethod: kd\nteacher: resnet20\n")
    with pytest.raises(ParameterError, match="dataset: missing"):
        load_spec(path)


def test_read_yaml_keeps_plain_values(tmp_path):
    (tmp_path / "x.yaml").write_text("a: 1\nb: [1.5, yes, null]\nc: {d: text}\n")
    assert read_yaml(tmp_path / "x.yaml") == {"a": 1, "b": [1.5, True, None], "c": {"d": "text"}}
