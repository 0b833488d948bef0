"""From a notebook's cells to HTML that loads nothing: formulas, code, tables, pictures.

Imported only when a page is made: nbconvert takes more than a second to load.
"""

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup
from bs4.element import PreformattedString
from latex2mathml.converter import convert
from markupsafe import Markup, escape
from mistune import HTMLRenderer
from nbconvert.exporters import TemplateExporter
from nbconvert.filters.markdown_mistune import (
    MarkdownWithMath,
    MathBlockParser,
    MathInlineParser,
)
from nbformat.v4 import new_notebook
from pygments import highlight  # type: ignore[import-untyped]
from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]
from pygments.lexers import PythonLexer  # type: ignore[import-untyped]
from traitlets.config import Config

_NUMBER = re.compile(r"[-+−±]?[\d.,]+([eE][-+]?\d+)?\s*%?(\s*[±(\[].*)?|nan|NaN|–|—|-|")
_PLAIN = re.compile(r'<span class="(?:n|p|w|nn|nv|ni|py|bp|o)">([^<]*)</span>')
# What an output's HTML may hold; no attribute among them can load or run anything.
_TAGS = {
    *["abbr", "b", "br", "caption", "code", "dd", "del", "details", "div", "dl", "dt", "em", "hr"],
    *["i", "ins", "kbd", "li", "mark", "ol", "p", "pre", "q", "s", "small", "span", "strong"],
    *["sub", "summary", "sup", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "u", "ul"],
}
_ATTRIBUTES = {"class", "colspan", "rowspan", "scope", "title", "halign", "valign"}
# What browsers need otherwise than the converter writes it: pattern, replacement; in this order.
_REPAIRS: tuple[tuple[str, Any], ...] = (
    (r' xmlns="http://www.w3.org/1998/Math/MathML"', ""),
    (r"&#x0*([0-9A-Fa-f]+);", lambda m: html.escape(chr(int(m[1], 16)))),
    (r"&(?!#?\w+;)", "&amp;"),
    # Browsers know one mathvariant, "normal", and trim the ends of a text.
    (
        r'<mn mathvariant="double-struck">(\d)</mn>',
        lambda m: f"<mn>{chr(0x1D7D8 + int(m[1]))}</mn>",
    ),
    (r"(?<=<mtext>)\s+|\s+(?=</mtext>)", lambda m: chr(160) * len(m[0])),
    # A function's name gets a space of its own, unless it has limits or a bracket follows.
    (
        r"(<m(?:sub|sup|subsup|under|over|underover)>)?<m[io]>([A-Za-z]{2,})</m[io]>(?!<mo[^>]*>\()",
        lambda m: m[0] if m[1] else f'<mi>{m[2]}</mi><mspace width="0.167em"></mspace>',
    ),
    (r"(<mo [^>]*minsize[^>]*)>(?=[(\[{⟨⌊⌈])", r'\1 form="prefix">'),
    (r"(<mo [^>]*minsize[^>]*)>(?=[)\]}⟩⌋⌉])", r'\1 form="postfix">'),
    (r"<mo>([A-Za-z]{2,})</mo>(?=<mo[^>]*>\()", r"<mi>\1</mi>"),
    (r"<(mspace|mi|mo|mtd|mrow)([^<>]*?) ?/>", r"<\1\2></\1>"),
)


# ---------------------------------------------------------------------------------- markdown


def mathml(tex: str, display: bool = False) -> str:
    """MathML of a formula; its source in a code span where the converter gives up."""
    source = tex.strip().replace(r"\operatorname*", r"\operatorname")
    source = re.sub(r"\{(align|aligned|split|eqnarray)\}", "{align*}", source)
    source = re.sub(r"\\(begin|end)\{equation\*?\}", "", source)
    try:
        text = convert(source, display="block" if display else "inline")
    except Exception:  # the converter raises a dozen types, some of them its own
        return f'<code class="tex">{html.escape(tex.strip())}</code>'
    for pattern, replacement in _REPAIRS:
        text = re.sub(pattern, replacement, text)
    return str(text)


class _Block(MathBlockParser):
    SPECIFICATION = MathBlockParser.SPECIFICATION | {
        # Anchored, unlike the parent's: `$$` inside a code span of a paragraph is no formula.
        "multiline_math": r"^ {0,3}\$\$(?:(?!\n[ \t]*\n)[\s\S])+?(?<!\\)\$\$[ \t]*$"
        r"|^ {0,3}\\begin\{(?P<math_env_name>[a-z]+\*?)\}[\s\S]*?\\end\{(?P=math_env_name)\}"
    }


class _Inline(MathInlineParser):
    SPECIFICATION = MathInlineParser.SPECIFICATION | {
        # The rule of pandoc: no space inside the dollars, no digit after: "$5 to $6" is money.
        "inline_math_tex": r"(?<![\\$])\$(?![\s$])"
        r"(?P<math_inline_tex>(?:\\[\s\S]|[^$\\`\n]|\n(?![ \t]*\n))+?)(?<!\s)\$(?![\d$])",
        "block_math_tex": r"(?<![\\$])\$\$(?P<math_block_tex>(?:\\[\s\S]|[^$\\`])+?)\$\$",
    }


