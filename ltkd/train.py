"""One training run: a plain step, a schedule that is a function of the step, and exact resume.

No random state needs saving: initialisation, order and views are streams of their own, addressed by
(seed, epoch). What a checkpoint holds is the weights (an objective's, too), the momentum, where the
run is and the sums of its epoch.
"""

import errno
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from . import parallel
from .data import Feed, LongTailed, stream
from .files import Stopped, canonical, sha256, write_atomic
from .methods import METHODS
from .models import create_model
from .objective import Objective, build
from .params import RECIPES, RunSpec, on_the_fly
from .precision import autocast, whole_fp32
from .teacher import Teacher, answer, views_of_epoch

EVAL_BATCH = 500
CHECKPOINT_SECONDS = 60.0
TELL_SECONDS = 0.5  # at least, between two words of progress: an epoch may take less than a write
WARM_UP = 3  # steps of a GPU before one is recorded


class Diverged(Exception):
    """The loss became NaN or infinite."""


class DamagedCheckpoint(Exception):
    """A checkpoint that is not whole, or not this run's."""


def out_of_memory(error: Exception) -> bool:
    """Whichever allocator met it: PyTorch's, CUDA's, cuBLAS's, cuDNN's or the processor's."""
    said = ("out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED", "can't allocate memory")
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or (isinstance(error, RuntimeError) and any(words in str(error) for words in said))
        or getattr(error, "errno", None) == errno.ENOMEM
    )


def pre_activation(spec: RunSpec) -> bool:
    """Whether ReviewKD takes the student's features before the ReLU: at 224 pixels, as on
    ImageNet."""
    return on_the_fly(spec.dataset, spec.images)


def learning_rate(spec: RunSpec, step: int, steps_per_epoch: int) -> float:
    """The rate of this step (from 0).

    steps: x 0.1 after the recipe's fractions of the epochs (150, 180 and 210 of 240 on CIFAR).
    one_cycle: linear from 1/25 of the peak over the first quarter, then a cosine to 0 (Smith 2018).
    """
    if spec.schedule == "steps":
        done = step // steps_per_epoch / spec.epochs
        return spec.peak_lr * 0.1 ** sum(done >= part for part in RECIPES[spec.dataset].decay)
    done = (step + 1) / (spec.epochs * steps_per_epoch)
    if done < 0.25:
        return spec.peak_lr * (0.04 + 0.96 * done / 0.25)
    return spec.peak_lr * 0.5 * (1 + math.cos(math.pi * (done - 0.25) / 0.75))


def initial_model(spec: RunSpec, classes: int) -> nn.Module:
    """The student as its seed makes it: the same for every method, so that methods pair by seed."""
    with seeded("init", spec.seed):
        model = create_model(spec.student, classes)
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@contextmanager
def seeded(purpose: str, seed: int) -> Iterator[None]:
    """Torch's global generator at the start of a stream of its own; as it was, afterwards."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed every GPU, too.
        torch.default_generator.manual_seed(int(stream(purpose, seed).randint(2**31)))
        yield


def initial_objective(
    spec: RunSpec, data: LongTailed, teacher: nn.Module | None = None
) -> Objective:
    """The method's terms for this data set and pair, with any part of their own to be trained."""
    groups = data.groups(spec.groups).tolist() if spec.groups else None
    levels: tuple[list[int], ...] = ()
    if METHODS[spec.method].loss == "reviewkd" and teacher is not None:
        x = data.normalise(data.seen(torch.zeros(2, dtype=torch.long), torch.zeros(2).long()))
        x = x.to(next(teacher.parameters()).device)
        with torch.no_grad():
            told = answer(teacher, x, "features", pre_activation=True)[1]
            model = initial_model(spec, len(data.class_names)).to(x.device)
            own = answer(model.eval(), x, "features", pre_activation(spec))[1]
        levels = [f.shape[1] for f in own], [f.shape[1] for f in told], [f.shape[-1] for f in told]
    with seeded("fusion", spec.seed):
        return build(METHODS[spec.method], spec.method_args, data.counts.tolist(), groups, levels,
                     dist.group.WORLD if spec.processes > 1 else None)  # fmt: skip


