"""The pages of a study: figures shown in a notebook, the notebook as HTML, the index above them.

A page loads nothing: style and pictures are inside it, formulas are MathML, no script runs.
"""

import base64
import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ..files import clock, read_json, write_atomic

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SVG_LIMIT = 300_000  # bytes; a larger drawing is shown as a PNG at twice the resolution


def _drawn(figure: "Figure", kind: str, **options: Any) -> bytes:
    import matplotlib as mpl

    out = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "ltkd", "svg.fonttype": "path"}):
        figure.savefig(out, format=kind, bbox_inches="tight", pad_inches=0.06, **options)
    return out.getvalue()


def svg(figure: "Figure") -> str:
    """The figure as SVG; the same figure gives the same text."""
    unnamed = {"Date": None, "Creator": None, "Format": None, "Type": None}
    return _drawn(figure, "svg", metadata=unnamed).decode()


def show(figure: "Figure", alt: str, name: str, data: "pd.DataFrame | None" = None) -> None:
    """Display ``figure`` with its description and the data behind it.

    The same figure gives the same bytes. The output is one bundle: the picture, ``data`` as
    text/csv, ``alt`` as text/plain; metadata {"image/svg+xml": {"alt", "name"}}. ``name`` is
    the file name that the data download as. Data without rows give a line of text in its place.
    """
    from IPython.display import Markdown, display

    if not alt.strip():
        raise ValueError(f"alt = {alt!r}: say in a sentence what the figure shows")

    if data is not None and data.empty:
        display(Markdown("*Nothing to draw: not part of this study.*"))
        return
    meta: dict[str, Any] = {"alt": alt, "name": name}
    mime, picture = "image/svg+xml", svg(figure)
    if len(picture) > SVG_LIMIT:
        png = _drawn(figure, "png", metadata={"Software": None}, dpi=2 * figure.dpi)
        mime, picture = "image/png", base64.b64encode(png).decode()
        meta["width"] = round(int.from_bytes(png[16:20]) / 2)  # of IHDR; in CSS pixels
    bundle = {mime: picture, "text/plain": alt}
    if data is not None:
        bundle["text/csv"] = data.to_csv(index=False, lineterminator="\n")
    display(bundle, raw=True, metadata={mime: meta})


# --------------------------------------------------------------------------------- one notebook


def failed_copies(reports: Path, stem: str) -> tuple[Path, Path]:
    """What a failure leaves beside the last good report: the notebook and its page."""
    return reports / f"{stem}.failed.ipynb", reports / f"{stem}.failed.html"


def html(notebook: Any, path: Path, *, manifest: Mapping[str, Any] | None) -> str:
    """HTML of an executed notebook that is, or will be, at ``path`` = <study>/reports/<stem>.ipynb.

    Linked are the index as ../index.html, <stem>.manifest.json, and the ``data_files``.
    """
    from .markup import Renderer, page

    title, _ = _opening(notebook, path.stem)
    links = [("All of this study", "../index.html"), ("Notebook", path.name)]
    if manifest is not None:
        links.append(("Manifest", f"{path.stem}.manifest.json"))
    study = path.absolute().parent.parent.name
    crumbs = [("Studies", "../../index.html"), (study, "../index.html"), (title, "")]
    return page(
        Renderer(),
        "index",
        _body(notebook.cells),
        title=title,
        crumbs=crumbs,
        links=links,
        seal=(manifest or {}).get("seal", "")[:12],
        facts=_facts([manifest] if manifest else []),
        failed=path.stem.endswith(".failed"),
        data=path.stem if manifest else "",
    )


def data_files(notebook: Any, stem: str) -> dict[str, str]:
    """The data behind an executed notebook's figures: CSV text by file name."""
    found: dict[str, str] = {}
    for output in (o for cell in notebook.cells for o in cell.get("outputs", [])):
        for about in output.get("metadata", {}).values():
            if "text/csv" in output.get("data", {}) and "name" in about:
                name = f"{stem}.{about['name']}.csv"
                if name in found:
                    raise ValueError(f"two figures of {stem} have the name {about['name']!r}")
                found[name] = output["data"]["text/csv"]
    return found


