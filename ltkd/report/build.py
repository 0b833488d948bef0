"""From finished runs to a study's pages: what is up to date is left alone."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from ..files import (
    cores,
    data_root,
    locked,
    many,
    read_json,
    sha256,
    temporary_prefix,
    write_atomic,
)
from ..notebooks import execute_all
from ..study import PARTS, Study
from . import page, paper, tables


def build(
    study: Study,
    notebooks: Sequence[Path],
    parameters: Mapping[str, Any],
    *,
    jobs: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[list[str], list[str], int]:
    """Execute the notebooks whose inputs changed, then ``write_runs``, the indexes.

    Returns the names of the reports made, the texts of those that failed, and how many a stop left.
    """
    reports = study.folder / "reports"
    values = {k: v for k, v in parameters.items() if k != "data_root"}  # no path enters a report
    # Both absolute: a notebook runs in its own folder.
    env = {"LTKD_OUTPUTS": str(study.folder.parent)}
    env["LTKD_DATA"] = str(data_root(study.parameters.data_root))
    with ExitStack() as held:  # of two commands at once the second finds its reports done
        folder = held.enter_context(TemporaryDirectory(prefix=temporary_prefix()))
        for path in sorted(notebooks):
            held.enter_context(locked(reports / f"{path.stem}.lock", stop))
        stale = [path for path in notebooks if not fresh(study, path.stem)]
        # A page seals what was there before it began: what comes or changes meanwhile outdates it.
        inputs = {path.stem: study.inputs(path.stem) for path in stale}
        for name, about in (("inputs", inputs), ("failed", study.failed)):
            told = Path(folder, f"{name}.json")  # a variable would not hold thousands
            told.write_text(json.dumps(about))
            env[f"LTKD_{name.upper()}"] = str(told)
        results = execute_all(stale, values, reports, jobs=jobs or cores(), env=env, stop=stop)
        good = [path.stem for path in notebooks if path not in stale]
        refuted = [path for name in good for path in page.failed_copies(reports, name)]
        old = [path for path in refuted if path.exists()]  # of a run with other parameters, say
        for path in old:
            path.unlink()
        if stale or old or _behind(study):
            held.enter_context(locked(reports / "index.lock", stop))
            write_runs(study)
            _index(study, sorted(notebooks[0].parent.glob("*.ipynb")))
    made = [result.notebook.stem for result in results if result.ok]
    broken = [result.error for result in results if not result.ok]
    return made, broken, len(stale) - len(results)


def fresh(study: Study, name: str) -> bool:
    """Whether a whole report is there that rests on exactly these runs, parameters and sources."""
    folder = study.folder / "reports"
    manifest = read_json(folder / f"{name}.manifest.json") or {}
    pages = manifest.get("files")
    if not isinstance(pages, dict):
        return False
    whole = all((folder / n).exists() and sha256(folder / n) == h for n, h in pages.items())
    return bool(pages) and whole and manifest.get("inputs") == study.inputs(name)


def _behind(study: Study) -> bool:
    """Whether an index is absent or older than what it lists, as a kill before it leaves it."""
    indexes = study.folder / "index.html", study.folder.parent / "index.html"
    if not all(path.exists() for path in indexes):
        return True
    told = *study.folder.glob("reports/*.manifest.json"), *study.folder.parent.glob("FINDINGS.md")
    made = [path.stat().st_mtime_ns for path in told]
    times = [max(made, default=0), *(path.stat().st_mtime_ns for path in indexes)]
    return times != sorted(times)


def write_runs(study: Study) -> None:
    """runs.csv and runs.json: a row a run and part, the tidy table that the notebooks draw from.

    Finished runs of the folder that are not of these parameters follow, with no part. adjusted.csv:
    a row a run of these and tau, its accuracies with the prior taken out, where they are known by
    now; fitted.csv: a row a run, at the tau of ``fit_tau``. Their variant names the method and what
    of its values is not the default; what else a run is, runs.csv says.
    """
    frames = [study.results(part).assign(part=part) for part in PARTS]
    frames.append(study.others().assign(part=""))
    frames = [frame for frame in frames if len(frame)] or [pd.DataFrame(columns=["run", "part"])]
    table = pd.concat(frames, ignore_index=True).round(4)
    write_atomic(study.folder / "runs.csv", table.to_csv(index=False, lineterminator="\n"))
    write_atomic(study.folder / "runs.json", table.to_json(orient="records", indent=1) + "\n")
    for name, known in (("adjusted", study.adjusted()), ("fitted", study.fitted())):
        own = known[known["run"].isin(table["run"])].drop(columns="ours").round(4)
        write_atomic(study.folder / f"{name}.csv", own.to_csv(index=False, lineterminator="\n"))


def _index(study: Study, notebooks: Sequence[Path]) -> None:
    p, data = study.parameters, study.data()
    *first, last = (pair.label for pair in study.pairs)
    pairs = f"{', '.join(first)} and {last}" if first else last
    own: dict[paper.Setting, bool] = {}
    for part in ("distillation", "ablations", "group_count", "sweep"):
        for setting, _ in tables.settings(study, part):
            which = {"distillation": [setting.table], "sweep": tables.LTKD_CELLS}.get(part, [part])
            same = any(paper.comparable(setting, table) for table in which)
            own[setting] = own.get(setting, False) or same
    intro = (
        f"Knowledge distillation from a teacher that was trained on long-tailed data: {pairs} on "
        f"{data.title}, {study.drawn}, {study.epochs} epochs, "
        f"{many(p.seeds, 'seed')}, {many(p.methods, 'method')}. " + _beside([*own.values()])
    )
    if len(more := study.others()):
        intro += f" Beside the pages runs.csv has {many(more, 'run')} more, of other parameters."
    good = {path.stem: fresh(study, path.stem) for path in notebooks}
    page.write_index(
        study.folder, title=f"{data.title}: {study.name}", intro=intro, problems=study.missing(),
        cards=page.cards(study.folder, notebooks, good), fresh=good)  # fmt: skip
    with locked(study.folder.parent / "index.lock"):  # else one study could leave out another
        page.write_studies_index(study.folder.parent)


def _beside(own: Sequence[bool]) -> str:
    """What the paper's numbers are to a study: for each of its settings, whether they are of it."""
    if not own:
        return ""
    if not any(own):
        return (
            "This is not the paper's setting: the paper's numbers stand beside ours for "
            "orientation, never subtracted."
        )
    which = "This is" if all(own) else f"{sum(own)} of its {len(own)} settings are"
    return (
        f"{which} the paper's own setting (its epochs are inferred): its numbers stand beside "
        "ours with the difference."
    )
