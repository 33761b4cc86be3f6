"""An asynchronous iterator for callers that are not asynchronous; knows nothing of engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()


def iterate(source: AsyncIterator[T]) -> Iterator[T]:
    """The items of ``source``, which is run in between and closed at the end.

    It is run in this thread, or in another one where an event loop runs in this one already, as in a notebook.
    """
    runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)  # leaves the thread's own loop; Ctrl-C cancels a run
    close: Callable[[], Any] | None = getattr(source, "aclose", None)
    try:
        while (item := _call(lambda: runner.run(_next(source)))) is not _END:
            yield item
    finally:
        if close is not None:
            _call(lambda: runner.run(_await(close())))
        _call(runner.close)


def _call(function: Callable[[], T]) -> T:
    """Call a function that runs an event loop, in another thread where one runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return function()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()


async def _next(source: AsyncIterator[T]) -> T:
    return await anext(source, _END)


async def _await(awaitable: Any) -> None:
    await awaitable
