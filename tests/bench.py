"""Speed, as ratios measured side by side in one run: `make bench`.

The plain loop (fp32, DataLoader, live teacher, as a textbook has it) is that of tests/oracle.py.
Every trial times each way once, in turn; the table shows medians over the trials.
Results: outputs/bench/<device>-<pair>.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path

import oracle
import psutil
import torch
import torch.nn.functional as F

from ltkd import files
from ltkd.data import DataError, load
from ltkd.losses import KDLoss, LTKDLoss
from ltkd.models import create_model
from ltkd.params import RunSpec
from ltkd.precision import fast_bf16
from ltkd.runs import pick_device, same_bits
from ltkd.teacher import Teacher, views_of_epoch
from ltkd.train import Trainer, initial_objective

BATCH = 64


def seconds(work, device):
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def plain(data, pair, workers, device):
    """Steps of the textbook's loop with KD, one after another, epoch after epoch."""
    teacher, student = (create_model(name, len(data.class_names)).to(device) for name in pair)
    order = torch.randperm(len(data.train_labels)).tolist()
    view = torch.randint(data.views.count, (len(order),))
    yield from oracle.train(
        data, student, "kd", order=order, view=view, rates=[0.05] * 10_000, teacher=teacher.eval(),
        batch=BATCH, workers=workers, device=device)  # fmt: skip


def ours(data, pair, method, device, folder=None):
    """Steps of the library's trainer; with a folder the teacher is a table, filled beforehand."""
    with_teacher = {} if method == "student" else {"teacher": pair[0]}
    spec = RunSpec(dataset=data.name, gamma=data.gamma, student=pair[1], method=method, epochs=1,
                   groups=3 if method == "ltkd" else None, batch=BATCH, lr=0.05, precision="bf16",
                   threads=files.cores(), **with_teacher)  # fmt: skip
    feed, teacher = data.feed(device), None
    if with_teacher:
        torch.manual_seed(0)  # the table is of this teacher's answers
        model = create_model(pair[0], len(data.class_names)).to(device)
        model = model.to(memory_format=torch.channels_last)
        teacher = Teacher(model, spec, feed, folder)
    objective = initial_objective(spec, data)
    trainer = Trainer(spec, data, objective, teacher, feed, Path("no checkpoint"))
    trainer.look(views_of_epoch(data, spec.seed, 1))
    if teacher:
        teacher.begin_epoch(trainer.view)
    trainer.model.train()
    while True:
        for index in torch.randperm(len(trainer.view)).to(device).split(BATCH)[:-1]:
            trainer.step(index, 1.0)
            yield


def alone(data, pair, way, device, folder):
    """In a process of its own: seconds from its start to the first step, peak memory in GB."""
    steps = (
        plain(data, pair, 0, device) if way == "plain" else ours(data, pair, "kd", device, folder)
    )
    list(islice(steps, 1))
    started = time.time() - psutil.Process().create_time()
    list(islice(steps, 5))
    # Not getrusage: its figure is, at first, that of the process that started this one.
    status = Path("/proc/self/status").read_text()
    print(json.dumps([started, int(status.split("VmHWM:")[1].split()[0]) / 2**20]))


def loss_seconds(loss, device, classes):
    z_s = torch.randn(BATCH, classes, device=device, requires_grad=True)
    z_t = torch.randn(BATCH, classes, device=device)
    return seconds(lambda: [loss(z_s, z_t).backward() for _ in range(50)], device) / 50


