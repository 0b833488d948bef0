"""What a parameter file and a run's spec may say: one strict schema, checked before any work starts.

No torch and no papermill here, so that a wrong file is refused at once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .methods import ABLATIONS, METHODS

# All networks; a test holds this against ltkd.models.list_models().
NETWORKS = ("resnet8", "resnet20", "resnet8x4", "resnet32x4", "vgg8", "vgg13", "wrn_40_1", "wrn_40_2",
            "mobilenetv2", "shufflenetv1", "resnet50", "resnet18_imagenet", "resnet34_imagenet",
            "resnet50_imagenet", "mobilenetv1")  # fmt: skip
# These students train at a fifth of the learning rate (0.01 where the others have 0.05).
SLOW_LEARNERS = ("mobilenetv2", "shufflenetv1")
# ReviewKD compares features level by level: these have five of them, the others four.
FIVE_LEVELS = ("vgg8", "vgg13", "mobilenetv2", "resnet50", "resnet18_imagenet", "resnet34_imagenet",
               "resnet50_imagenet", "mobilenetv1")  # fmt: skip


class Recipe(NamedTuple):
    """A data set's default schedule: the field's common code; ours for digits and folders.

    classes  None: what is found in the folder
    decay    fractions of the schedule after which the rate is divided by 10
    """

    classes: int | None
    epochs: int
    batch: int = 64
    lr: float = 0.05
    decay: tuple[float, ...] = (5 / 8, 6 / 8, 7 / 8)
    weight_decay: float = 5e-4


RECIPES = {
    "digits": Recipe(10, 25, batch=32),
    "cifar10": Recipe(10, 240),
    "cifar100": Recipe(100, 240),
    "tiny_imagenet": Recipe(200, 240),
    "imagenet": Recipe(1000, 100, 512, 0.2, (0.3, 0.6, 0.9), 1e-4),
    "folder": Recipe(None, 240),
}
_SMALLER = ("reviewkd", "dist")  # their published ImageNet runs have batch 256 and rate 0.1


def recipe_of(dataset: str, method: str) -> Recipe:
    """The data set's recipe, for this method."""
    recipe = RECIPES[dataset]
    small = dataset == "imagenet" and METHODS[method].loss in _SMALLER
    return recipe._replace(batch=256, lr=0.1) if small else recipe


# Sets that are folders of image files, and the size of their images where none is asked for.
FILE_SETS: dict[str, Literal[64, 224] | None] = {
    "tiny_imagenet": 64, "imagenet": 224, "folder": None}  # fmt: skip


Count = Annotated[int, Field(ge=1, le=10_000)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[float, Field(gt=0, le=1e4)]
Weight = Annotated[float, Field(ge=0, le=1e4)]
Holdout = Annotated[int, Field(ge=0, le=10_000)]
Imbalance = Annotated[float, Field(ge=1, le=1e4)]
Dataset = Literal["digits", "cifar10", "cifar100", "tiny_imagenet", "imagenet", "folder"]
Schedule = Literal["steps", "one_cycle"]
Grid = dict[str, float | bool | list[float | bool]]  # arguments of a method; lists are combined
Precision = Literal["fp32", "bf16"]
Source = Literal["table", "live"]


PathText = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00-\x1f]+$")]
MOST_RUNS = 50_000  # of one study: listing them takes seconds


class ParameterError(ValueError):
    """A parameter that cannot be used. The message says where, what was given and what is allowed."""


class DataError(RuntimeError):
    """A data set that is absent or damaged; the message names the folder and the mend."""


def _hint(word: Any, allowed: Any) -> str:
    """' Did you mean X?' when one of the allowed words is close, whatever its capitals."""
    words = {str(a).casefold(): str(a) for a in allowed}
    close = difflib.get_close_matches(str(word).casefold(), words, n=1, cutoff=0.5)
    return f" Did you mean {words[close[0]]!r}?" if close else ""


def nearest(word: str, allowed: Any) -> str:
    """' Did you mean X?' when one of the allowed words is close, and the list of all."""
    return f"{_hint(word, allowed)} Allowed: {', '.join(str(a) for a in allowed)}."


