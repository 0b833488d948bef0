"""The pages of a study: figures shown in a notebook, the notebook as HTML, the index above them.

A page loads nothing: style and pictures are inside it, formulas are MathML, no script runs.
"""

import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from ..files import write_atomic

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SVG_LIMIT = 300_000  # bytes; a larger drawing is shown as a PNG at twice the resolution


def show(
    figure: "Figure", alt: str, name: str | None = None, data: "pd.DataFrame | None" = None
) -> None:
    """Display ``figure`` once, with its description and the data behind it, then close it.

    The same figure gives the same bytes. The output is one bundle: the picture, ``data`` as
    text/csv, ``alt`` as text/plain; metadata {"image/svg+xml": {"alt", "name"}}. ``name`` is
    the file name that the data download as.
    """
    import matplotlib as mpl
    from IPython.display import display

    if not alt.strip():
        raise ValueError(f"alt = {alt!r}: say in a sentence what the figure shows")
    name = name or "-".join(re.findall(r"\w+", alt.lower())[:6])
    with mpl.rc_context({"svg.hashsalt": "ltkd", "svg.fonttype": "path"}):
        options: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.06}
        drawn = io.BytesIO()
        unnamed = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(drawn, format="svg", metadata=unnamed, **options)
        mime, picture = "image/svg+xml", drawn.getvalue()
        if len(picture) > SVG_LIMIT:
            drawn = io.BytesIO()
            options |= {"dpi": 2 * figure.dpi, "metadata": {"Software": None}}
            figure.savefig(drawn, format="png", **options)
            mime, picture = "image/png", drawn.getvalue()
    bundle: dict[str, Any] = {mime: picture, "text/plain": alt}
    meta: dict[str, Any] = {"alt": alt, "name": name}
    if mime == "image/svg+xml":
        bundle[mime] = picture.decode()
    else:
        import base64

        bundle[mime] = base64.b64encode(picture).decode()
        meta["width"] = round(int.from_bytes(picture[16:20]) / 2)  # of IHDR; in CSS pixels
    if data is not None:
        bundle["text/csv"] = data.to_csv(index=False, lineterminator="\n")
    display(bundle, raw=True, metadata={mime: meta})
    if "matplotlib.pyplot" in sys.modules:  # else the backend shows it once more
        import matplotlib.pyplot as plt

        plt.close(figure)


# --------------------------------------------------------------------------------- one notebook


def render(notebook_path: Path, html_path: Path, *, manifest: Mapping[str, Any] | None) -> None:
    """Write the executed notebook as an HTML page beside its manifest; whole or not at all."""
    import nbformat

    notebook = nbformat.read(notebook_path, as_version=4)
    write_atomic(Path(html_path), html(notebook, Path(notebook_path), manifest=manifest))


