"""A report as one HTML page, by the template report.html.jinja; computes and draws nothing.

Whatever a result file holds is text to be shown: jinja2 escapes it, and the page runs no script and loads nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib import resources

import jinja2

from gistlm.report import plots, tables
from gistlm.report.tables import Result

HEADING = "gistlm report"
NO_EXAMPLES = (
    "The result holds no example answers: it was made with --no-examples, or without generated answers (--no-generate)."
)


def page(results: Sequence[Result]) -> str:
    """The whole page."""
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    template = resources.files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        title=f"{HEADING}: {results[0].title}" if len(results) == 1 else f"{HEADING} of {len(results)} results",
        heading=HEADING,
        results=results,
        together=plots.comparison(results),
        no_examples=NO_EXAMPLES,
        plots=plots,
        tables=tables,
        png=lambda plot: base64.b64encode(plots.draw(plot)).decode(),
    )