def network_label(name: str) -> str:
    """A network's name as the papers write it: 'wrn_40_2' -> 'WRN-40-2'."""
    name = name.removesuffix("_imagenet")
    for shown in ("ResNet", "VGG", "WRN", "MobileNetV", "ShuffleNetV"):
        name = name.replace(shown.lower(), shown, 1)
    return name.replace("_", "-")


def _known(kind: str, word: str, allowed: Any) -> None:
    if word not in allowed:
        raise ValueError(f"unknown {kind} {word!r}.{nearest(word, allowed)}")


def check_levels(method: str, teacher: str, student: str) -> None:
    """ValueError where ReviewKD is asked to compare networks of different numbers of levels."""
    levels = [5 if name in FIVE_LEVELS else 4 for name in (teacher, student)]
    if METHODS[method].loss == "reviewkd" and len(set(levels)) > 1:
        raise ValueError(f"method {method!r} compares features level by level, of which {teacher}-"
                         f"{student} have {levels[0]} and {levels[1]}; should be a pair with as "
                         f"many: of {', '.join(FIVE_LEVELS)}, or of the others")  # fmt: skip


def method_args(
    method: str, given: dict[str, Any], pair: tuple[Any, Any] = ("", "")
) -> dict[str, float | bool]:
    """The method's arguments in full: its defaults for a (teacher, student), with what is given
    put over them, checked."""
    _known("method", method, METHODS)
    defaults = METHODS[method].defaults(*pair)
    for name, value in given.items():
        if name not in defaults:
            allowed = nearest(name, defaults) if defaults else " It takes none."
            raise ValueError(f"unknown argument of method {method!r}: {name!r}.{allowed}")
        if isinstance(defaults[name], bool) != isinstance(value, bool):
            raise ValueError(
                f"{name} = {value!r} of method {method!r}: should be {defaults[name]!r}'s type"
            )
        low = 1e-3 if name == "temperature" else 0
        if not isinstance(value, bool) and not (
            isinstance(value, int | float) and low <= value <= 1e4
        ):
            raise ValueError(
                f"{name} = {value!r} of method {method!r}: should be from {low} to 10000"
            )
        if name == "warmup" and value > 1:
            raise ValueError(
                f"warmup = {value!r} of method {method!r}: should be a fraction of the schedule, "
                "from 0 to 1 (20 of 240 epochs: 0.0833)"
            )
        if name == "pool" and (not 1 <= value <= 64 or value != int(value)):
            raise ValueError(
                f"pool = {value!r} of method {method!r}: should be a whole number >= 1, at most 64"
            )
        defaults[name] = value if isinstance(value, bool) else float(value)
    return defaults


def settings_of(sweep: dict[str, list[Grid]]) -> list[tuple[str, dict[str, float | bool]]]:
    """(method, arguments) of each setting that a sweep compares, checked."""
    out = []
    for method, grids in sweep.items():
        for grid in grids:
            lists = [value if isinstance(value, list) else [value] for value in grid.values()]
            for values in product(*lists):
                out.append((method, dict(zip(grid, values, strict=True))))
                method_args(*out[-1])
    return out


def _coherent_images(
    dataset: str, images: Images | None, gammas: list[float | None], holdout: int
) -> None:
    if holdout and on_the_fly(dataset, images):
        raise ValueError(f"holdout = {holdout}: only for images of at most 64 pixels; should be 0")
    if dataset not in FILE_SETS:
        if images is not None or None in gammas:
            raise ValueError(
                f"images, and a gamma that is null, belong to {', '.join(FILE_SETS)}, not {dataset}"
            )
    elif dataset == "folder" and not (images and images.folder and images.size):
        raise ValueError("dataset = 'folder' needs images with folder and size, such as "
                         "{folder: birds, size: 64}")  # fmt: skip
    elif images and images.train_list and set(gammas) != {None}:
        raise ValueError("images.train_list names every image, so gamma should be null")


def on_the_fly(dataset: str, images: Images | None) -> bool:
    """Whether images are decoded as they are needed: they are 224 pixels and do not fit memory."""
    size = images.size if images else None
    return (size or FILE_SETS.get(dataset)) == 224


