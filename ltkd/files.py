"""Files that are either whole or absent, and where things came from."""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import SoftFileLease, Timeout
from psutil import STATUS_ZOMBIE, NoSuchProcess, Process

ROOT = Path(__file__).resolve().parent.parent
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
LEASE = 60.0  # seconds without a heartbeat after which another machine's lock is taken over
MANIFEST = "application/vnd.ltkd.manifest+json"  # the output that carries a notebook's manifest


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old file or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whose = f".{path.name}.{os.getpid()}@{_here()}."  # so that ``sweep`` knows it
    handle, part = tempfile.mkstemp(prefix=whose, suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)
        os.replace(part, path)
    except BaseException as error:
        Path(part).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:
            error.filename = str(path)  # a full disk would not say what did not fit
        raise


def set_aside(path: Path, why: object, then: str = "made anew") -> None:
    """Keep a damaged file under a name that says so, out of the way of the one made anew."""
    aside = path.with_name(f"{path.name}.damaged")
    try:
        os.replace(path, aside)
    except FileNotFoundError:  # another process saw it, too
        return
    print(f"{path}: damaged ({why}); kept as {aside.name}, {then}", file=sys.stderr, flush=True)


class Stopped(Exception):
    """Work was asked to stop; what it had done so far is on disk."""


