"""Many runs side by side in local processes, teachers first.

A run that fails stops no other; a disk that does, or data that is not there, stops all. Where
memory runs short fewer are made at once, and what it cost is made again.
"""

import errno
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import torch

from . import parallel
from .data import DataError
from .files import Stopped, alive, clock, cores, drop_dead, held, holder, many, read_json
from .params import RunSpec
from .runs import RunRecord, Store, identity, run
from .train import Diverged

_STOP: Any = None  # the pool's flag, in each worker; without a lock that a kill could leave held
_TOLD = {"epoch", "epochs", "images_per_second", "seconds_left", "accuracy"}
_AT_WORK = threading.Lock()  # held by a worker while it makes a run
KILLS = 3  # workers lost in a row that ran alone: the cause is taken to lie outside the runs
_OF_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
            errno.ENOENT}  # fmt: skip


@dataclass
class Outcome:
    """What became of a list of specs: records and failures by identity, and what is left."""

    records: dict[str, RunRecord] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left: list[RunSpec] = field(default_factory=list)

    def reason(self, name: str) -> str:
        """Why a run failed or diverged; empty where it did neither."""
        record = self.records.get(name)
        if record and record.diverged:
            return str(record.values["reason"])
        return self.failed.get(name, "")

    @property
    def reasons(self) -> dict[str, str]:
        """What failed or diverged, with the reason, by identity."""
        names = [*self.failed, *self.records]
        return {name: reason for name in names if (reason := self.reason(name))}


