"""From a spec to its record: cached by identity, done once, resumable, whole or absent.

A run's identity is the hash of its spec, of its data and of a numerics version that is raised by
hand when the numbers change (a golden test tells when). The device is not in it: a record from
another device is reused, and shown as such.
"""

import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from . import files, parallel
from .data import fingerprint, load, resolve
from .models import create_model
from .params import ParameterError, RunSpec, check_fit
from .precision import by_fp32
from .teacher import Teacher
from .train import DamagedCheckpoint, Diverged, Trainer, initial_objective, out_of_memory

NUMERICS = 1  # raise it when a run's numbers change on purpose: all records are then made anew


def identity(spec: RunSpec) -> str:
    """16 hex digits that stand for the spec, the data and the numerics version."""
    about = spec.model_dump()
    for key in ("images", "holdout"):  # at their defaults, so that older records keep their names
        if not about[key]:
            del about[key]
    return files.sha256(files.canonical([about, fingerprint(spec.dataset), NUMERICS]))[:16]


@dataclass(frozen=True)
class RunRecord:
    """What a run came to: ``values`` is the content of record.json, ``folder`` where it lies.

    ``history`` in it has a row an epoch (epoch, rate, losses as ``Study.learning_curves`` has them
    and, where it was evaluated, ``correct``: correct test images a class); ``seconds`` and
    ``images_per_second`` are of the training, with its evaluations, of all legs of a run that was
    cut; ``data`` has the counts of training and test images, ``code`` and ``versions`` what made
    it, ``files`` the SHA-256 of those beside it, ``sha256`` that of the record without it.
    """

    spec: RunSpec
    values: dict[str, Any]
    folder: Path

    @property
    def run(self) -> str:
        return str(self.values["run"])

    @property
    def diverged(self) -> bool:
        return bool(self.values["status"] == "diverged")

    @property
    def hardware(self) -> list[str]:
        """The machine, or those on which the run went on after it was cut."""
        return str(self.values["hardware"]).split("; ")

    @property
    def devices(self) -> list[str]:
        """cpu or the GPU's name, of each of them."""
        return str(self.values["device"]).split("; ")

    def correct(self) -> np.ndarray:
        """Correct test images a class [C] in the last epoch, which is always evaluated."""
        return np.asarray(self.values["history"][-1]["correct"])

    @property
    def top1(self) -> float:
        """Accuracy in percent over the test images in the last epoch; NaN where it diverged."""
        if self.diverged:
            return np.nan
        return float(100 * self.correct().sum() / sum(self.values["data"]["test_counts"]))

    def predictions(self) -> np.ndarray:
        """Class ids of the test images [N], last epoch."""
        return np.load(self.folder / "predictions.npy", allow_pickle=False)


def _stamp(path: Path, values: dict[str, Any]) -> list[tuple[int, int, int]]:
    """By which one sees that a record and its files were not touched."""
    found = [path.stat(), *((path.parent / name).stat() for name in values["files"])]
    return [(about.st_mtime_ns, about.st_size, about.st_ino) for about in found]