def html(notebook: Any, path: Path, *, manifest: Mapping[str, Any] | None) -> str:
    """HTML of an executed notebook that is, or will be, at ``path`` = <study>/reports/<stem>.ipynb.

    The index is linked as ../index.html, the manifest as <stem>.manifest.json.
    """
    from .markup import PageExporter, Renderer

    path = Path(path).absolute()
    title, _ = _opening(notebook, path.stem)
    links = [("All of this study", "../index.html"), ("Notebook", path.name)]
    if manifest is not None:
        links.append(("Manifest", f"{path.stem}.manifest.json"))
    page = {
        "title": title,
        "css": _css(),
        "crumbs": [
            ("Studies", "../../index.html"), (path.parent.parent.name, "../index.html"), (title, "")
        ],
        "links": links,
        "seal": str((manifest or {}).get("seal", ""))[:12],
    }  # fmt: skip
    renderer = Renderer(folder=path.parent)
    text, _ = PageExporter(renderer).from_notebook_node(notebook, {"page": page})
    if "<h1" not in text:
        text = text.replace('<main id="main">', f'<main id="main">\n<h1>{escape(title)}</h1>', 1)
    facts = _study_template("meta.j2", {"facts": _facts([manifest] if manifest else [])})
    if path.stem.endswith(".failed"):
        facts += (
            '<p class="notice">This run failed; the last good report, if any, stands beside it.</p>'
        )
    return text.replace("</h1>", f"</h1>\n{facts}", 1)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest that ``study.seal`` wrote, None where there is none."""
    try:
        return dict(json.loads(Path(path).read_text()))
    except (OSError, ValueError):
        return None  # absent or damaged: the report counts as stale and is made anew


def _opening(notebook: Any, stem: str) -> tuple[str, str]:
    """Title (first heading) and question (first paragraph after it) of a notebook, as markdown."""
    title, question = stem.replace("_", " "), ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            blocks = [b.strip() for b in re.split(r"\n[ \t]*\n", cell.source) if b.strip()]
            if blocks and blocks[0].startswith("#"):
                first, _, rest = blocks[0].partition("\n")
                title = first.lstrip("#").strip()
                blocks = [rest, *blocks[1:]] if rest.strip() else blocks[1:]
            question = next((b for b in blocks if not b.startswith(("#", "|", "```", "$$"))), "")
            break
    return re.sub(r"[*`]", "", title), " ".join(question.split())


# ------------------------------------------------------------------------------------ the index


@dataclass(frozen=True)
class Card:
    """One notebook on the index. ``status`` is done, failed, stale (failed, old report kept)
    or missing; ``question`` is markdown; links are relative to the study's folder."""

    title: str
    question: str = ""
    status: str = "missing"
    note: str = "Not run yet"
    link: str = ""
    failed: str = ""


def cards(folder: Path, notebooks: Sequence[Path]) -> list[Card]:
    """The cards of a study's notebooks (sources), from what stands in <folder>/reports now."""
    import nbformat

    made = []
    for source in sorted(map(Path, notebooks), key=lambda p: p.name):
        title, question = _opening(nbformat.read(source, as_version=4), source.stem)
        page = folder / "reports" / f"{source.stem}.html"
        broken = page.with_suffix(".failed.html")
        manifest = read_manifest(page.with_suffix(".manifest.json")) or {}
        took = f" in {_duration(manifest['seconds'])}" if "seconds" in manifest else ""
        done, failed = page.exists(), broken.exists()
        status = ("stale" if done else "failed") if failed else "done" if done else "missing"
        note = {"done": f"Done{took}", "stale": "Last run failed; the report is of an earlier one.",
                "failed": "Failed.", "missing": "Not run yet"}[status]  # fmt: skip
        links = [f"reports/{p.name}" if p.exists() else "" for p in (page, broken)]
        made.append(Card(title, question, status, note, *links))
    return made