def _enter(stop: Any, parent: int) -> None:
    """A worker leaves signals to its parent, and outlives it for what a checkpoint takes."""
    global _STOP
    _STOP = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        stop.value = 1
        _AT_WORK.acquire(timeout=5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _free() -> None:
    gc.collect()  # a run's network and mapped table hang in cycles until Python looks
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # what this process keeps others may need


def _work(spec: RunSpec, folder: Path, device: str, data_root: str | None) -> None:
    full = ""
    with _AT_WORK:
        try:
            run(
                spec,
                outputs=folder,
                device=device,
                data_root=data_root,
                stop=lambda: bool(_STOP.value),
            )
        except torch.OutOfMemoryError as error:
            full = str(error)
    _free()  # with the error the frames are gone that held what there is to free
    if full:
        raise torch.OutOfMemoryError(full)


def with_teachers(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """The specs once each, every teacher before the first student that needs it."""
    out: dict[str, RunSpec] = {}
    for spec in specs:
        for one in ([spec.teacher_spec] if spec.teacher else []) + [spec]:
            out.setdefault(identity(one), one)
    return sorted(out.values(), key=lambda one: one.method != "teacher")


def jobs_for(jobs: int | None, specs: Sequence[RunSpec]) -> int:
    """As many runs at once as the cores hold without sharing one, or what was asked for."""
    threads = max((spec.threads for spec in specs), default=1)
    return min(jobs or max(1, cores() // threads), max(1, len(specs)))


def make(
    specs: Sequence[RunSpec],
    store: Store,
    *,
    device: str = "auto",
    data_root: str | None = None,
    jobs: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    quiet: bool = False,
) -> Outcome:
    """Make what is missing of ``specs`` (and of their teachers) and return all records.

    jobs     runs at once; None: cores / threads
    stop     polled twice a second; when true, the runs in flight save a checkpoint and end
    """
    out = Outcome()
    todo: dict[str, RunSpec] = {}  # by identity
    for spec in with_teachers(specs):
        found = store.get(spec)
        if found:
            out.records[identity(spec)] = found
            store.tidy(spec)
        else:
            todo[identity(spec)] = spec
    if not todo:
        return out
    context, count = get_context("spawn"), jobs_for(jobs, list(todo.values()))
    halt = context.RawValue("b", 0)
    flying: dict[Future[None], RunSpec] = {}
    # Lost with their worker or out of memory, perhaps by what they need: each is made once more,
    # alone, after all others.
    suspects: set[str] = set()
    killed, broken = 0, False
    lost: set[str] = set()  # what went with the worker that broke the pool
    others = {child.pid for child in active_children()}  # the caller's own

    def workers() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(count, context, _enter, (halt, os.getpid()))

    def alone() -> bool:
        return any(identity(spec) in suspects for spec in flying.values())

    def kill() -> None:
        for child in active_children():
            if child.pid not in others:
                child.kill()  # they ignore the SIGTERM that a broken pool sends

    def close() -> None:
        if broken:
            kill()
        pool.shutdown()

    pool = workers()
    with ExitStack() as stack:
        advance = stack.enter_context(_display(store, lambda: [*flying.values()], len(todo), quiet))
        stack.callback(close)
        stack.callback(setattr, halt, "value", 1)
        while todo or flying:
            if broken and not flying:
                close()
                pool, broken = workers(), False
            while not (broken or halt.value or alone()) and len(flying) < count:
                ready = _next(todo, out, advance, store)
                if ready is None:
                    break
                if (name := identity(ready)) in suspects:
                    if flying:
                        break
                    pool.shutdown()
                    pool = workers()  # which hold no memory yet
                drop_dead(store.lock(ready))  # an earlier death's: it is no sign of a new one
                try:
                    flying[pool.submit(_work, ready, store.folder, device, data_root)] = ready
                except BrokenProcessPool:
                    broken, lost = True, _lost(store, [*flying.values()])
                else:
                    del todo[name]
            done, _ = wait(flying, timeout=0.5, return_when=FIRST_COMPLETED)
            there, full = [*flying.values()], 0
            for future in done:
                spec = flying.pop(future)
                name, what = identity(spec), ""
                try:
                    future.result()
                    killed = 0
                    if record := store.get(spec):
                        out.records[name] = record
                    else:
                        out.failed[name] = f"{spec.title}: its record cannot be read"
                except Stopped:
                    out.left.append(spec)
                except Diverged as error:
                    out.failed[name] = str(error)
                except torch.OutOfMemoryError as error:
                    full += 1
                    out.failed[name], what = _reason(spec, error), "out of memory"
                except BrokenProcessPool as error:
                    if not broken:
                        broken, lost = True, _lost(store, there)
                        killed += len(there) == 1
                        count = max(1, min(count, len(there)) - 1)  # memory was short, most likely
                    if name not in lost:  # a pool ends with any one of its workers
                        todo = {name: spec, **todo}
                        continue
                    out.failed[name], what = _reason(spec, error), "its process was killed"
                except torch.AcceleratorError as error:  # its process makes no run any more
                    if not broken:
                        broken, lost = True, {name}
                        killed += len(there) == 1
                        kill()
                    out.failed[name], what = _reason(spec, error), "its GPU failed"
                except (OSError, DataError) as error:
                    out.failed[name] = f"{spec.title}: {error}"
                    if isinstance(error, DataError) or error.errno in _OF_DISK:
                        halt.value = 1  # others would meet it too
                except Exception as error:
                    out.failed[name] = _reason(spec, error)
                if killed >= KILLS:
                    halt.value = 1
                elif what and name not in suspects and (len(there) > 1 or not full):
                    del out.failed[name]
                    suspects.add(name)
                    todo = {**todo, name: spec}
                    _say(f"{spec.title}: {what}; goes on, from where it was, after the others")
                    continue
                suspects.discard(name)
                advance(spec, name in out.records and not out.reason(name))
            if full and len(there) > 1:
                count = max(1, min(count - 1, len(there) - full or len(there) // 2))
                _say(f"memory was short: from now on {many(count, 'run')} at once")
            if stop():
                halt.value = 1
            if halt.value and not flying:
                out.left += todo.values()
                todo = {}
    return out


def together(
    spec: RunSpec, store: Store, *, device: str, data_root: str | None, stop: Callable[[], bool]
) -> Outcome:
    """One run, its teacher first, by all processes that torchrun started: this is one of them."""
    out, first = Outcome(), parallel.rank() == 0
    both = with_teachers([spec])
    with _display(store, lambda: both, 1, quiet=not first) as advance:
        try:
            record = run(spec, outputs=store.folder, device=device, data_root=data_root, stop=stop)
            out.records[identity(spec)] = record
        except Stopped:
            out.left.append(spec)
        except Diverged as error:
            out.failed[identity(spec)] = str(error)
        except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
            # The others wait for this one in a step, and end when torchrun sees it gone.
            raise SystemExit(f"failed: {_reason(spec, error)}") from None
        advance(spec, bool(out.records) and not out.reasons)
    return out


def _reason(spec: RunSpec, error: Exception) -> str:
    if isinstance(error, BrokenProcessPool):
        return (
            f"{spec.title}: its process was killed (out of memory? fewer --jobs, "
            "or a smaller batch in the file)"
        )
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"{spec.title}: out of memory; fewer --jobs, or a smaller batch in the file "
            f"(now {spec.batch}). {str(error).partition('. ')[0]}"
        )
    return f"{spec.title}: {type(error).__name__}: {error}"


def _lost(store: Store, flying: Sequence[RunSpec]) -> set[str]:
    """Which of the runs in flight went with a worker that was killed, by their locks; where that
    one had none yet, all that have none."""
    workers = {identity(spec): holder(store.lock(spec)) for spec in flying}
    ours = {child.pid for child in active_children()}
    dead = {name for name, pid in workers.items() if pid and not alive(pid)}
    return dead or {name for name, pid in workers.items() if pid not in ours}


def _next(
    todo: dict[str, RunSpec], out: Outcome, advance: Callable[[RunSpec, bool], None], store: Store
) -> RunSpec | None:
    """The first run that can begin, of those that no other command is making, if there is one; it
    looks no further than that, for there may be thousands.

    What has lost its teacher on the way is taken out, as failed.
    """
    made_elsewhere = None
    for name, spec in list(todo.items()):
        its = identity(spec.teacher_spec) if spec.teacher else ""
        if reason := out.reason(its):
            del todo[name]
            out.failed[name] = f"{spec.title}: no teacher ({reason})"
            advance(spec, False)
        elif not its or its in out.records:
            if not held(store.lock(spec)):
                return spec
            made_elsewhere = made_elsewhere or spec
    return made_elsewhere


@contextmanager
def _display(
    store: Store, flying: Callable[[], list[RunSpec]], total: int, quiet: bool
) -> Iterator[Callable[[RunSpec, bool], None]]:
    """Bars on a terminal, else a line an epoch; both read the progress files that the runs keep."""
    began, finished = time.monotonic(), 0
    bars = None
    if sys.stderr.isatty() and not quiet:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                   TextColumn("{task.fields[note]}"))  # fmt: skip
        bars = Progress(*columns, console=Console(stderr=True))
        whole = bars.add_task("all runs", total=total, note="")
        tasks: dict[str, Any] = {}
        bars.start()
    seen: dict[str, int] = {}
    over = threading.Event()

    def left() -> str:
        if not finished:
            return ""
        seconds = (time.monotonic() - began) / finished * (total - finished)
        return f"{clock(seconds)} left"

    def look() -> None:
        while not over.wait(0.5):
            for spec in flying():
                name, now = identity(spec), read_progress(store, spec)
                if now is None:
                    continue
                if bars:
                    if name not in tasks:
                        tasks[name] = bars.add_task(spec.title, total=now["epochs"], note="")
                    bars.update(tasks[name], completed=now["epoch"], note=_note(now))
                elif seen.get(name) != now["epoch"]:
                    seen[name] = now["epoch"]
                    _say(f"  {spec.title}: epoch {now['epoch']}/{now['epochs']}, {_note(now)}")

    def advance(spec: RunSpec, good: bool) -> None:
        nonlocal finished
        finished += 1
        if bars:
            if identity(spec) in tasks:
                bars.remove_task(tasks.pop(identity(spec)))
            bars.update(whole, completed=finished, note=left())
        elif not quiet:
            if good and seen.get(identity(spec)) != spec.epochs:  # it ended between two looks
                seen[identity(spec)] = spec.epochs
                _say(f"  {spec.title}: epoch {spec.epochs}/{spec.epochs}")
            _say(
                f"[{finished}/{total}] {spec.title}: {'done' if good else 'not finished'}. {left()}"
            )

    thread = threading.Thread(target=look, daemon=True)
    if not quiet:
        thread.start()
    try:
        yield advance
    finally:
        over.set()
        if bars:
            bars.stop()


def read_progress(store: Store, spec: RunSpec) -> dict[str, Any] | None:
    """What an unfinished run last told of itself; None where it never began."""
    now = read_json(store.progress(spec))
    return now if now and now.keys() >= _TOLD else None


def _note(now: dict[str, Any]) -> str:
    text = f"{now['images_per_second']:.0f} images/s, {clock(now['seconds_left'])} left"
    return text if now["accuracy"] is None else f"{text}, test {now['accuracy']:.1f} %"


def progress_of(store: Store, spec: RunSpec) -> str:
    """Where an unfinished run is, in words; empty when it never began."""
    now = read_progress(store, spec)
    if now is None:
        return ""
    at = f"epoch {now['epoch']}/{now['epochs']}"
    if held(store.lock(spec)):
        return f"{at}, {_note(now)}"
    return f"stopped after {at}, " + (
        "goes on from its checkpoint" if store.checkpoint(spec).exists() else "begins anew"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
