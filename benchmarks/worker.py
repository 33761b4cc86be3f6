"""Calls that live in a process of their own each, so that none works in memory that another has used.

Knows of gistlm only what takes long to import.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any

from gistlm.errors import GistlmError

Make = Callable[..., tuple[Any, Callable[[], object]]]

_call: Callable[[], object]
"""In the worker's process: what it was made for."""


class Worker:
    """What ``make(*arguments)`` returns in a new process: facts, and a call, which stays there."""

    def __init__(self, name: str, make: Make, *arguments: Any) -> None:
        context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        if sys.platform == "linux":
            context.set_forkserver_preload(["gistlm.training.loop"])  # imported once for all
        self._name = name
        self._pool = ProcessPoolExecutor(1, context, initializer=_ignore_interrupts)
        self._process_id = self._pool.submit(os.getpid)
        self._made = self._pool.submit(_sendable, _make, make, *arguments)

    def facts(self) -> Any:
        """Wait until it is made."""
        return self._result(self._made)

    def __call__(self) -> None:
        """One call there, to its end."""
        self._result(self._pool.submit(_sendable, _run))

    def end(self) -> None:
        """End the process, whatever it does."""
        with suppress(BrokenProcessPool, ProcessLookupError):
            os.kill(self._process_id.result(), signal.SIGTERM)
        self._pool.shutdown(cancel_futures=True)

    def _result(self, future: Future[Any]) -> Any:
        try:
            return future.result()
        except BrokenProcessPool:
            raise GistlmError(f"the process of {self._name} ended; the memory may have been full") from None


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the first process, and that ends the others


def _sendable(call: Callable[..., Any], *arguments: Any) -> Any:
    """The call's result. Its errors are told by their sentence, as some cannot be sent to another process."""
    try:
        return call(*arguments)
    except GistlmError as error:
        raise GistlmError(str(error)) from None


def _make(make: Make, *arguments: Any) -> Any:
    global _call
    facts, _call = make(*arguments)
    return facts


def _run() -> None:
    _call()
