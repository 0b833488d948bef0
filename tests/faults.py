"""Kill -9 at any moment: `make faults`, or python tests/faults.py --kills 200 --seed 0.

Three commands are killed again and again, then allowed to finish: `ltkd data prepare` of a small
folder tree, `ltkd train` of a distilled student (its teacher, the teacher's table, checkpoints) and
`ltkd run` of a study of four runs and a notebook, half the time with the runs made before. What
they leave is compared with what an uninterrupted command left, byte for byte but for times (see
``plain``). No half file, lock or temporary folder may be left, and no process ten seconds after the
kill of its command.

A moment is drawn from the whole of an uninterrupted command (early ones more often, since a command
that goes on has less to do), or from within a stage, the one that was met least so far. Struck is
the command's process, its process group, or the very worker or kernel that is at work; a command
that survives that must still end well.

Commands and their workers start as copies of a process that has the library loaded, to be quick;
one command in twenty starts afresh, and spawns its workers, as it does outside this harness.
Checkpoints are written every 20 ms and images decoded in blocks of 8, so that there is something to
hit; records get constant times, so that the seals of records and reports can be compared.
"""

import argparse
import atexit
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil

# Stage: (commands that come through it, seconds it lasts about, or None: whole command).
STAGES = {
    "preparing data": (("data",), 0.15),
    "filling the table": (("train", "run"), 0.05),
    "training": (("train", "run"), 0.6),
    "writing a checkpoint": (("train", "run"), 0.01),
    "writing a record": (("train", "run"), 0.02),
    "executing a notebook": (("run",), 6.0),
    "writing a report": (("run",), 0.4),
    "writing the index": (("run",), 0.1),
    "cleaning up": (("data", "train", "run"), 0.01),
}
SPEC = """dataset: digits
gamma: 20
teacher: resnet8
student: resnet8
method: kd
epochs: 3
schedule: one_cycle
"""
STUDY = """name: tiny
pairs: [resnet8-resnet8]
methods: [student, kd]
seeds: [0]
epochs: 2
ablations: [baseline]
group_counts: [3]
"""
NOTEBOOKS = ("00_data",)


# ---- inside the commands


def install() -> None:
    """Mark the stages, and strike from within one where that was asked for."""
    about = json.loads(os.environ["LTKD_FAULTS"])
    from ltkd import cli, files, notebooks, pool, runs, teacher, train
    from ltkd.data import folders
    from ltkd.report import build

    mark = os.open(f"{about['stages']}/{os.getpid()}", os.O_RDWR | os.O_CREAT)
    aim, state, seen = about["aim"], {"now": "other"}, Counter()

    def enter(stage: str) -> None:
        state["now"] = stage
        os.pwrite(mark, stage.ljust(30).encode(), 0)
        seen[stage] += 1
        if aim and (stage, seen[stage]) == (aim["stage"], aim["nth"]):
            threading.Thread(target=strike, daemon=True).start()

    def strike() -> None:
        time.sleep(aim["delay"])
        if os.path.exists(about["hit"]):
            return
        command, victim, what = about["command"], os.getpid(), os.kill
        if aim["victim"] == "command":
            victim = command
        elif aim["victim"] == "group":
            victim, what = command, os.killpg
        elif victim == command:  # it does this itself; a kernel is a process of its own
            below = psutil.Process().children()
            kernels = [p.pid for p in below if "ipykernel_launcher" in " ".join(p.cmdline())]
            if not kernels:
                return
            victim = kernels[0]
        Path(about["hit"]).write_text(f"{state['now']}|{aim['victim']}")
        what(victim, signal.SIGKILL)

    def during(owner: object, name: str, stage: str) -> None:
        plain = getattr(owner, name)

        def inner(*args: object, **options: object) -> object:
            before = state["now"]
            enter(stage)
            try:
                return plain(*args, **options)
            finally:
                state["now"] = before
                os.pwrite(mark, before.ljust(30).encode(), 0)

        setattr(owner, name, inner)

    during(folders, "_make", "preparing data")
    for name in ("_block", "_table"):
        during(teacher.Teacher, name, "filling the table")
    during(teacher.Table, "write", "filling the table")
    during(train.Trainer, "train", "training")
    during(train.Trainer, "save", "writing a checkpoint")
    during(runs.Store, "tidy", "cleaning up")
    during(cli, "sweep", "cleaning up")
    during(folders, "sweep", "cleaning up")
    during(notebooks, "execute", "executing a notebook")
    settle, put = notebooks._settle, runs.Store.put

    def settled(*args: object) -> object:
        enter("writing a report")  # until ``execute`` returns
        return settle(*args)

    def constant(store: object, spec: object, values: dict, *rest: object) -> object:
        values |= {"finished": "then"} | dict.fromkeys(values.keys() & _TIMES, 0.0)
        return put(store, spec, values, *rest)

    notebooks._settle, runs.Store.put = settled, constant
    during(runs.Store, "put", "writing a record")
    for name in ("write_runs", "_index"):
        during(build, name, "writing the index")
    train.CHECKPOINT_SECONDS, folders.BLOCK = 0.02, 8
    cli._notebooks = lambda _: [files.ROOT / "notebooks" / f"{name}.ipynb" for name in NOTEBOOKS]
    if about["copied"]:
        plain_context = pool.get_context
        pool.get_context = lambda _: plain_context("fork")


