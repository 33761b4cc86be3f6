"""How many tokens a gist may have, and how long its prompt may be; takes plain values and loads no torch."""

from __future__ import annotations

from gistlm.errors import InputError

READ_AGAIN = 8
"""Most of a prompt's tokens that are read once more behind the gist tokens, to choose the ones to keep."""


def check_k(k: object, largest: int) -> None:
    """Raise `InputError` unless k gist tokens can be made."""
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= largest:
        raise InputError(f"k is the number of gist tokens, from 1 to {largest} for this checkpoint; got {k!r}")


def longest_prompt(context: int, k: int, learned: int, kept: int, probes: int) -> int:
    """The most tokens, opening included, that a prompt may have for a gist of k tokens.

    context: positions of the model; learned, kept: the checkpoint's most of either; probes: columns that are run behind
    the gist tokens where tokens are kept.
    """
    behind = learned + READ_AGAIN + probes if kept else 0
    return context - max(k, behind) - 1
