"""A report as one HTML page; computes and draws nothing.

Whatever a result file holds is text to be shown: it is escaped, and the page runs no script and loads nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from gistlm.report import plots, tables
from gistlm.report.tables import Result, Table

HEADING = "gistlm report"
NO_EXAMPLES = (
    "The result holds no example answers: it was made with --no-examples, or without generated answers (--no-generate)."
)
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 3rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
dt { font-weight: 600; }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; }
caption, figcaption { text-align: left; font-style: italic; padding: .3rem 0; }
th, td { border: 1px solid #8888; padding: .3rem .6rem; text-align: left; vertical-align: top; }
thead th { background: #8883; }
.texts td { min-width: 14rem; max-width: 28rem; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; background: white; border-radius: .3rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: 14px/1.4 ui-monospace, monospace; }
"""


def page(results: Sequence[Result]) -> str:
    """The whole page."""
    heading = f"{HEADING}: {results[0].title}" if len(results) == 1 else f"{HEADING} of {len(results)} results"
    together = plots.comparison(results)
    parts = [
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(heading)}</title>\n<style>{_STYLE}</style></head>",
        f"<body>\n<main>\n<h1>{HEADING}</h1>",
        _contents(results),
        _pairs(tables.metrics_of(results)),
        f"<section>\n{_figure(together, 2)}</section>" if together else "",
        *(_section(result, place) for place, result in enumerate(results)),
        "</main>\n</body>\n</html>\n",
    ]
    return "\n".join(filter(None, parts))


def _contents(results: Sequence[Result]) -> str:
    if len(results) < 2:
        return ""
    items = "\n".join(
        f'<li><a href="#r{place}">{escape(result.title)}</a></li>' for place, result in enumerate(results)
    )
    return f'<nav aria-label="Results">\n<ol>\n{items}\n</ol>\n</nav>'


def _section(result: Result, place: int) -> str:
    figures = "".join(_figure(plot, 3) for plot in plots.plots_of(result))
    grids = "".join(map(_table, tables.tables(result.values)))
    heading = f'<section id="r{place}">\n<h2>{escape(result.title)}</h2>\n{_pairs(tables.origin(result))}\n'
    return f"{heading}{figures}{grids}{_examples(result)}</section>"


def _figure(plot: plots.Plot, level: int) -> str:
    picture = base64.b64encode(plots.draw(plot)).decode()
    return (
        f"<figure>\n<h{level}>{escape(plot.name)}</h{level}>\n"
        f'<img alt="{escape(plot.alt)}" src="data:image/png;base64,{picture}">\n'
        f"<figcaption>{escape(plot.caption)}</figcaption>\n</figure>\n"
    )


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    items = "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs)
    return f"<dl>\n{items}\n</dl>" if items else ""


def _table(table: Table, text: bool = False) -> str:
    """text: whether cells hold texts as they stand, with their lines."""
    cell = '<td><pre dir="auto">{}</pre></td>' if text else "<td>{}</td>"
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.head)
    body = "\n".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(cell.format(escape(each)) for each in rest)}</tr>'
        for first, *rest in table.rows
    )
    caption, kind = escape(table.caption), ' class="texts"' if text else ""
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{caption}">\n'
        f"<table{kind}>\n<caption>{caption}</caption>\n"
        f"<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>\n"
    )


def _examples(result: Result) -> str:
    if not result.values["conditions"]:
        return ""
    found = tables.examples(result.values)
    if not found:
        return f"<p>{escape(NO_EXAMPLES)}</p>\n"
    names = list(dict.fromkeys(name for example in found for name in example))
    rows = [[str(place), *(example.get(name, "") for name in names)] for place, example in enumerate(found, 1)]
    return _table(Table("Answers side by side, of the file's first rows", ["example", *names], rows), text=True)