def _opening(notebook: Any, stem: str) -> tuple[str, str]:
    """Title (first heading) and question (first paragraph after it) of a notebook, as markdown."""
    text = next((c.source for c in notebook.cells if c.cell_type == "markdown"), "")
    found = re.match(r"#+ (?P<title>.*)\n*(?P<question>(?:.+\n?)*)", text)
    title, question = found.groups() if found else (stem.replace("_", " "), "")
    return re.sub(r"[*`]", "", title).strip(), " ".join(question.split())


def _body(cells: Sequence[Any]) -> list[Any]:
    """The cells without the title, which the page's head holds."""
    out = list(cells)
    first = next((i for i, cell in enumerate(out) if cell.cell_type == "markdown"), None)
    if first is not None:
        out[first] = copy(out[first])
        out[first].source = re.sub(r"\A#+ .*\n*", "", out[first].source)
    return out


# ------------------------------------------------------------------------------------ the index


def cards(
    folder: Path, notebooks: Sequence[Path], fresh: Mapping[str, bool] | None = None
) -> list[dict[str, Any]]:
    """What the index says of each of a study's notebooks, from what stands in <folder>/reports now.

    fresh  by stem, whether a report is up to date; None: all are
    ``status`` is done, outdated, failed, stale (failed, old report kept) or missing; ``question``
    is HTML; links are relative to the study's folder.
    """
    import nbformat

    from .markup import Renderer

    made = []
    for source in sorted(notebooks, key=lambda path: path.name):
        title, question = _opening(nbformat.read(source, as_version=4), source.stem)
        text = Renderer().markdown(question).strip()
        report = folder / "reports" / f"{source.stem}.html"
        broken = failed_copies(folder / "reports", source.stem)[1]
        manifest = read_json(report.with_suffix(".manifest.json")) or {}
        took = f" in {clock(manifest['seconds'])}" if "seconds" in manifest else ""
        status, note = {
            (True, False): ("done", f"Done{took}"),
            (True, True): ("stale", "Last run failed; the report is of an earlier one."),
            (False, True): ("failed", "Failed."),
            (False, False): ("missing", "Not run yet"),
        }[report.exists(), broken.exists()]
        if status == "done" and not (fresh or {}).get(source.stem, True):
            status, note = "outdated", "Of other parameters, runs or code"
        # Without links: the card as a whole is one.
        question = Markup(re.sub(r"^<p>|</p>$|</?a\b[^>]*>", "", text))
        card = {"title": title, "question": question, "status": status, "note": note}
        link, failed = (f"reports/{p.name}" if p.exists() else "" for p in (report, broken))
        made.append(card | {"link": link, "failed": failed})
    return made


def headline(folder: Path, stems: Collection[str] | None = None) -> tuple[str, list[Any]]:
    """The last report (in the order of names) with cells tagged ``headline``: stem and cells.

    stems  of the reports that count; None: all do
    """
    import nbformat

    # Not the hidden ones: another process may be writing those.
    for report in sorted(folder.glob("reports/[!.]*.ipynb"), reverse=True):
        if stems is not None and report.stem not in stems:
            continue
        cells = nbformat.read(report, as_version=4).cells
        tagged = [cell for cell in cells if "headline" in cell.metadata.get("tags", [])]
        if tagged and not report.stem.endswith(".failed"):
            return report.stem, tagged
    return "", []


def write_index(
    folder: Path,
    *,
    title: str,
    cards: Sequence[Mapping[str, Any]],
    intro: str = "",
    problems: "pd.DataFrame | None" = None,
    fresh: Mapping[str, bool] | None = None,
) -> None:
    """Write <folder>/index.html: what the study is, its result in short, its notebooks.

    ``intro`` is markdown. ``problems`` has a row for each run that failed or is missing (run,
    method, seed, reason, ...). The result in short is the ``headline``. Where any report is
    ``fresh`` (as in ``cards``), result and facts are of those that are.
    """
    from .markup import Renderer, page, tidy

    renderer = Renderer()
    table = "" if problems is None or problems.empty else problems.to_html(index=False, border=0)
    stems = {stem for stem, good in (fresh or {}).items() if good} or None
    manifests = [
        manifest
        for path in sorted(folder.glob("reports/*.manifest.json"))
        if not stems or path.name.partition(".")[0] in stems
        if (manifest := read_json(path))
    ]
    stem, cells = headline(folder, stems)
    text = page(
        renderer,
        "study",
        cells,
        title=title,
        crumbs=[("Studies", "../index.html"), (title, "")],
        facts=_facts(manifests),
        intro=renderer.markdown(intro),
        data=f"reports/{stem}",
        contents="Notebooks",
        cards=cards,
        problems=tidy(table),
        links=[
            ("All studies", "../index.html"),
            *((f"Every run as a table ({name})", name) for name in ("runs.csv", "runs.json")),
            ("The prior taken out, run by run (adjusted.csv)", "adjusted.csv"),
            ("The share fitted without labels (fitted.csv)", "fitted.csv"),
        ],
    )
    write_atomic(folder / "index.html", text)