def live_teacher(method: str, dataset: str, images: Images | None) -> bool:
    """Whether no table can hold what the teacher is asked for: feature maps, or too many views."""
    return METHODS[method].loss == "reviewkd" or on_the_fly(dataset, images)


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, validate_default=True
    )


class Images(_Strict):
    """Which image files a data set is made of; what is left out is the standard of the set.

    folder      below the data root, holding train/<class>/ and val/<class>/ or test/<class>/
    size        pixels: at 32 and 64 all images are decoded once and kept in memory; at 224 they
                are decoded as they are needed
    train_list  text file below the folder, a line "path label" an image, such as the public
    test_list   fixed lists of ImageNet-LT; without it all files of the folder count
    sha256      of the decoded images, at 224 pixels of their names and sizes; filled in when the
                data is found
    """

    folder: PathText | None = None
    size: Literal[32, 64, 224] | None = None
    train_list: PathText | None = None
    test_list: PathText | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None

    @model_validator(mode="after")
    def _inside(self) -> Images:
        for name in ("folder", "train_list", "test_list"):
            given = getattr(self, name)
            path = Path(given or "given")
            if not path.parts or path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{name} = {given!r}: should be a path below the data root")
        return self


class RunSpec(_Strict):
    """One training run, a pure function of these fields (with the data and the numerics version).

    dataset, gamma, split_seed, holdout, seed, precision, threads, eval_every and clip_norm are what
    a study's parameters of these names say (gamma, seed: one of its gammas, seeds). Besides:

    images          of a set of image files, see ``Images``; else None
    teacher         its network; None for methods without one. It is trained with teacher_seed, and
                    asked in tables of its answers or, where none can hold them, live
    method_args     over the method's defaults, which are written out: `ltkd methods` lists them
    groups          class groups, of LTKD's methods alone; else None
    batch, lr       images a step; rate at the schedule's peak, see ``peak_lr`` for slow learners
    schedule        left out it is steps, and eval_every 1: a study's defaults are other ones
    Raises pydantic's ValidationError, a ValueError, where they do not go together.
    """

    dataset: Dataset
    images: Images | None = None
    gamma: Imbalance | None  # None: the classes as large as they are
    split_seed: Seed = 0
    holdout: Holdout = 0
    teacher: str | None = None
    teacher_seed: Seed = 0
    student: str
    method: str
    method_args: dict[str, float | bool] = {}
    groups: Count | None = None
    epochs: Annotated[int, Field(ge=1, le=10_000)]
    batch: Annotated[int, Field(ge=2, le=65_536)]
    lr: Positive
    schedule: Schedule = "steps"
    clip_norm: Positive | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 5e-4
    seed: Seed = 0
    precision: Precision = "fp32"
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    # Of torchrun. Batch norm sees a process's share, so it decides the numbers; 1 is not written.
    processes: Annotated[int, Field(ge=1, le=1024, exclude_if=lambda n: n == 1)] = 1
    teacher_source: Source = "table"
    eval_every: Count = 1

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Defaults of the method are written out, so that a spec never changes its meaning."""
        if isinstance(values, dict) and isinstance(values.get("method"), str):
            given = values.get("method_args", {})
            if not isinstance(given, dict):
                raise ValueError(
                    f"method_args = {given!r}: should be a mapping of argument to number"
                )
            pair = values.get("teacher"), values.get("student")
            values = values | {"method_args": method_args(values["method"], given, pair)}
        return values

    @model_validator(mode="after")
    def _coherent(self) -> RunSpec:
        method, classes = METHODS[self.method], RECIPES[self.dataset].classes
        _known("network", self.student, NETWORKS)
        if method.loss and self.teacher is None:
            raise ValueError(
                f"method {self.method!r} needs a teacher; allowed: {', '.join(NETWORKS)}"
            )
        if self.teacher is None and (self.teacher_seed or self.teacher_source != "table"):
            raise ValueError(
                "teacher_seed and teacher_source are of a run with a teacher; leave them out"
            )
        if self.teacher is not None:
            _known("network", self.teacher, NETWORKS)
            if not method.loss:
                raise ValueError(
                    f"method {self.method!r} has no teacher, but teacher = {self.teacher!r}"
                )
            check_levels(self.method, self.teacher, self.student)
        if method.uses_groups != (self.groups is not None):
            word = "needs" if method.uses_groups else "takes no"
            most = f"; should be from 1 to {classes or 'the number of classes'}, such as 3"
            raise ValueError(f"method {self.method!r} {word} groups (given: {self.groups})"
                             f"{most * method.uses_groups}")  # fmt: skip
        if self.groups and classes and self.groups > classes:
            raise ValueError(f"groups = {self.groups}: {self.dataset} has {classes} classes")
        its_teachers = [256] if self.teacher and self.dataset == "imagenet" else []
        for batch in (self.batch, *(b for b in its_teachers if b < self.batch)):
            if batch % self.processes or batch < 2 * self.processes:
                whose = "" if batch == self.batch else f", with which the teacher has {batch}"
                raise ValueError(f"batch = {self.batch}{whose}: should be a multiple of the {self.processes} "
                                 "processes that share it, with two images for each at least")  # fmt: skip
        _coherent_images(self.dataset, self.images, [self.gamma], self.holdout)
        live = live_teacher(self.method, self.dataset, self.images)
        if self.teacher and live and self.teacher_source != "live":
            raise ValueError(
                f"teacher_source = 'table': no table holds what {self.method} on {self.dataset} "
                "asks of its teacher; should be 'live'"
            )
        return self

    @property
    def teacher_spec(self) -> RunSpec:
        """The run that makes this run's teacher: the same data and schedule, plain cross-entropy.

        On ImageNet, where the batch depends on the method, teachers train at 256 or less.
        """
        keep = self.model_dump(exclude={"teacher", "method_args", "groups", "teacher_source"})
        new: dict[str, Any] = {
            "images": self.images,
            "student": self.teacher,
            "method": "teacher",
            "seed": self.teacher_seed,
            "teacher_seed": 0,
        }
        if self.dataset == "imagenet" and self.batch > 256:
            new |= {"batch": 256, "lr": self.lr * 256 / self.batch}
        return RunSpec(**(keep | new))

    @property
    def peak_lr(self) -> float:
        """The highest rate of the schedule: ``lr``, or a fifth of it for SLOW_LEARNERS."""
        return self.lr * (0.2 if self.student in SLOW_LEARNERS else 1.0)

    @property
    def pair(self) -> str:
        return f"{self.teacher}-{self.student}" if self.teacher else self.student

    @property
    def own_values(self) -> list[str]:
        """What is not the method's default: 'alpha 2', and of the number of groups 'n = 10'."""
        usual = METHODS[self.method].defaults(self.teacher, self.student)
        own = [f"{k} {v:g}" for k, v in self.method_args.items() if v != usual[k]]
        return own + ([f"n = {self.groups}"] if self.groups not in (None, 3) else [])

    @property
    def title(self) -> str:
        """A short name for people, for progress lines and messages."""
        text = f"{self.method} {self.pair} {gamma_text(self.gamma)} seed {self.seed}"
        return ", ".join([text, *self.own_values])


