"""What the store costs a run, against the number of runs: `make load`.

A study of digits, four methods, many seeds, made in a folder of its own. Training is left out: in
its place a finished record of the right shape and size is written, through Store.put, by what
stands in for the process pool, so that what is timed is the library's own work a run:
    expand    the parameters to specs, teachers first
    make      scheduling, writing every record to the disk, reading it back
    resume    a second call, in which each record is read and checked
    report    tables of all parts, the notebooks' inputs, a manifest
Each number of runs has a process of its own, for its memory. `--real N` also makes N runs for real.
Results: outputs/bench/load.json and load.svg.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path

import pandas as pd
import psutil
import seaborn as sns

from ltkd import RunSpec, Study, files, pool, run
from ltkd.report import figures
from ltkd.runs import identity
from ltkd.study import PARTS

COUNTS = (10, 100, 500, 1000, 2000)
TARGET = 5.0  # ms a run
METHODS = ["student", "kd", "ltkd", "balanced_softmax"]


def study(folder, runs):
    """A study of about so many runs: a teacher, and students of four methods."""
    given = {"pairs": ["resnet8-resnet8"], "methods": METHODS, "seeds": list(range(runs // 4)),
             "epochs": 1, "ablations": [], "group_counts": []}  # fmt: skip
    return Study(outputs=folder, name="load", **given)


class AtOnce:
    """In the process pool's place: a run is a record of the right shape, written at once."""

    def __init__(self, store, record):
        self.store = store
        self.predictions = (record.folder / "predictions.npy").read_bytes()
        self.model = (record.folder / "model.safetensors").read_bytes()
        self.values = {k: v for k, v in record.values.items() if k != "sha256"}

    def __call__(self, *_):
        return self

    def shutdown(self):
        pass

    def submit(self, work, spec, *_):
        values = self.values | {"run": identity(spec), "spec": spec.model_dump()}
        values["teacher_sha256"] = files.sha256(self.model) if spec.teacher else None
        self.store.put(spec, values, {"predictions.npy": self.predictions}, self.model)
        done = Future()
        done.set_result(None)
        return done


def measure(runs, folder):
    """Milliseconds a run of each phase, of the processor (what else the machine does and how fast
    its disk is do not count) and by the clock, and the process's memory in MB."""
    record = run(RunSpec(dataset="digits", gamma=20.0, student="resnet8", method="student",
                         epochs=1, batch=32, lr=0.05, schedule="one_cycle"),
                 outputs=folder / "one")  # fmt: skip
    small = study(folder / "small", 4)  # what is loaded once: data, libraries
    pool.ProcessPoolExecutor = AtOnce(small.store, record)
    small.make(quiet=True)
    report(small)
    wall, ms, count = {}, {}, len(study(folder, runs).runs())

    def timed(phase, work):
        began, worked = time.perf_counter(), time.process_time()
        work()
        ms[phase] = 1e3 * (time.process_time() - worked) / count
        wall[phase] = 1e3 * (time.perf_counter() - began) / count

    timed("expand", lambda: study(folder, runs).runs())
    first, second = study(folder, runs), study(folder, runs)
    pool.ProcessPoolExecutor = AtOnce(first.store, record)
    before = megabytes()
    timed("make", lambda: first.make(quiet=True))
    timed("resume", lambda: second.make(quiet=True))
    timed("report", lambda: report(second))
    return {"runs": count, "ms": ms, "wall_ms": wall, "mb": megabytes(), "mb_before": before}


def report(made):
    """What the pages ask of a study in which everything is there."""
    for part in PARTS:
        made.results(part)
    for number in range(8):
        made.inputs(f"0{number}")
    made.manifest("06_summary")


def megabytes():
    return psutil.Process().memory_info().rss / 1e6


def real(runs, folder):
    """Seconds that a real tiny run takes in all, and in training alone, a process at a time."""
    made, began = study(folder, runs), time.perf_counter()
    records = made.make(jobs=1, quiet=True).records.values()
    whole = time.perf_counter() - began
    trained = sum(record.values["seconds"] for record in records)
    return {"runs": len(records), "seconds": whole, "training_seconds": trained}


@figures.styled
def draw(rows):
    figure, (axes,) = figures._panels(height=3.2)
    sns.lineplot(rows, x="runs", y="ms", hue="phase", style="phase", markers=True, dashes=False,
                 palette="colorblind", legend=False, ax=axes)  # fmt: skip
    axes.axhline(TARGET, color="0.4", linestyle="--", linewidth=1)
    axes.text(rows["runs"].min(), TARGET, "target in all", va="bottom", fontsize=9)
    for line, (phase, own) in zip(axes.lines, rows.groupby("phase", sort=False), strict=False):
        lift = {"expand": -5, "resume": 5}.get(str(phase), 0)  # the two lie close
        axes.annotate(phase, (own["runs"].iloc[-1], own["ms"].iloc[-1]), (8, lift), va="center",
                      textcoords="offset points", color=line.get_color(), fontsize=9)  # fmt: skip
    axes.set(xscale="log", ylim=(0, None), title="What the store costs a run",
             xlabel="runs of the study", ylabel="processor time, ms a run")  # fmt: skip
    ticks = sorted(rows["runs"].unique())
    axes.set_xticks(ticks, labels=[f"{n:,}" for n in ticks], minor=False)
    axes.minorticks_off()
    axes.margins(x=0.17)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", type=int, metavar="N", help="also make N tiny runs for real")
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.alone:
            return print(json.dumps(measure(given.alone, folder)))
        found = []
        for runs in COUNTS:
            command = [sys.executable, __file__, "--alone", str(runs)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            ms = found[-1]["ms"] | {"in all": sum(found[-1]["ms"].values())}
            print(f"{found[-1]['runs']:5} runs: "
                  + ", ".join(f"{phase} {value:.2f}" for phase, value in ms.items())
                  + f" ms a run; memory {found[-1]['mb_before']:.0f} -> {found[-1]['mb']:.0f} MB",
                  flush=True)  # fmt: skip
        result = {"target_ms": TARGET, "measured": found, "hardware": files.hardware(),
                  "versions": files.versions()}  # fmt: skip
        if given.real:
            result["real"] = real(given.real, folder / "real")
            print("{runs} real runs: {seconds:.1f} s, training {training_seconds:.1f} s".format(
                **result["real"]))  # fmt: skip
    path = files.outputs_root() / "bench" / "load.json"
    files.write_atomic(path, json.dumps(result, indent=1) + "\n")
    rows = pd.DataFrame([{"runs": one["runs"], "phase": phase, "ms": ms} for one in found
                         for phase, ms in [*one["ms"].items(), ("in all", sum(one["ms"].values()))]
                         ])  # fmt: skip
    draw(rows).savefig(path.with_suffix(".svg"), metadata={"Date": None})
    print(path)


if __name__ == "__main__":
    main()
