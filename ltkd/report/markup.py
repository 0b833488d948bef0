"""From a notebook's cells to HTML that loads nothing: formulas, code, tables, figures.

Imported only when a page is made: nbconvert takes more than a second to load.
"""

import base64
import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup
from latex2mathml.converter import convert
from markupsafe import Markup
from mistune import HTMLRenderer
from nbconvert.exporters import TemplateExporter
from nbconvert.filters.markdown_mistune import (
    MarkdownWithMath,
    MathBlockParser,
    MathInlineParser,
)
from pygments import highlight  # type: ignore[import-untyped]
from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]
from pygments.lexers import PythonLexer  # type: ignore[import-untyped]

TEMPLATE = Path(__file__).parent / "template"
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_ALIGNED = {"align": "align*", "aligned": "align*", "split": "align*", "eqnarray": "align*"}
_UNWANTED = ["script", "iframe", "object", "embed", "link", "meta", "base", "form", "template"]
_ALLOWED = {
    *["!--", "abbr", "b", "br", "caption", "code", "dd", "del", "details", "div", "dl", "dt", "em"],
    *["hr", "i", "ins", "kbd", "li", "mark", "ol", "p", "pre", "q", "s", "small", "span", "strong"],
    *["sub", "summary", "sup", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "u", "ul"],
}
_ACTIVE = re.compile(r"\bon\w+\s*=|javascript:|url\(", re.I)
_NUMBER = re.compile(r"[-+−±]?[\d.,]+([eE][-+]?\d+)?\s*%?(\s*[±(\[].*)?|nan|NaN|–|—|-|")
_PLAIN = re.compile(r'<span class="(?:n|p|w|nn|nv|ni|py|bp|o)">([^<]*)</span>')
_MIMES = ["image/svg+xml", "image/png", "image/jpeg", "text/html", "text/markdown", "text/latex"]
_FUNCTION = re.compile(
    r"(<m(?:sub|sup|subsup|under|over|underover)>)?<m[io]>([A-Za-z]{2,})</m[io]>(?!<mo[^>]*>\()"
)


# ---------------------------------------------------------------------------------- formulas


def mathml(tex: str, display: bool = False) -> str:
    """MathML of a formula; its source in a code span where the converter gives up."""
    source = tex.strip().replace(r"\operatorname*", r"\operatorname")
    for name, known in _ALIGNED.items():
        source = source.replace(f"{{{name}}}", f"{{{known}}}")
    source = re.sub(r"\\(begin|end)\{equation\*?\}", "", source)
    try:
        text = convert(source, display="block" if display else "inline")
    except Exception:  # the converter raises a dozen types, some of them its own
        return f'<code class="tex">{html.escape(tex.strip())}</code>'
    text = text.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
    text = re.sub(r"&#x0*([0-9A-Fa-f]+);", lambda m: html.escape(chr(int(m[1], 16))), text)
    text = re.sub(r"&(?!#?\w+;)", "&amp;", text)
    # Browsers know one mathvariant, "normal", and give a function's name no space of its own.
    text = re.sub(
        r'<mn mathvariant="double-struck">(\d)</mn>',
        lambda m: f"<mn>{chr(0x1D7D8 + int(m[1]))}</mn>",
        text,
    )
    text = re.sub(
        r"<mtext>(\s*)(.*?)(\s*)</mtext>",
        lambda m: f"<mtext>{chr(160) * len(m[1])}{m[2]}{chr(160) * len(m[3])}</mtext>",
        text,
    )
    text = _FUNCTION.sub(
        lambda m: m[0] if m[1] else f'<mi>{m[2]}</mi><mspace width="0.167em"></mspace>', text
    )
    text = re.sub(r"(<mo [^>]*minsize[^>]*)>(?=[(\[{⟨⌊⌈])", r'\1 form="prefix">', text)
    text = re.sub(r"(<mo [^>]*minsize[^>]*)>(?=[)\]}⟩⌋⌉])", r'\1 form="postfix">', text)
    text = re.sub(r"<mo>([A-Za-z]{2,})</mo>(?=<mo[^>]*>\()", r"<mi>\1</mi>", text)
    return re.sub(r"<(mspace|mi|mo|mtd|mrow)([^<>]*?) ?/>", r"<\1\2></\1>", text)