@torch.inference_mode()
def predict(model: nn.Module, data: LongTailed, images: Tensor, spec: RunSpec) -> Tensor:
    """Logits of uint8 images [N, 3, H, W] as they are, in evaluation mode: float32 [N, C]."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    out = []
    for batch in images.split(EVAL_BATCH):
        x = data.normalise(batch.to(device))
        with autocast(spec, x.device):
            out.append(model(x).float())
    model.train(was_training)
    return torch.cat(out)


def half_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state to keep: matrices and kernels in fp16, vectors and statistics as they are."""
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    return {k: v.half() if v.ndim > 1 else v for k, v in state.items()}


@dataclass
class Trained:
    """What training gives back. predictions: class ids of the test images [N], last epoch."""

    state: dict[str, Tensor]
    predictions: np.ndarray
    history: list[dict[str, Any]]
    seconds: float
    images_per_second: float


@dataclass
class _Position:
    """Where a run is, for a checkpoint and its record."""

    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    machines: list[list[str]] = field(default_factory=list)
    """(device, hardware, commit, torch, whether the code was changed) of those that had a part in
    it, in order"""


def _seal(spec: RunSpec, tensors: dict[str, Tensor], position: str) -> str:
    """SHA-256 of a checkpoint's content and of whose it is; safetensors would not notice a flipped
    bit, nor another run's weights."""
    parts = [[k, str(t.dtype), [*t.shape], sha256(t.numpy().tobytes())] for k, t in tensors.items()]
    return sha256(canonical([spec.model_dump(), position, sorted(parts)]))


class CudaGraphStep:
    """A step of hundreds of small kernels as one CUDA graph, which a GPU runs without waiting for
    the launch of each.

    step  works on tensors alone; what it reads besides its arguments must stay in its place
    The first calls run as they are: buffers are made, and libraries choose. The next is recorded.
    """

    def __init__(self, step: Callable[..., None]) -> None:
        self.step, self.calls, self.aside = step, 0, torch.cuda.Stream()
        self.own: tuple[Tensor, ...] = ()
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *given: Tensor) -> None:
        self.calls += 1
        if self.graph is None:
            here = torch.cuda.current_stream()
            self.aside.wait_stream(here)
            with torch.cuda.stream(self.aside):
                if self.calls <= WARM_UP:
                    self.step(*given)
                else:
                    self.own = tuple(tensor.clone() for tensor in given)
                    self.graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(self.graph, stream=self.aside):
                        self.step(*self.own)
            here.wait_stream(self.aside)
        if self.graph is not None:
            for own, tensor in zip(self.own, given, strict=True):
                own.copy_(tensor)
            self.graph.replay()