def write_index(
    folder: Path,
    *,
    title: str,
    cards: Sequence[Card],
    intro: str = "",
    problems: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write <folder>/index.html: what the study is, its result in short, its notebooks.

    ``intro`` is markdown. ``problems`` is a list of rows (run, method, seed, reason, ...) that
    failed or are missing. The result in short is what the cells tagged ``headline`` of the last
    report (in the order of names) that has any put out, markdown cells included.
    """
    from .markup import Renderer, tidy

    folder, renderer = Path(folder), Renderer(folder=Path(folder))
    renderer.heading(title, 1)
    manifests = [read_manifest(p) for p in sorted(folder.glob("reports/*.manifest.json"))]
    links = [("All studies", "../index.html")]
    if (folder / "runs.csv").exists():
        links.append(("Every run as a table (runs.csv)", "runs.csv"))
    page = {
        "title": title,
        "css": _css(),
        "crumbs": [("Studies", "../index.html"), (title, "")],
        "facts": _facts([m for m in manifests if m]),
        "intro": renderer.markdown(intro),
        "headline": _headline(folder, renderer),
        "contents": "Notebooks",
        "cards": [_questions(card) for card in cards],
        "problems": tidy(_rows(problems), renderer) if problems else "",
        "links": links,
    }
    write_atomic(folder / "index.html", _study_template("study.html.j2", page))
    return folder / "index.html"


def write_studies_index(outputs: Path) -> Path:
    """Write <outputs>/index.html: the studies that have an index, each with its first sentence."""
    from bs4 import BeautifulSoup

    found = []
    for index in sorted(Path(outputs).glob("*/index.html")):
        soup = BeautifulSoup(index.read_text(), "html.parser")
        h1, text = soup.find("h1"), soup.select_one(".headline p, main > p")
        states = [p["class"][-1] for p in soup.select("p.status")]
        whole = bool(states) and all(s == "done" for s in states)
        found.append(
            {
                "title": h1.get_text() if h1 else index.parent.name,
                "question": text.get_text() if text else "",
                "status": "done" if whole else "missing",
                "note": f"{states.count('done')} of {len(states)} notebooks",
                "link": f"{index.parent.name}/index.html",
            }
        )
    title = "Distillation from long-tailed teachers"
    page = {"title": title, "css": _css(), "cards": found, "contents": "Studies"}
    write_atomic(Path(outputs) / "index.html", _study_template("study.html.j2", page))
    return Path(outputs) / "index.html"


def _headline(folder: Path, renderer: Any) -> str:
    import nbformat

    from .markup import PageExporter

    for report in sorted(folder.glob("reports/*.ipynb"), reverse=True):
        if report.stem.endswith(".failed"):
            continue
        notebook = nbformat.read(report, as_version=4)
        tagged = [c for c in notebook.cells if "headline" in c.metadata.get("tags", [])]
        if tagged:
            notebook.cells = tagged
            resources = {"page": {"bare": True}}
            return Markup(PageExporter(renderer).from_notebook_node(notebook, resources)[0])
    return ""


def _questions(card: Card) -> dict[str, Any]:
    """A card whose question is HTML, without links: the card as a whole is one."""
    from .markup import Renderer

    text = re.sub(r"^<p>|</p>\s*$|</?a\b[^>]*>", "", Renderer().markdown(card.question).strip())
    return vars(card) | {"question": Markup(text)}


def _rows(rows: Sequence[Mapping[str, Any]]) -> str:
    import pandas as pd

    return pd.DataFrame(list(rows)).to_html(index=False, na_rep="", border=0)


# ------------------------------------------------------------------------------- small helpers


def _facts(manifests: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The provenance line of a page, or of all pages together: (label, value)."""

    def each(key: str) -> list[Any]:
        values = [m[key] for m in manifests if m.get(key) not in (None, "", [], {})]
        return [v for i, v in enumerate(values) if v not in values[:i]]

    def images(data: Mapping[str, Any]) -> str:
        name = data.get("title") or data.get("name", "")
        counts = data.get("train_images", {}).items()
        return name + "".join(f", γ = {g}: {n:,} training images" for g, n in counts)

    def code(data: Mapping[str, Any]) -> str:
        commit = f" ({str(data['commit'])[:8]})" if data.get("commit") else ""
        return f"{data.get('version', '')}{commit}{', modified' if data.get('dirty') else ''}"

    seeds = sorted({s for given in each("seeds") for s in given})
    joined: dict[str, list[str]] = {
        "Data": list(dict.fromkeys(images(d) for d in each("data"))),
        "Epochs": [str(e) for e in each("epochs")],
        "Seeds": [", ".join(map(str, seeds))],
        "Training": [_duration(max((m.get("training_seconds", 0) for m in manifests), default=0))],
        "This page" if len(manifests) == 1 else "Pages": [
            _duration(sum(m.get("seconds", 0) for m in manifests))
        ],
        "Finished": [str(max(map(str, each("finished")), default=""))[:10]],
        "Code": list(dict.fromkeys(code(c).strip() for c in each("code"))),
        "Hardware": [str(h) for h in each("hardware")],
    }
    return [(k, "; ".join(filter(None, v))) for k, v in joined.items() if any(v)] * bool(manifests)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


@cache
def _css() -> Markup:
    """The style sheet without its comments and indentation."""
    text = (Path(__file__).parent / "template" / "style.css").read_text()
    text = re.sub(r"\s*\n\s*", "\n", re.sub(r"/\*.*?\*/", "", text, flags=re.S)).strip()
    return Markup(text)


def _study_template(name: str, page: Mapping[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader

    loader = FileSystemLoader(Path(__file__).parent / "template")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(name).render(page=page)
