"""What the tests of the command line share beside fixtures."""

import io
import subprocess
from collections.abc import Callable

from typer.testing import Result

PROMPT = "You answer questions about the shop. Returns are taken for thirty days. Be short and polite."
"""16 words."""

Run = Callable[..., Result]
Process = Callable[..., "subprocess.CompletedProcess[str]"]


class Terminal(io.StringIO):
    """An output that remembers what was to be seen at every flush."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed: list[str] = []

    def flush(self) -> None:
        self.flushed.append(self.getvalue())


def error_line(result: Result) -> str:
    """The one line on stderr, after checking that it is the only one and that nothing else was printed."""
    lines = result.stderr.splitlines()
    assert result.exit_code == 1, result.output
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    assert result.stdout == ""
    return lines[0]