# ---------------------------------------------------------------------------------- markdown


class _Block(MathBlockParser):
    # Anchored, unlike the parent's: `$$` inside a code span of a paragraph is no formula.
    MULTILINE_MATH = (
        r"^ {0,3}\$\$(?:(?!\n[ \t]*\n)[\s\S])+?(?<!\\)\$\$[ \t]*$"
        r"|^ {0,3}\\begin\{(?P<math_env_name>[a-z]+\*?)\}[\s\S]*?\\end\{(?P=math_env_name)\}"
    )
    SPECIFICATION = MathBlockParser.SPECIFICATION | {"multiline_math": MULTILINE_MATH}


class _Inline(MathInlineParser):
    # The rule of pandoc: no space inside the dollars, no digit after: "from $5 to $6" is money.
    INLINE_MATH_TEX = (
        r"(?<![\\$])\$(?![\s$])"
        r"(?P<math_inline_tex>(?:\\[\s\S]|[^$\\`\n]|\n(?![ \t]*\n))+?)"
        r"(?<!\s)\$(?![\d$])"
    )
    BLOCK_MATH_TEX = r"(?<![\\$])\$\$(?P<math_block_tex>(?:\\[\s\S]|[^$\\`])+?)\$\$"
    SPECIFICATION = MathInlineParser.SPECIFICATION | {
        "inline_math_tex": INLINE_MATH_TEX,
        "block_math_tex": BLOCK_MATH_TEX,
    }


class Renderer(HTMLRenderer):
    """Markdown of one page: keeps its headings in order and its ids unique."""

    def __init__(self, attachments: Mapping[str, Any] | None = None, folder: Path | None = None):
        super().__init__(escape=False)
        self.attachments, self.folder = attachments or {}, folder
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
        long = ' class="long"' if len(body) > 40 else ""
        return f"<span{long}>{mathml(body)}</span>" if long else mathml(body)

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")

    def block_code(self, code: str, info: str | None = None) -> str:
        language = (info or "").split(" ")[0]
        body = highlighted(code) if language in {"python", "py"} else html.escape(code)
        return f"<pre><code>{body}</code></pre>\n"

    def block_html(self, html: str) -> str:
        return self.inline_html(html)

    def inline_html(self, html: str) -> str:
        """HTML in a markdown cell: plain elements pass, the rest is shown as it is written."""
        tags = {t.lower() for t in re.findall(r"</?\s*([^\s/>]*)", html)}
        return html if tags <= _ALLOWED and not _ACTIVE.search(html) else str(Markup.escape(html))

    def image(self, text: str, url: str, title: str | None = None) -> str:
        """Attachments and local files become part of the page; a remote image becomes a link."""
        data = next(iter(self.attachments.get(url.removeprefix("attachment:"), {}).items()), None)
        file = (self.folder or Path()) / url
        kinds = {".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg"}
        if data is None and file.suffix in kinds and "://" not in url and file.is_file():
            data = (kinds[file.suffix], base64.b64encode(file.read_bytes()).decode())
        alt = html.escape(re.sub(r"<[^>]*>", "", text))
        if data is None:
            return f'<a href="{html.escape(url)}">{alt or html.escape(url)}</a>'
        return f'<img alt="{alt}" src="data:{data[0]};base64,{data[1]}">'

    def table(self, text: str) -> str:
        return tidy(f"<table>{text}</table>", self)


# ---------------------------------------------------------------------------------- outputs


def highlighted(code: str) -> Markup:
    """Python with the few pygments classes that the style sheet colours."""
    text = highlight(code.strip("\n"), PythonLexer(), HtmlFormatter(nowrap=True))
    return Markup(_PLAIN.sub(r"\1", text).rstrip("\n"))