@contextmanager
def locked(path: Path, stop: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Hold the lock file ``path``; while another process has it, poll ``stop`` (raises Stopped).

    The file names machine, process and its start, and a thread touches it every 20 seconds. The
    lock of a process that is gone is taken over, on its own machine at once, from another one
    after LEASE seconds without a touch, or twice that on file systems that cannot exchange two
    names (NFS). A process that was suspended for longer may then do the same work beside its heir:
    that costs time, and the first to finish stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = SoftFileLease(path, lease_duration=LEASE)
    seen, since = None, time.monotonic()
    while True:
        try:
            lock.acquire(timeout=0.5)
            break
        except Timeout:
            if (now := _mark(path)) != seen:
                seen, since = now, time.monotonic()
            drop_dead(path, silent=seen if time.monotonic() - since > 2 * LEASE else None)
            if stop():
                raise Stopped(f"stopped while another process held {path}") from None
    try:
        yield
    finally:
        lock.release()


def temporary_prefix() -> str:
    """Of a temporary folder's name, so that ``sweep`` knows whose it is."""
    return f"ltkd-{os.getpid()}@{_here()}-"


def alive(pid: int) -> bool:
    """Whether a process runs; one that has died and is not reaped yet does not."""
    try:
        return bool(Process(pid).status() != STATUS_ZOMBIE)
    except NoSuchProcess:
        return False


@cache
def host() -> str:
    """This machine as filelock names it: in another PID namespace a number is another process."""
    name, initial = platform.node(), 0xEFFFFFFC  # the namespace of a machine's first process
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return name
    return name if namespace == initial else f"{name}?pidns-{namespace:x}"


@cache
def _here() -> str:
    """``host`` in a few letters, for names of files."""
    return sha256(host())[:8]


def holder(path: Path) -> int | None:
    """The process of this machine that a lock file names."""
    owner = SoftFileLease(path, lease_duration=LEASE).owner
    return owner.pid if owner and owner.hostname == host() else None


def held(path: Path) -> bool:
    """Whether a living process has the lock; another machine's touches it."""
    if pid := holder(path):
        return alive(pid)
    try:
        return time.time() - path.stat().st_mtime < LEASE
    except OSError:
        return False


Mark = tuple[int, int, int]


def _mark(path: Path) -> Mark | None:
    """Another one, once a lock was touched or has another owner; None where there is none."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return None
    return about.st_ino, about.st_mtime_ns, about.st_size


def drop_dead(path: Path, silent: Mark | None = None) -> None:
    """Remove a lock whose owner was killed before it had written its name, an instant's work, or is
    dead and not reaped yet, which filelock takes for alive; and one that nobody touches any more,
    as long as its mark is ``silent``."""
    mark = _mark(path)
    with suppress(FileNotFoundError):
        about, pid = path.stat(), holder(path)
        nameless = about.st_size == 0 and time.time() - about.st_mtime > LEASE
        dead = pid is not None and not alive(pid)
        if (nameless or dead or mark == silent) and _mark(path) == mark:
            path.unlink()


def sweep(folder: Path) -> None:
    """Remove what killed processes left below ``folder`` (half files, locks), their temporary
    folders, and their lock on the index beside it. What belongs to a process that lives, here or
    elsewhere, stays."""
    for path in folder.rglob(".*.part"):
        of = re.search(r"\.(\d+)@(\w+)\.\w+\.part$", path.name)
        if of and of[2] == _here() and not alive(int(of[1])):
            with suppress(OSError):
                path.unlink()
    # To take a lock is to remove it, if its owner is dead.
    for path in [*folder.rglob("*.lock"), *folder.parent.glob("index.lock")]:
        drop_dead(path)
        with suppress(OSError), SoftFileLease(path, lease_duration=LEASE, timeout=0):
            pass
    for path in Path(tempfile.gettempdir()).glob("ltkd-*"):
        of = re.match(r"ltkd-(\d+)@(\w+)-", path.name)
        if of and of[2] == _here() and not alive(int(of[1])):
            shutil.rmtree(path, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file; None where it is absent, damaged or holds anything else."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def canonical(value: Any) -> str:
    """JSON that is the same text for the same value: what identities and seals are taken over."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` with the SHA-256 of themselves, which ``unsealed`` holds them against."""
    return values | {"sha256": sha256(canonical(values))}


def unsealed(values: dict[str, Any]) -> dict[str, Any]:
    """What ``sealed`` was given. Raises ValueError where it was changed since."""
    inner = {key: value for key, value in values.items() if key != "sha256"}
    if values["sha256"] != sha256(canonical(inner)):
        raise ValueError("its content does not match its sha256")
    return inner


def sha256(data: bytes | str | Path) -> str:
    if isinstance(data, Path):
        with data.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def outputs_root(given: str | Path | None = None) -> Path:
    """Where studies are kept: ``--outputs``, else LTKD_OUTPUTS, else outputs/ of the project."""
    return Path(given or os.environ.get("LTKD_OUTPUTS") or ROOT / "outputs").expanduser().resolve()


def data_root(given: str | Path | None = None) -> Path:
    """Where data sets are kept: ``--data-root``, else LTKD_DATA, else data/ of the project."""
    return Path(given or os.environ.get("LTKD_DATA") or ROOT / "data").expanduser().resolve()


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@cache
def code_version() -> dict[str, Any]:
    """Version, commit, and whether the library's files differ from that commit."""
    own = _git("rev-parse", "--show-toplevel") == str(ROOT)  # else it is installed inside another
    commit = _git("rev-parse", "HEAD") if own else ""
    dirty = bool(_git("status", "--porcelain", "--", "ltkd")) if commit else None
    from . import __version__

    about = {"version": __version__, "library_sha256": library_sha256()}
    return about | {"commit": commit or None, "dirty": dirty}


@cache
def library_sha256() -> str:
    """One hash over the library's sources: a report is made anew when it changes."""
    files = sorted(
        p for p in (ROOT / "ltkd").rglob("*") if p.suffix in {".py", ".csv", ".j2", ".css"}
    )
    return sha256(canonical([[str(p.relative_to(ROOT)), sha256(p)] for p in files]))


@cache
def versions() -> dict[str, str]:
    names = ["torch", "torchvision", "numpy", "pandas", "scikit-learn", "papermill", "nbconvert"]
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


@cache
def hardware() -> str:
    """One line on the machine: processor, cores in use and the GPU where there is one."""
    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "")
    text = f"{model or platform.processor() or platform.machine()}, {many(cores(), 'core')}"
    import torch

    if torch.cuda.is_available():
        text += f", {torch.cuda.get_device_name()}"
    return text


def cores() -> int:
    """Processor cores this process may use, by its affinity and its container's quota."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # '200000 100000': two cores' time; 'max 100000': no quota
        time_of_all, of_one = map(int, CPU_MAX.read_text().split())
        n = min(n, max(1, time_of_all // of_one))
    return n


def chunks(items: Any, n: int) -> list[Any]:
    """``items`` in slices of n, the last one perhaps shorter."""
    return [items[i : i + n] for i in range(0, len(items), n)]


def many(things: Sized | int, what: str) -> str:
    """'1 run', '3 runs', '2 classes': of things, or of their number."""
    n = things if isinstance(things, int) else len(things)
    return f"{n} {what}{'' if n == 1 else 'es' if what.endswith(('s', 'ch')) else 's'}"


def clock(seconds: float) -> str:
    """'40 s', '9 min 5 s' or '1 h 15 min'."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