def write_studies_index(outputs: Path) -> None:
    """Write <outputs>/index.html: the studies that have an index, each with its first sentence.

    Above them the answer, the first section of <outputs>/FINDINGS.md, where there is one.
    """
    from bs4 import BeautifulSoup

    from .markup import Renderer, page

    found = []
    for index in sorted(outputs.glob("*/index.html")):
        soup: Any = BeautifulSoup(index.read_text(encoding="utf-8"), "html.parser")
        h1, text = soup.find("h1"), soup.select_one(".headline p, main > p")
        if not h1:  # no index of ours
            continue
        states = [p["class"][-1] for p in soup.select("p.status")]
        done = states.count("done")
        note, link = f"{done} of {len(states)} notebooks", f"{index.parent.name}/index.html"
        status = "done" if done == len(states) > 0 else "missing"
        about = {"title": h1.get_text(), "question": text.get_text() if text else ""}
        found.append(about | {"status": status, "note": note, "link": link})
    title, renderer, intro = "Distillation from long-tailed teachers", Renderer(), ""
    texts = [path.name for path in sorted(outputs.glob("*.md"), reverse=True)]
    if "FINDINGS.md" in texts:
        findings = (outputs / "FINDINGS.md").read_text(encoding="utf-8")
        first = findings.partition("\n## ")[2].partition("\n## ")[0]
        intro = renderer.markdown(first.partition("\n")[2])
    text = page(
        renderer, "study", title=title, contents="Studies", cards=found, intro=intro,
        links=[(name, name) for name in texts])  # fmt: skip
    write_atomic(outputs / "index.html", text)


# ------------------------------------------------------------------------------- small helpers


def _facts(manifests: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The provenance line of a page, or of all pages together: (label, value)."""

    def each(text: Callable[[Mapping[str, Any]], str]) -> str:
        found = "; ".join(map(text, manifests)).split("; ")  # a text may list several itself
        return "; ".join(dict.fromkeys(filter(None, found)))

    def images(manifest: Mapping[str, Any]) -> str:
        data = manifest.get("data", {})
        counts = data.get("train_images", {}).items()
        seed = manifest.get("parameters", {}).get("split_seed")
        return (
            data.get("title", "")
            + (f", split seed {seed}" if seed else "")
            + "".join(f", γ = {gamma}: {count:,} training images" for gamma, count in counts)
        )

    def code(manifest: Mapping[str, Any]) -> str:
        about = manifest.get("code", {})
        commit = f" ({about['commit'][:8]})" if about.get("commit") else ""
        return f"{about.get('version', '')}{commit}{', modified' if about.get('dirty') else ''}"

    if not manifests:
        return []
    facts = {
        "Data": each(images),
        "Epochs": each(lambda m: str(m.get("epochs", ""))),
        "Seeds": ", ".join(map(str, sorted({s for m in manifests for s in m.get("seeds", [])}))),
        "Training": clock(max(m.get("training_seconds", 0) for m in manifests)),
        "This page" if len(manifests) == 1 else "Pages": clock(
            sum(m.get("seconds", 0) for m in manifests)
        ),
        "Finished": max(m.get("finished", "") for m in manifests)[:10],
        "Code": each(code),
        "Trained on": each(lambda m: m.get("hardware", "")),
        "Executed on": each(lambda m: m.get("executed_on", "")),
    }
    return [(label, value) for label, value in facts.items() if value]
