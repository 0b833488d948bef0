"""Pages that load nothing, are small, accessible, and show data as text."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from ltkd.report import markup, page

MANIFEST = {
    "data": {"title": "CIFAR-100-LT", "train_images": {"100": 10847}},
    "parameters": {"split_seed": 1}, "epochs": 240, "seeds": [0, 1],
    "hardware": "one <GPU>", "seconds": 4521.0, "finished": "2025-11-20T12:00:00",
    "code": {"version": "0.1.0", "commit": "abcdef0123", "dirty": True}, "seal": "9f86d081884c7d",
}  # fmt: skip
TEXT = r"""# Does it <help>?

The question, at $\gamma = 100$.

### Level three first

It costs $5 to $6; `a $x$ b` and `$$y$$` are code. A [link](https://example.org/paper).

$$
\mathrm{KL}(p \,\|\, q) = \sum_i p_i \log \frac{p_i}{q_i}
$$

\begin{aligned} a &= b \\ c &= d \end{aligned}

# A second title

| claim | change |
|---|--:|
| one | 2.5 |

![remote](https://example.org/image.png)

<script src="https://example.org/x.js"></script>
"""


def shown(figure: Figure, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """The output that show() makes, as a notebook keeps it."""
    kept: dict[str, Any] = {}

    def display(data: dict[str, str], raw: bool, metadata: dict[str, Any]) -> None:
        assert raw
        kept.update(data=data, metadata=metadata)

    monkeypatch.setattr("IPython.display.display", display)
    page.show(figure, **options)
    return new_output("display_data", **kept)


def drawing(points: int = 3) -> Figure:
    figure = Figure(figsize=(4, 2))
    figure.subplots().plot(range(points), [(7 * i) % 11 for i in range(points)], "o-")
    return figure


@pytest.fixture
def html(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    rows = pd.DataFrame({"a": [1.5, -2.0], "b": ["<script>alert(1)</script>", "& co"]})
    rows.index.name = "method"
    table = {"text/html": rows.to_html(), "text/plain": "x"}
    outputs = [
        shown(drawing(), monkeypatch, alt='Tail "up" & <away>', name="tail", data=rows),
        new_output("execute_result", data=table),
        new_output("stream", name="stderr", text="\x1b[31mwarn <b>\x1b[0m\n"),
        new_output("display_data", data={"text/html": '<img src="http://x/y.png" onerror="z()">'}),
    ]
    cells = [
        new_markdown_cell(TEXT, id="text"),
        new_code_cell("x = 1 < 2  # <i>", outputs=outputs, id="code"),
        new_code_cell("pass", id="last", outputs=[new_output("stream", name="stdout", text="hi")]),
    ]
    path = tmp_path / "study" / "reports" / "03_distillation.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(new_notebook(cells=cells), path)
    return page.html(nbformat.read(path, as_version=4), path, manifest=MANIFEST)


VOID = {"meta", "img", "br", "hr", "input"}


class Loads(HTMLParser):
    """Every address that a browser would fetch, and every element that could run."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "srcset", "poster", "data"} or (name == "href" and tag != "a"):
                self.loads.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_page_loads_and_runs_nothing(html: str) -> None:
    seen = Loads()
    seen.feed(html)
    assert set(seen.open) <= {"p", "li"}  # all else is closed, in order
    assert not {"script", "iframe", "object", "embed", "link", "base"} & set(seen.tags)
    assert [x[:26] for x in seen.loads] == ["data:image/svg+xml;base64,"]
    assert not re.search(r"url\(|@import", html)
    policy = BeautifulSoup(html, "html.parser").find("meta", {"http-equiv": True})
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"].startswith("default-src 'none'; style-src")
    assert "unsafe-eval" not in policy["content"]
    assert "script-src" not in policy["content"]


def test_page_is_small_without_its_pictures(html: str) -> None:
    assert len(re.sub(r"data:image[^\"]*", "", html).encode()) < 25_000


def test_structure_for_readers_and_screen_readers(html: str) -> None:
    soup = BeautifulSoup(html, "html.parser")
    assert soup.html["lang"] == "en"
    assert soup.title.get_text() == "Does it <help>?"
    assert len(soup.find_all("main")) == 1
    assert soup.select_one("a.skip")["href"] == "#" + soup.main["id"]
    levels = [int(h.name[1]) for h in soup.find_all(re.compile("^h[1-6]$"))]
    assert levels == [1, 2, 2]  # a second h1 is an h2, no level is left out
    ids = [tag["id"] for tag in soup.find_all(id=True)]
    assert len(ids) == len(set(ids))
    assert soup.h1.find_next_sibling().name == "dl"
    links = {a["href"] for a in soup.find_all("a")}
    assert {"../index.html", "03_distillation.manifest.json", "03_distillation.ipynb"} <= links
    facts = soup.select_one("dl.facts").get_text(" ", strip=True)
    for part in [
        "CIFAR-100-LT, split seed 1, γ = 100: 10,847 training",
        "240",
        "0, 1",
        "1 h 15 min",
        "2025-11-20",
        "0.1.0 (abcdef01)",
    ]:
        assert part in facts
    assert "one <GPU>" in facts


def test_formulas_are_mathml_and_money_and_code_are_not(html: str) -> None:
    soup = BeautifulSoup(html, "html.parser")
    assert len(soup.find_all("math")) == 3
    assert len(soup.find_all("math", display="block")) == 2
    assert "It costs $5 to $6;" in html
    assert [c.get_text() for c in soup.select("p > code")] == ["a $x$ b", "$$y$$"]
    aligned = soup.find("mtable").find_all("mtr")
    assert [[c.get_text() for c in r.find_all("mtd")] for r in aligned] == [
        ["a", "=b"], ["c", "=d"]
    ]  # fmt: skip
    assert 'class="tex"' not in html


@pytest.mark.parametrize(
    ("tex", "texts"),
    [
        (r"\tilde p_G \le \tfrac12", ["p", "~", "G", "≤", "1", "2"]),
        (r"\operatorname*{argmax}_x", ["argmax", "x"]),
        (r"a < b", ["a", "<", "b"]),
        (r"\log p", ["log", "p"]),
        (r"1 \text{ if } x", ["1", "\xa0if\xa0", "x"]),
        (r"\mathbb{1}", ["𝟙"]),
    ],
)
def test_mathml_of_what_the_notebooks_use(tex: str, texts: list[str]) -> None:
    soup = BeautifulSoup(markup.mathml(tex), "html.parser")
    leaves = [t.get_text() for t in soup.find_all(["mi", "mn", "mo", "mtext"])]
    assert [t for t in leaves if t] == texts


def test_a_formula_that_cannot_be_read_stays_as_its_source() -> None:
    assert markup.mathml(r"a < \frac{") == r'<code class="tex">a &lt; \frac{</code>'


def test_data_are_text_and_code_is_folded(html: str) -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    soup = BeautifulSoup(html, "html.parser")
    folds = soup.select("details.code")
    assert [f.summary.get_text() for f in folds] == ["code · log, 1 line", "code · printed, 1 line"]
    assert not any(f.has_attr("open") for f in folds)
    assert folds[0].code.get_text() == "x = 1 < 2  # <i>"
    assert folds[0].find("pre", class_="stream").get_text() == "warn <b>"
    assert "\x1b" not in html


def test_tables_have_scopes_and_right_aligned_numbers(html: str) -> None:
    pandas, markdown = BeautifulSoup(html, "html.parser").select(".scroll > table")[::-1]
    for table in (pandas, markdown):
        assert table.parent["role"] == "group"
        assert table.parent["aria-label"]
        assert all(th["scope"] in {"col", "row"} for th in table.find_all("th"))
    heads = [[c.get_text() for c in r.find_all("th")] for r in pandas.select("thead tr")]
    assert heads == [["method", "a", "b"]]  # the row of pandas for the index name is gone
    assert [th.get_text() for th in pandas.select("tbody th[scope=row]")] == ["0", "1"]
    assert [c.get_text() for c in pandas.select("td.num")] == ["1.5", "-2.0"]
    assert [c.get_text() for c in markdown.select(".num")] == ["change", "2.5"]


def test_spans_of_a_multiindex_are_groups() -> None:
    columns = pd.MultiIndex.from_product([["x", "y"], ["p", "q"]])
    index = pd.MultiIndex.from_product([["A", "B"], [1, 2]], names=["big", "small"])
    html = pd.DataFrame([[1.0] * 4] * 4, index=index, columns=columns).to_html()
    table = BeautifulSoup(markup.tidy(html), "html.parser").table
    scopes = [(th.get_text(), th["scope"]) for th in table.find_all("th")]
    assert scopes[:8] == [
        ("x", "colgroup"), ("y", "colgroup"), ("big", "col"), ("small", "col"),
        ("p", "col"), ("q", "col"), ("p", "col"), ("q", "col"),
    ]  # fmt: skip
    assert ("A", "rowgroup") in scopes
    assert ("1", "row") in scopes
    assert len(table.select("td.num")) == 16 + 4 - 4


@pytest.mark.parametrize(
    ("harm", "left"),
    [
        ("<p onclick='x()' style='background: url(http://x)'>text</p>", "<p>text</p>"),
        ("<div><style>@import url(http://x)</style><b>text</b></div>", "<div><b>text</b></div>"),
        ("<svg><script>x()</script><a href='javascript:x()'>text</a></svg>", "text"),
        (
            "<!-- note --><iframe srcdoc='<script>'></iframe><img src=http://x onerror=y>text",
            "text",
        ),
    ],
)
def test_html_of_an_output_keeps_nothing_that_runs_or_loads(harm: str, left: str) -> None:
    assert markup.tidy(harm) == left


def test_html_in_markdown_is_shown_as_text_and_harmful_links_lead_nowhere() -> None:
    html = markup.Renderer().markdown("<b onclick=x>a</b> [b](javascript:x) ![c](javascript:x)")
    soup = BeautifulSoup(html, "html.parser")
    assert {tag.name for tag in soup.find_all(True)} == {"p", "a"}
    assert {a["href"] for a in soup.find_all("a")} == {"#harmful-link"}


def test_figures_have_their_description_and_their_data(html: str) -> None:
    figure = BeautifulSoup(html, "html.parser").figure
    assert figure.img["alt"] == 'Tail "up" & <away>'
    svg = base64.b64decode(figure.img["src"].partition(",")[2]).decode()
    assert "<svg" in svg
    assert "<text" not in svg  # letters are paths: the same on every machine
    assert figure.find("a", download=True)["href"] == "03_distillation.tail.csv"


def test_the_data_of_figures_are_files_with_names_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = pd.DataFrame({"a": [1.5, -2.0], "b": ["<script>alert(1)</script>", "& co"]})
    outputs = [shown(drawing(), monkeypatch, alt="A line.", data=rows, name=n) for n in "xy"]
    notebook = new_notebook(cells=[new_code_cell("pass", outputs=outputs, id="code")])
    csv = "a,b\n1.5,<script>alert(1)</script>\n-2.0,& co\n"
    assert page.data_files(notebook, "03_a") == {"03_a.x.csv": csv, "03_a.y.csv": csv}
    outputs[1].metadata["image/svg+xml"]["name"] = "x"
    with pytest.raises(ValueError, match="two figures of 03_a have the name 'x'"):
        page.data_files(notebook, "03_a")


def test_show_draws_the_same_bytes_and_falls_back_to_png(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (shown(drawing(), monkeypatch, alt="A line.", name="line") for _ in range(2))
    assert first == second
    svg = first.data["image/svg+xml"]
    assert mpl.__version__ not in svg
    assert "dc:date" not in svg
    assert first.metadata["image/svg+xml"] == {"alt": "A line.", "name": "line"}
    large = shown(drawing(20_000), monkeypatch, alt="Many points.", name="points")
    assert sorted(large.data) == ["image/png", "text/plain"]
    png = base64.b64decode(large.data["image/png"])
    width = int.from_bytes(png[16:20])
    assert 2 * 300 < width < 2 * 400
    assert large.metadata["image/png"]["width"] == round(width / 2)
    assert b"matplotlib" not in png
    with pytest.raises(ValueError, match="say in a sentence"):
        page.show(drawing(), alt=" ", name="blank")


def study(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    sources = []
    for stem, title in [("03_a", "Which *loss*?"), ("04_b", "Which part?"), ("06_summary", "Sum")]:
        cells = [new_markdown_cell(f"# {title}\n\nAsked of `{stem}` at $n = 3$.", id="title")]
        source = folder / "notebooks" / f"{stem}.ipynb"
        source.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(new_notebook(cells=cells), source)
        sources.append(source)
    picture = new_code_cell("secret = 1", id="picture")
    picture.outputs = [shown(drawing(), monkeypatch, alt="The headline.", name="headline")]
    sentence = new_markdown_cell("Up by **2.1 points**.", id="sentence")
    for cell in (picture, sentence):
        cell.metadata.tags = ["headline"]
    other = new_markdown_cell("Not lifted.", id="other")
    reports = folder / "study" / "reports"
    reports.mkdir(parents=True)
    nbformat.write(new_notebook(cells=[picture, other, sentence]), reports / "06_summary.ipynb")
    (reports / ".07_c.part.ipynb").touch()  # what another process has just begun to write
    for name in ("06_summary.html", "04_b.failed.html"):
        (reports / name).write_text("x")
    (reports / "06_summary.manifest.json").write_text('{"seconds": 30, "seeds": [0, 1]}')
    return sources


def test_index_of_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = study(tmp_path, monkeypatch)
    folder = tmp_path / "study"
    (folder / "runs.csv").write_text("run\n")
    cards = page.cards(folder, sources)
    assert [(c["title"], c["status"]) for c in cards] == [
        ("Which loss?", "missing"), ("Which part?", "failed"), ("Sum", "done")
    ]  # fmt: skip
    problems = pd.DataFrame([{"run": "ab12", "method": "<b>", "reason": "NaN in epoch 3"}])
    intro = "What it *is*."
    page.write_index(folder, title="A & B", cards=cards, intro=intro, problems=problems)
    text = (folder / "index.html").read_text()
    seen = Loads()
    seen.feed(text)
    assert not [x for x in seen.loads if not x.startswith("data:")]
    soup = BeautifulSoup(text, "html.parser")
    assert [h.get_text() for h in soup.find_all("h1")] == ["A & B"]
    headline = soup.select_one(".headline")
    assert headline.img["alt"] == "The headline."
    assert headline.p.get_text() == "Up by 2.1 points."
    assert "secret" not in text
    assert "Not lifted" not in text
    assert [c.get_text(" ", strip=True) for c in soup.select(".card .status")] == [
        "Not run yet", "Failed. What went wrong", "Done in 30 s"
    ]  # fmt: skip
    assert len(soup.select(".card math")) == 3
    links = {a["href"] for a in soup.find_all("a")}
    assert {"reports/06_summary.html", "reports/04_b.failed.html", "runs.csv"} <= links
    assert "reports/03_a.html" not in links
    assert "&lt;b&gt;" in text
    assert "NaN in epoch 3" in text


def test_reports_of_other_parameters_are_told_from_those_that_are_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, folder = study(tmp_path, monkeypatch), tmp_path / "study"
    (folder / "reports" / "03_a.html").write_text("x")
    (folder / "reports" / "03_a.manifest.json").write_text('{"seconds": 5, "seeds": [7]}')

    def index(**fresh: bool) -> tuple[list[str], Any]:
        cards = page.cards(folder, sources, fresh)
        page.write_index(folder, title="A & B", cards=cards, fresh=fresh)
        soup = BeautifulSoup((folder / "index.html").read_text(), "html.parser")
        return [card["status"] for card in cards], soup

    def seeds(soup: Any) -> str:
        return str(soup.find("dt", string="Seeds").find_next("dd").get_text())

    states, soup = index(**{"03_a": True, "04_b": False, "06_summary": False})
    assert states == ["done", "failed", "outdated"]
    assert seeds(soup) == "7"
    assert not soup.select(".headline")
    (note,) = soup.select(".status.outdated")
    assert note.get_text() == "Of other parameters, runs or code"
    states, soup = index(**{"03_a": False, "04_b": False, "06_summary": True})
    assert states == ["outdated", "failed", "done"]
    assert seeds(soup) == "0, 1"
    assert soup.select(".headline")
    states, soup = index(**{"03_a": False, "04_b": False, "06_summary": False})
    assert states == ["outdated", "failed", "outdated"]
    assert seeds(soup) == "0, 1, 7"  # of none: what there is
    assert soup.select(".headline")


def test_index_of_all_studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = page.cards(tmp_path / "study", study(tmp_path, monkeypatch))
    page.write_index(tmp_path / "study", title="A & B", cards=cards)
    (tmp_path / "half").mkdir()  # a study without an index is none yet
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "index.html").write_text("<div id='root'></div>")  # nor is this one
    (tmp_path / "FINDINGS.md").write_text(
        "# Findings\n\nTwo pages.\n\n## The answer\n\n**Yes.**\n\n## More\n"
    )
    page.write_studies_index(tmp_path)
    soup = BeautifulSoup((tmp_path / "index.html").read_text(), "html.parser")
    assert soup.main.strong.get_text() == "Yes."
    assert "More" not in soup.main.get_text()
    assert soup.footer.a["href"] == "FINDINGS.md"
    (card,) = soup.select(".card")
    assert card.a["href"] == "study/index.html"
    assert card.h3.get_text() == "A & B"
    assert card.p.get_text() == "Up by 2.1 points."
    assert card.select_one(".status").get_text().strip() == "1 of 3 notebooks"


def test_a_figure_of_nothing_is_a_line_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    page.show(Figure(), alt="Nothing.", name="none", data=pd.DataFrame(columns=["a"]))
    assert "Markdown" in capsys.readouterr().out


def test_each_machine_is_named_once() -> None:
    """A page lists the machines of all its runs, and the index those of all its pages."""
    trained = ["one", "another; one", "one"]
    machines = [{"hardware": names, "executed_on": "a third"} for names in trained]
    facts = dict(page._facts(machines))
    assert (facts["Trained on"], facts["Executed on"]) == ("one; another", "a third")
