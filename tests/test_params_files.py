"""The shipped parameter files: valid with no data there, and as many runs as their heads say."""

import re
import shlex
from pathlib import Path

import pytest

from ltkd.cli import _arguments, _study
from ltkd.params import load_parameters, load_spec, recipe_of
from ltkd.pool import with_teachers
from ltkd.study import Study
from ltkd.train import learning_rate

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "params").glob("*.yaml"))
# Counted by hand. Seven pairs have 4 teachers and 5 students. Two methods need no teacher (student,
# balanced_softmax), so they run once a student; twelve run once a pair. Of the ablation's five
# cells KD and LTKD are there already, and so is LTKD with three groups.
RUNS = {
    "cifar100_lt": 4 * 3 + 2 * 5 * 3 * 3 + (12 * 7 + 3 * 6 + 7 * 4 + 2 * 6) * 3 * 3,
    "tiny_imagenet_lt": 4 * 3 + 2 * 5 * 3 * 3 + 12 * 7 * 3 * 3 + 3 * 1 * 3 * 3 + 3 * 1 * 3 * 3,
    "cifar10_lt": 3 * 3 + 2 * 3 * 3 * 3 + 12 * 3 * 3 * 3 + 3 * 1 * 3 * 3 + 3 * 1 * 3 * 3,
    "imagenet_lt": 2 * 3 + 2 * 2 * 3 + 12 * 2 * 3 + 1 * 1 * 3 + 1 * 1 * 3,
    # One teacher; fourteen methods, 3 cells, groups 10 and 100, 8 settings; three seeds.
    "cifar100_lt_short": 1 + (14 + 3 + 2 + 8) * 3,
    "cifar100_lt_split1": 1 + (4 + 2) * 3,
    "cifar100_lt_split2": 1 + (3 + 2) * 2,
    "cifar100_lt_gamma10": 1 + 3 * 4 + 3 * 3,
    # One teacher; 2 students without it, KD with weights 1 and 1, 7 methods in 6 settings each.
    "cifar100_lt_tune": 1 + 2 + 1 + 11 * 6,
    # One teacher; fourteen methods, 3 cells, ten groups; three seeds.
    "cifar100_lt_quick": 1 + (14 + 3 + 1) * 3,
    # One teacher; 2 methods without and 6 with it, 3 cells, groups 1, 5 and 10; five seeds.
    "quick": 1 + (2 + 6 + 3 + 3 + 6) * 5,
}


def runs(**parameters):
    return with_teachers([spec for _, spec in Study(**parameters).specs()])


@pytest.fixture(autouse=True)
def no_data(tmp_path, monkeypatch):
    monkeypatch.setenv("LTKD_DATA", str(tmp_path / "empty"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_file_is_named_as_its_folder_and_makes_its_specs_without_data(path, tmp_path):
    values, head = load_parameters(path).model_dump(), path.read_text().split("\nname:")[0]
    assert values["name"] == path.stem
    assert f"ltkd run params/{path.name}" in head
    assert all(line.startswith("#") for line in head.splitlines())
    assert len(runs(outputs=tmp_path, **values)) == RUNS[path.stem]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", sorted((ROOT / "params" / "pilot").glob("*.yaml")))
def test_the_pilot_is_not_on_test_images_and_as_long_as_the_study_that_it_is_for(path):
    spec, study = load_spec(path), load_parameters(ROOT / "params" / "cifar100_lt_short.yaml")
    assert spec.holdout == 25
    assert (spec.epochs, spec.batch, spec.precision, spec.clip_norm, spec.student) == (
        study.epochs, study.batch, study.precision, study.clip_norm, "vgg8")  # fmt: skip


QUICK = ("quick", "cifar100_lt_quick")
OURS = (*QUICK, *(f"cifar100_lt_{name}" for name in (
    "short", "split1", "split2", "gamma10", "tune")))  # fmt: skip
PAPERS = [name for name in RUNS if name not in OURS]


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_files_have_its_recipe(name):
    path = ROOT / "params" / f"{name}.yaml"
    values = load_parameters(path).model_dump()
    for spec in runs(**values):
        recipe = recipe_of(spec.dataset, spec.method)
        known = spec.epochs, spec.schedule, spec.precision, spec.clip_norm, spec.weight_decay
        assert known == (recipe.epochs, "steps", "bf16", None, recipe.weight_decay)
        if spec.method != "teacher":
            assert (spec.batch, spec.lr) == (recipe.batch, recipe.lr)


# The field's recipes: epochs, batch, rate, weight decay, epochs after which the rate falls.
CIFAR, IMAGENET = (240, 64, 0.05, 5e-4, (150, 180, 210)), (100, 512, 0.2, 1e-4, (30, 60, 90))
HALF = (100, 256, 0.1, *IMAGENET[3:])
RECIPE = {
    "cifar10 student vgg8": CIFAR, "cifar100 ltkd wrn_40_2 wrn_40_1": CIFAR,
    "cifar100 reviewkd vgg13 mobilenetv2": CIFAR, "tiny_imagenet kd vgg13 vgg8": CIFAR,
    "tiny_imagenet dist wrn_40_2 shufflenetv1": CIFAR,
    **{f"imagenet {method} resnet34_imagenet resnet18_imagenet": IMAGENET
       for method in ("kd", "dkd", "catkd", "ltkd")},
    **{f"imagenet {method} resnet50_imagenet mobilenetv1": HALF for method in ("reviewkd", "dist")},
}  # fmt: skip


@pytest.mark.parametrize("case", RECIPE)
def test_a_spec_that_gives_no_recipe_has_the_fields(case, tmp_path):
    dataset, method, *teacher, student = case.split()
    epochs, batch, lr, weight_decay, falls = RECIPE[case]
    keys = {"dataset": dataset, "gamma": 20, "method": method, "student": student}
    keys |= {"teacher": teacher[0], "teacher_source": "live"} if teacher else {}
    keys |= {"groups": 3} if method == "ltkd" else {}
    (tmp_path / "spec.yaml").write_text("\n".join(f"{key}: {keys[key]}" for key in keys))
    spec = load_spec(tmp_path / "spec.yaml")
    known = spec.epochs, spec.batch, spec.lr, spec.weight_decay, spec.momentum, spec.clip_norm
    assert known == (epochs, batch, lr, weight_decay, 0.9, None)
    peak = 0.01 if student in ("mobilenetv2", "shufflenetv1") else lr
    wanted = [peak * 0.1 ** sum(epoch > fall for fall in falls) for epoch in range(1, epochs + 1)]
    for step in (0, 6):  # the first and the last of an epoch's seven
        rates = [learning_rate(spec, 7 * epoch + step, 7) for epoch in range(epochs)]
        assert rates == pytest.approx(wanted)


@pytest.mark.parametrize("name", [name for name in RUNS if name not in QUICK])
def test_a_head_says_how_many_runs_a_file_makes_and_its_smaller_study(name):
    path = ROOT / "params" / f"{name}.yaml"
    head = path.read_text().split("\nname:")[0]
    assert f"#   runs       {RUNS[name]}: " in head
    assert f"#   command    ltkd run params/{name}.yaml" in head
    text = " ".join(re.findall(r"#   smaller +(.*?)name:", path.read_text(), re.S)[0].split("\n#"))
    command, number = re.fullmatch(r"ltkd (.*?)\s+\((\d+) runs\)\s*", text).groups()
    words = shlex.split(command)
    words[1] = str(ROOT / words[1])
    study, _ = _study(_arguments().parse_args(words))
    assert len(with_teachers([spec for _, spec in study.specs()])) == int(number)