def losses(device, trials):
    """Milliseconds of KD's loss and of LTKD's, forward and backward, taken in turn."""
    out = {}
    for c in (100, 1000):
        ways = {"kd": KDLoss()}
        for n in (3, 10, 100):
            ways[f"ltkd, n = {n}"] = LTKDLoss(torch.arange(c) * n // c).to(device)
        times = {name: [] for name in ways}
        for _ in range(trials + 1):
            for name, loss in ways.items():
                times[name].append(loss_seconds(loss, device, c))
        out[c] = {name: 1e3 * statistics.median(t[1:]) for name, t in times.items()}
    return out


def peak(device):
    """Operations a second of a matrix product, in bf16 where the machine has it, else in fp32:
    about what it can do at best."""
    n = 8192 if device.type == "cuda" else 2048  # a smaller one does not fill a GPU
    dtype = torch.bfloat16 if device.type == "cuda" or fast_bf16() else torch.float32
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    a @ b
    times = [seconds(lambda: a @ b, device) for _ in range(5)]
    return 2 * n**3 / statistics.median(times)


def operations(data, pair):
    """An image's: of a teacher's answer, of a student's step with its backward pass."""
    from torch.utils.flop_counter import FlopCounterMode  # slow to load

    x, y = data.normalise(data.test_images[:2]), data.test_labels[:2]
    teacher, student = (create_model(name, len(data.class_names)) for name in pair)
    with FlopCounterMode(display=False) as told, torch.no_grad():
        teacher.eval()(x)
    with FlopCounterMode(display=False) as trained:
        F.cross_entropy(student(x), y).backward()
    return told.get_total_flops() / 2, trained.get_total_flops() / 2


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", default="resnet32x4-resnet8x4")
    parser.add_argument("--dataset", default="cifar100", choices=("cifar100", "digits"))
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--steps", type=int, help="a trial and way; by default 4, on a GPU 50")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--alone", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    device, pair = pick_device(given.device), given.pair.split("-")
    count = given.steps or (50 if device.type == "cuda" else 4)
    try:
        data = load(given.dataset, 100.0 if given.dataset == "cifar100" else 20.0)
    except DataError as error:
        sys.exit(str(error))
    torch.set_num_threads(files.cores())
    torch.manual_seed(0)
    if given.alone:
        return alone(data, pair, given.alone[0], device, Path(given.alone[1]))
    with tempfile.TemporaryDirectory() as folder:
        print("filling the teacher's table", flush=True)
        ways = {f"plain, {n} workers": plain(data, pair, n, device) for n in (0, 2)}
        ways["KD, teacher's table"] = ours(data, pair, "kd", device, Path(folder))
        ways["KD, live teacher"] = ours(data, pair, "kd", device)
        ways["LTKD, teacher's table"] = ours(data, pair, "ltkd", device, Path(folder))
        ways["cross-entropy"] = ours(data, pair, "student", device)
        times = {name: [] for name in ways}
        for name, steps in ways.items():
            if device.type == "cuda" and not name.startswith("plain"):
                same_bits()  # as in a run; a recorded step keeps it, the plain loop is free of it
            list(islice(steps, 5))  # what is made once: workers, tables, buffers, a GPU's graph
            torch.use_deterministic_algorithms(False)
        for trial in range(given.trials):
            print(f"trial {trial + 1} of {given.trials}", flush=True)
            for name, steps in ways.items():
                times[name].append(seconds(partial(list, islice(steps, count)), device))
        ways.clear()
        separate = {}
        for way in ("plain", "table"):
            command = [sys.executable, __file__, *sys.argv[1:], "--alone", way, folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            separate[way] = json.loads(done.stdout.splitlines()[-1])
    rate = {name: BATCH * count / statistics.median(t) for name, t in times.items()}
    best = max(rate[name] for name in rate if name.startswith("plain"))
    loss = losses(device, given.trials)
    step = 1e3 * BATCH / rate["LTKD, teacher's table"]
    told, trained = operations(data, pair)
    most = peak(device)
    share = {
        "table": rate["KD, teacher's table"] * trained / most,
        "live": rate["KD, live teacher"] * (told + trained) / most,
    }
    result = {
        "pair": given.pair, "device": device.type, "batch": BATCH,
        "plain_images_s": best, "table_images_s": rate["KD, teacher's table"],
        "live_images_s": rate["KD, live teacher"],
        "ltkd_over_ce": rate["cross-entropy"] / rate["LTKD, teacher's table"],
        "ltkd_loss_over_kd_loss": {
            f"C = {c}, {name.removeprefix('ltkd, ')}": ms / own["kd"]
            for c, own in loss.items() for name, ms in own.items() if name != "kd"},
        "ltkd_loss_share_of_step": max(loss[100].values()) / step,
        "first_step_s": separate["table"][0],
        "memory_over_plain": separate["table"][1] / separate["plain"][1],
        "memory_gb": {way: gb for way, (_, gb) in separate.items()},
        "share_of_peak": share, "matrix_product_flop_s": most,
        "image_flop": {"teacher_forward": told, "student_step": trained},
        "loss_ms": loss, "all_images_s": rate, "all_s": times, "steps": count,
        "trials": given.trials, "threads": torch.get_num_threads(),
        "versions": files.versions(), "hardware": files.hardware(),
    }  # fmt: skip
    path = files.outputs_root() / "bench" / f"{device.type}-{given.pair}.json"
    rounded = json.loads(json.dumps(result), parse_float=lambda text: float(f"{float(text):.4g}"))
    files.write_atomic(path, json.dumps(rounded, indent=1) + "\n")
    print(f"{given.pair}, batch {BATCH}, {device}, {result['hardware']}, torch {torch.__version__}")
    print(f"median of {given.trials} trials of {count} steps, interleaved")
    for name, value in rate.items():
        print(f"  {name:24} {value:9.1f} images/s {value / best:7.2f} x the plain loop")
    print(f"  an LTKD step takes {result['ltkd_over_ce']:.2f} x a cross-entropy step")
    for setting, ratio in result["ltkd_loss_over_kd_loss"].items():
        print(f"  LTKD's loss, {setting}: {ratio:.2f} x KD's, forward and backward")
    print(f"  LTKD's loss is {100 * result['ltkd_loss_share_of_step']:.1f} % of its step")
    print(f"  from the start of a process to the first step {result['first_step_s']:.1f} s")
    print(f"  peak memory {result['memory_over_plain']:.2f} x the plain loop's")
    print("  share of the operations a second of a matrix product: "
          + ", ".join(f"{way} {100 * part:.0f} %" for way, part in share.items()))  # fmt: skip
    print(path)


if __name__ == "__main__":
    main()
