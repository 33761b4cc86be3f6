"""The commands put together, one file each; knows nothing of what they do.

Whatever needs torch is imported inside a command, so that `--help` is instant.
"""

from __future__ import annotations

from inspect import cleandoc
from typing import Annotated

import typer

from gistlm import __version__
from gistlm.cli.arguments import Command
from gistlm.cli.chat import chat
from gistlm.cli.compress import compress
from gistlm.cli.convert import convert
from gistlm.cli.eval import eval
from gistlm.cli.generate import generate
from gistlm.cli.inspect import inspect
from gistlm.cli.models import models
from gistlm.cli.outcome import guarded
from gistlm.cli.report import report
from gistlm.cli.train import train

COMMANDS = (compress, generate, chat, inspect, models, train, eval, report, convert)

app = typer.Typer(
    name="gistlm",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _help(text: str | None) -> str:
    """A docstring with one line a paragraph, for the terminal to wrap; what follows a backspace stays as it is."""
    paragraphs = cleandoc(text or "").split("\n\n")
    return "\n\n".join(each if each.startswith("\b") else " ".join(each.split()) for each in paragraphs)


for _command in COMMANDS:
    app.command(_command.__name__, cls=Command, help=_help(_command.__doc__))(guarded(_command))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"gistlm {__version__}")
        raise typer.Exit


def gistlm(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Compress a prompt into a few gist tokens, save them, and use them in the prompt's place.

    \b
    Example:
      gistlm compress system.txt -o system.gist -k 4
      gistlm generate --gist system.gist "What is your refund policy?"

    Exit codes: 0 done, 1 an error in one sentence on stderr, 2 wrong usage, 130 interrupted. GISTLM_DEBUG=1
    adds the traceback to an error.
    """


app.callback(help=_help(gistlm.__doc__))(gistlm)