def check_fit(spec: RunSpec, counts: Sequence[int]) -> None:
    """Raises ParameterError where the spec asks for more than ``counts``, images a class, hold."""
    images, at = sum(counts), gamma_text(spec.gamma)
    if not all(counts):
        raise ParameterError(f"gamma = {spec.gamma}: class {list(counts).index(0)} keeps no image; "
                             "a smaller gamma or holdout leaves it some")  # fmt: skip
    if spec.batch > images:
        raise ParameterError(
            f"batch = {spec.batch}: the training set has only {images} images at {at}"
        )
    if len(counts) < 3:
        raise ParameterError(f"dataset = {spec.dataset!r}: {len(counts)} classes; head, medium and "
                             "tail need three")  # fmt: skip
    if (spec.groups or 0) > len(counts):
        raise ParameterError(f"groups, group_counts: {spec.groups} groups, but the training set has "
                             f"{len(counts)} classes; should be at most so many")  # fmt: skip


def gamma_text(gamma: float | None) -> str:
    return "classes as they are" if gamma is None else f"gamma {gamma:g}"


# fmt: off
class StudyParameters(_Strict):
    """A study's parameter file. Every key has a default; the defaults are the quick study, but for
    a file's ``name``: its own (``read_study``).

    Descriptions are what the notebooks' parameters cell shows behind each key.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]{0,63}$",
        description="folder of the results, below outputs/")] = "quick"
    dataset: Annotated[Dataset, Field(description="digits, cifar10, cifar100, tiny_imagenet, imagenet or folder")] = "digits"
    images: Annotated[Images | None, Field(
        description="of a set of image files: {'folder': ..., 'size': 32, 64 or 224, ...}")] = None
    gammas: Annotated[list[Imbalance | None], Field(min_length=1,
        description="largest over smallest class; None: classes as they are")] = [20.0]
    pairs: Annotated[list[str], Field(min_length=1, description="teacher-student, by network names")] = ["resnet20-resnet8"]
    methods: Annotated[list[str], Field(min_length=1, description="what is compared; `ltkd methods` lists all")] = [
        "student", "kd", "ltkd", "kd_ce1", "kd_adjusted", "balanced_softmax",
        "balanced_softmax_kd_adjusted", "balanced_softmax_ltkd"]
    seeds: Annotated[list[Seed], Field(min_length=1,
        description="one run each: initialisation, order and views of the student")] = [0, 1, 2, 3, 4]
    split_seed: Annotated[Seed, Field(description="which images are kept")] = 0
    holdout: Annotated[Holdout, Field(description="training images a class to test on instead, before the tail is cut")] = 0
    teacher_seed: Annotated[Seed, Field(description="the one teacher that all students share")] = 0
    epochs: Annotated[int | None, Field(ge=1, le=10_000, description="None: the data set's own (digits 25, ImageNet 100, else 240)")] = None
    batch: Annotated[int | None, Field(ge=2, le=65_536, description="None: the data set's own (digits 32, ImageNet 512 or 256)")] = None
    lr: Annotated[Positive | None, Field(description="peak rate (MobileNetV2 and ShuffleNetV1 take a fifth); None: the data set's own (0.05; ImageNet 0.2 or 0.1)")] = None
    schedule: Annotated[Schedule, Field(description="one_cycle; or steps: x 0.1 at the recipe's epochs")] = "one_cycle"
    clip_norm: Annotated[Positive | None, Field(description="clip the gradient's norm; None: never")] = None
    groups: Annotated[Count, Field(description="class groups of LTKD, head first")] = 3
    alpha: Annotated[Weight, Field(description="LTKD's cross-group weight")] = 1.0
    beta: Annotated[Weight, Field(description="LTKD's within-group weight")] = 1.0
    temperature: Annotated[Positive | None, Field(description="of every method that has one; None: its own (4, or 1)")] = None
    method_args: Annotated[dict[str, dict[str, float | bool]], Field(
        description="overrides by method, such as {'kd': {'ce_weight': 0.5}}")] = {}
    ablations: Annotated[list[str], Field(description="cells of the ablation")] = list(ABLATIONS)
    ablation_pairs: Annotated[list[str] | None, Field(description="pairs of the ablation and the sweep; None: all")] = None
    group_counts: Annotated[list[Count], Field(description="numbers of groups to compare")] = [1, 3, 5, 10]
    group_pairs: Annotated[list[str] | None, Field(description="pairs of the group counts; None: all")] = None
    sweep: Annotated[dict[str, list[Grid]], Field(
        description="settings to compare, such as {'ltkd': [{'alpha': [1, 2], 'beta': [1, 2]}]}")] = {}
    eval_every: Annotated[Count, Field(description="test accuracy every so many epochs, and at the last")] = 5
    precision: Annotated[Precision, Field(description="fp32 or bf16 (autocast; losses stay fp32)")] = "fp32"
    threads: Annotated[int, Field(ge=1, le=1024, description="processor threads that one run uses")] = 1
    teacher_source: Annotated[Source, Field(description="table: teacher's answers computed once; live: each step")] = "table"
    table_gb: Annotated[Positive, Field(description="of disk, for one teacher's table; a larger one is not made: live")] = 16.0
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="auto: a GPU where there is one")] = "auto"
    data_root: Annotated[PathText | None, Field(description="folder of the data sets; None: LTKD_DATA, else data/")] = None
    # fmt: on

    @model_validator(mode="after")
    def _coherent(self) -> StudyParameters:
        classes = RECIPES[self.dataset].classes
        for name in ("gammas", "pairs", "methods", "seeds", "ablations", "ablation_pairs",
                     "group_counts", "group_pairs"):  # fmt: skip
            values = getattr(self, name) or []
            if len(set(values)) != len(values):
                raise ValueError(f"{name} = {values!r}: each value may stand there once")
            if name in ("ablation_pairs", "group_pairs"):
                for pair in values:
                    if pair not in self.pairs:
                        raise ValueError(
                            f"{name}: {pair!r} is not among pairs.{nearest(pair, self.pairs)} "
                            f"Where pairs are others, {name} should be, too, or null: all of them"
                        )
        for pair in self.pairs:
            parts = pair.split("-")
            if len(parts) != 2:
                raise ValueError(f"pairs: {pair!r} should be teacher-student, such as 'vgg13-vgg8'")
            for network in parts:
                _known("network in pairs:", network, NETWORKS)
        for method in self.methods:
            _known("method in methods:", method, [m for m in METHODS if m != "teacher"])
        both = [*product(self.pairs, self.methods),
                *product(self.pairs if self.ablation_pairs is None else self.ablation_pairs, self.sweep)]  # fmt: skip
        for pair, method in both:
            if method in METHODS:
                check_levels(method, *pair.split("-"))
        if not any(METHODS[method].loss for method in self.methods):
            raise ValueError(f"methods = {self.methods!r}: none has a teacher; add one, such as 'kd'")
        for cell in self.ablations:
            _known("cell in ablations:", cell, ABLATIONS)
        for method, given in self.method_args.items():
            method_args(method, given)
        if self.temperature:
            method_args("kd", {"temperature": self.temperature})
        lengths = [[len(v) if isinstance(v, list) else 1 for v in grid.values()]
                   for grids in self.sweep.values() for grid in grids]  # fmt: skip
        if not all(map(all, lengths)):
            raise ValueError(f"sweep = {self.sweep!r}: a list needs a value")
        cells = len(self.methods) + len(self.ablations) + len(self.group_counts) + sum(map(prod, lengths))
        runs = cells * len(self.gammas) * len(self.pairs) * len(self.seeds)
        if runs > MOST_RUNS:
            raise ValueError(f"{runs:,} runs are asked for; at most {MOST_RUNS:,} make a study, so split it")
        for method, _ in settings_of(self.sweep):
            if not METHODS[method].loss:
                raise ValueError(f"sweep: method {method!r} has no arguments to choose")
        if self.dataset == "imagenet" and (self.lr is None) != (self.batch is None):
            raise ValueError(f"lr = {self.lr}, batch = {self.batch}: on imagenet both, or neither: there "
                             "they depend on the method, and all its students share one teacher")
        _coherent_images(self.dataset, self.images, self.gammas, self.holdout)
        for n in (self.groups, *self.group_counts):
            if classes and n > classes:
                raise ValueError(f"groups, group_counts: {n} groups, but {self.dataset} has {classes} classes")
        return self


class _Loader(yaml.SafeLoader):
    """YAML without tags, aliases, merges of duplicate keys or surprises: 1e-3 is a number."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        # Nine nested aliases are a page of text, and a thousand million values.
        if isinstance(event, yaml.AliasEvent) or event.anchor or event.tag:
            raise yaml.composer.ComposerError(
                None, None, "no tags (!x), anchors (&x) or aliases (*x) here; write the value out", event.start_mark)
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, rx) for tag, rx in pairs if tag.endswith((":bool", ":null"))]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _rx in {  # only decimal: 010 is not 8 here, 1:30 not 90
    "int": r"[-+]?(0|[1-9][0-9]*)$",
    "float": r"([-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan)$",
}.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_rx), list("-+0123456789."))


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ParameterError(f"line {key.start_mark.line + 1}: a key should be a word, not a list or mapping")
        if key.value in seen:
            raise ParameterError(f"line {key.start_mark.line + 1}: the key {key.value!r} stands there twice; keep one")
        seen.add(key.value)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse_yaml(text: str, source: str) -> Any:
    """What plain YAML says. Raises ParameterError that names the source."""
    try:
        return yaml.load(text, Loader=_Loader)
    except ParameterError as error:
        raise ParameterError(f"{source}: {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        why = " ".join(str(error).split())
        raise ParameterError(f"{source}: not plain YAML: {why}") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ParameterError that names the file and the mend."""
    path = Path(path)
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ParameterError(f"{path}: there is no such file.{nearest(str(path), near) if near else ''}")
    if path.stat().st_size > 100_000:
        raise ParameterError(f"{path}: larger than 100 kB; a parameter file is a page of text")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ParameterError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    if not isinstance(values, dict):
        kind = "empty" if values is None else f"a {type(values).__name__}"
        raise ParameterError(f"{path}: the file is {kind}; it should be lines of `key: value`, such as `name: mine`")
    return values


_BRANCHES = ("float", "bool", "list[union[float,bool]]")  # pydantic's names for what a Grid may hold


def check(model: type[_Strict], values: dict[str, Any], source: str = "parameters") -> Any:
    """``model`` from ``values``, or a ParameterError with a line a mistake."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found: dict[str, str] = {}  # a line a place: of the branches of a union the first speaks for all
        for item in error.errors():
            where, given = item["loc"], item["input"]
            key = ".".join(str(part) for i, part in enumerate(where) if i < 2 or part not in _BRANCHES)
            last = next(reversed(found), None)
            if last and key.startswith(f"{last}."):  # but a list's own entry says more
                del found[last]
            if item["type"] == "extra_forbidden":
                inner = Images if where[0] == "images" and len(where) > 1 else model
                line = f"{key}: unknown key.{nearest(str(where[-1]), inner.model_fields)}"
            elif item["type"] == "missing":
                line = f"{key}: missing; it has no default"
            elif where[:1] == ("method_args",) and where[1:] in [(arg,) for arg in METHODS["ltkd"].args]:
                line = f"{key} = {given!r}: a method's name should stand above it, such as {{ltkd: {{{where[1]}: {given!r}}}}}"
            else:
                text = item["msg"].removeprefix("Value error, ")
                words = re.findall("'(.+?)'", item["ctx"]["expected"]) if item["type"] == "literal_error" else []
                text += f".{hint}" if (hint := _hint(given, words)) else ""
                text = text[:1].lower() + text[1:] if key else text
                line = f"{key} = {given!r}: {text}" if key else text
            found.setdefault(key, line)
        lines = [line if len(line) < 1000 else f"{line[:500]} ... {line[-400:]}" for line in found.values()]
        lines[20:] = [f"and {len(lines) - 20} more"] if len(lines) > 20 else []
        raise ParameterError("\n".join(f"{source}: {line}" for line in lines)) from None


def read_study(path: str | Path) -> dict[str, Any]:
    """``read_yaml`` of a study; without a name it has the file's, never another study's folder."""
    own = re.sub(r"[^a-z0-9]+", "_", Path(path).stem.lower()).strip("_")
    return {"name": own[:64] or "study"} | read_yaml(path)


def load_parameters(path: str | Path) -> StudyParameters:
    """A study's parameter file, checked whole."""
    return check(StudyParameters, read_study(path), str(path))


def load_spec(path: str | Path, processes: int = 1) -> RunSpec:
    """A run's spec file, checked whole; what it leaves out comes from the data set's recipe.

    processes: so many have been started to make it together
    """
    values = read_yaml(path)
    dataset, method = str(values.get("dataset")), str(values.get("method"))
    known = dataset in RECIPES and method in METHODS  # else ``check`` tells
    recipe = recipe_of(dataset, method) if known else RECIPES.get(dataset)
    keys = ("epochs", "batch", "lr", "weight_decay")
    defaults = {k: getattr(recipe, k) for k in keys} if recipe else {}
    if dataset == "imagenet" and ("lr" in values) != ("batch" in values):
        raise ParameterError(f"{path}: on imagenet lr and batch both, or neither: there they depend on the method")
    spec: RunSpec = check(RunSpec, {"processes": processes} | defaults | values, str(path))
    if spec.processes != processes:
        start = f"torchrun --nproc-per-node {spec.processes} -m ltkd train {path}"
        raise ParameterError(f"{path}: processes = {spec.processes}, but {processes} started; "
                             f"should be started by: {start}")  # fmt: skip
    return spec