class Store:
    """One study's folder: runs/<id>/, teachers/<id>.safetensors, tables/, splits/."""

    CHECKPOINT = "checkpoint.safetensors"

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._read: dict[Path, tuple[list[Any], RunRecord]] = {}

    def run_folder(self, spec: RunSpec) -> Path:
        return self.folder / "runs" / identity(spec)

    def checkpoint(self, spec: RunSpec) -> Path:
        """What an unfinished run goes on from, where it has come that far."""
        return self.run_folder(spec) / self.CHECKPOINT

    def lock(self, spec: RunSpec) -> Path:
        """Held, and touched, by the process that makes the run."""
        return self.run_folder(spec) / "run.lock"

    def progress(self, spec: RunSpec) -> Path:
        """Where an unfinished run is, for those who watch it."""
        return self.run_folder(spec) / "progress.json"

    def same_processes(self, spec: RunSpec) -> None:
        """Raises ParameterError where another number of processes began this very run."""
        begun = {path.parent.name for path in self.folder.glob(f"runs/*/{self.CHECKPOINT}")}
        for n in range(1, 1025) if begun else ():
            folder = self.run_folder(spec.model_copy(update={"processes": n}))
            if n != spec.processes and folder.name in begun:
                raise ParameterError(
                    f"{spec.title}: begun by {n} processes, and {spec.processes} would come to "
                    f"other numbers; go on with {n}, or remove {folder} to begin anew"
                )

    def model_path(self, spec: RunSpec) -> Path:
        """Teachers are kept apart (and committed), so that nobody trains them twice."""
        if spec.method == "teacher":
            return self.folder / "teachers" / f"{identity(spec)}.safetensors"
        return self.run_folder(spec) / "model.safetensors"

    def tables(self, teacher: RunSpec, model_sha256: str) -> Path:
        """Where its answers are kept; by its bytes, too: one trained anew gives other answers."""
        return self.folder / "tables" / f"{identity(teacher)}-{model_sha256[:12]}"

    def all(self) -> list[RunRecord]:
        """Every finished record of this library and these data, by name."""
        found: dict[str, RunRecord] = {}
        for path in sorted(self.folder.glob("runs/*/record.json")):
            with suppress(OSError, ValueError, KeyError, TypeError):  # ``get`` tells of damage
                record = self.get(RunSpec(**json.loads(path.read_text())["spec"]))
                found |= {record.run: record} if record else {}
        return list(found.values())

    def get(self, spec: RunSpec) -> RunRecord | None:
        """The finished record, or None. A damaged one is set aside by name and counts as absent.

        One whose files are as they were, by time, size and inode, is not read and checked again; a
        teacher's is, with its model, which all its students rest on.
        """
        folder = self.run_folder(spec)
        path = folder / "record.json"
        try:
            known = self._read.get(path)
            if known and known[0] == _stamp(path, known[1].values) and spec.method != "teacher":
                return known[1]
            values = json.loads(path.read_text())
            files.unsealed(values)
            if values["run"] != folder.name or values["status"] not in ("done", "diverged"):
                raise ValueError("it is not a record of this run")
            for name, expected in values["files"].items():
                if files.sha256(folder / name) != expected:
                    raise ValueError(f"{name} does not match its sha256")
        except FileNotFoundError as error:
            # The record itself may have come since it was looked for.
            if Path(error.filename) != path and path.exists():
                files.set_aside(path, f"{error.filename} is missing")
            return None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            files.set_aside(path, str(error))
            return None
        if spec.method == "teacher" and values["status"] == "done":
            model = self.model_path(spec)
            if not model.exists():
                return None
            if files.sha256(model) != values["model_sha256"]:
                files.set_aside(model, "it does not match its record's sha256")
                return None
        record = RunRecord(spec, values, folder)
        self._read[path] = _stamp(path, values), record
        return record

    def put(
        self, spec: RunSpec, values: dict[str, Any], blobs: dict[str, bytes], model: bytes | None
    ) -> None:
        """Write a record; the record itself comes last, so that its presence means all is there."""
        folder = self.run_folder(spec)
        (folder / "record.json").unlink(missing_ok=True)  # of a teacher whose network is lost, say
        for name, blob in blobs.items():
            files.write_atomic(folder / name, blob)
        if model is not None:
            files.write_atomic(self.model_path(spec), model)
            values["model_sha256"] = files.sha256(model)
        values["files"] = {name: files.sha256(blob) for name, blob in blobs.items()}
        values = json.loads(json.dumps(values))
        text = json.dumps(files.sealed(values), indent=1)
        files.write_atomic(folder / "record.json", text + "\n")

    def tidy(self, spec: RunSpec) -> None:
        """Remove what a kill between a run's record and its end left beside the record."""
        for path in (self.checkpoint(spec), self.progress(spec)):
            with suppress(OSError):  # a store may also be read-only
                path.unlink(missing_ok=True)

    def keep_split(self, indices: np.ndarray) -> str:
        """Save which training images were drawn, once for all runs that share them.

        splits/<first 16 digits of the result>.npy: int64 [N], sorted positions in the whole
        training set. Returns the SHA-256 of their little-endian bytes.
        """
        indices = indices.astype("<i8")
        name = files.sha256(indices.tobytes())
        path, buffer = self.folder / "splits" / f"{name[:16]}.npy", io.BytesIO()
        np.save(buffer, indices, allow_pickle=False)
        if path.exists() and path.read_bytes() != buffer.getvalue():
            files.set_aside(path, "other bytes")
        if not path.exists():
            files.write_atomic(path, buffer.getvalue())
        return name

    def load_model(self, spec: RunSpec) -> nn.Module:
        """The trained network of a finished run, fp32, in evaluation mode."""
        path = self.model_path(spec)
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: the network of {spec.title} is not there; to make it anew, remove "
                f"{self.run_folder(spec)} and run the spec"
            )
        data, record = path.read_bytes(), self.get(spec)
        if record is None or files.sha256(data) != record.values.get("model_sha256"):
            raise ParameterError(f"{path}: does not match the sha256 in its record; remove "
                                 f"{self.run_folder(spec)} and run the spec again")  # fmt: skip
        return _network(spec.student, data)


