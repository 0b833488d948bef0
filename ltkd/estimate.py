"""What of a study is missing, and how long that takes here: real steps of each kind, timed.

Images that are made up and untrained networks stand in, so neither data nor teachers need be
there, and nothing of the study is written.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.benchmark import Timer

from . import files, pool
from .data import Feed, Size, Views, load
from .losses import LOSSES
from .methods import METHODS
from .models import create_model
from .params import RunSpec, on_the_fly
from .runs import identity, pick_device, same_bits
from .study import Study
from .teacher import TEACHER_BATCH, Teacher, table_name, table_row
from .train import EVAL_BATCH, Trainer, initial_objective, predict

CPU_PIXELS = 2**20  # of a batch; a larger one is measured in part on a processor, for its memory


def stand_in(spec: RunSpec, about: Size, device: torch.device) -> Trainer:
    """The run's own trainer, teacher included, before its first step."""
    torch.set_num_threads(spec.threads)
    room = spec.batch if device.type == "cuda" else max(2, CPU_PIXELS // about.pixels**2)
    spec = spec.model_copy(update={"batch": min(spec.batch, room)})
    n, classes = max(spec.batch, TEACHER_BATCH if _table(spec) else 0), len(about.counts)
    tests = EVAL_BATCH if device.type == "cuda" else min(room, EVAL_BATCH)
    images = torch.randint(256, (max(n, tests), 3, about.pixels, about.pixels), dtype=torch.uint8)
    labels = torch.arange(n) % classes
    data = replace(
        load("digits", 1.0), counts=torch.tensor(about.counts), class_names=[""] * classes,
        train_images=images[:n], train_labels=labels, test_images=images[:tests],
        test_labels=labels, views=Views(about.pixels // 8, flip=True))  # fmt: skip
    feed, model, teacher = Feed(data, device), None, None
    if spec.teacher:
        model = create_model(spec.teacher, classes).to(device)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        teacher = Teacher(model, spec, feed, None)
        if _table(spec):
            some = torch.arange(n, device=device) % 2
            told = teacher._block(some[:2], some)
            teacher.rows = torch.from_numpy(told).to(device)[some]
    objective = initial_objective(spec, data, model)
    trainer = Trainer(spec, data, objective, teacher, feed, Path("no checkpoint"))
    if on_the_fly(spec.dataset, spec.images):
        trainer.recorded = None  # nor is the run's own step
    trainer.look(torch.zeros(n, dtype=torch.long))
    return trainer


def _timed(work: Callable[[], Any]) -> float:
    """Seconds of a call: the median over half a second, after one that warms up."""
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=0.5).median)


def image_costs(trainer: Trainer) -> tuple[float, float]:
    """Seconds an image: trained on, and tested."""
    index = torch.arange(trainer.spec.batch, device=trainer.device)
    tests = trainer.data.test_images
    trainer.model.train()
    train = _timed(lambda: trainer.step(index, 1.0))
    test = _timed(lambda: predict(trainer.model, trainer.data, tests, trainer.spec))
    return train / len(index), test / len(tests)


def fill_cost(trainer: Trainer) -> float:
    """Seconds an image of the teacher's table."""
    assert trainer.teacher
    block, index = trainer.teacher._block, torch.arange(TEACHER_BATCH, device=trainer.device)
    return _timed(lambda: block(index, index * 0)) / TEACHER_BATCH


def _table(spec: RunSpec) -> tuple[str, str] | None:
    """Which file a run reads its teacher's answers from: teacher, name."""
    if not spec.teacher or spec.teacher_source == "live":
        return None
    return identity(spec.teacher_spec), table_name(spec)


def _filled(study: Study, table: tuple[str, str]) -> int:
    """Rows that are there."""
    rows = 0
    for path in study.folder.glob(f"tables/{table[0]}-*/{table[1]}"):
        with suppress(ValueError, EOFError, IndexError):  # a damaged one is made anew
            rows += int((np.lib.format.open_memmap(path, mode="r")["check"] != 0).sum())
    return rows


def _kind(spec: RunSpec) -> tuple[str, int]:
    """What decides how long a step takes: the networks in it, what is compared, the batch."""
    loss = METHODS[spec.method].loss
    compared = f", {LOSSES[loss].compares}" if loss else ""
    live = f" with {spec.teacher}" if spec.teacher and not _table(spec) else ""
    return f"{spec.student}{live}{compared}", spec.batch


def _short(values: list[Any], many: int, word: str) -> str:
    """The values once each, or how many they are."""
    once = dict.fromkeys(values)
    return " ".join(map(str, once)) if len(once) < many else f"{len(once)} {word}"


def report(study: Study, jobs: int | None) -> Iterator[str]:
    """Line by line: what is there and left, what was measured, what it comes to."""
    p, device = study.parameters, pick_device(study.parameters.device)
    if device.type == "cuda":
        same_bits()
    variants = {identity(spec): variant for variant, spec in reversed(study.specs())}
    specs = {identity(spec): spec for spec in study.runs()}
    left = {name: spec for name, spec in specs.items() if not study.store.get(spec)}
    there = len(specs) - len(left)
    yield f"{study.name}: {there} of {len(specs)} runs are there, in {study.folder}"

    busy, wall = time.process_time(), time.perf_counter()
    costs: dict[Any, tuple[float, float]] = {}
    fills: dict[Any, float] = {}
    seconds = dict.fromkeys(specs, 0.0)
    tables: dict[Any, tuple[str, Size, int]] = {}
    for name, spec in left.items():
        size, kind, table = study.size(spec.gamma), _kind(spec), _table(spec)
        if kind not in costs:
            costs[kind] = image_costs(stand_in(spec, size, device))
        now = pool.read_progress(study.store, spec)
        if not now or not study.store.checkpoint(spec).exists():
            now = {"epoch": 0}
        steps = sum(size.counts) // spec.batch * (spec.epochs - now["epoch"])
        tests = size.tests * -(-(spec.epochs - now["epoch"]) // spec.eval_every)
        seconds[name] = steps * spec.batch * costs[kind][0] + tests * costs[kind][1]
        if table and table not in tables:
            who = f"{spec.teacher}, {table[1]}"
            if who not in fills:
                fills[who] = fill_cost(stand_in(spec, size, device))
            row = table_row(len(size.counts), int(spec.method_args.get("pool", 0)))
            tables[table] = who, size, row.itemsize
    got = (time.process_time() - busy) / (time.perf_counter() - wall)

    line = "  {:40} {:24} {:>12} {:>10} {:>6} {:>6}  {}".format
    yield line("runs", "pair", "gamma", "seed", "there", "left", "time")
    groups = defaultdict(list)
    for name, spec in specs.items():
        own = f", n = {spec.groups}" if spec.groups not in (None, p.groups) else ""
        cell = variants.get(name, "").removeprefix(METHODS[spec.method].label)  # a setting has it
        cell = f", {cell.removeprefix(', ')}" if cell else ""
        groups[f"{spec.method}{cell}{own}"].append(name)
    for label, names in groups.items():
        some = [specs[name] for name in names]
        todo = [name for name in names if name in left]
        yield line(
            label, _short([s.pair for s in some], 2, "pairs" if some[0].teacher else "networks"),
            _short([f"{s.gamma:g}" if s.gamma else "-" for s in some], 5, "factors"),
            _short([s.seed for s in some], 6, "seeds"), len(names) - len(todo), len(todo),
            files.clock(sum(seconds[name] for name in todo)) if todo else "",
        )  # fmt: skip
    if not left:
        return
    cores = f", with {got:.2f} cores to be had" if device.type == "cpu" else ""
    yield f"Measured here, on {device.type}, {p.precision}, threads {p.threads}{cores}:"
    for (kind, batch), (train, test) in costs.items():
        text = f"{kind}, batch {batch}"
        yield f"  {text:60} {1e3 * batch * train:10.1f} ms a step, {1e3 * test:.2f} ms a test image"
    for who, fill in fills.items():
        yield f"  {who:60} {1e3 * fill:10.2f} ms an image"
    filled, disk = 0.0, 0.0
    for place, (who, size, row_bytes) in tables.items():
        # Each epoch of each seed draws one view of every image, whether it was drawn before or not;
        # what finished seeds drew is among the rows that are there, if the table is there.
        drawn = [
            sum(size.counts) * size.views * (1 - (1 - 1 / size.views) ** sum(epochs.values()))
            for some in (specs, left)
            if (epochs := {s.seed: s.epochs for s in some.values() if _table(s) == place})
        ]
        rows = max(0.0, min(drawn[0] - _filled(study, place), drawn[1]))
        filled += rows * fills[who]
        disk += rows * row_bytes
    total, count = sum(seconds.values()) + filled, pool.jobs_for(jobs, list(left.values()))
    yield (
        f"{files.many(left, 'run')} left: {files.clock(total)} one after another, of which "
        f"{files.clock(filled)} for teachers' tables ({disk / 1e9:.1f} GB of disk)."
    )
    least, ends = total / count, "or more where they get in each other's way"
    if device.type == "cuda":  # measured on an H200: 2.8 x one run's steps, sharing it by MPS
        least, ends = total / min(count, 3), f"to {files.clock(total)}, for they share one GPU"
    yield (
        f"{count} side by side: {files.clock(least)}, {ends}. "
        "Not in it: decoding of image files, reading of tables, notebooks."
    )
