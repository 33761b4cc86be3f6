"""A report as one HTML page, as Markdown with pictures beside it, or as one picture; computes and draws nothing.

Whatever a result file holds is text to be shown: it is escaped, and the page runs no script and loads nothing.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from gistlm.errors import DataError
from gistlm.evaluation import plots, report
from gistlm.evaluation.report import Result
from gistlm.files import reason, write_atomically

HEADING = "gistlm report"
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1rem 0; }
caption, figcaption { text-align: left; font-style: italic; padding: .3rem 0; }
th, td { border: 1px solid #8888; padding: .3rem .6rem; text-align: left; vertical-align: top; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; background: white; }
pre { white-space: pre-wrap; margin: 0; font: 14px/1.4 ui-monospace, monospace; }
"""
_NO_EXAMPLES = "The result holds no example answers: it was made with --no-examples or without generated answers."


def write_report(results: Sequence[Result], path: Path) -> list[Path]:
    """Write a report in the form that the path's suffix names; returns all files written.

    Raises `DataError` for another suffix or where nothing can be written, `MissingDependencyError` without matplotlib.
    """
    write = WRITERS.get(path.suffix.lower())
    if write is None:
        raise DataError(f"a report ends in {', '.join(WRITERS)}, got {path.name!r}; name such a file with -o")
    if not path.parent.is_dir():
        raise DataError(f"there is no folder {path.parent} to write {path.name} in; make it first, or name another")
    try:
        return write(results, path)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot write the report to {path}: {reason(error)}; name another file") from error


def _write_html(results: Sequence[Result], path: Path) -> list[Path]:
    body = "".join(_html_section(result) for result in results)
    page = (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{HEADING}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style></head>\n'
        f"<body>\n<h1>{HEADING}</h1>\n{_html_metrics(results)}{body}</body>\n</html>\n"
    )
    write_atomically(path, page.encode())
    return [path]


def _write_markdown(results: Sequence[Result], path: Path) -> list[Path]:
    pictures: dict[Path, bytes] = {}
    folder = path.with_name(f"{path.stem}_files")
    lines = [f"# {HEADING}", "", *_markdown_metrics(results)]
    for place, result in enumerate(results):
        lines += [f"## {_plain(report.title(result))}", "", _plain(report.origin(result)), ""]
        for plot in plots.plots_of(result):
            picture = folder / f"{place + 1}-{re.sub(r'[^a-z]+', '-', plot.name.lower())}.png"
            pictures[picture] = plots.draw(plot, result)
            lines += [f"### {plot.name}", "", f"![{plot.name}]({folder.name}/{picture.name})", "", plot.caption, ""]
        lines += _markdown_tables(result) + _markdown_examples(result)
    for picture, content in pictures.items():
        write_atomically(picture, content)
    write_atomically(path, "\n".join(lines).encode())
    return [path, *pictures]


def _write_png(results: Sequence[Result], path: Path) -> list[Path]:
    write_atomically(path, plots.draw_all(results))
    return [path]


WRITERS: dict[str, Callable[[Sequence[Result], Path], list[Path]]] = {
    ".html": _write_html,
    ".md": _write_markdown,
    ".png": _write_png,
}
"""suffix -> what writes it."""


def _html_metrics(results: Sequence[Result]) -> str:
    items = "".join(f"<li><b>{name}</b>: {html.escape(text)}</li>\n" for name, text in _metrics(results))
    return f"<ul>\n{items}</ul>\n" if items else ""


def _html_section(result: Result) -> str:
    figures = [
        f'<figure><h3>{plot.name}</h3><img alt="{html.escape(plot.caption)}" '
        f'src="data:image/png;base64,{base64.b64encode(plots.draw(plot, result)).decode()}">'
        f"<figcaption>{html.escape(plot.caption)}</figcaption></figure>\n"
        for plot in plots.plots_of(result)
    ]
    tables = [_html_table(caption, head, rows) for caption, head, rows in report.tables(result)]
    heading = f"<section>\n<h2>{html.escape(report.title(result))}</h2>\n<p>{html.escape(report.origin(result))}</p>\n"
    return f"{heading}{''.join(figures)}{''.join(tables)}{_html_examples(result)}</section>\n"


def _html_table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], text: bool = False) -> str:
    wrap = "<pre>{}</pre>" if text else "{}"
    top = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{html.escape(first)}</th>'
        + "".join(f"<td>{wrap.format(html.escape(cell))}</td>" for cell in rest)
        + "</tr>\n"
        for first, *rest in rows
    )
    inner = f"<thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody>"
    return f"<table><caption>{html.escape(caption)}</caption>\n{inner}</table>\n"


def _html_examples(result: Result) -> str:
    if not result["conditions"]:
        return ""
    examples = [example for example in result["examples"] if example["answers"]]
    if not examples:
        return f"<p>{html.escape(_NO_EXAMPLES)}</p>\n"
    names = list(examples[0]["answers"])
    head = ["prompt", "input", "reference", *names]
    rows = [
        [
            example["prompt"],
            example["input"],
            example["reference"],
            *(example["answers"].get(name, "") for name in names),
        ]
        for example in examples
    ]
    return _html_table("Answers side by side", head, rows, text=True)


def _markdown_metrics(results: Sequence[Result]) -> list[str]:
    return [*(f"- **{name}**: {text}" for name, text in _metrics(results)), ""]


def _markdown_tables(result: Result) -> list[str]:
    lines: list[str] = []
    for caption, head, rows in report.tables(result):
        lines += [caption, ""]
        lines += [f"| {' | '.join(map(_cell, row))} |" for row in (head, ["---"] * len(head), *rows)]
        lines.append("")
    return lines


def _markdown_examples(result: Result) -> list[str]:
    if not result["conditions"]:
        return []
    examples = [example for example in result["examples"] if example["answers"]]
    lines = ["### Answers side by side", ""] + ([] if examples else [_NO_EXAMPLES, ""])
    for place, example in enumerate(examples):
        texts = {"prompt": example["prompt"], "input": example["input"], "reference": example["reference"]}
        lines += [f"#### Example {place + 1}", ""]
        for name, text in (texts | example["answers"]).items():
            lines += [f"**{_plain(name)}**", "", *_fenced(text), ""]
    return lines


def _metrics(results: Sequence[Result]) -> list[tuple[str, str]]:
    """The metrics that any result has, and what they are."""
    found = {name for result in results for condition in result["conditions"] for name in condition["metrics"]}
    return [(name, text) for name, text in report.METRICS.items() if name in found]


def _fenced(text: str) -> list[str]:
    """A code block whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence, *text.splitlines(), fence]


def _plain(text: str) -> str:
    """On one line, without meaning to Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>|#!])", r"\\\1", " ".join(text.split()))


def _cell(text: str) -> str:
    return text if text == "---" else _plain(text)