_TIMES = {"seconds", "images_per_second"}

if "LTKD_FAULTS" in os.environ:  # in a worker, and in a command that started afresh
    install()


# ---- the harness


class Command:
    """One command in a session of its own, started as a copy of this process or afresh."""

    def __init__(self, harness: "Harness", kind: str, folder: Path, aim: dict | None) -> None:
        self.kind, self.number = kind, harness.next()
        self.hit = harness.scratch / f"hit-{self.number}"
        self.stages = harness.scratch / f"stages-{self.number}"
        self.stages.mkdir()
        self.log = harness.scratch / f"log-{self.number}"
        fresh = harness.draw.random() < 0.05
        about = {"stages": str(self.stages), "hit": str(self.hit), "aim": aim, "copied": not fresh}
        arguments = {
            "data": ["data", "prepare", "tiny_imagenet", "--data-root", folder],
            "train": ["train", harness.scratch / "one.yaml", "--outputs", folder],
            "run": ["run", harness.scratch / "tiny.yaml", "--outputs", folder, "--jobs", "2"],
        }[kind]
        self.began = time.monotonic()
        self.pid = os.fork()
        if self.pid:
            return
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with open(self.log, "wb") as log, open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.environ["LTKD_FAULTS"] = json.dumps(about | {"command": os.getpid()})
        os.environ["LTKD_FAULTS_NUMBER"] = f"{harness.scratch.name}-{self.number}."
        own = [str(a) for a in arguments]
        if fresh:
            os.execv(sys.executable, [sys.executable, __file__, "--command", *own])
        code = 99
        try:
            install()
            code = command(own)
            atexit._run_exitfuncs()
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def wait(self, until: float) -> int | None:
        """Its exit code (negative: a signal), None when it still runs at the moment ``until``."""
        while True:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > until:
                return None
            time.sleep(0.01)

    def stage(self) -> str:
        """Where its processes are: the most telling mark of those that live."""
        alive = [path for path in self.stages.iterdir() if psutil.pid_exists(int(path.name))]
        marks = [path.read_text().strip() for path in alive]
        known = [mark for mark in STAGES if mark in marks]
        return known[-1] if known else "starting, waiting, ending"

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


def command(arguments: list[str]) -> int:
    from ltkd import cli

    return cli.main(arguments)


