"""The command line: ltkd run | train | reproduce | card | data | status | methods.

Exit codes: 0 all is done; 1 a run or a notebook failed, results cannot be written, or `reproduce`
found others; 2 a wrong parameter, or data is missing; 75 the budget ended first; 130 or 143
interrupted; 141 what reads the output went away. After 75, 130, 141 and 143 the same command goes
on.
"""

import argparse
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from . import __version__
from .files import ROOT, Stopped, library_sha256, many, outputs_root, sweep
from .methods import METHODS
from .params import (
    FILE_SETS,
    RECIPES,
    DataError,
    ParameterError,
    RunSpec,
    check,
    check_fit,
    load_parameters,
    load_spec,
    nearest,
    parse_yaml,
    read_study,
)
from .params import StudyParameters as Parameters

if TYPE_CHECKING:
    from .pool import Outcome
    from .study import Study

NOTEBOOKS = ROOT / "notebooks"
TORCHRUN = "TORCHELASTIC_RUN_ID" in os.environ  # one of the processes that torchrun started
SETS = tuple(name for name in RECIPES if name != "folder")  # a folder needs a parameter file


class Stop:
    """Says when to stop: at the end of the budget, or after SIGINT or SIGTERM.

    began  when the command did: what it loads before its work counts, too
    """

    def __init__(self, budget: float | None, began: float) -> None:
        self.deadline = began + budget if budget else None
        self.signal = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._caught)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if self.signal:  # a second one means now
            os._exit(128 + number)
        self.signal = number
        # Not print: the signal may have come in the middle of another one's.
        with suppress(OSError):
            os.write(2, b"\nStopping: the runs in flight save where they are.\n")

    def __call__(self) -> bool:
        return bool(self.signal) or (self.deadline is not None and time.monotonic() > self.deadline)

    @property
    def code(self) -> int:
        return 128 + self.signal if self.signal else 75


