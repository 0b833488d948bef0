"""A run shared by two processes: the step of the global batch, one record, resume to the bit."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from test_oracle import Double

from ltkd import parallel, run
from ltkd.data import load
from ltkd.files import Stopped
from ltkd.params import ParameterError, RunSpec, load_spec
from ltkd.runs import Store, identity
from ltkd.teacher import Teacher
from ltkd.train import Diverged, Trainer, initial_model, initial_objective

STEPS = 20
SPEC = """dataset: digits
gamma: 20
student: resnet8
method: student
epochs: 60
batch: 32
eval_every: 60
schedule: one_cycle
"""
METHODS = ("kd", "dist", "reviewkd", "ltkd")


def spec_of(method, processes, **changes):
    with_teacher = {} if method == "student" else {"teacher": "resnet8", "teacher_source": "live"}
    base = {"dataset": "digits", "gamma": 20.0, "student": "resnet8", "method": method,
            "groups": 3 if method == "ltkd" else None, "epochs": 5, "batch": 64, "lr": 0.05,
            "schedule": "one_cycle", "clip_norm": 1.0, "processes": processes}  # fmt: skip
    return RunSpec(**(base | with_teacher | changes))


def course(folder, method, processes, local=False):
    """Sums of the losses at each of 20 steps, then the weights: float64, batch norm in eval mode.

    local: the loss sees this process's share of the batch alone
    """
    torch.set_num_threads(1)
    spec, data = spec_of(method, processes), load("digits", 20.0)
    small = {k: getattr(data, k)[..., ::2, ::2] for k in ("train_images", "test_images")}
    data = replace(data, **small)  # for speed
    model = None
    if spec.teacher:
        torch.manual_seed(7)
        model = initial_model(spec.teacher_spec, 10).eval()
    objective = initial_objective(spec, data, model).eval()
    if local:
        objective.term.process_group = None
    data = Double(**vars(data))
    feed = data.feed(torch.device("cpu"))
    teacher = Teacher(model.double(), spec, feed, None) if model else None
    trainer = Trainer(spec, data, objective, teacher, feed, folder / f"{method}{local}.part")
    trainer.model.double().eval()
    trainer.objective.double()
    trainer.model.train = lambda mode=True: trainer.model
    seen = []

    def stop():  # the last process alone asks to stop, and all do
        seen.append(trainer.sums.clone())
        return len(seen) > STEPS and parallel.rank() == parallel.world() - 1

    with pytest.raises(Stopped, match=f"at step {STEPS} of 30"):
        trainer.train(stop, lambda now: None)
    weights = torch.cat([p.detach().flatten() for p in trainer.parameters])
    return torch.stack(seen), weights


def worker(rank, folder):
    """What each of two processes does: its courses, and whole runs in a store that they share."""
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    out = {method: course(folder, method, 2) for method in METHODS}
    out |= {f"local {method}": course(folder, method, 2, local=True) for method in ("dist", "ltkd")}
    spec = spec_of("ltkd", 2, epochs=1, teacher_source="table")
    record = run(spec, outputs=folder / "store")
    again = run(spec, outputs=folder / "store", data_root=folder / "nowhere")
    assert again.values == record.values
    (folder / f"{rank}.yaml").write_text(SPEC)
    run(load_spec(folder / f"{rank}.yaml", 2), outputs=folder / "store")
    wild = run(spec_of("student", 2, lr=1e4, clip_norm=None, schedule="steps", epochs=3),
               outputs=folder / "store")  # fmt: skip
    assert wild.diverged
    with pytest.raises(ValueError, match="processes = 1, but this is one of 2"):
        run(spec_of("student", 1), outputs=folder / "store")

    def only_first():
        if rank == 0:
            raise Diverged("told by the first")

    with pytest.raises(Diverged, match="told by the first"):
        parallel.in_turn(only_first)
    assert [parallel.any_of(rank == one) for one in (0, 1, 2)] == [True, True, False]
    torch.save((out, record.values["sha256"]), folder / f"{rank}.pt")
    parallel.leave()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(worker, args=(folder,), nprocs=2)
    (one, first), (other, second) = (torch.load(folder / f"{rank}.pt") for rank in range(2))
    assert first == second
    return folder, one, other


@pytest.mark.parametrize("method", METHODS)
def test_two_times_32_are_64(two, tmp_path, method):
    _, one, other = two
    sums, weights = course(tmp_path, method, 1)
    for mine in (one, other):
        assert mine[method][0].shape == (STEPS + 1, 3)
        assert (mine[method][0] - sums).abs().max() < 1e-9
        assert (mine[method][1] - weights).abs().max() < 1e-9
    assert torch.equal(one[method][1], other[method][1])
    begun = torch.cat([p.flatten() for p in initial_model(spec_of(method, 1), 10).parameters()])
    assert (weights[: len(begun)] - begun).abs().max() > 1e-3  # it moved
    if f"local {method}" in one:  # what looks across the batch would differ, had it half of it
        assert (one[f"local {method}"][1] - weights).abs().max() > 1e-5


def test_two_processes_leave_one_record_that_names_them(two):
    store = Store(two[0] / "store")
    spec = spec_of("ltkd", 2, epochs=1, teacher_source="table")
    record, teacher = store.get(spec), store.get(spec.teacher_spec)
    assert record.values["spec"]["processes"] == teacher.values["spec"]["processes"] == 2
    assert store.get(spec_of("ltkd", 1, epochs=1, teacher_source="table")) is None
    left = {p.name for p in record.folder.iterdir()}
    assert left == {"record.json", "predictions.npy", "model.safetensors"}
    assert not [p for p in store.folder.rglob("*") if p.suffix in {".lock", ".part"}]
    begun, saved = initial_model(spec, 10), load_file(store.model_path(spec))
    name = next(k for k in saved if k.endswith("running_mean"))
    assert not torch.equal(begun.state_dict()[name], saved[name])


def test_one_process_is_named_nowhere():
    """So that records made before there were several keep their names and their bytes."""
    assert "processes" not in spec_of("kd", 1).model_dump()
    assert identity(spec_of("kd", 1)) != identity(spec_of("kd", 2))
    assert spec_of("kd", 2).teacher_spec.processes == 2


@pytest.mark.parametrize(
    ("text", "processes", "said"),
    [(SPEC, 3, "batch = 32: should be a multiple of the 3 processes"),
     (SPEC, 32, "with two images for each at least"),
     (SPEC + "processes: 2", 1, "processes = 2, but 1 started; should be started by: torchrun "
                                "--nproc-per-node 2 -m ltkd train"),
     (SPEC + "processes: 2", 4, "processes = 2, but 4 started")],
)  # fmt: skip
def test_a_wrong_number_of_processes_is_refused_before_work(tmp_path, text, processes, said):
    path = tmp_path / "one.yaml"
    path.write_text(text)
    with pytest.raises(ParameterError, match=re.escape(said)):
        load_spec(path, processes)


def test_a_spec_for_two_is_refused_in_one(tmp_path):
    with pytest.raises(
        ValueError, match=r"processes = 2, but this is one of 1; .*nproc-per-node 2"
    ):
        run(spec_of("student", 2), outputs=tmp_path)


LTKD = [sys.executable, "-m", "ltkd"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def test_only_train_is_for_torchrun():
    done = subprocess.run([*LTKD, "methods"], env=os.environ | {"TORCHELASTIC_RUN_ID": "x"},
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 2
    assert "ltkd methods: torchrun is for `ltkd train` alone" in done.stderr


@pytest.mark.slow
def test_under_torchrun_stopped_and_resumed_to_the_bit(two, tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text(SPEC)
    spec = load_spec(path, 2)

    def start(folder, *command):
        return subprocess.Popen(
            [*command, "train", str(path), "--outputs", str(tmp_path / folder)], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip

    def torchrun(folder, n=2):
        return start(folder, *TORCHRUN, str(n), "-m", "ltkd")

    process = torchrun("cut")
    limit, children = time.monotonic() + 180, set()
    while not list(tmp_path.rglob("progress.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        children |= {*psutil.Process(process.pid).children(recursive=True)}
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert said.count("stopped; the same command goes on from here") == 1, errors
    assert len(children) >= 2
    assert not [child for child in children if child.is_running()]
    store = Store(tmp_path / "cut" / "one")
    assert [p.parent.name for p in store.folder.rglob("checkpoint.safetensors")] == [identity(spec)]

    refused = start("cut", *LTKD)
    said, errors = refused.communicate(timeout=120)
    assert refused.returncode == 2
    assert "begun by 2 processes, and 1 would come to other numbers; go on with 2" in errors

    said, errors = torchrun("cut").communicate(timeout=300)
    assert said.count("% test accuracy in the last epoch") == 1, errors
    pieces = store.get(spec)
    whole = Store(two[0] / "store").get(spec)
    assert pieces.values["spec"]["processes"] == 2
    assert pieces.values["history"] == whole.values["history"]
    assert pieces.values["model_sha256"] == whole.values["model_sha256"]
    assert (pieces.predictions() == whole.predictions()).all()
