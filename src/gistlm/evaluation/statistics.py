"""What a result's rows say: the share of the gap closed, with its interval; paired differences; groups by length.

The share of a gap closed is (none - x) / (none - full): between no prompt and full prompt. Its interval is a paired
bootstrap over rows. Needs numpy alone; draws nothing and runs no model.

Two intervals that overlap can hide a significant difference, because both conditions find the same rows hard. A paired
difference is that of two shares, (baseline - gist) / (none - full), and its bootstrap draws the same rows for all four.
Only rows with a prompt of more tokens than the gist are compared: a shorter one is not compressed, and every baseline,
and a gist with kept tokens, holds it whole.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gistlm.evaluation.results import label

WEIGHTS = {
    "nll": "output_tokens", "kl": "output_tokens", "agreement": "output_tokens", "answer_kl": "answer_tokens",
    "answer_agreement": "answer_tokens",
}  # fmt: skip
"""metric -> the tokens of a row over which it is a mean; all other metrics are one score a row."""
_MOST_DRAWS = 1 << 24


def measured(rows: Sequence[dict[str, Any]], metric: str) -> set[str]:
    """Labels of the conditions that have the metric in every row; none without rows."""
    each = [{name for name, own in row["metrics"].items() if metric in own} for row in rows]
    return set.intersection(*each) if each else set()


def row_weights(rows: Sequence[dict[str, Any]], metric: str) -> Floats:
    """[rows]: how many tokens a row's own value is a mean over, or 1."""
    return np.array([row[WEIGHTS[metric]] if metric in WEIGHTS else 1 for row in rows], dtype=np.float64)


def row_sums(rows: Sequence[dict[str, Any]], metric: str, condition: str) -> Floats:
    """[rows]: a condition's own values, times their weights."""
    values = np.array([row["metrics"][condition][metric] for row in rows], dtype=np.float64)
    return row_weights(rows, metric) * values


def row_counts(rows: Sequence[dict[str, Any]], values: dict[str, Any]) -> Floats:
    """[resamples, rows]: how often each resample draws a row, by the result's own seed and number of resamples."""
    settings = values["settings"]
    resamples = max(1, min(settings["resamples"], _MOST_DRAWS // len(rows)))
    return bootstrap_counts(len(rows), resamples, abs(settings["seed"]))


Floats = NDArray[np.float64]

SMALLEST_GAP = 1e-9
"""A smaller gap between no prompt and full prompt has no shares."""


def gap_closed(none: float, full: float, value: float) -> float | None:
    """The share of the gap between no prompt (0) and full prompt (1) that a value closes; None without a gap."""
    return None if abs(none - full) < SMALLEST_GAP else (none - value) / (none - full)


def pooled_gap(
    counts: Floats, weights: Floats, none: Floats, full: Floats, value: Floats
) -> tuple[float | None, tuple[float, float] | None]:
    """`gap_closed` of sums over all rows, and its `gap_interval`; no interval without a share. Arrays as there."""
    whole = max(1.0, float(weights.sum()))
    share = gap_closed(*(float(sums.sum()) / whole for sums in (none, full, value)))
    return share, None if share is None else gap_interval(counts, weights, none, full, value)


def bootstrap_counts(rows: int, resamples: int, seed: int) -> Floats:
    """How often each resample draws each row: [resamples, rows]; one table for all conditions makes them paired."""
    draws = np.random.default_rng(seed).integers(0, rows, (resamples, rows))
    flat = draws + np.arange(resamples)[:, None] * rows
    return np.bincount(flat.ravel(), minlength=resamples * rows).reshape(resamples, rows).astype(np.float64)


def gap_interval(
    counts: Floats, weights: Floats, none: Floats, full: Floats, value: Floats
) -> tuple[float, float] | None:
    """The middle 95 % of `gap_closed` over resamples; None where no resample has a gap.

    counts: [resamples, rows]; weights: [rows] tokens (or ones); none, full, value: sums [rows].
    """
    tokens = counts @ weights
    means = [np.divide(counts @ sums, tokens, out=np.zeros_like(tokens), where=tokens > 0) for sums in (none, full)]
    mine = np.divide(counts @ value, tokens, out=np.zeros_like(tokens), where=tokens > 0)
    gap = means[0] - means[1]
    usable = (np.abs(gap) >= SMALLEST_GAP) & (tokens > 0)
    if not usable.any():
        return None
    low, high = np.percentile((means[0] - mine)[usable] / gap[usable], [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Lead:
    """The gist's share of the gap less a baseline's at the same k, over rows with more prompt tokens than k."""

    k: int
    rival: str
    rows: int
    """That were compared."""
    share: float
    """1 is the whole gap; below 0 the baseline is ahead."""
    interval: tuple[float, float] | None
    """95 %, paired; None of a single row, and where no resample has a gap."""

    @property
    def standing(self) -> str:
        """ "ahead" or "behind" where the whole interval is on one side of 0, else "unsure"."""
        low, high = self.interval or (0.0, 0.0)
        return "ahead" if low > 0 else "behind" if high < 0 else "unsure"

    def __str__(self) -> str:
        """For example "21.4 (19.4 to 23.3)", in points of the gap; "unsure" and "behind" are said."""
        interval = f" ({_points(self.interval[0])} to {_points(self.interval[1])})" if self.interval else ""
        return f"{_points(self.share)}{interval}{'' if self.standing == 'ahead' else f', {self.standing}'}"


def compressed_rows(values: dict[str, Any], k: int) -> list[dict[str, Any]]:
    """A result's rows whose prompt has more than k tokens beside the opening."""
    return [row for row in values["rows"] if row["prompt_tokens"] - values["model"]["opening_tokens"] > k]


def leads(values: dict[str, Any], metric: str) -> list[Lead]:
    """Every gist's lead over every baseline of the same k, by k; empty without a gap or rows that a gist compresses."""
    has = measured(values["rows"], metric)
    found: list[Lead] = []
    for k in dict.fromkeys(each["k"] for each in values["conditions"] if each["name"] == "gist"):
        rows = compressed_rows(values, k)
        if not rows or not {"full", "none", label("gist", k)} <= has:
            continue
        counts, weights = row_counts(rows, values), row_weights(rows, metric)
        none, full, gist = (row_sums(rows, metric, condition) for condition in ("none", "full", label("gist", k)))
        rivals = [each["name"] for each in values["conditions"] if each["k"] == k and each["name"] != "gist"]
        for rival in (name for name in rivals if label(name, k) in has):
            lag = row_sums(rows, metric, label(rival, k)) - gist
            # none - (none - lag) is the lag: a lead is what a condition that is better by it would close
            share, interval = pooled_gap(counts, weights, none, full, none - lag)
            if share is not None:
                found.append(Lead(k, rival, len(rows), share, interval if len(rows) > 1 else None))
    return found


def _points(share: float) -> str:
    """Three digits, so that none hides on which side of 0 it is."""
    return f"{100 * share:.3g}"


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
