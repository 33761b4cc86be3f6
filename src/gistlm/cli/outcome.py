"""What a command says on stderr, notes and errors of one sentence, and how it ends; knows no command."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

from gistlm.errors import GistlmError

FAILED = 1
INTERRUPTED = 128 + signal.SIGINT
READER_GONE = 141
"""128 + SIGPIPE: whoever read the output has closed it."""


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with every exception turned into a sentence on stderr and an exit code."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            with _notes_shown():
                command(*args, **options)
            sys.stdout.flush()
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except GistlmError as error:
            _fail(str(error), FAILED)
        except KeyboardInterrupt as stop:
            say(str(stop) or "interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that Python's last flush finds an open end
            raise typer.Exit(READER_GONE) from None
        except Exception as error:
            detail = f"{type(error).__name__}: {error}".rstrip(": ")
            _fail(f"unexpected {detail} (GISTLM_DEBUG=1 shows where)", FAILED)

    return run


def say(sentence: str) -> None:
    """One line on stderr."""
    print(" ".join(sentence.split()), file=sys.stderr, flush=True)


def is_main_process() -> bool:
    """Of several processes of one launch, one speaks."""
    return os.environ.get("RANK", "0") == "0"


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if is_main_process():
            say(record.getMessage())


@contextmanager
def _notes_shown() -> Iterator[None]:
    """Meanwhile what gistlm's modules log is said on stderr, such as why a first use takes long."""
    logger, notes = logging.getLogger("gistlm"), _Notes()
    level = logger.level
    logger.addHandler(notes)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(notes)
        logger.setLevel(level)


def _fail(sentence: str, code: int) -> NoReturn:
    if os.environ.get("GISTLM_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()
    say(f"error: {sentence}")
    raise typer.Exit(code) from None
