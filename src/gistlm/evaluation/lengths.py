"""The gist's share of the gap over rows whose prompts are of like length; draws nothing and runs no model."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gistlm.evaluation.gaps import Floats, pooled_gap
from gistlm.evaluation.pooled import measured, row_counts, row_sums, row_weights
from gistlm.evaluation.results import label

BINS = 4
"""Most groups of prompt lengths."""
BIN_ROWS = 10
"""Fewer groups are made where they would have fewer rows than this on average."""


@dataclass(frozen=True)
class Bin:
    """Rows of like prompt lengths."""

    shortest: int
    longest: int
    """Tokens, the template's opening included."""
    rows: int
    share: float | None
    """None where full prompt and no prompt do as well."""
    interval: tuple[float, float] | None
    """95 %, of a bootstrap over these rows."""

    @property
    def lengths(self) -> str:
        """For example "12 to 15"."""
        return str(self.shortest) if self.shortest == self.longest else f"{self.shortest} to {self.longest}"


def by_length(values: dict[str, Any], metric: str) -> dict[str, list[Bin]]:
    """For the gist at every k, the share of the gap closed over rows of like prompt length, shortest first.

    Means are pooled as they are over all rows: over tokens for token metrics, over rows for the others.
    """
    conditions = values["conditions"]
    gists = sorted(each["k"] for each in conditions if each["name"] == "gist" and each["k"] is not None)
    names = [label("gist", k) for k in gists]
    has = measured(values["rows"], metric)
    names = [name for name in names if name in has]
    found: dict[str, list[Bin]] = {}
    for rows in like_lengths(values["rows"]):
        counts = row_counts(rows, values)
        for name in names:
            found.setdefault(name, []).append(_bin(rows, metric, name, counts))
    return found


def like_lengths(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows in groups cut at the quantiles of prompt length, so that prompts of one length are in one group."""
    lengths = sorted(row["prompt_tokens"] for row in rows)
    bins = max(1, min(BINS, len(rows) // BIN_ROWS))
    starts = [lengths[len(rows) * place // bins] for place in range(1, bins)]
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(bisect_right(starts, row["prompt_tokens"]), []).append(row)
    return [groups[place] for place in sorted(groups)]


def _bin(rows: Sequence[dict[str, Any]], metric: str, name: str, counts: Floats) -> Bin:
    weights = row_weights(rows, metric)
    none, full, mine = (row_sums(rows, metric, condition) for condition in ("none", "full", name))
    share, interval = pooled_gap(counts, weights, none, full, mine)
    lengths = [row["prompt_tokens"] for row in rows]
    return Bin(min(lengths), max(lengths), len(rows), share, interval)