def _network(name: str, data: bytes) -> nn.Module:
    """The network ``name`` with the weights of a safetensors file's bytes."""
    state = {k: v.float() for k, v in load_tensors(data).items()}
    model = create_model(name, len(state["fc.weight"]))
    model.load_state_dict(state)
    return model.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def load_model(path: str | Path) -> nn.Module:
    """A trained network of the study from its file alone, fp32, in evaluation mode.

    It takes normalised images [B, 3, H, W] and returns logits [B, C]. Every model.safetensors and
    teachers/<id>.safetensors names its network in its header. Raises FileNotFoundError, and
    ValueError where the file is not one of those.
    """
    data = Path(path).read_bytes()
    try:
        with safe_open(path, "pt") as file:
            spec = json.loads(file.metadata()["spec"])
        return _network(spec["student"], data)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: not a network that ltkd saved, or damaged ({error})") from error


def pick_device(name: str) -> torch.device:
    """'auto' is a GPU where there is one. ParameterError when cuda is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ParameterError("device = 'cuda': no GPU that torch can use; allowed here: auto, cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def same_bits() -> None:
    """A GPU's results equal to the bit each time; torch warns of what cannot be."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Else every new tensor is filled before it is written, by one more kernel.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def _settings(spec: RunSpec, device: torch.device) -> Iterator[None]:
    """Threads and, on a GPU, determinism as the run has them; the caller's own, afterwards."""
    threads, strict = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    about = torch.utils.deterministic
    fill = about.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.set_num_threads(spec.threads)
    if device.type == "cuda":
        same_bits()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(strict)
        about.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def run(
    spec: RunSpec,
    *,
    outputs: str | Path | None = None,
    device: str = "auto",
    data_root: str | Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> RunRecord:
    """The record of ``spec``: read when it is there, made when it is not (its teacher's first).

    outputs    the study's folder; None: outputs/scratch
    device     auto (a GPU where there is one), cpu or cuda
    data_root  folder of the data sets; None: LTKD_DATA, else data/ of the project
    stop       polled at every step; when true the run saves a checkpoint and raises Stopped
    Raises DataError when the data is missing, ParameterError when the spec asks for more than it
    holds, a class would keep no image, a GPU is not there or the processes are of another number,
    Diverged when its teacher diverged (a student that did has a record which says so),
    torch.OutOfMemoryError, and OSError where nothing can be written.
    Two processes that ask for the same run do it once;
    those that torchrun started for it, ``spec.processes`` of them, make it together.
    """
    n, world = spec.processes, parallel.world()
    if n != world:
        raise ParameterError(f"processes = {n}, but this is one of {world}; should be started by: "
                             f"torchrun --nproc-per-node {n} -m ltkd train")  # fmt: skip
    if not (spec.images and spec.images.sha256):  # else other images would have the same identity
        images = resolve(spec.dataset, spec.images, data_root, strict=False)
        spec = spec.model_copy(update={"images": images})
    store = Store(outputs or files.outputs_root() / "scratch")
    found = parallel.in_turn(lambda: store.get(spec))
    if not parallel.any_of(found is None):
        assert found is not None
        return found
    if spec.teacher:
        teacher = run(
            spec.teacher_spec, outputs=store.folder, device=device, data_root=data_root, stop=stop
        )
        if teacher.diverged:
            raise Diverged(f"{spec.title}: its teacher diverged ({teacher.values['reason']})")
    mine = nullcontext() if parallel.rank() else files.locked(store.lock(spec), stop)
    with ExitStack() as held:
        parallel.in_turn(lambda: held.enter_context(mine))
        found = parallel.in_turn(lambda: store.get(spec))
        if not found:
            where = pick_device(device)
            try:
                with _settings(spec, where):
                    _make(spec, store, where, data_root, stop)
            except (RuntimeError, MemoryError, OSError) as error:
                if out_of_memory(error) and not isinstance(error, torch.OutOfMemoryError):
                    raise torch.OutOfMemoryError(str(error) or "no memory is left") from error
                raise
            found = parallel.in_turn(lambda: store.get(spec))
    assert found is not None
    return found


def _make(spec: RunSpec, store: Store, device: torch.device, root: str | Path | None,
          stop: Callable[[], bool]) -> None:  # fmt: skip
    code = files.code_version()  # of the code that runs, whatever is committed meanwhile
    gpu = device.type == "cuda"
    data = load(spec.dataset, spec.gamma, spec.split_seed, root, spec.images, spec.holdout)
    check_fit(spec, data.counts.tolist())
    feed = data.feed(device)
    here = [torch.cuda.get_device_name() if gpu else "cpu",
            files.hardware() + (", bf16 by fp32" if by_fp32(spec, device) else ""),
            code["commit"], files.versions()["torch"], "dirty" * bool(code["dirty"])]  # fmt: skip
    teacher, model, teacher_sha256 = None, None, None
    if spec.teacher:
        teacher_sha256 = files.sha256(store.model_path(spec.teacher_spec))
        table = store.tables(spec.teacher_spec, teacher_sha256)
        model = store.load_model(spec.teacher_spec).to(device)
        teacher = Teacher(model, spec, feed, table if spec.teacher_source == "table" else None)
    progress, checkpoint = store.progress(spec), store.checkpoint(spec)

    def begin() -> Trainer:
        objective = initial_objective(spec, data, model)
        try:
            return Trainer(spec, data, objective, teacher, feed, checkpoint, teacher_sha256)
        except DamagedCheckpoint as error:
            files.set_aside(checkpoint, error)
        return begin()

    def tell(now: dict[str, Any]) -> None:
        if parallel.rank() == 0:
            files.write_atomic(progress, json.dumps(now | {"pid": os.getpid()}))

    values: dict[str, Any] = {
        "run": identity(spec), "numerics": NUMERICS, "status": "done",
        "spec": spec.model_dump(), "teacher_sha256": teacher_sha256,
        "data": {"title": data.title, "sha256": data.sha256, "counts": data.counts.tolist(),
                 "class_names": data.class_names,
                 "test_counts": data.test_labels.bincount().tolist(),
                 "split_sha256": store.keep_split(data.indices)},
    }  # fmt: skip
    blobs, model_bytes = {}, None
    try:
        trainer = parallel.in_turn(begin)
        if here not in trainer.at.machines:
            trainer.at.machines.append(here)
        done = trainer.train(stop, tell)
    except Diverged as error:
        values |= {"status": "diverged", "reason": str(error), "history": trainer.at.history}
    else:
        buffer = io.BytesIO()
        np.save(buffer, done.predictions, allow_pickle=False)
        blobs["predictions.npy"] = buffer.getvalue()
        values |= {"history": done.history, "seconds": round(done.seconds, 2),
                   "images_per_second": round(done.images_per_second, 1)}  # fmt: skip
        model_bytes = save_tensors(done.state, {"spec": files.canonical(spec.model_dump())})
    if parallel.rank():
        return
    # A run that was cut may have gone on elsewhere, or by other code.
    where, machines, commits, torches, dirty = (
        "; ".join(dict.fromkeys(filter(None, part)))
        for part in zip(*trainer.at.machines, strict=True)
    )
    values |= {
        "device": where, "hardware": machines,
        "code": code | {"commit": commits or None, "dirty": bool(dirty) or code["dirty"]},
        "versions": files.versions() | {"torch": torches},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    if store.get(spec) is None:  # else another process took over the lock, and was first
        store.put(spec, values, blobs, model_bytes)
    store.tidy(spec)
