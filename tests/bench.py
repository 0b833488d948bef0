"""Speed, as ratios measured side by side in one run: `make bench`.

The plain loop (fp32, DataLoader, live teacher, as a textbook has it) is that of tests/oracle.py.
Every trial times each way once, in turn; the table shows medians over the trials.
Results: outputs/bench/<device>.json.
"""

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path

import oracle
import torch

from ltkd import files
from ltkd.data import load
from ltkd.losses import KDLoss, LTKDLoss
from ltkd.models import create_model
from ltkd.params import RunSpec
from ltkd.runs import pick_device
from ltkd.teacher import Teacher, views_of_epoch
from ltkd.train import Trainer, initial_objective


def seconds(work, device):
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def plain(data, teacher, student, batch, workers, device):
    """Steps of the textbook's loop with KD, one after another, epoch after epoch."""
    order = torch.randperm(len(data.train_labels)).tolist()
    view = torch.randint(data.views.count, (len(order),))
    yield from oracle.train(
        data, student, "kd", order=order, view=view, rates=[0.05] * 10_000, teacher=teacher.eval(),
        batch=batch, workers=workers, device=device)  # fmt: skip


def ours(spec, data, model, device, folder):
    """Steps of the library's trainer; with a folder the teacher is a table, filled beforehand."""
    feed = data.feed(device)
    teacher = Teacher(model, spec, feed, folder) if spec.teacher else None
    trainer = Trainer(
        spec, data, initial_objective(spec, data), teacher, feed, Path("/nonexistent")
    )
    view = views_of_epoch(data, spec.seed, 1).to(device)
    if teacher:
        teacher.begin_epoch(spec.seed, 1, view)
    trainer.model.train()
    while True:
        for index in torch.randperm(len(view)).to(device).split(spec.batch)[:-1]:
            trainer._step(feed.take(index, view[index]), index, 1.0)
            yield


def loss_time(loss, device, classes):
    z_s = torch.randn(64, classes, device=device, requires_grad=True)
    z_t = torch.randn(64, classes, device=device)
    return seconds(lambda: [loss(z_s, z_t).backward() for _ in range(50)], device) / 50


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", default="resnet32x4-resnet8x4")
    parser.add_argument("--dataset", default="cifar100", choices=("cifar100", "digits"))
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    given = parser.parse_args()
    device = pick_device(given.device)
    torch.manual_seed(0)
    teacher_name, student_name = given.pair.split("-")
    data = load(given.dataset, 100.0 if given.dataset == "cifar100" else 20.0)
    classes = len(data.class_names)
    threads = files.cores()
    torch.set_num_threads(threads)
    base = {"dataset": given.dataset, "gamma": data.gamma, "student": student_name, "epochs": 1,
            "batch": 64, "lr": 0.05, "precision": "bf16", "threads": threads}  # fmt: skip
    kd = RunSpec(**base, method="kd", teacher=teacher_name)
    ltkd = RunSpec(**base, method="ltkd", teacher=teacher_name, groups=3)
    alone = RunSpec(**base, method="student")
    fresh = create_model(teacher_name, classes).to(device)
    quick = create_model(teacher_name, classes).to(device, memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as folder:
        print("filling the teacher's table", flush=True)
        ways = {}
        for workers in (0, 2):
            student = create_model(student_name, classes).to(device)
            ways[f"plain, {workers} workers"] = plain(data, fresh, student, 64, workers, device)
        ways["table"] = ours(kd, data, quick, device, Path(folder))
        ways["live"] = ours(kd, data, quick, device, None)
        ways["ltkd"] = ours(ltkd, data, quick, device, Path(folder))
        ways["cross-entropy"] = ours(alone, data, quick, device, None)
        times = {name: [] for name in ways}
        for steps in ways.values():
            next(steps)  # what is made once: workers, tables, buffers
        for _ in range(given.trials):
            for name, steps in ways.items():
                block = partial(list, islice(steps, given.steps))
                times[name].append(seconds(block, device))
    rate = {name: 64 * given.steps / statistics.median(t) for name, t in times.items()}
    best = max(rate["plain, 0 workers"], rate["plain, 2 workers"])
    ratio = {}
    for c in (100, 1000):
        own, other = KDLoss(), {n: LTKDLoss(torch.arange(c) * n // c) for n in (3, 100)}
        for n, loss in other.items():
            pairs = [
                (loss_time(loss, device, c), loss_time(own, device, c))
                for _ in range(given.trials + 1)
            ]
            ratio[f"C {c}, n {n}"] = round(statistics.median(a / b for a, b in pairs[1:]), 2)
    result = {
        "pair": given.pair, "device": str(device), "plain_images_s": round(best, 1),
        "table_images_s": round(rate["table"], 1), "live_images_s": round(rate["live"], 1),
        "ltkd_over_ce": round(rate["cross-entropy"] / rate["ltkd"], 3),
        "ltkd_loss_over_kd_loss": ratio, "trials": given.trials, "versions": files.versions(),
        "hardware": files.hardware(), "all_images_s": {k: round(v, 1) for k, v in rate.items()},
    }  # fmt: skip
    path = files.outputs_root() / "bench" / f"{device.type}-{given.pair}.json"
    files.write_atomic(path, json.dumps(result, indent=1) + "\n")
    print(f"{given.pair}, batch 64, {device}, {result['hardware']}, torch {torch.__version__}, "
          f"median of {given.trials}, interleaved")  # fmt: skip
    for name, value in rate.items():
        print(f"  {name:20} {value:9.1f} images/s {value / best:7.2f} x the plain loop")
    print(f"  an LTKD step costs {result['ltkd_over_ce']:.2f} x a cross-entropy step")
    print(f"  the LTKD loss costs, over KD's, forward and backward: {ratio}")
    print(path)


if __name__ == "__main__":
    main()