def tidy(markup: str, renderer: Renderer) -> Markup:
    """HTML of an output, pandas' above all: accessible tables, and nothing that runs or loads."""
    soup = BeautifulSoup(markup, "html.parser")
    for tag in soup.find_all([*_UNWANTED, "style"]):
        text = tag.get_text()
        if tag.name != "style" or tag.has_attr("scoped") or "url(" in text or "@import" in text:
            tag.decompose()
    for tag in soup.find_all(True):
        for name, value in list(tag.attrs.items()):
            remote = name in {"src", "srcset", "data", "poster", "background", "xlink:href"}
            text = str(value).strip().lower()
            if (
                name.startswith("on")
                or (remote and not text.startswith("data:image/"))
                or (name in {"href", "action", "formaction"} and text.startswith("javascript:"))
                or (name == "style" and "url(" in text)
            ):
                del tag[name]
    for tag in soup.find_all(re.compile("^h[1-6]$")):
        made = renderer.heading(tag.decode_contents(), int(tag.name[1]))
        tag.replace_with(BeautifulSoup(made.strip(), "html.parser"))
    for table in soup.find_all("table"):
        _tidy_table(table)
        if table.find_parent("table") is None:
            caption = table.find("caption")
            label = " ".join(caption.get_text().split()) if caption else "Table"
            box = soup.new_tag("div", attrs={"class": "scroll wide", "tabindex": "0"})
            box.attrs |= {"role": "region", "aria-label": label}
            around = table.parent
            if around and around.name == "div" and not around.get("class"):
                around.unwrap()  # pandas' own, which would keep the box from scrolling
            table.wrap(box)
    return Markup(soup)


def _merge_index_names(table: Any) -> None:
    """pandas gives the names of the index a row of their own: put them into the corner above."""
    heads = table.select("thead > tr")
    if len(heads) < 2:
        return
    above, names = (r.find_all(["th", "td"], recursive=False) for r in heads[-2:])
    filled = [i for i, cell in enumerate(names) if cell.get_text(strip=True)]
    if filled != list(range(len(filled))) or len(filled) == len(names):
        return
    if any(c.get_text(strip=True) or c.get("colspan") for c in above[: len(filled)]):
        return
    for i in filled:
        above[i].replace_with(names[i].extract())
    heads[-1].decompose()


def _tidy_table(table: Any) -> None:
    """Scopes for screen readers, numbers to the right; pandas' own look is dropped."""
    for name in ("border", "style"):
        del table[name]
    for row in table.find_all("tr"):
        del row["style"]
        head = row.find_parent("thead") is not None
        for cell in row.find_all(["th", "td"], recursive=False):
            words = cell.get_text(strip=True)
            if cell.get("style", "").replace(" ", "").startswith("text-align:"):
                del cell["style"]
            if cell.name == "th" and head and not words:
                cell.name = "td"  # the corner of a table heads nothing
            if cell.name == "th":
                spans = "colspan" if head else "rowspan"
                wide = int(cell.get(spans, 1)) > 1
                cell["scope"] = ("col" if head else "row") + ("group" if wide else "")
    _merge_index_names(table)
    rows = [r.find_all(["th", "td"], recursive=False) for r in table.select("tbody > tr")]
    width = max(map(len, rows), default=0)
    for column in range(-width, 0):  # from the right: a spanning row header shortens a row
        cells = [r[column] for r in rows if len(r) >= -column and r[column].name == "td"]
        texts = [c.get_text(strip=True) for c in cells]
        if any(texts) and all(_NUMBER.fullmatch(t) for t in texts):
            heads = [r.find_all(["th", "td"], recursive=False) for r in table.select("thead > tr")]
            for cell in cells + [r[column] for r in heads if len(r) == width]:
                cell["class"] = [*cell.get("class", []), "num"]