class Harness:
    def __init__(self, seed: int, scratch: Path) -> None:
        self.draw, self.scratch, self.count = random.Random(seed), scratch, 0
        self.kills: Counter[tuple[str, str]] = Counter()  # of stage and victim
        self.finished: Counter[str] = Counter()
        self.struck: dict[str, tuple[int, float]] = {}  # commands killed: their session, and when
        self.reference: dict[str, dict[str, str]] = {}
        self.wrong: list[str] = []
        self.lasts = {"data": 1.0, "train": 10.0, "run": 30.0}
        (scratch / "one.yaml").write_text(SPEC)
        (scratch / "tiny.yaml").write_text(STUDY)
        tree(scratch / "images" / "tiny-imagenet-200")
        os.environ["TMPDIR"] = tempfile.tempdir = str(scratch / "t")
        (scratch / "t").mkdir()

    def next(self) -> int:
        self.count += 1
        return self.count

    def folder(self, kind: str) -> Path:
        folder = self.scratch / f"{kind}-{self.next()}"
        if kind == "data":
            shutil.copytree(self.scratch / "images", folder)  # keeps the files' times
        else:
            folder.mkdir()
        return folder

    def refer(self, kind: str) -> None:
        """What an uninterrupted command leaves, and how long it takes."""
        folder = self.folder(kind)
        one = Command(self, kind, folder, None)
        code = one.wait(time.monotonic() + 600)
        assert code == 0, f"{kind} exits {code}: {one.said()}"
        self.lasts[kind] = time.monotonic() - one.began
        self.reference[kind] = self.look(folder)
        if kind == "run":
            none = shutil.ignore_patterns("reports", "*.html", "*.csv", "*.svg")
            shutil.copytree(folder, self.scratch / "made", ignore=none)
        folder.rename(self.scratch / f"reference-{kind}")

    def look(self, folder: Path) -> dict[str, str]:
        """Every file's hash; but stamps.json, which holds the times of others."""
        paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "stamps.json"]
        return {str(path.relative_to(folder)): plain(path, folder) for path in paths}

    def cycle(self, kind: str, kills: int, stages: list[str]) -> None:
        """Kill so many commands of one kind on one folder, let it finish, compare."""
        folder = self.folder(kind)
        if kind == "run" and self.finished[kind] % 2:
            shutil.copytree(self.scratch / "made", folder, dirs_exist_ok=True)
        for at in range(kills):
            aim = None
            stage = stages[at] if at < len(stages) else ""
            if stage:
                lasts = STAGES[stage][1]
                victim = self.draw.choice(["command", "command", "group", "itself"])
                delay = self.draw.uniform(0, lasts)
                aim = {"stage": stage, "nth": 1, "delay": delay, "victim": victim}
                if stage in ("filling the table", "writing a checkpoint"):  # which come often
                    aim["nth"] = self.draw.randint(1, 3)
            moment = self.draw.triangular(0, self.lasts[kind], 0)
            one = Command(self, kind, folder, aim)
            if aim:
                code = one.wait(one.began + 600)
            else:
                code = one.wait(one.began + moment)
                if code is None:
                    self.kills[one.stage(), "command, at any moment"] += 1
                    os.kill(one.pid, signal.SIGKILL)
                    code = one.wait(one.began + 600)
            assert code is not None, f"{kind} hangs: {one.said()}"
            if one.hit.exists():
                where, victim = one.hit.read_text().split("|")
                self.kills[where, victim] += 1
            if code == -signal.SIGKILL:
                self.struck[f"{self.scratch.name}-{one.number}."] = one.pid, time.monotonic()
            else:
                self.judge(one, code, code == 0 or one.hit.exists())
            self.orphans()
            if code == 0:
                break
        self.finish(kind, folder)

    def judge(self, one: Command, code: int | None, good: bool) -> None:
        if not good:
            self.wrong.append(f"{one.kind} exits {code}: {one.said()}")

    def finish(self, kind: str, folder: Path) -> None:
        """To the end, every third time by two commands at once; the same as uninterrupted?"""
        both = self.finished[kind] % 3 == 0
        commands = [Command(self, kind, folder, None) for _ in range(2 if both else 1)]
        for one in commands:
            code = one.wait(time.monotonic() + 600)
            self.judge(one, code, code == 0 and "Traceback" not in one.said())
        self.orphans()
        found, wanted = self.look(folder), self.reference[kind]
        wrong = {n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n)}
        if wrong:
            keep = Path(tempfile.mkdtemp(prefix="faults-", dir="/tmp"))
            shutil.copytree(folder, keep / "found")
            shutil.copytree(self.scratch / f"reference-{kind}", keep / "wanted")
            self.wrong.append(f"{kind}: {sorted(wrong)} differ, see {keep}")
        left = list(Path(os.environ["TMPDIR"]).iterdir())
        if left:
            self.wrong.append(f"{kind} leaves {left}")
        self.finished[kind] += 1
        shutil.rmtree(folder)

    def orphans(self, patience: float = 10) -> None:
        """No process of a command that was killed more than ten seconds ago."""
        limit = time.monotonic() - patience
        late = {name: pid for name, (pid, when) in self.struck.items() if when < limit}
        for process in psutil.process_iter() if late else []:
            try:  # a kernel has a session of its own, a copy the environment of this process
                told = process.environ().get("LTKD_FAULTS_NUMBER")
                session = os.getsid(process.pid)
                if told in late or session in late.values():
                    self.wrong.append(f"{process} still runs, {patience} s after the kill")
            except (psutil.Error, OSError):
                continue
        for name in late:
            del self.struck[name]

    def last(self) -> None:
        if self.struck:
            time.sleep(10.1)
        self.orphans()

    def told(self) -> str:
        victims = ["command, at any moment", "command", "group", "itself"]
        heads = ["command, any moment", "command", "group", "worker or kernel"]
        rows = ["| stage | " + " | ".join(heads) + " | kills |", "|---" * 6 + "|"]
        names = [*STAGES, *sorted({s for s, _ in self.kills} - STAGES.keys())]
        for stage in names:
            n = [self.kills[stage, victim] for victim in victims]
            rows.append(f"| {stage} | {' | '.join(map(str, n))} | {sum(n)} |")
        total = [sum(self.kills[s, victim] for s in names) for victim in victims]
        rows.append(f"| all | {' | '.join(map(str, total))} | {sum(total)} |")
        return "\n".join(rows)


