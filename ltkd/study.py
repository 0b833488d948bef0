"""A study: parameters in, a list of runs, tidy tables out. What the notebooks talk to."""

import ast
import html
import json
import os
import sys
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from . import files, pool
from .data import DataError, LongTailed, Size, load, resolve, size_of
from .data.views import standard_views
from .groups import GROUPS, class_groups
from .methods import ABLATIONS, METHODS, Args
from .params import (
    FILE_SETS,
    RECIPES,
    Images,
    ParameterError,
    RunSpec,
    Source,
    StudyParameters,
    check,
    check_fit,
    live_teacher,
    nearest,
    network_label,
    recipe_of,
    settings_of,
)
from .prior import TAUS, adjusted_counts, fitted_counts, known_or_kept
from .runs import RunRecord, Store, identity, pick_device
from .teacher import Table, table_row
from .train import predict

PARTS = ("teachers", "distillation", "ablations", "group_count", "sweep")
_AT = ["run", "pair", "method", "label", "ours", "variant", "seed", "tau"]
FITTED = [*_AT, "all", *GROUPS]
"""Columns of ``Study.fitted``"""
CURVE = [*_AT, "as_trained", "all", *GROUPS]
"""Columns of ``Study.adjusted``"""
CLASS_CURVE = [*_AT, "as_trained", "class_id", "count", "group", "accuracy"]
"""Columns of ``Study.adjusted_per_class``"""
NOT_MADE = "not made yet"  # the reason of a run that was not tried
_CODE = types.ModuleType | type | types.FunctionType | types.MethodType


class Pair(NamedTuple):
    """A teacher and a student, by network names."""

    teacher: str
    student: str

    @property
    def label(self) -> str:
        return "-".join(network_label(name) for name in self)


def setting_label(method: str, args: Args) -> str:
    """'LTKD, alpha 2, beta 1'."""
    return ", ".join([METHODS[method].label, *(f"{k} {v:g}" for k, v in args.items())])


def _setting(spec: RunSpec) -> str:
    """'LTKD', or, with what is not its default, 'LTKD, temperature 2'."""
    return ", ".join([METHODS[spec.method].label, *spec.own_values])


def _assigned(cell: str) -> set[str]:
    """The names that a notebook's cell gives values to, anywhere in it."""
    try:
        nodes = [*ast.walk(ast.parse(cell))]
    except SyntaxError:  # IPython's own, such as %time
        return set()
    return {one.id for one in nodes if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}


class Place(NamedTuple):
    """Where in a study's grid a run stands."""

    pair: Pair
    gamma: float | None
    seed: int