class Renderer(HTMLRenderer):
    """Markdown of one page: headings in order with unique ids; HTML in it is shown as text."""

    def __init__(self) -> None:
        super().__init__(escape=True)
        self.level, self.ids = 0, set[str]()

    def markdown(self, source: str) -> Markup:
        parser = MarkdownWithMath(renderer=self, block=_Block(), inline=_Inline())
        return Markup(parser.render(source))

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        """One h1, and no level left out: what a screen reader steps through."""
        self.level = 1 if self.level == 0 else min(max(level, 2), self.level + 1)
        words = re.sub(r"<[^>]*>|&\w+;", " ", text).lower()
        base = name = "-".join(re.findall(r"\w+", words)) or "section"
        number = 1
        while name in self.ids:
            number += 1
            name = f"{base}-{number}"
        self.ids.add(name)
        return f'<h{self.level} id="{html.escape(name)}">{text}</h{self.level}>\n'

    def block_math(self, body: str) -> str:
        return f'<span class="math">{mathml(body, display=True)}</span>'

    def inline_math(self, body: str) -> str:
        return f'<span class="long">{mathml(body)}</span>' if len(body) > 40 else mathml(body)

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")

    def image(self, text: str, url: str, title: str | None = None) -> str:
        """A picture from elsewhere becomes a link."""
        return self.link(text or html.escape(url), url)

    def table(self, text: str) -> str:
        return _accessible(BeautifulSoup(f"<table>{text}</table>", "html.parser"))


# ---------------------------------------------------------------------------------- outputs


def highlighted(code: str) -> Markup:
    """Python with the few pygments classes that the style sheet colours."""
    text = highlight(code.strip("\n"), PythonLexer(), HtmlFormatter(nowrap=True))
    return Markup(_PLAIN.sub(r"\1", text).rstrip("\n"))


def tidy(markup: str) -> Markup:
    """HTML of an output, pandas' above all: accessible tables, and nothing that runs or loads."""
    soup = BeautifulSoup(markup, "html.parser")
    for note in soup.find_all(string=lambda text: isinstance(text, PreformattedString)):
        note.extract()
    for tag in soup.find_all(True):
        tag.attrs = {k: v for k, v in tag.attrs.items() if k in _ATTRIBUTES}
        if tag.name in ("script", "style"):
            tag.extract()
        elif tag.name not in _TAGS:
            tag.unwrap()
    return _accessible(soup)


def _accessible(soup: Any) -> Markup:
    """Its tables with scopes for screen readers, numbers to the right, in boxes that scroll."""
    for table in soup.find_all("table"):
        for cell in table.find_all(["th", "td"]):
            del cell["style"]
            head = cell.find_parent("thead") is not None
            if head and not cell.get_text(strip=True):
                cell.name = "td"  # the corner of a table heads nothing
            if cell.name == "th":
                wide = int(cell.get("colspan" if head else "rowspan", 1)) > 1
                cell["scope"] = ("col" if head else "row") + ("group" if wide else "")
        _merge_index_names(table)
        _align_numbers(table)
        caption = table.find("caption")
        heads = [cell.get_text(" ", strip=True) for cell in table.select("th")]
        label = " ".join(caption.get_text().split()) if caption else (
            "Table: " + ", ".join([head for head in heads if head][:4]))  # fmt: skip
        box = soup.new_tag("div", attrs={"class": "scroll wide", "tabindex": "0"})
        box.attrs |= {"role": "group", "aria-label": label}
        if table.parent.name == "div":
            table.parent.unwrap()  # pandas' own, which would keep the box from scrolling
        table.wrap(box)
    return Markup(soup)


def _cells(table: Any, rows: str) -> list[list[Any]]:
    return [row.find_all(["th", "td"], recursive=False) for row in table.select(rows)]


def _merge_index_names(table: Any) -> None:
    """pandas gives the names of the index a row of their own: put them into the corner above."""
    heads = _cells(table, "thead > tr")
    if len(heads) > 1:
        for above, name in zip(*heads[-2:], strict=False):
            if name.get_text(strip=True) and not above.get_text(strip=True):
                above.replace_with(name)
        last = table.select("thead > tr")[-1]
        if not last.get_text(strip=True):
            last.decompose()


def _align_numbers(table: Any) -> None:
    rows, heads = _cells(table, "tbody > tr"), _cells(table, "thead > tr")
    width = max(map(len, rows), default=0)
    for column in range(-width, 0):  # from the right: a spanning row header shortens a row
        cells = [row[column] for row in rows if len(row) >= -column and row[column].name == "td"]
        texts = [cell.get_text(strip=True) for cell in cells]
        if any(texts) and all(_NUMBER.fullmatch(text) for text in texts):
            for cell in cells + [row[column] for row in heads if len(row) == width]:
                cell["class"] = [*cell.get("class", []), "num"]


# ------------------------------------------------------------------------------------ pages


def page(renderer: Renderer, template: str, cells: Sequence[Any] = (), **about: Any) -> str:
    """HTML of a notebook's cells by one of our nbconvert templates; what is not Markup is escaped.

    about: what the template finds in ``resources``; ``title`` is the page's, and its h1.
    """
    kinds = ["image/svg+xml", "image/png", "text/html", "text/markdown", "text/plain"]
    exporter = TemplateExporter(
        template_name="template",
        template_file=f"{template}.html.j2",
        extra_template_basedirs=[str(Path(__file__).parent)],
        filters={"b64": _base64},
        config=Config({"NbConvertBase": {"display_data_priority": kinds}}),
    )
    environment = exporter.environment
    environment.autoescape = environment.trim_blocks = environment.lstrip_blocks = True
    heading = Markup(renderer.heading(escape(about["title"]), 1))
    environment.globals |= {"tidy": tidy, "highlighted": highlighted, "kinds": kinds}
    environment.globals["markdown"] = renderer.markdown
    notebook = new_notebook(cells=list(cells))
    return exporter.from_notebook_node(notebook, {"heading": heading, **about})[0]


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