def plain(path: Path, root: Path) -> str:
    """A file's content without times: seconds and dates in manifests and pages, and the seals over
    them; sockets, numbers and everything else stay."""
    data = path.read_bytes()
    if path.suffix in {".json", ".ipynb", ".html"}:
        text = data.decode().replace(str(root), "")
        text = re.sub(r'"(seconds|training_seconds)": [\d.]+', r'"\1": 0', text)
        text = re.sub(r'"(finished|seal)": "[^"]*"', r'"\1": ""', text)
        if path.name.endswith(".manifest.json"):
            text = re.sub(r'("\w+\.(?:ipynb|html)": )"\w+"', r"\1", text)
        if path.suffix == ".html":
            times = r"\d{4}-\d\d-\d\d(T[\d:+]+)?|\d+(\.\d+)? (s|min)\b"
            text = re.sub(rf"{times}|seal <code>\w+</code>", "", text)
        data = text.encode()
    return sha256(data).hexdigest()


def tree(folder: Path) -> None:
    """A Tiny ImageNet of three classes and 60 images."""
    import numpy as np
    from PIL import Image

    rows = []
    for c in range(3):
        (folder / f"train/n{c}/images").mkdir(parents=True)
        (folder / "val/images").mkdir(parents=True, exist_ok=True)
        for i in range(20):
            pixels = np.random.RandomState(20 * c + i).randint(256, size=(8, 8, 3)).astype(np.uint8)
            image = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
            if i < 16:
                image.save(folder / f"train/n{c}/images/{i}.JPEG")
            else:
                image.save(folder / f"val/images/val_{c}_{i}.JPEG")
                rows.append(f"val_{c}_{i}.JPEG\tn{c}\t0\t0\t63\t63\n")
    (folder / "val/val_annotations.txt").write_text("".join(rows))


def small(harness: Harness) -> None:
    """What `make test` does: a handful of kills."""
    for kind in ("data", "train"):
        harness.refer(kind)
    for _ in range(4):  # a moment may come after the command's end
        harness.cycle("data", 2, ["preparing data", ""])
        harness.cycle("train", 3, ["filling the table", "writing a checkpoint", "writing a record"])
        if sum(harness.kills.values()) >= 3:
            return
    raise AssertionError("in four times nothing was hit")


def large(harness: Harness, kills: int, report) -> None:
    for kind in ("data", "train", "run"):
        harness.refer(kind)
        print(f"uninterrupted: {kind}, {harness.lasts[kind]:.1f} s", flush=True)
    kinds, draw = ["train", "data", "train", "run", "data", "train", "data"], harness.draw
    while sum(harness.kills.values()) < kills:
        kind = kinds[sum(harness.finished.values()) % len(kinds)]
        number = draw.randint(6, 10)
        own = [stage for stage, (through, _) in STAGES.items() if kind in through]
        # The stage hit least so far comes first; half of the moments are any.
        least = sorted(own, key=lambda s: (sum(n for (t, _), n in harness.kills.items() if t == s),
                                           draw.random()))  # fmt: skip
        stages = [least[i // 2 % len(least)] if i % 2 == 0 else "" for i in range(number)]
        harness.cycle(kind, number, stages)
        report(harness)
    harness.last()


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="a handful of kills, as in make test")
    given = parser.parse_args()
    # Loaded once, for all copies of this process; nothing is computed, so there are no threads yet.
    import nbclient  # noqa: F401
    import papermill  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch._dynamo  # noqa: F401  # which the first optimiser of a process loads
    import torchvision.transforms.v2  # noqa: F401

    from ltkd import cli, pool, study  # noqa: F401
    from ltkd.report import build  # noqa: F401

    began = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="faults-", dir="/tmp"))
    harness = Harness(given.seed, scratch)

    def report(harness: Harness) -> None:
        done = sum(harness.kills.values())
        print(f"{done} kills, {dict(harness.finished)} finished and equal, "
              f"{time.monotonic() - began:.0f} s", flush=True)  # fmt: skip

    try:
        if given.small:
            small(harness)
            harness.last()
        else:
            large(harness, given.kills, report)
    finally:
        print(harness.told(), flush=True)
    report(harness)
    for text in harness.wrong:
        print(text)
    shutil.rmtree(scratch)
    return 1 if harness.wrong else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--command"]:
        sys.exit(command(sys.argv[2:]))
    sys.exit(main())