def figure(mime: str, data: str, meta: Mapping[str, Any], csv: str | None) -> Markup:
    """A picture as a data: URI, apart from the page, so that ids of two SVGs never meet."""
    alt = str(meta.get("alt", "Figure without a description"))
    body = base64.b64encode(data.encode()).decode() if mime == "image/svg+xml" else data
    source = f"data:{mime};base64,{body.strip().replace(chr(10), '')}"
    width = Markup(' width="{:d}"').format(int(meta["width"])) if "width" in meta else ""
    out = Markup(
        '<figure class="wide"><div class="picture"><img alt="{}"{} src="{}"></div>'
    ).format(alt, width, source)
    if csv is not None:
        link = f"data:text/csv;charset=utf-8;base64,{base64.b64encode(csv.encode()).decode()}"
        out += Markup(
            '<figcaption><a download="{}.csv" href="{}">Data of this figure '
            "(CSV, {:.0f} kB)</a></figcaption>"
        ).format(meta.get("name", "figure"), link, max(1, len(csv) / 1000))
    return out + Markup("</figure>")


def output(item: Mapping[str, Any], renderer: Renderer) -> Markup:
    """HTML of one output of a code cell."""
    if item["output_type"] == "stream":
        return Markup("")  # folded with the code
    if item["output_type"] == "error":
        text = _ANSI.sub("", "\n".join(item["traceback"]))
        return Markup('<pre class="error" role="alert">{}</pre>').format(text)
    data = {k: "".join(v) if isinstance(v, list) else v for k, v in item["data"].items()}
    mime = next((m for m in _MIMES if m in data), None)
    if mime is None:
        text = data.get("text/plain", "")
        return Markup("<pre>{}</pre>").format(text) if text else Markup("")
    if mime.startswith("image/"):
        return figure(mime, data[mime], item["metadata"].get(mime, {}), data.get("text/csv"))
    if mime == "text/html":
        return tidy(data[mime], renderer)
    if mime == "text/markdown":
        return renderer.markdown(data[mime])
    return Markup('<p><span class="math">{}</span></p>').format(
        Markup(mathml(data[mime].strip().strip("$"), display=True))
    )


def folded(cell: Mapping[str, Any]) -> Markup:
    """One fold a cell: its source and what it printed."""
    tags = cell["metadata"].get("tags", [])
    names = {"parameters": "parameters: the defaults", "injected-parameters": "parameters given"}
    parts, body = [], Markup("")
    if cell["source"].strip() and "remove-input" not in tags:
        parts.append(next((text for tag, text in names.items() if tag in tags), "code"))
        body = Markup("<pre><code>{}</code></pre>").format(highlighted(cell["source"]))
    for name, what in {"stdout": "printed", "stderr": "log"}.items():
        streams = [o for o in cell["outputs"] if o["output_type"] == "stream" and o["name"] == name]
        text = _ANSI.sub("", "".join(o["text"] for o in streams)).strip("\n")
        if text:
            lines = text.count("\n") + 1
            parts.append(f"{what}, {lines} line" + "s" * (lines > 1))
            body += Markup('<pre class="stream">{}</pre>').format(text)
    if not parts:
        return Markup("")
    summary = Markup('<details class="code"><summary>{}</summary>').format(" · ".join(parts))
    return summary + body + Markup("</details>")


class PageExporter(TemplateExporter):
    """nbconvert's exporter with our template; everything that is not Markup is escaped."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        super().__init__(
            template_name=TEMPLATE.name,
            extra_template_basedirs=[str(TEMPLATE.parent)],
            template_extension=".html.j2",
            file_extension=".html",
            filters={
                "folded": folded,
                "output": lambda item: output(item, renderer),
                "markdown": self._markdown,
            },
        )

    def _markdown(self, cell: Mapping[str, Any]) -> Markup:
        self._renderer.attachments = cell.get("attachments", {})
        return self._renderer.markdown(cell["source"])

    def _create_environment(self) -> Any:
        environment = super()._create_environment()
        environment.autoescape = True
        return environment
