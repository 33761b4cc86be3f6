"""Splits rows into batches, and reports a batch that does not fit into memory; knows nothing of a row's content."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from gistlm.errors import InputError

BATCH_TOKENS = 16_384
"""Default maximum number of tokens in a batch, padding included; measured by `benchmarks/memory.py`."""
_NO_MEMORY = ("OutOfMemory", "MemoryError", "can't allocate memory", "out of memory")
"""Parts of the names or messages of torch's errors for too little memory."""


def batches(widths: Sequence[Sequence[int]], rows: int, tokens: int) -> Iterator[list[int]]:
    """Batches as lists of row indices, in order, with at most ``rows`` rows and ``tokens`` tokens, padding included.

    widths: for every row, the number of tokens in each of its parts; each part is padded to the batch's longest. A row
    with more than ``tokens`` tokens is a batch of its own. Raises `InputError` for a maximum that is not an integer of
    at least 1.
    """
    for name, maximum in (("batch_size", rows), ("batch_tokens", tokens)):
        if type(maximum) is not int or maximum < 1:
            raise InputError(f"{name} must be a whole number of 1 or more, got {maximum!r}")
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
    """Turn torch's errors for too little memory into `InputError`."""
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