class Study:
    """The runs that one parameter file asks for, and what came back.

    outputs   the results root (else LTKD_OUTPUTS, else outputs/); the study's folder is below it
    A ``part`` of it is one of PARTS.
    Raises ParameterError when a parameter is unknown or out of range.
    """

    def __init__(
        self, *, outputs: str | Path | None = None, source: str = "parameters", **parameters: Any
    ) -> None:
        self.parameters: StudyParameters = check(StudyParameters, parameters, source)
        self.name = self.parameters.name
        self.folder = files.outputs_root(outputs) / self.name
        self.pairs = [Pair(*pair.split("-")) for pair in self.parameters.pairs]
        self.store = Store(self.folder)
        self._began = time.monotonic()
        self._used: dict[str, RunRecord] = {}
        # Under `ltkd run` a page's own process does not try again what has failed already, and
        # seals the inputs that were there before it began.
        self._failed: dict[str, dict[str, str]] = _told("LTKD_FAILED")
        self._inputs: dict[str, str] = _told("LTKD_INPUTS")
        self.size = cache(self._size_of)

    @classmethod
    def from_notebook(cls, names: Mapping[str, Any]) -> "Study":
        """The study that a notebook's parameters cell describes; call it right after that cell.

        Every plain value among ``names`` (globals()) is taken for a parameter, so that a misspelt
        name that papermill injected is refused, not ignored. Where a page runs once more in one
        kernel, only what its parameters cells assign is: the other cells left names, too.
        """
        cells: list[str] = names.get("In", [])
        # papermill's own cell goes over the first, and may hold a name alone.
        injected = [cell.startswith("# Parameters") for cell in cells]
        whole = [not more and "name" in (own := _assigned(cell)) and len(own) > 1
                 for cell, more in zip(cells, injected, strict=True)]  # fmt: skip
        last = max((k for k, one in enumerate(whole) if one), default=0)
        chosen = [cells[k] for k in range(last, len(cells)) if k == last or injected[k]]
        now = set().union(*map(_assigned, chosen))
        machinery = {"In", "Out", "exit", "quit", "open", "get_ipython"}
        given = {
            key: value
            for key, value in names.items()
            if not key.startswith("_") and key not in machinery
            and not isinstance(value, _CODE) and (key in now or not now)
        }  # fmt: skip
        check(StudyParameters, given, "parameters cell")  # before a name could be taken for ours
        files.code_version()  # kept from now on: of the code that runs, not of the page's end
        return cls(source="parameters cell", **given)

    # ---- which runs

    def _spec(
        self, at: Place, method: str, groups: int | None = None, args: Args | None = None
    ) -> RunSpec:
        """One run; ``args`` go over the study's own, which go over the method's defaults."""
        p, about = self.parameters, METHODS[method]
        recipe = recipe_of(p.dataset, method)
        own: dict[str, float | bool] = {}
        if p.temperature and "temperature" in about.args:
            own["temperature"] = p.temperature
        if about.loss == "ltkd":
            own |= {"alpha": p.alpha, "beta": p.beta}
        own |= {**p.method_args.get(method, {}), **(args or {})}
        with_teacher: dict[str, Any] = {}
        if about.loss:
            side = int({**about.defaults(*at.pair), **own}.get("pool", 0))
            with_teacher = {
                "teacher": at.pair.teacher, "teacher_seed": p.teacher_seed,
                "teacher_source": self._source(at.gamma, method, side),
            }  # fmt: skip
        return RunSpec(
            dataset=p.dataset, images=self._images, gamma=at.gamma, split_seed=p.split_seed,
            holdout=p.holdout, student=at.pair.student, method=method, method_args=own,
            groups=(groups or p.groups) if about.uses_groups else None,
            epochs=self.epochs, batch=p.batch or recipe.batch, lr=p.lr or recipe.lr,
            schedule=p.schedule, clip_norm=p.clip_norm, weight_decay=recipe.weight_decay,
            seed=at.seed, precision=p.precision, threads=p.threads, eval_every=p.eval_every,
            **with_teacher)  # fmt: skip

    def _source(self, gamma: float | None, method: str, side: int) -> Source:
        """Where a run has its teacher's answers from; side: of CAT-KD's pooled maps, else 0.

        live where no table can hold them, where it would be larger than ``table_gb``, and where
        only one method reads it (CAT-KD) in too few epochs to come upon a view again. Only what a
        run itself is decides: with more seeds the finished ones stay what they are.
        """
        p = self.parameters
        if p.teacher_source == "live" or live_teacher(method, p.dataset, p.images):
            return "live"
        pixels, whole = self._images and self._images.size, 0
        try:
            size = self.size(gamma)
            views = size.views
            whole = views * sum(size.counts) * table_row(len(size.counts), side).itemsize
        except DataError:  # how many files that are not there would be is not known
            views = standard_views(pixels or 32).count
        few = side and self.epochs < views
        return "live" if few or whole > 1e9 * p.table_gb else "table"

    def specs(self, part: str | None = None) -> list[tuple[str, RunSpec]]:
        """(variant, spec) of a part of PARTS, or of all of them."""
        p = self.parameters
        if part is None:
            found = [item for name in PARTS for item in self.specs(name)]
            for one in {(s.gamma, s.batch, s.groups): s for _, s in found}.values():
                with suppress(DataError):  # files that are not there are told of by ``make``
                    counts = self.size(one.gamma).counts
                    check_fit(one, counts)
                    if one.gamma is None and (own := max(counts) / max(min(counts), 1)) in p.gammas:
                        raise ParameterError(f"gammas: null is {own:g} here, which stands there, "
                                             "too; leave one of them out")  # fmt: skip
            return found
        if part not in PARTS:
            raise ValueError(f"part = {part!r}: unknown.{nearest(part, PARTS)}")
        some = {
            "ablations": p.ablation_pairs,
            "sweep": p.ablation_pairs,
            "group_count": p.group_pairs,
        }.get(part)
        chosen = p.pairs if some is None else some
        pairs = [pair for pair in self.pairs if "-".join(pair) in chosen]
        places = product(p.gammas, pairs, p.seeds)
        grid = [Place(pair, gamma, seed) for gamma, pair, seed in places]
        if part == "teachers":
            students = [self._spec(at, "kd") for at in grid]
            return [("", spec) for spec in pool.with_teachers(students) if spec.method == "teacher"]
        if part == "distillation":
            return [("", self._spec(at, method)) for at in grid for method in p.methods]
        if part in ("ablations", "sweep"):
            cells: list[tuple[str, str, Args]]
            if part == "sweep":
                cells = [(setting_label(*one), *one) for one in settings_of(p.sweep)]
            else:
                cells = [(cell, *ABLATIONS[cell]) for cell in p.ablations]
            return [
                (cell, self._spec(at, name, args=args)) for at in grid for cell, name, args in cells
            ]
        return [("", self._spec(at, "ltkd", groups=n)) for at in grid for n in p.group_counts]

    def runs(self) -> list[RunSpec]:
        """Every run of the study once, teachers first."""
        return pool.with_teachers([spec for _, spec in self.specs()])

    def _items(self, part: str) -> list[tuple[str, RunSpec]]:
        """The part's specs once each: a student without a teacher stands in several pairs."""
        once = {(variant, identity(spec)): spec for variant, spec in self.specs(part)}
        return [(variant, spec) for (variant, _), spec in once.items()]

    # ---- runs made

    def make(self, specs: Sequence[RunSpec] | None = None, **options: Any) -> pool.Outcome:
        """Make what is missing (teachers first); options as in ``ltkd.pool.make``."""
        p = self.parameters
        wanted = [spec for _, spec in self.specs()] if specs is None else list(specs)
        if any(self.store.get(spec) is None for spec in pool.with_teachers(wanted)):
            pick_device(p.device)
            for gamma in {spec.gamma for spec in wanted}:
                self.data(gamma)  # absent data is said now, before any process starts
        out = pool.make(wanted, self.store, device=p.device, data_root=p.data_root, **options)
        self._part_from_other_teachers(out)
        return self._noted(out, wanted)

    def _again(self, specs: Sequence[RunSpec]) -> pool.Outcome:
        """``make`` of those that have not failed already, of which a page shows one line."""
        wanted = [spec for spec in specs if identity(spec) not in self._failed]
        if new := sum(self.store.get(spec) is None for spec in pool.with_teachers(wanted)):
            what = f"{self.name}: {files.many(new, 'run')} to be made first"
            print(f"{what}; `ltkd status` and Study.make tell how far they are", file=sys.stderr)
        return self.make(wanted, quiet=True)

    def _noted(self, out: pool.Outcome, wanted: Sequence[RunSpec]) -> pool.Outcome:
        self._used |= out.records
        reasons = out.reasons
        for spec in pool.with_teachers(wanted):
            name = identity(spec)
            if reason := reasons.get(name):
                self._failed[name] = {
                    "run": name, "method": spec.method, "pair": spec.pair,
                    "seed": str(spec.seed), "reason": reason}  # fmt: skip
            elif name in out.records:  # at a second try
                self._failed.pop(name, None)
        return out

    def as_is(self, specs: Sequence[RunSpec]) -> pool.Outcome:
        """``there``; what is left counts as failed from now on, so that no page makes it.

        Raises ParameterError where a teacher is among it: every page speaks of the teachers.
        """
        self.check_files()
        out = self.there(specs)
        gone = [spec for spec in out.left if spec.method == "teacher"]
        if gone and out.records:
            raise ParameterError(
                f"{self.name}: {gone[0].title} is not there, of which its pages speak; leave its "
                f"pair or gamma out, or make it: --run {identity(gone[0])}"
            )
        holes = {identity(spec): f"{spec.title}: {NOT_MADE}" for spec in out.left}
        self._noted(replace(out, failed=out.failed | holes), specs)
        return out

    def check_files(self) -> None:
        """Raises DataError where image files are not there whose hash is part of the runs' names,
        and is not given."""
        if self._images and not self._images.sha256:
            try:
                resolve(self.parameters.dataset, self._images, self.parameters.data_root)
            except DataError as error:
                hint = "or give images.sha256: it is part of the runs' names"
                raise DataError(f"{error}; {hint}") from None

    def there(self, specs: Sequence[RunSpec]) -> pool.Outcome:
        """``make`` without the making: what is there of the specs and their teachers, and left."""
        found = {identity(spec): self.store.get(spec) for spec in pool.with_teachers(specs)}
        out = pool.Outcome(records={name: one for name, one in found.items() if one})
        self._part_from_other_teachers(out)
        known = out.records.keys() | out.failed.keys()
        out.left = [s for s in pool.with_teachers(specs) if identity(s) not in known]
        return out

    @staticmethod
    def _part_from_other_teachers(out: pool.Outcome) -> None:
        """Counts students as failed that do not compare with the teacher that is there now."""
        for name, student in list(out.records.items()):
            its, spec = student.values["teacher_sha256"], student.spec
            if its is None:
                continue
            own = identity(spec.teacher_spec)
            teacher = out.records.get(own)
            if teacher and not teacher.diverged and teacher.values["model_sha256"] != its:
                now = teacher.values["model_sha256"]
                del out.records[name]
                out.failed[name] = (
                    f"{spec.title}: made from another teacher (sha256 {its[:12]}) than the one "
                    f"that is there ({now[:12]}): put runs/{own} and teachers/{own}.safetensors "
                    f"of that one back, or remove runs/{name} to make the run anew"
                )

    def _records(self, part: str) -> list[tuple[str, RunRecord]]:
        items = self._items(part)
        records = self._again([spec for _, spec in items]).records
        found = [(variant, records.get(identity(spec))) for variant, spec in items]
        return [(variant, record) for variant, record in found if record and not record.diverged]

    @property
    def failed(self) -> dict[str, dict[str, str]]:
        """What failed and has left no record by now, by run, for the pages' processes."""
        there = {identity(spec) for spec in self.runs() if self.store.get(spec)}
        return {name: row for name, row in self._failed.items() if name not in there}

    def missing(self, part: str | None = None) -> pd.DataFrame:
        """Runs of a part (or of all) that failed or diverged, with the reason."""
        wanted = {identity(spec) for _, spec in self.specs(part)}
        rows = [row for name, row in self._failed.items() if name in wanted]
        return pd.DataFrame(rows, columns=["run", "method", "pair", "seed", "reason"])

    # ---- tidy tables

    def results(self, part: str) -> pd.DataFrame:
        """A row a finished run: accuracies in percent, last epoch; best_* of the best test epoch.

        all: over the test images; head, medium, tail: macro means over the classes of the three
        default groups, whatever number of groups the method used.
        """
        return pd.DataFrame([self._row(variant, record) for variant, record in self._records(part)])

    def others(self) -> pd.DataFrame:
        """``results`` of the folder's finished runs that are not of these parameters."""
        own = {identity(spec) for spec in self.runs()}
        found = [record for record in self.store.all() if record.run not in own]
        return pd.DataFrame([self._row("", one) for one in found if not one.diverged])

    def _row_records(self, method: str) -> tuple[list[RunSpec], list[tuple[str, RunRecord]]]:
        specs = [spec for _, spec in self._items("distillation") if spec.method == method]
        records = self.there(specs).records
        found = [records[name] for spec in specs if (name := identity(spec)) in records]
        return specs, [("", record) for record in found if not record.diverged]

    def row_of(self, method: str) -> tuple[list[RunSpec], pd.DataFrame]:
        """A method's runs in the table of methods, and ``results`` of those that are there."""
        specs, found = self._row_records(method)
        return specs, pd.DataFrame([self._row(*one) for one in found])

    def adjusted_row(self, method: str) -> pd.DataFrame:
        """``adjusted`` of a method's runs in the table of methods, of those that are there."""
        return self._adjusted(self._row_records(method)[1])

    def _finished(self) -> list[tuple[str, RunRecord]]:
        return [(_setting(one.spec), one) for one in self.store.all() if not one.diverged]

    def _labels(self, variant: str, record: RunRecord) -> dict[str, Any]:
        spec = record.spec
        pair = Pair(spec.teacher, spec.student).label if spec.teacher else ""
        return {
            "run": record.run, "pair": pair or network_label(spec.student),
            "method": spec.method, "label": METHODS[spec.method].label, "variant": variant,
            "seed": spec.seed,
        }  # fmt: skip

    def _row(self, variant: str, record: RunRecord) -> dict[str, Any]:
        spec, values = record.spec, record.values
        tested = [row for row in values["history"] if "correct" in row]
        best = max(tested, key=lambda row: sum(row["correct"]))  # the first of equals
        at_best = self._accuracies(record, np.asarray(best["correct"]))
        names = ("ce_weight", "kd_weight", "alpha", "beta", "temperature", "rebalance")
        args = {name: spec.method_args.get(name) for name in names}
        about = self._labels(variant, record)
        return {
            "run": record.run, "dataset": spec.dataset, "gamma": self._factor(record),
            "teacher": spec.teacher or "", "student": spec.student, "pair": about["pair"],
            "method": spec.method, "label": about["label"],
            "ours": METHODS[spec.method].ours, "variant": variant, "seed": spec.seed,
            "epochs": spec.epochs, "holdout": spec.holdout,
            "teacher_sha256": (values["teacher_sha256"] or "")[:12],
            "split_seed": spec.split_seed, "schedule": spec.schedule,
            "n_groups": spec.groups, **args, **self._accuracies(record, record.correct()),
            "best_epoch": best["epoch"], **{f"best_{k}": v for k, v in at_best.items()},
            "seconds": values["seconds"], "device": values["device"],
            "hardware": values["hardware"],
        }  # fmt: skip

    def _factor(self, record: RunRecord) -> float:
        """Largest over smallest class: as the spec says, or as the classes are."""
        counts = record.values["data"]["counts"]
        return float(record.spec.gamma or max(counts) / max(min(counts), 1))

    def _accuracies(self, record: RunRecord, correct: np.ndarray) -> dict[str, float]:
        about = record.values["data"]
        total = np.asarray(about["test_counts"])
        groups = class_groups(about["counts"]).numpy()
        out = {"all": 100 * float(correct.sum() / total.sum())}
        for k, name in enumerate(GROUPS):
            out[name] = 100 * float((correct / total)[groups == k].mean())
        return out

    def per_class(self, part: str) -> pd.DataFrame:
        """A row a run and class: training images (count), group, test accuracy in percent."""
        frames = [self._classes(*one, one[1].correct()) for one in self._records(part)]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def _classes(self, variant: str, record: RunRecord, correct: np.ndarray) -> pd.DataFrame:
        about = record.values["data"]
        return pd.DataFrame({
            **self._labels(variant, record),
            "class_id": range(len(about["counts"])), "class_name": about["class_names"],
            "count": about["counts"], "group": class_groups(about["counts"]).numpy(),
            "accuracy": 100 * correct / np.asarray(about["test_counts"]),
        })  # fmt: skip

    def learning_curves(self, part: str) -> pd.DataFrame:
        """A row a run and epoch: losses, and the accuracies where the epoch was evaluated.

        loss: what was minimised, mean over the epoch's steps; label_loss and distillation_loss: its
        terms with their outer weights, the latter without the warm-up of DKD and ReviewKD.
        """
        rows = []
        for variant, record in self._records(part):
            name = self._labels(variant, record)
            for entry in record.values["history"]:
                losses = {k: entry[k] for k in ("epoch", "loss", "label_loss", "distillation_loss")}
                seen = (
                    self._accuracies(record, np.asarray(entry["correct"]))
                    if "correct" in entry
                    else {}
                )
                rows.append(name | losses | seen)
        return pd.DataFrame(rows)

    def adjusted(self, part: str | None = None) -> pd.DataFrame:
        """A row a run and tau of ``prior.TAUS``: accuracies with the prior taken out afterwards.

        as_trained marks the tau at which the logits are as the loss left them. Runs whose network
        is not kept here are left out. Without a part: all finished runs of the folder, of these
        parameters or not, as far as it is known; nothing is computed.
        """
        found = self._finished() if part is None else self._records(part)
        return self._adjusted(found, known=part is None)

    def adjusted_per_class(self, part: str) -> pd.DataFrame:
        """``adjusted``, a row a run, tau and class: training images (count), group, accuracy."""
        frames = []
        for variant, record, correct in self._counts(self._records(part)):
            method = METHODS[record.spec.method]
            for tau, right in zip(TAUS, correct, strict=True):
                own = self._classes(variant, record, right).assign(ours=method.ours, tau=tau)
                frames.append(own.assign(as_trained=tau == float(method.balanced))[CLASS_CURVE])
        none = pd.DataFrame(columns=CLASS_CURVE)
        return pd.concat(frames, ignore_index=True) if frames else none

    def _data_for(self, record: RunRecord, known: bool) -> LongTailed | None:
        return None if known else self.data(record.spec.gamma)

    def _counts(
        self, found: Sequence[tuple[str, RunRecord]], known: bool = False
    ) -> Iterator[tuple[str, RunRecord, np.ndarray]]:
        """Each run with its ``adjusted_counts``, where they are known or its network is kept."""
        for variant, record in found:
            data = self._data_for(record, known)
            correct = adjusted_counts(self.store, record, data, self.parameters.device)
            if correct is not None:
                yield variant, record, correct

    def _adjusted(
        self, found: Sequence[tuple[str, RunRecord]], known: bool = False
    ) -> pd.DataFrame:
        rows = [
            self._at_tau(variant, record, tau, right)
            for variant, record, correct in self._counts(found, known)
            for tau, right in zip(TAUS, correct, strict=True)
        ]
        return pd.DataFrame(rows, columns=CURVE)

    def _at_tau(
        self, variant: str, record: RunRecord, tau: float, correct: np.ndarray
    ) -> dict[str, Any]:
        method = METHODS[record.spec.method]
        about = {"ours": method.ours, "tau": tau, "as_trained": tau == float(method.balanced)}
        return self._labels(variant, record) | about | self._accuracies(record, correct)

    def fitted(self, part: str | None = None) -> pd.DataFrame:
        """A row a run: the tau of ``fit_tau``, fitted to the test images' logits and class sizes
        alone, and the accuracies at it.

        Runs of which it is not known, and whose network is not kept here, are left out; without a
        part as in ``adjusted``.
        """
        rows = []
        for variant, record in self._finished() if part is None else self._records(part):
            data = self._data_for(record, known=part is None)
            if fit := fitted_counts(self.store, record, data, self.parameters.device):
                rows.append(self._at_tau(variant, record, *fit))
        return pd.DataFrame(rows, columns=FITTED)

    def predictions(self, part: str) -> dict[str, np.ndarray]:
        """Class ids of the test images [N] at the last epoch, by run."""
        return {record.run: record.predictions() for _, record in self._records(part)}

    # ---- data and teachers

    def data(self, gamma: float | Literal["first"] | None = "first") -> LongTailed:
        """The training and test set at one of the study's gammas."""
        p = self.parameters
        factor = p.gammas[0] if gamma == "first" else gamma

        def drawn(gamma: float | None) -> LongTailed:
            return load(p.dataset, gamma, p.split_seed, p.data_root, self._images, p.holdout)

        if factor in p.gammas:
            return drawn(factor)
        if None in p.gammas and (own := drawn(None)).gamma == factor:  # as a table states it
            return own
        raise ValueError(f"gamma = {gamma}: not of this study; allowed: {p.gammas}")

    def _size_of(self, gamma: float | None) -> Size:
        """How large the set at one of the gammas is; ``size`` remembers it."""
        p = self.parameters
        return size_of(p.dataset, gamma, p.split_seed, p.data_root, self._images, p.holdout)

    @property
    def drawn(self) -> str:
        """How its images were drawn: 'imbalance factor 100, 20, split seed 1', 0 left unsaid.

        A factor is measured where classes are left as they are.
        """
        p = self.parameters
        factors = ", ".join(f"{self.data(gamma).gamma:g}" for gamma in p.gammas)
        return f"imbalance factor {factors}" + (f", split seed {p.split_seed}" * (p.split_seed > 0))

    @cached_property
    def _images(self) -> Images | None:
        p = self.parameters
        return resolve(p.dataset, p.images, p.data_root, strict=False)

    @property
    def schedule(self) -> str:
        """As a setting names it; plain "steps" is the recipe's own schedule, on the test set.

        "own values": of the losses, or, where the schedule is the recipe's, of the rest of it.
        """
        p = self.parameters
        fields = ["groups", "alpha", "beta", "method_args"]
        changed = any(getattr(p, k) != StudyParameters.model_fields[k].default for k in fields)
        if p.schedule == "steps":
            recipes = [recipe_of(p.dataset, method) for method in (*p.methods, "ltkd")]
            asked = [(p.lr or recipe.lr, p.batch or recipe.batch) for recipe in recipes]
            changed |= asked != [(recipe.lr, recipe.batch) for recipe in recipes]
            changed |= p.clip_norm is not None
        theirs = (None,) if p.dataset == "imagenet" else (None, 4.0)
        own = changed or p.temperature not in theirs
        size = p.images and p.images.size
        small = f"{size} pixels" if size and size != (FILE_SETS[p.dataset] or size) else ""
        held = "held-out images" if p.holdout else ""
        parts = [p.schedule, "own values" if own else "", small, held]
        return ", ".join(filter(None, parts))

    @property
    def epochs(self) -> int:
        return self.parameters.epochs or RECIPES[self.parameters.dataset].epochs

    @property
    def temperature(self) -> float:
        """At which the teacher's masses are looked at: that of LTKD."""
        return float(self._spec(self._first(), "ltkd").method_args["temperature"])

    @property
    def batch(self) -> int:
        """Over which LTKD's b is a sum."""
        return self._spec(self._first(), "ltkd").batch

    def _first(self, pair: Pair | None = None) -> Place:
        return Place(pair or self.pairs[0], self.parameters.gammas[0], self.parameters.seeds[0])

    def _teacher_spec(self, pair: Pair | None) -> RunSpec:
        """Of the pair's teacher on the first gamma."""
        return self._spec(self._first(pair), "kd").teacher_spec

    def has_teacher(self, pair: Pair) -> bool:
        """Whether the pair's teacher on the first gamma is trained."""
        record = self.store.get(self._teacher_spec(pair))
        return record is not None and not record.diverged

    def teachers(self) -> list[Pair]:
        """A pair for each teacher on the first gamma: made where missing, left out where it failed.

        Raises RuntimeError with the reason where that leaves none.
        """
        own = {pair.teacher: pair for pair in self.pairs}.values()
        self._again([self._teacher_spec(pair) for pair in own])
        if found := [pair for pair in own if self.has_teacher(pair)]:
            return found
        raise RuntimeError("; ".join(self.missing("teachers")["reason"]))

    def teacher(self, pair: Pair | None = None) -> tuple[nn.Module, dict[str, Any]]:
        """The pair's trained teacher on the first gamma, in evaluation mode, and its record.

        Raises RuntimeError with the reason where it diverged or failed.
        """
        record = self._teacher_record(pair)
        return self.store.load_model(record.spec), record.values

    def _teacher_record(self, pair: Pair | None) -> RunRecord:
        spec = self._teacher_spec(pair)
        self._again([spec])
        record = self.store.get(spec)
        if record is None or record.diverged:
            raise RuntimeError(f"{spec.title}: {self._failed[identity(spec)]['reason']}")
        return record

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits of uint8 images [N, 3, H, W] in evaluation mode, as they are: float32 [N, C]."""
        spec = self._spec(self._first(), "student")
        return predict(model, self.data(), images, spec)

    def teacher_logits(self, pair: Pair, part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """The pair's teacher on the training or test images as they are, at the first gamma: logits
        [N, C] and labels [N]; where there are more than 20,000, of so many, evenly spaced.

        Kept with the teacher's table, for all pages; in a read-only folder computed at each call.
        """
        data, teacher = self.data(), self._teacher_record(pair)
        images = data.train_images if part == "train" else data.test_images
        labels = data.train_labels if part == "train" else data.test_labels
        n = len(labels)
        some = torch.linspace(0, n - 1, min(n, 20_000), dtype=torch.float64).round().long()
        place, row = np.arange(len(some)), table_row(len(data.class_names), number="<f4")
        folder = self.store.tables(teacher.spec, teacher.values["model_sha256"])
        table, answers, good = None, np.empty((len(some), len(data.class_names)), "<f4"), place < 0
        with suppress(OSError):
            table = Table(folder / f"{part}_images.npy", row, len(some))
            answers, good = table.read(place)
        if len(missing := place[~good]):
            model = self.store.load_model(teacher.spec).to(pick_device(self.parameters.device))
            for part_of_it in files.chunks(missing, 2_000):  # of large images as many as memory has
                own = images[some[part_of_it]]
                answers[part_of_it] = self.logits(model, own).cpu().numpy()
            if table:
                with suppress(OSError):
                    table.write(missing, answers[missing])
        return torch.from_numpy(answers), labels[some]

    # ---- provenance

    def manifest(self, notebook: str) -> dict[str, Any]:
        """Everything that a report rests on, sealed by the SHA-256 of itself."""
        p, data = self.parameters, self.data()
        records = sorted(self._used.values(), key=lambda r: r.run)
        manifest = {
            "notebook": notebook, "parameters": p.model_dump(exclude={"data_root"}),
            "data": {"name": data.name, "title": data.title, "sha256": data.sha256,
                     "train_images": {f"{self.data(g).gamma:g}": int(self.data(g).counts.sum())
                                      for g in p.gammas},
                     "test_images": len(data.test_labels)},
            "epochs": self.epochs, "seeds": p.seeds,
            "hardware": "; ".join(sorted({x for r in records for x in r.hardware})),
            "device": ", ".join(sorted({x for r in records for x in r.devices})),
            "executed_on": files.hardware(),
            "seconds": round(time.monotonic() - self._began, 1),
            "training_seconds": round(sum(r.values.get("seconds", 0) for r in records), 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "code": files.code_version(), "versions": files.versions(),
            "inputs": self._inputs.get(notebook) or self.inputs(notebook),
            "records": [{"run": r.run, "method": r.spec.method, "seed": r.spec.seed,
                         "commit": r.values["code"]["commit"],
                         "dirty": r.values["code"]["dirty"], "sha256": r.values["sha256"]}
                        for r in records],
        }  # fmt: skip
        manifest = json.loads(json.dumps(manifest))
        return manifest | {"seal": files.sha256(files.canonical(manifest))}

    def inputs(self, notebook: str) -> str:
        """Hash of all that decides a report's content: while it stays, the report is up to date."""
        source = files.ROOT / "notebooks" / f"{notebook}.ipynb"
        some = ("teachers", "distillation", "sweep")  # those that a page takes the prior from
        corrected = {identity(spec) for part in some for _, spec in self.specs(part)}
        found: list[Any] = []
        for spec in self.runs():
            if record := self.store.get(spec):
                own = known_or_kept(self.store, record) if record.run in corrected else []
                found.append([record.values["sha256"], own])
            else:  # a page names its holes
                reason = self._failed.get(identity(spec), {}).get("reason")
                found.append("" if reason is None else reason.endswith(NOT_MADE))
        return files.sha256(files.canonical([
            files.sha256(source) if source.exists() else "", files.library_sha256(),
            self.parameters.model_dump(exclude={"data_root", "device"}),
            found]))  # fmt: skip

    def seal(self, notebook: str) -> None:
        """A notebook's last cell: shows the manifest in short, and carries it whole."""
        from IPython.display import display

        manifest = self.manifest(notebook)
        rows = {
            "Data": f"{manifest['data']['title']}, sha256 {manifest['data']['sha256'][:16]}",
            "Runs used": f"{len(manifest['records'])}",
            "Inputs": manifest["inputs"][:16],
        }
        shown = {"text/html": _table(rows), "text/plain": str(rows)}
        display(shown | {files.MANIFEST: manifest}, raw=True)

    def __repr__(self) -> str:  # without an address, or no two reports would be the same bytes
        return f"Study(name={self.name!r})"

    def _repr_html_(self) -> str:
        p, specs = self.parameters, [spec for _, spec in self.specs("distillation")]
        epochs, batch, rate = (
            " or ".join(f"{value:g}" for value in dict.fromkeys(getattr(s, name) for s in specs))
            for name in ("epochs", "batch", "peak_lr")
        )
        return _table({
            "Study": self.name,
            "Data": f"{self.data().title}, {self.drawn}",
            "Pairs": ", ".join(pair.label for pair in self.pairs),
            "Schedule": f"{epochs} epochs, batch {batch}, peak rate {rate}, "
                        f"{p.schedule}, {p.precision}",
            "Seeds": ", ".join(str(seed) for seed in p.seeds),
            "Runs": f"{len(self.runs())} in all parts",
        })  # fmt: skip


def _told(name: str) -> dict[str, Any]:
    """What `ltkd run` hands to its pages' processes in a file, which the variable names."""
    path = os.environ.get(name)
    return dict(json.loads(Path(path).read_text())) if path else {}


def _table(rows: Mapping[str, str]) -> str:
    cells = "".join(
        f'<tr><th scope="row">{html.escape(k)}</th><td>{html.escape(v)}</td></tr>'
        for k, v in rows.items()
    )
    return f'<table class="facts"><tbody>{cells}</tbody></table>'
