"""Which rows run together, and what is said where memory does not hold them; knows nothing of what is in a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from gistlm.errors import InputError

BATCH_TOKENS = 16_384
"""Most tokens of a batch, padding included, by default: see `benchmarks/memory.py`."""
_NO_MEMORY = ("OutOfMemory", "MemoryError", "can't allocate memory", "out of memory")
"""What errors of torch say of it, or are called."""


def batches(widths: Sequence[Sequence[int]], rows: int, tokens: int) -> Iterator[list[int]]:
    """The rows' places in their order, by batch: at most so many rows and so many tokens, padding included.

    widths: of every row, the tokens of its parts, each of which is padded to the batch's longest. A row that has more
    tokens than a batch may have runs alone. Raises `InputError` for a bound that is no whole number of 1 or more.
    """
    for name, most in (("batch_size", rows), ("batch_tokens", tokens)):
        if type(most) is not int or most < 1:
            raise InputError(f"{name} must be a whole number of 1 or more, got {most!r}")
    batch, width = list[int](), list[int]()
    for place, parts in enumerate(widths):
        padded = [max(pair) for pair in zip(width or parts, parts, strict=True)]
        if batch and (len(batch) == rows or sum(padded) * (len(batch) + 1) > tokens):
            yield batch
            batch, padded = [], list(parts)
        batch.append(place)
        width = padded
    if batch:
        yield batch


@contextmanager
def within_memory() -> Iterator[None]:
    """Raises `InputError` where torch cannot get the memory that a batch takes."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        names = (type(error).__name__, str(error))
        if not any(sign in name for name in names for sign in _NO_MEMORY):
            raise
        raise InputError(
            "there is not enough memory to run these texts; shorten them, or give fewer at a time (see batch_size and "
            "batch_tokens)"
        ) from error
