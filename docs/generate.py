"""Write docs/cli.md from the command line's own help; `--check` fails when the page is stale.

The text is plain and 100 columns wide on every terminal.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from typer.core import TyperGroup
from typer.main import get_command

from gistlm.cli.app import app

PAGE = Path(__file__).with_name("cli.md")
WIDTH = 100


def main() -> int:
    """Write or check the page; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the page is stale; write nothing")
    wanted = page()
    if not parser.parse_args().check:
        PAGE.write_text(wanted, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == wanted:
        return 0
    print("docs/cli.md is stale; write it anew with: make docs", file=sys.stderr)
    return 1


def page() -> str:
    """The page, from the group's help and each command's."""
    app.rich_markup_mode = None  # plain text, without boxes
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    parts = [
        "# Command line",
        "`python docs/generate.py` wrote this page from the commands' own `--help`; do not edit it by hand.",
        _block(group, "gistlm"),
    ]
    for name, command in group.commands.items():
        parts += [f"## gistlm {name}", _block(command, f"gistlm {name}")]
    return "\n\n".join(parts) + "\n"


def _block(command: Any, path: str) -> str:
    context = command.context_class(command, info_name=path, terminal_width=WIDTH, max_content_width=WIDTH)
    lines = command.get_help(context).splitlines()
    return "\n".join(["```text", *(line.rstrip() for line in lines), "```"])


if __name__ == "__main__":
    sys.exit(main())
