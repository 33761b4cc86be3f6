"""A report as Markdown with pictures beside it; computes and draws nothing.

Whatever a result file holds is text to be shown: what Markdown would read as more is escaped or fenced.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote

from gistlm.report import plots, tables
from gistlm.report.html import HEADING, NO_EXAMPLES
from gistlm.report.tables import Result, Table

Pictures = dict[str, bytes]


def text_and_pictures(results: Sequence[Result], folder: str) -> tuple[str, Pictures]:
    """The text, and the pictures by name that it looks for in a folder beside it."""
    pictures: Pictures = {}
    lines = [f"# {HEADING}", "", *_pairs(tables.metrics_of(results))]
    if together := plots.comparison(results):
        lines += _picture(together, "##", "", folder, pictures)
    for place, result in enumerate(results, 1):
        lines += [f"## {plain(result.title)}", "", *_pairs(tables.origin(result))]
        for plot in plots.plots_of(result):
            lines += _picture(plot, "###", f"{place}-", folder, pictures)
        for table in tables.tables(result.values):
            lines += _table(table)
        lines += _examples(result)
    return "\n".join(lines), pictures


def plain(text: str) -> str:
    """On one line, without meaning to Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>|#!~$&])", r"\\\1", " ".join(text.split()))


def _picture(plot: plots.Plot, level: str, number: str, folder: str, pictures: Pictures) -> list[str]:
    name = f"{number}{plot.file}.png"
    pictures[name] = plots.draw(plot)
    return [f"{level} {plot.name}", "", f"![{plain(plot.alt)}]({quote(folder)}/{name})", "", plain(plot.caption), ""]


def _pairs(pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [*(f"- **{plain(name)}**: {plain(text)}" for name, text in pairs), *([""] if pairs else [])]


def _table(table: Table) -> list[str]:
    rows = [" | ".join(map(plain, row)) for row in (table.head, *table.rows)]
    rows.insert(1, " | ".join(["---"] * len(table.head)))
    return [plain(table.caption), "", *(f"| {row} |" for row in rows), ""]


def _examples(result: Result) -> list[str]:
    if not result.values["conditions"]:
        return []
    found = tables.examples(result.values)
    lines = ["### Answers side by side", "", *([] if found else [NO_EXAMPLES, ""])]
    for place, example in enumerate(found, 1):
        lines += [f"#### Example {place}", ""]
        for name, text in example.items():
            lines += [f"- **{plain(name)}**", "", *_fenced(text), ""]
    return lines


def _fenced(text: str) -> list[str]:
    """A code block within a list's item, its fence longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"  {line}" if line else "" for line in (f"{fence}text", *text.split("\n"), fence)]