class Trainer:
    """Trains one spec to the end, or to a stop that leaves a checkpoint.

    objective       the student's loss, with the parameters that some losses have
    teacher         its answers; None for a student without one
    feed            the training images, on the device that trains
    checkpoint      the file that it goes on from, and that it leaves when it is stopped
    teacher_sha256  of the teacher's file: from another teacher's checkpoint none goes on
    Raises DamagedCheckpoint where that file is there and is not a whole one of this run.
    """

    def __init__(
        self,
        spec: RunSpec,
        data: LongTailed,
        objective: Objective,
        teacher: Teacher | None,
        feed: Feed,
        checkpoint: Path,
        teacher_sha256: str | None = None,
    ) -> None:
        self.spec, self.data, self.teacher = spec, data, teacher
        self.teacher_sha256 = teacher_sha256 or ""
        self.device, self.feed, self.checkpoint = feed.device, feed, checkpoint
        self.model = initial_model(spec, len(data.class_names)).to(self.device)
        self.objective = objective.to(self.device)
        self.labels, self.test_labels = (
            data.train_labels.to(self.device), data.test_labels.to(self.device))  # fmt: skip
        self.parameters = [*self.model.parameters(), *objective.parameters()]
        self._moved = self.parameters if spec.momentum else []  # without it torch keeps no buffer
        self.view = torch.zeros_like(self.labels)  # of each training image, in this epoch
        self.recorded: CudaGraphStep | None = None
        lr: float | Tensor = spec.lr
        if self.device.type == "cuda" and feed.whole and parallel.world() == 1:
            lr = torch.full((), spec.lr, device=self.device)
            self.seen = torch.empty_like(data.train_images, device=self.device)

            def recorded(index: Tensor, weight: Tensor) -> None:
                self._step(index, weight, data.normalise(self.seen[index], feed.scale))

            self.recorded = CudaGraphStep(recorded)
        self.optimizer = torch.optim.SGD(self.parameters, lr=lr, momentum=spec.momentum,
                                         weight_decay=spec.weight_decay, fused=True)  # fmt: skip
        self.steps = len(self.labels) // spec.batch  # the short last batch is dropped, always
        self.predicted = self.test_labels  # class ids at the last evaluation, once there was one
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        self.at = _Position()
        try:
            if self.checkpoint.exists():
                self._resume()
        except torch.AcceleratorError:  # no fault of the checkpoint
            raise
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            if out_of_memory(error):
                raise
            raise DamagedCheckpoint(str(error)) from error

    def _resume(self) -> None:
        with safe_open(self.checkpoint, "pt") as file:
            about = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if about["sha256"] != _seal(self.spec, tensors, about["position"]):
            raise ValueError("its content does not match its sha256")
        if about["teacher"] != self.teacher_sha256:
            raise ValueError(f"it learned from another teacher, sha256 {about['teacher'][:12]}")
        self.at = _Position(**json.loads(about["position"]))
        self.sums.copy_(tensors.pop("sums"))
        for i, p in enumerate(self._moved):
            self.optimizer.state[p]["momentum_buffer"] = (
                torch.empty_like(p).copy_(tensors.pop(f"momentum.{i}"))
            )  # fmt: skip
        own = [key for key in tensors if key.startswith("objective.")]
        self.objective.load_state_dict(
            {key.removeprefix("objective."): tensors.pop(key) for key in own}
        )
        self.model.load_state_dict(tensors)

    def save(self) -> None:
        """A whole checkpoint or none, by the first of the processes; none before the first step."""
        if parallel.rank() or not self.at.step:
            return
        self.at.seconds = time.monotonic() - self.began
        state = self.model.state_dict() | {
            f"objective.{k}": v for k, v in self.objective.state_dict().items()
        }
        tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
        tensors["sums"] = self.sums.cpu()
        for i, p in enumerate(self._moved):
            tensors[f"momentum.{i}"] = self.optimizer.state[p]["momentum_buffer"].cpu().contiguous()
        position = json.dumps(vars(self.at))  # not sorted: a resumed record is the same text
        about = {"position": position, "sha256": _seal(self.spec, tensors, position),
                 "teacher": self.teacher_sha256}  # fmt: skip
        write_atomic(self.checkpoint, save(tensors, about))

    def look(self, view: Tensor) -> None:
        """From now on the training images are seen in these views [N]."""
        self.view.copy_(view)
        if self.recorded:  # all at once: a step then has two dozen kernels fewer
            self.seen.copy_(self.feed.epoch(self.view))

    def step(self, index: Tensor, weight: float, x: Tensor | None = None) -> None:
        """A step on the images ``index`` [b], this process's share of the batch, in the views of
        this epoch; x: as they are seen, where that is known. weight: the distillation term's."""
        rate = learning_rate(self.spec, self.at.step, self.steps)
        if self.recorded:
            self.optimizer.param_groups[0]["lr"].fill_(rate)
            self.recorded(index, torch.full((), weight, device=self.device))
        else:
            self.optimizer.param_groups[0]["lr"] = rate
            self._step(index, weight, x)

    def _step(self, index: Tensor, weight: float | Tensor, x: Tensor | None = None) -> None:
        if x is None:
            x = self.feed.take(index, self.view[index])
        told = self.teacher.answer(x, index) if self.teacher else None
        with autocast(self.spec, self.device):
            logits, own = answer(
                self.model, x, self.objective.entry.compares, pre_activation(self.spec)
            )
            label, distil = self.objective(logits, own, told, self.labels[index])
        loss = label + weight * distil
        self.optimizer.zero_grad(set_to_none=True)
        with whole_fp32(self.spec, self.device):
            loss.backward()
        terms = torch.stack([loss, label, distil]).detach()
        parallel.average([terms, *(p.grad for p in self.parameters if p.grad is not None)])
        if self.spec.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.spec.clip_norm)
        self.optimizer.step()
        self.sums += terms.double()

    def train(self, stop: Callable[[], bool], tell: Callable[[dict[str, Any]], None]) -> Trained:
        """Run to the last step. Raises Stopped (a checkpoint is kept) or Diverged."""
        spec, end = self.spec, self.steps * self.spec.epochs
        started = saved = time.monotonic()
        self.began, first = started - self.at.seconds, self.at.step
        last_word, accuracy = -math.inf, None
        self.model.train()
        while self.at.step < end:
            epoch = self.at.step // self.steps + 1
            self.look(views_of_epoch(self.data, spec.seed, epoch))
            order = stream("order", spec.seed, epoch).permutation(len(self.labels)).astype(np.int64)
            batches = (
                torch.from_numpy(order).to(self.device)[: self.steps * spec.batch].split(spec.batch)
            )
            if self.teacher:
                try:
                    parallel.in_turn(partial(self.teacher.begin_epoch, self.view, stop))
                except Stopped:
                    self.save()
                    raise
            todo = [parallel.share(index) for index in batches[self.at.step % self.steps :]]
            weight = self.objective.ramp(epoch, spec.epochs)
            for index, x in zip(todo, self.feed.ahead(todo, self.view), strict=True):
                if parallel.any_of(stop()):
                    self.save()
                    raise Stopped(f"{spec.title}: stopped at step {self.at.step} of {end}")
                self.step(index, weight, x)
                self.at.step += 1
                if self.at.step % self.steps and time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self.save()
                    saved = time.monotonic()
            found = self._end_epoch(epoch)
            accuracy = accuracy if found is None else found  # the last one known
            now = time.monotonic()
            rate = (self.at.step - first) / (now - started)
            if self.at.step == end or now - last_word > TELL_SECONDS:
                tell({"epoch": epoch, "epochs": spec.epochs, "images_per_second": rate * spec.batch,
                      "seconds_left": (end - self.at.step) / rate,
                      "accuracy": accuracy})  # fmt: skip
                last_word = now
            if self.at.step < end and now - saved > CHECKPOINT_SECONDS:
                self.save()
                saved = now
        predictions = self.predicted.cpu().numpy()
        seconds = time.monotonic() - self.began
        state, rate = half_weights(self.model), end * spec.batch / seconds
        return Trained(state, predictions.astype(np.int16), self.at.history, seconds, rate)

    def _end_epoch(self, epoch: int) -> float | None:
        """Close the epoch's books; the only place where the device is waited for."""
        loss, label, distil = (self.sums / self.steps).tolist()
        self.sums.zero_()
        row: dict[str, Any] = {
            "epoch": epoch,
            "loss": loss,
            "label_loss": label,
            "distillation_loss": distil,
        }
        if not math.isfinite(loss):
            raise Diverged(f"{self.spec.title}: the loss is {loss} in epoch {epoch}")
        last = epoch == self.spec.epochs
        if last:  # what is kept is what is measured: the saved weights are rounded first
            self.model.load_state_dict({k: v.float() for k, v in half_weights(self.model).items()})
        if last or epoch % self.spec.eval_every == 0:
            self.predicted = predict(
                self.model, self.data, self.data.test_images, self.spec
            ).argmax(1)
            hit = self.test_labels[self.predicted == self.test_labels]
            correct = torch.bincount(hit, minlength=len(self.data.class_names))
            row["correct"] = correct.tolist()
        self.at.history.append(row)
        return 100 * sum(row["correct"]) / len(self.test_labels) if "correct" in row else None
