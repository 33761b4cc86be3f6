"""What the tests of the command line share beside fixtures."""

import subprocess
from collections.abc import Callable

from typer.testing import Result

PROMPT = "You answer questions about the shop. Returns are taken for thirty days. Be short and polite."
"""16 words."""

Run = Callable[..., Result]
Process = Callable[..., "subprocess.CompletedProcess[str]"]


def error_line(result: Result) -> str:
    """The one line on stderr, after checking that it is the only one and that nothing else was printed."""
    lines = result.stderr.splitlines()
    assert result.exit_code == 1, result.output
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    assert result.stdout == ""
    return lines[0]
