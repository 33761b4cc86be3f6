"""`gistlm report`: result files in, a page with plots and tables out; runs no model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[
        list[Path], typer.Argument(help="Result files that `gistlm eval --json` wrote.", metavar="RESULT...")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The report: .html (one page), .md (pictures beside it) or .png.")
    ] = Path("report.html"),
) -> None:
    """Draw what `gistlm eval` measured: quality against compression, prompt length and memory, and answers.

    \b
    Example:
      gistlm report results.json -o report.html
      gistlm report mine.json theirs.json -o report.png
    """
    from gistlm.report.render import write_report
    from gistlm.report.tables import gather

    for path in write_report(gather(results), output):
        print(path)
