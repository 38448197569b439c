"""The report's HTML; everything that comes from files is escaped here."""

import base64
import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

from tfdeq.training.report.plotting import number
from tfdeq.training.report.report_plots import Plot, printable

_MISSING = "–"
_STYLE = """
:root { color-scheme: light dark; --line: #d0d0d0; --ground: #fff; --ink: #1c1c1c; --soft: #595959; }
@media (prefers-color-scheme: dark) {
  :root { --line: #444; --ground: #141414; --ink: #e4e4e4; --soft: #a8a8a8; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 88rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.45 system-ui, sans-serif; }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .4rem; }
p, figcaption, caption { color: var(--soft); }
.scroll { overflow-x: auto; margin: .6rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
thead th { vertical-align: bottom; min-width: 5.5rem; }
tbody th { position: sticky; left: 0; background: var(--ground); font-weight: 600; }
.numbers td, .numbers thead th + th { text-align: right; }
.numbers td { white-space: nowrap; }
.words td { min-width: 9rem; max-width: 26rem; overflow-wrap: anywhere; }
caption span { display: inline-block; position: sticky; left: 0; max-width: calc(100vw - 2rem); }
th svg { display: block; margin-top: .25rem; }
.plots { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fill,
  minmax(min(100%, 25rem), 1fr)); }
figure { margin: 0; }
figure h3 { margin: 0 0 .3rem; font-size: 1rem; }
figure img { display: block; width: 100%; height: auto; }
figcaption { font-size: .85rem; }
summary { cursor: pointer; }
"""


def document(title: str, body: Sequence[str]) -> str:
    """Returns the whole page; body: its parts as HTML."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            # Makes the browser prevent the page from loading anything.
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            "<main>",
            *body,
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def section(title: str, *parts: str) -> str:
    """Returns a part of the page under its heading."""
    return "\n".join([f"<section>\n<h2>{escape(title)}</h2>", *parts, "</section>"])


def figures(plots: Sequence[Plot], without: str) -> str:
    """Returns the plots, each with title and description; without: the text if there are no plots."""
    if not plots:
        return f"<p>{escape(without)}</p>" if without else ""
    parts = []
    for plot in plots:
        data = base64.b64encode(plot.svg.encode("utf-8", "replace")).decode("ascii")
        parts.append(
            f"<figure>\n<h3>{escape(plot.title)}</h3>\n"
            f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(plot.alt)}">\n'
            f"<figcaption>{escape(plot.caption)}</figcaption>\n</figure>"
        )
    return "\n".join(['<div class="plots">', *parts, "</div>"])


def table(
    caption: str,
    heads: Sequence[str],
    rows: Iterable[tuple[str, Iterable[Any]]],
    kind: str = "words",
) -> str:
    """Returns a table, which scrolls if it is too wide; a row is (its head as HTML, its values).

    kind: "numbers" or "words", which determines the alignment of the values.
    """
    lines = []
    for head, values in rows:
        cells = "".join(_cell(value) for value in values)
        lines.append(f'<tr><th scope="row">{head}</th>{cells}</tr>')
    top = "".join(f'<th scope="col">{breakable(head)}</th>' for head in heads)
    return "\n".join(
        [
            # tabindex allows scrolling without a mouse.
            f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0">',
            f'<table class="{kind}">\n<caption><span>{escape(caption)}</span></caption>',
            f"<thead><tr>{top}</tr></thead>",
            "<tbody>",
            *lines,
            "</tbody>\n</table>\n</div>",
        ]
    )


def _cell(value: Any) -> str:
    return f"<td>{escape(text(value))}</td>"


def text(value: Any) -> str:
    """Returns a value as the tables show it."""
    if isinstance(value, str):
        return value or _MISSING
    known = number(value)
    if known is None:
        return _MISSING
    if float(known).is_integer() or abs(known) >= 1000:
        return f"{known:,.0f}"
    return f"{known:.4g}"


def residual(value: Any) -> str | None:
    """Returns a residual as the tables show it; None if it is not a number."""
    known = number(value)
    return None if known is None else f"{known:.1e}"


def rounded(value: Any) -> float | None:
    """Returns a number without decimals; None if it is not a number."""
    known = number(value)
    return None if known is None else round(known)


def escape(text: str) -> str:
    """Returns any text as HTML that shows it."""
    return html.escape(printable(str(text)), quote=True)


def breakable(text: str) -> str:
    """Returns a name as HTML that may be broken between its parts on a narrow screen."""
    return re.sub(r"(?<=[\w-])([/_.]|-(?=\w))", r"\1<wbr>", escape(text))