def _budget(text: str) -> float:
    """'90', '90s', '9m', '1.5h' -> seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not match or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} should be a time such as 90s, 9m or 1.5h")
    return float(match[1]) * {"s": 1, "": 1, "m": 60, "h": 3600}[match[2]]


def _jobs(text: str) -> int | None:
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} should be 'auto' or a number from 1 to 1024")
    return int(text)


def _set(text: str) -> str:
    if text not in SETS and not text.endswith((".yaml", ".yml")):
        known = ", ".join(SETS)
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} ({known}, or a parameter file)")
    return text


def _arguments() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="ltkd", description=__doc__, allow_abbrev=False, formatter_class=raw
    )
    parser.add_argument("--version", action="version", version=f"ltkd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, does: str, act: Callable[..., int]) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=does, description=does, allow_abbrev=False)
        command.set_defaults(act=act)
        return command

    def where(command: argparse.ArgumentParser, *, work: bool = True) -> None:
        command.add_argument(
            "--outputs", type=Path, help="results root (else LTKD_OUTPUTS, else outputs/)"
        )
        command.add_argument(
            "--data-root", type=Path, help="data sets (else LTKD_DATA, else data/)"
        )
        if work:
            command.add_argument(
                "--budget", type=_budget, help="stop cleanly after this time: 90s, 9m, 1.5h"
            )

    def override(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "-p", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"),
            help="a parameter in place of the file's, such as -p seeds '[0]'; may stand repeatedly",
        )  # fmt: skip

    run = add("run", "make a study's runs side by side, then its reports", _run)
    run.add_argument("parameters", type=Path, help="parameter file, such as params/quick.yaml")
    part = run.add_mutually_exclusive_group()
    part.add_argument(
        "--only", help="of the reports only this one, by its number: 03; all runs are made"
    )
    part.add_argument(
        "--run", action="append", metavar="ID",
        help="only this run of the study (after its teacher), no report; may stand repeatedly",
    )  # fmt: skip
    run.add_argument(
        "--jobs", type=_jobs, default=None, help="runs at once; auto = cores / threads"
    )
    part.add_argument(
        "--dry-run", action="store_true", help="list the runs and time a few steps; make none"
    )
    run.add_argument(
        "--as-is", action="store_true", help="make no run, only the reports of those that are there"
    )
    override(run)
    where(run)
    train = add("train", "make one run from a spec file", _train)
    train.add_argument("spec", type=Path, help="YAML file with the fields of ltkd.RunSpec")
    train.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    where(train)
    again = add("reproduce", "make one row of a study's table anew and compare", _reproduce)
    again.add_argument("parameters", type=Path, help="parameter file of a study that is there")
    again.add_argument("row", help="method, as in the first column of the table: kd, ltkd, ...")
    again.add_argument("--jobs", type=_jobs, default=None, help="as in ltkd run")
    override(again)
    where(again)
    card = add("card", "a study's best student as a file of its own, with a model card", _card)
    card.add_argument("parameters", type=Path, help="parameter file of a study that is there")
    override(card)
    where(card, work=False)
    data = add("data", "get or check a data set", _data)
    data.add_argument("action", choices=("prepare", "check"))
    data.add_argument("set", type=_set, help=f"{', '.join(SETS)}, or a parameter file")
    data.add_argument(
        "--data-root", type=Path, help="root of the data (else LTKD_DATA, else data/)"
    )
    status = add("status", "what of a study is there, in flight and left", _status)
    status.add_argument("parameters", type=Path)
    status.add_argument(
        "--ids",
        action="store_true",
        help="only the runs left, a line each, as `ltkd run --run` takes them, teachers first",
    )
    override(status)
    where(status, work=False)
    add("methods", "list the methods and their arguments", _methods)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; every expected mistake is one readable message, never a traceback."""
    began = time.monotonic()
    given = _arguments().parse_args(arguments)
    given.began = began
    try:
        if TORCHRUN and given.command != "train":
            raise ParameterError(f"ltkd {given.command}: torchrun is for `ltkd train` alone")
        code = int(given.act(given))
        sys.stdout.flush()  # a pipe that is closed is met here, not at the very end
        return code
    except BrokenPipeError:  # of `| head`, say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except ParameterError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"ltkd: {error.strerror or error}{where}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before there was anything to save
        print("ltkd: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    except DataError as error:
        print(f"ltkd: {error}", file=sys.stderr)
        return 2


def _notebooks(only: str | None) -> list[Path]:
    found = sorted(NOTEBOOKS.glob("*.ipynb"))
    if not found:
        raise ParameterError(f"{NOTEBOOKS}: no notebooks; should be a checkout, installed with "
                             "`pip install -e .`")  # fmt: skip
    if only is None:
        return found
    chosen = [path for path in found if path.name.startswith(only)]
    if not chosen:
        raise ParameterError(
            f"--only {only}: no notebook starts so.{nearest(only, [p.stem for p in found])}"
        )
    return chosen


def _study(given: argparse.Namespace) -> tuple["Study", dict[str, Any]]:
    values, keys = read_study(given.parameters), [key for key, _ in given.p]
    for key, text in given.p:
        if keys.count(key) > 1:
            raise ParameterError(f"-p {key}: stands there twice; keep one")
        values[key] = parse_yaml(text, f"-p {key} {text!r}")
    source = " -p ".join([str(given.parameters), *keys])
    check(Parameters, values, source)
    from .study import Study

    root = given.data_root or values.pop("data_root", None)
    if root:
        values["data_root"] = str(Path(root).expanduser().resolve())
    return Study(outputs=given.outputs, source=source, **values), values


def study_of(arguments: Sequence[str]) -> "Study":
    """The study that a command line asks for, such as ["run", "params/quick.yaml"]."""
    return _study(_arguments().parse_args(arguments))[0]


def _runs(study: "Study", names: Sequence[str], file: Path) -> list[RunSpec]:
    from .runs import identity

    study.check_files()
    known = {identity(spec): spec for spec in study.runs()}
    for name in names:
        if name not in known:
            raise ParameterError(
                f"--run {name}: the study has no such run; list them: ltkd status {file} --ids"
            )
    return [known[name] for name in names]


def _run(given: argparse.Namespace) -> int:
    other = "--run" if given.run else "--dry-run" if given.dry_run else ""
    if given.as_is and other:
        raise ParameterError(f"--as-is: makes reports alone; not allowed with {other}")
    notebooks = [] if other else _notebooks(given.only)
    library_sha256()  # kept from now on: pages of a library that changes meanwhile are outdated
    study, values = _study(given)
    chosen = _runs(study, given.run, given.parameters) if given.run else None
    if given.dry_run:
        from .estimate import report

        for line in report(study, given.jobs):
            print(line, flush=True)
        return 0
    wanted = chosen or study.runs()  # image files are decoded for it, which Ctrl-C may end
    stop = Stop(given.budget, given.began)
    if given.as_is:
        out = study.as_is(wanted)
        if not out.records:
            raise ParameterError(f"--as-is: none of the {many(wanted, 'run')} of {study.name} is "
                                 f"in {study.folder}; make them with ltkd run")  # fmt: skip
    else:
        out = study.make(wanted, jobs=given.jobs, stop=stop)
    for reason in out.reasons.values():
        print(f"failed: {reason}", file=sys.stderr)
    if out.left and not given.as_is:
        print(f"{study.name}: {many(out.records, 'run')} there, {len(out.left)} left; "
              "the same command goes on from here. Reports were not touched.")  # fmt: skip
        return stop.code if stop() else 1
    if chosen:
        for record in out.records.values():
            print(record.folder / "record.json")
        return 1 if out.reasons else 0
    from .report.build import build

    try:
        made, broken, left = build(study, notebooks, values, jobs=given.jobs, stop=stop)
    except Stopped:  # while another command was making the same reports
        made, broken, left = [], [], len(notebooks)
    sweep(study.folder)
    index = study.folder / "index.html"
    if left:
        print(f"{study.name}: stopped before all reports were made; the same command goes on.")
        return stop.code
    for text in broken:
        print(text, file=sys.stderr)
    todo = f"{many(made, 'report')} made" + (f", {len(broken)} failed" if broken else "")
    if not made and not broken and not out.reasons:
        what = "report" if given.as_is else "run and report"
        todo = f"nothing to do: every {what} is up to date"
    there = many(out.records, "run") + (f" there, {len(out.left)} not" if given.as_is else "")
    print(f"{study.name}: {there}, {todo} ({time.monotonic() - given.began:.0f} s).")
    print(index)
    return 1 if broken or out.reasons else 0


def _train(given: argparse.Namespace) -> int:
    spec = load_spec(given.spec, int(os.environ["WORLD_SIZE"]) if TORCHRUN else 1)
    if not re.fullmatch(r"\w[\w.-]{0,99}", given.spec.stem):  # '...yaml' would leave the outputs
        raise ParameterError(f"{given.spec}: its name is that of the results' folder, so without "
                             "its ending it should be letters, digits and inner _ - .")  # fmt: skip
    from . import parallel
    from .pool import make, together, with_teachers
    from .runs import Store, pick_device

    device = pick_device(given.device)
    store = Store(outputs_root(given.outputs) / given.spec.stem)
    root = str(given.data_root) if given.data_root else None
    from .data import load, resolve

    spec = spec.model_copy(update={"images": resolve(spec.dataset, spec.images, root)})
    data = load(spec.dataset, spec.gamma, spec.split_seed, root, spec.images, spec.holdout)
    check_fit(spec, data.counts.tolist())
    for one in with_teachers([spec]):
        store.same_processes(one)
    stop = Stop(given.budget, given.began)
    options: dict[str, Any] = {"device": given.device, "data_root": root, "stop": stop}
    if TORCHRUN:
        try:
            parallel.join(device)
        except ValueError as error:
            raise ParameterError(str(error)) from None
        out = together(spec, store, **options)
    else:
        out = make([spec], store, jobs=1, **options)
    stopped = parallel.any_of(stop())
    if parallel.rank() == 0:  # it speaks for all
        sweep(store.folder)
        _say_train(spec, out)
    parallel.leave()
    if out.left:
        return stop.code if stopped else 1
    return 1 if out.reasons else 0


def _say_train(spec: RunSpec, out: "Outcome") -> None:
    for reason in out.failed.values():
        print(f"failed: {reason}", file=sys.stderr)
    if out.left:
        print(f"{spec.title}: stopped; the same command goes on from here.", flush=True)
        return
    for record in out.records.values():
        top1 = f"{record.top1:.2f} % test accuracy in the last epoch"
        outcome = record.values.get("reason") or top1
        print(f"{record.spec.title}: {outcome}; {record.folder / 'record.json'}", flush=True)


def _reproduce(given: argparse.Namespace) -> int:
    study, values = _study(given)
    if given.row not in study.parameters.methods:
        raise ParameterError(
            f"{given.row}: no row of {study.name}.{nearest(given.row, study.parameters.methods)}"
        )
    from .pool import with_teachers
    from .report.curves import as_stated, predicted
    from .study import Study

    study.check_files()
    specs, stated = study.row_of(given.row)
    cells = stated.groupby(["pair", "gamma"]).size().tolist() if len(stated) else []
    if len(stated) < len(specs) or min(cells, default=0) < 2:
        raise ParameterError(
            f"{given.row}: {len(stated)} of {len(specs)} records are in {study.folder / 'runs'}, "
            "and an interval needs all of at least two seeds; make them with ltkd run"
        )
    stop = Stop(given.budget, given.began)
    anew = Study(outputs=study.folder.parent / "reproduced", **values)
    before = sum(anew.store.get(spec) is not None for spec in specs)
    out = anew.make(specs, jobs=given.jobs, stop=stop)
    for reason in out.reasons.values():
        print(f"failed: {reason}", file=sys.stderr)
    if out.left:
        print(f"{given.row}: {many(out.left, 'run')} left; the same command goes on from here.")
        return stop.code if stop() else 1
    if before:
        print(f"{before} of {many(specs, 'run')} made before this call; to make them anew, remove "
              f"{anew.folder}")  # fmt: skip
    inside, rows = not out.reasons, anew.row_of(given.row)[1]
    new_curves, old_curves = (one.adjusted_row(given.row) for one in (anew, study))
    for (pair, gamma), made in rows.groupby(["pair", "gamma"]) if len(rows) else ():
        expected = stated[(stated["pair"] == pair) & (stated["gamma"] == gamma)]
        news = as_stated(made, new_curves)
        for how, metric, gap in predicted(expected, old_curves, len(made)):
            if how not in news:
                continue
            mean = news[how][metric].mean()
            where = f"{given.row}{how}, {pair}, gamma {gamma:g}, {metric}: {mean:.2f} %"
            if not gap.has_width:
                print(f"{where}; {gap.mean:.2f} % for every seed, so no interval is stated")
                continue
            inside &= (good := gap.low <= mean <= gap.high)
            verdict = "inside" if good else "OUTSIDE"
            print(f"{where}; expected {gap.low:.2f} to {gap.high:.2f}: {verdict}")
    for teacher in (one for one in with_teachers(specs) if one.method == "teacher"):
        found = [store.get(teacher) for store in (anew.store, study.store)]
        here, its = (one.top1 if one else math.nan for one in found)
        print(f"{teacher.title}: {here:.2f} %; the interval holds for the study's, {its:.2f} %")
    return 0 if inside else 1


def _card(given: argparse.Namespace) -> int:
    study, _ = _study(given)
    study.check_files()
    from .report.card import write_card

    print(write_card(study))
    return 0


def _data(given: argparse.Namespace) -> int:
    from .data import folders
    from .data.sources import prepare, report
    from .files import data_root

    name, images, root = given.set, None, given.data_root
    if name not in SETS:
        study = load_parameters(name)
        name, images, root = study.dataset, study.images, root or study.data_root
    checking = given.action == "check"
    if name in FILE_SETS:
        text = folders.report(name, images, data_root(root), checking)
    else:
        text = (report if checking else prepare)(name, root)
    print(f"{text}: good" if checking else text)
    return 0


def _status(given: argparse.Namespace) -> int:
    study, _ = _study(given)
    from .pool import progress_of
    from .report.build import fresh
    from .runs import identity

    study.check_files()
    specs = study.runs()
    out = study.there(specs)
    if given.ids:
        for spec in out.left:
            print(identity(spec))
        return 0
    print(f"{study.name}: {len(out.records)} of {len(specs)} runs are there, in {study.folder}")
    for reason in out.reasons.values():
        print(f"  {reason}")
    for spec in out.left:
        print(f"  {spec.title}: {progress_of(study.store, spec) or 'not begun'}")
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        print(
            f"  {path.stem}: {'report is up to date' if fresh(study, path.stem) else 'to be made'}"
        )
    return 0


def _methods(given: argparse.Namespace) -> int:
    for method in METHODS.values():
        args = ", ".join(f"{k}={v}" for k, v in method.args.items())
        print(f"{method.name:30} {method.label:38} {args}{'  (ours)' if method.ours else ''}")
        for pair, own in method.by_pair.items():
            print(f"{'':30} {pair:>38} {', '.join(f'{k}={v}' for k, v in own.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
