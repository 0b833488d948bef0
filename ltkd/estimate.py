"""What of a study is missing, and how long that takes here: real steps of each kind, timed.

Images that are made up and untrained networks stand in, so neither data nor teachers need be
there, and nothing is written.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from . import pool
from .data import Feed, Views, load, long_tailed_counts
from .losses import LOSSES
from .methods import METHODS
from .models import create_model
from .params import RECIPES, RunSpec
from .runs import identity, pick_device
from .study import Study
from .teacher import BLOCK, Teacher
from .train import EVAL_BATCH, Trainer, initial_objective, predict

# Images of the largest class, test images, pixels a side.
SETS = {"cifar10": (5000, 10_000, 32), "cifar100": (500, 10_000, 32),
        "tiny_imagenet": (500, 10_000, 64), "imagenet": (1300, 50_000, 224)}  # fmt: skip
CPU_PIXELS = 2**20  # of a batch; a larger one is measured in part on a processor, for its memory


class Size(NamedTuple):
    """Training images of each class, test images, pixels a side."""

    counts: list[int]
    tests: int
    pixels: int


def size_of(spec: RunSpec, root: str | None) -> Size:
    """By the profile; sets that have none (digits, folders, fixed lists) are looked at."""
    own = spec.images.size if spec.images else None
    if spec.dataset in SETS and spec.gamma is not None:
        largest, tests, pixels = SETS[spec.dataset]
        counts = long_tailed_counts(largest, RECIPES[spec.dataset].classes or 0, spec.gamma)
        return Size(counts.tolist(), tests, own or pixels)
    data = load(spec.dataset, spec.gamma, spec.split_seed, root, spec.images)
    return Size(data.counts.tolist(), len(data.test_labels), own or data.test_images.shape[-1])


def stand_in(spec: RunSpec, about: Size, device: torch.device) -> Trainer:
    """The run's own trainer, teacher included, before its first step."""
    torch.set_num_threads(spec.threads)
    room = spec.batch if device.type == "cuda" else max(2, CPU_PIXELS // about.pixels**2)
    spec = spec.model_copy(update={"batch": min(spec.batch, room)})
    n, classes = max(spec.batch, BLOCK if _table(spec) else 0), len(about.counts)
    images = torch.randint(256, (n, 3, about.pixels, about.pixels), dtype=torch.uint8)
    labels = torch.arange(n) % classes
    data = replace(
        load("digits", 1.0), counts=torch.tensor(about.counts), class_names=[""] * classes,
        train_images=images, train_labels=labels, test_images=images[: min(room, EVAL_BATCH)],
        test_labels=labels, views=Views(about.pixels // 8, flip=True))  # fmt: skip
    feed, model, teacher = Feed(data, device), None, None
    if spec.teacher:
        model = create_model(spec.teacher, classes).to(device)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        teacher = Teacher(model, spec, feed, None)
        if _table(spec):
            some = torch.arange(n, device=device) % 2
            teacher.rows = teacher._ask(feed.take(some[:2], some[:2]))[some].half()
    objective = initial_objective(spec, data, model)
    return Trainer(spec, data, objective, teacher, feed, Path("no checkpoint"))


def _timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call: the median over half a second, of three or more, after one that warms up;
    of one where that takes seconds."""
    times: list[float] = []
    while len(times) < 2 or sum(times[1:]) < 0.5 or (len(times) < 4 and sum(times) < 5):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return median(times[1:])


def image_costs(trainer: Trainer) -> tuple[float, float]:
    """Seconds an image: trained on, and tested."""
    index = torch.arange(trainer.spec.batch, device=trainer.device)
    data, feed = trainer.data, trainer.feed
    trainer.model.train()
    train = _timed(lambda: trainer._step(feed.take(index, index * 0), index, 1.0), trainer.device)
    tests = data.test_images
    test = _timed(lambda: predict(trainer.model, data, tests, trainer.spec), trainer.device)
    return train / len(index), test / len(tests)


def fill_cost(trainer: Trainer) -> float:
    """Seconds an image of the teacher's table."""
    assert trainer.teacher
    fill, view = trainer.teacher._fill, torch.zeros(BLOCK, dtype=torch.long, device=trainer.device)
    return _timed(lambda: fill(view, lambda: False), trainer.device) / BLOCK


def _table(spec: RunSpec) -> tuple[str, int, str] | None:
    """Which files a run reads its teacher's answers from: teacher, seed, kind."""
    if not spec.teacher or spec.teacher_source == "live":
        return None
    maps = spec.method_args.get("pool")
    return identity(spec.teacher_spec), spec.seed, f"-maps{maps:g}" if maps else ""


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
    variants = {identity(spec): variant for variant, spec in reversed(study.specs())}
    specs = {identity(spec): spec for spec in pool.with_teachers([s for _, s in study.specs()])}
    left = {name: spec for name, spec in specs.items() if not study.store.get(spec)}
    there = len(specs) - len(left)
    yield f"{study.name}: {there} of {len(specs)} runs are there, in {study.folder}"

    sizes = {spec.gamma: spec for spec in left.values()}
    about = {gamma: size_of(spec, p.data_root) for gamma, spec in sizes.items()}
    busy, wall = time.process_time(), time.perf_counter()
    costs: dict[Any, tuple[float, float]] = {}
    fills: dict[Any, float] = {}
    seconds = dict.fromkeys(specs, 0.0)
    tables: dict[Any, tuple[Any, float, float]] = {}
    for name, spec in left.items():
        size, kind, table = about[spec.gamma], _kind(spec), _table(spec)
        if kind not in costs:
            costs[kind] = image_costs(stand_in(spec, size, device))
        now = pool._read_progress(study.store, spec) or {"epoch": 0}
        steps = sum(size.counts) // spec.batch * (spec.epochs - now["epoch"])
        tests = size.tests * -(-(spec.epochs - now["epoch"]) // spec.eval_every)
        seconds[name] = steps * spec.batch * costs[kind][0] + tests * costs[kind][1]
        if table and table not in tables:
            who = f"{spec.teacher}, table{table[2]}"
            if who not in fills:
                fills[who] = fill_cost(stand_in(spec, size, device))
            made = study.folder.glob(f"tables/{table[0]}-*/seed{table[1]}-epoch????{table[2]}.npy")
            rows = sum(size.counts) * (spec.epochs - len(list(made)))
            width = len(size.counts) * max(1, int(spec.method_args.get("pool", 0))) ** 2
            tables[table] = who, rows * fills[who], rows * width * 2
    got = (time.process_time() - busy) / (time.perf_counter() - wall)

    line = "  {:40} {:24} {:>12} {:>10} {:>6} {:>6}  {}".format
    yield line("runs", "pair", "gamma", "seed", "there", "left", "time")
    groups = defaultdict(list)
    for name, spec in specs.items():
        own = f", n = {spec.groups}" if spec.groups not in (None, p.groups) else ""
        cell = f", {variants[name]}" if variants.get(name) else ""
        groups[f"{spec.method}{cell}{own}"].append(name)
    for label, names in groups.items():
        some = [specs[name] for name in names]
        todo = [name for name in names if name in left]
        yield line(
            label, _short([s.pair for s in some], 2, "pairs" if some[0].teacher else "networks"),
            _short([f"{s.gamma:g}" if s.gamma else "-" for s in some], 5, "factors"),
            _short([s.seed for s in some], 6, "seeds"), len(names) - len(todo), len(todo),
            pool._clock(sum(seconds[name] for name in todo)) if todo else "",
        )  # fmt: skip
    if not left:
        return
    cores = f", with {got:.2f} cores to be had" if device.type == "cpu" else ""
    yield f"Measured here, on {device.type}, {p.precision}, threads {p.threads}{cores}:"
    for (kind, batch), (train, test) in costs.items():
        text = f"{kind}, batch {batch}"
        yield f"  {text:60} {1e3 * batch * train:10.1f} ms a step, {1e3 * test:.2f} ms a test image"
    for who, fill in fills.items():
        n = sum(table[0] == who for table in tables.values())
        yield f"  {who:60} {1e3 * fill:10.2f} ms an image, {n} made (a gamma and seed)"
    filled, disk = (sum(table[k] for table in tables.values()) for k in (1, 2))
    total, count = sum(seconds.values()) + filled, pool.jobs_for(jobs, list(left.values()))
    yield (
        f"{len(left)} runs are left: {pool._clock(total)} one after another, of which "
        f"{pool._clock(filled)} for teachers' tables ({disk / 1e9:.1f} GB of disk)."
    )
    yield (
        f"{count} side by side: {pool._clock(total / count)}, or more where they get in each "
        "other's way. Not in it: decoding of image files, reading of tables, notebooks."
    )
