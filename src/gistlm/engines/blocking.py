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
    items = _items(source)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return items
    return _in_a_thread(items)


def _items(source: AsyncIterator[T]) -> Iterator[T]:
    close: Callable[[], Any] | None = getattr(source, "aclose", None)
    with asyncio.Runner() as runner:  # Ctrl-C cancels what it runs
        try:
            while (item := runner.run(_next(source))) is not _END:
                yield item
        finally:
            if close is not None:
                runner.run(_await(close()))


def _in_a_thread(items: Iterator[T]) -> Iterator[T]:
    with ThreadPoolExecutor(1) as thread:
        try:
            while (item := thread.submit(next, items, _END).result()) is not _END:
                yield item
        finally:
            thread.submit(items.close).result()  # type: ignore[attr-defined]  # a generator


async def _next(source: AsyncIterator[T]) -> T:
    return await anext(source, _END)


async def _await(awaitable: Any) -> None:
    await awaitable
