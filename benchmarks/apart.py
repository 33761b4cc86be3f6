"""Calls that live in a process of their own each, so that none works in memory that another has used.

Knows of gistlm only what takes long to import.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from gistlm.errors import GistlmError

_GONE = (EOFError, ConnectionError)
"""What a pipe raises whose other end is closed."""


class Apart:
    """What ``make(*arguments)`` returns in a new process: facts, and a call, which stays there."""

    def __init__(self, name: str, make: Callable[..., tuple[Any, Callable[[], object]]], *arguments: Any) -> None:
        context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        if sys.platform == "linux":
            context.set_forkserver_preload(["gistlm.training.loop"])  # imported once for all
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), name=name, daemon=True)
        self._process.start()
        theirs.close()

    def facts(self) -> Any:
        """Wait until it is made. To be asked once, and before any call."""
        return self._heard()

    def __call__(self) -> None:
        """One call there, to its end."""
        with suppress(*_GONE):
            self._pipe.send(None)
        self._heard()

    def end(self) -> None:
        """End the process: by itself if it waits for a call, else it is killed after a second."""
        self._pipe.close()
        self._process.join(timeout=1)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()

    def _heard(self) -> Any:
        """What the process says next. Raises `GistlmError` with what went wrong there."""
        try:
            answer = self._pipe.recv()
        except _GONE:
            name = self._process.name
            raise GistlmError(f"the process of {name} ended; it says why above, unless the memory was full") from None
        if isinstance(answer, GistlmError):
            raise answer
        return answer


def _serve(pipe: Connection, make: Callable[..., tuple[Any, Callable[[], object]]], arguments: tuple[Any, ...]) -> None:
    """A process' whole life: it ends with its pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the first process, and that ends the others
    try:
        answer, call = make(*arguments)
        while _answered(pipe, answer):
            answer = call()
    except GistlmError as error:
        _answered(pipe, GistlmError(str(error)))


def _answered(pipe: Connection, answer: Any) -> bool:
    """Whether the first process has heard the answer, and then asked for a call."""
    with suppress(*_GONE):
        pipe.send(answer)
        pipe.recv()
        return True
    return False
