"""What a result's rows say: gap closed with its interval, paired differences, groups by prompt length; runs no model.

The gap is that between no prompt and full prompt. A value x closes (none - x) / (none - full) of it, with an interval
from a paired bootstrap over rows.

Two intervals that overlap can hide a significant difference, because both conditions find the same rows hard. The
paired difference of gist and baseline is (baseline - gist) / (none - full), and its bootstrap draws the same rows for
all four. Only rows with a prompt of more tokens than the gist are compared: a shorter one is not compressed, and every
baseline, and a gist with kept tokens, holds it whole.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gistlm.evaluation.results import label

Floats = NDArray[np.float64]
Interval = tuple[float, float]
"""Of 95 %: its ends."""

WEIGHTS = {
    "nll": "output_tokens", "kl": "output_tokens", "agreement": "output_tokens", "answer_kl": "answer_tokens",
    "answer_agreement": "answer_tokens",
}  # fmt: skip
"""metric -> the tokens of a row over which it is a mean; all other metrics are one score a row."""
SMALLEST_GAP = 1e-9
"""A smaller difference between no prompt and full prompt is no gap."""
GROUPS = 4
"""Maximum number of groups of prompt lengths."""
GROUP_ROWS = 10
"""Fewer groups are made where they would have fewer rows than this on average."""
Z_95 = 1.959964
"""The normal distribution's 97.5 % quantile."""
_MOST_DRAWS = 1 << 24


# Gap closed, of sums [rows] over each row's tokens


def gap_closed(none: float, full: float, value: float) -> float | None:
    """How much of the way from no prompt (0) to full prompt (1) a value goes; None without a gap."""
    return None if abs(none - full) < SMALLEST_GAP else (none - value) / (none - full)


def pooled_gap(
    counts: Floats, weights: Floats, none: Floats, full: Floats, value: Floats
) -> tuple[float | None, Interval | None]:
    """`gap_closed` of sums over all rows, and its `gap_interval`; neither without a gap. Arrays as there."""
    whole = max(1.0, float(weights.sum()))
    closed = gap_closed(*(float(sums.sum()) / whole for sums in (none, full, value)))
    return closed, None if closed is None else gap_interval(counts, weights, none, full, value)


def gap_interval(counts: Floats, weights: Floats, none: Floats, full: Floats, value: Floats) -> Interval | None:
    """The middle 95 % of `gap_closed` over resamples; None where no resample has a gap.

    counts: [resamples, rows]; weights: [rows] tokens (or ones); none, full, value: sums [rows].
    """
    tokens = counts @ weights
    without, whole, own = (
        np.divide(counts @ sums, tokens, out=np.zeros_like(tokens), where=tokens > 0) for sums in (none, full, value)
    )
    gap = without - whole
    usable = (np.abs(gap) >= SMALLEST_GAP) & (tokens > 0)
    if not usable.any():
        return None
    low, high = np.percentile((without - own)[usable] / gap[usable], [2.5, 97.5])
    return float(low), float(high)


def bootstrap_counts(rows: int, resamples: int, seed: int) -> Floats:
    """How often each resample draws each row: [resamples, rows]; one table for all conditions makes them paired."""
    draws = np.random.default_rng(seed).integers(0, rows, (resamples, rows))
    flat = draws + np.arange(resamples)[:, None] * rows
    return np.bincount(flat.ravel(), minlength=resamples * rows).reshape(resamples, rows).astype(np.float64)


def wilson(successes: float, n: int) -> list[float]:
    """The 95 % interval of a proportion (Wilson 1927); with half successes it is a little wider than need be."""
    proportion, spread = successes / n, Z_95**2 / n
    middle = (proportion + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (proportion * (1 - proportion) + spread / 4)) / (1 + spread)
    return [max(0.0, middle - half), min(1.0, middle + half)]


# The same, of rows as they stand in a result


def gap_over_rows(
    rows: Sequence[dict[str, Any]], metric: str, condition: str, counts: Floats
) -> tuple[float | None, Interval | None]:
    """`pooled_gap` of the condition with that label over some of a result's rows; counts: their `row_counts`."""
    none, full, own = (_row_sums(rows, metric, each) for each in ("none", "full", condition))
    return pooled_gap(counts, _row_weights(rows, metric), none, full, own)


def row_counts(rows: Sequence[dict[str, Any]], values: dict[str, Any]) -> Floats:
    """[resamples, rows]: how often each resample draws a row, by the result's own seed and number of resamples."""
    settings = values["settings"]
    resamples = max(1, min(settings["resamples"], _MOST_DRAWS // len(rows)))
    return bootstrap_counts(len(rows), resamples, abs(settings["seed"]))


def compressed_rows(values: dict[str, Any], k: int) -> list[dict[str, Any]]:
    """A result's rows whose prompt has more than k tokens beside the opening."""
    return [row for row in values["rows"] if row["prompt_tokens"] - values["model"]["opening_tokens"] > k]


def _measured(rows: Sequence[dict[str, Any]], metric: str) -> set[str]:
    """Labels of the conditions that have the metric in every row; none without rows."""
    each = [{name for name, own in row["metrics"].items() if metric in own} for row in rows]
    return set.intersection(*each) if each else set()


def _row_weights(rows: Sequence[dict[str, Any]], metric: str) -> Floats:
    """[rows]: how many tokens a row's own value is a mean over, or 1."""
    return np.array([row[WEIGHTS[metric]] if metric in WEIGHTS else 1 for row in rows], dtype=np.float64)


def _row_sums(rows: Sequence[dict[str, Any]], metric: str, condition: str) -> Floats:
    """[rows]: a condition's own values, times their weights."""
    values = np.array([row["metrics"][condition][metric] for row in rows], dtype=np.float64)
    return _row_weights(rows, metric) * values


# Paired differences


@dataclass(frozen=True)
class PairedDifference:
    """Gap closed by the gist less that by a baseline of the same k, over rows with more prompt tokens than k."""

    k: int
    baseline: str
    rows: int
    """That were compared."""
    difference: float
    """1 is the whole gap; below 0 the baseline is better."""
    interval: Interval | None
    """Paired; None of a single row, and where no resample has a gap."""

    @property
    def standing(self) -> str:
        """ "ahead" or "behind" where the whole interval is on one side of 0, else "not significant"."""
        low, high = self.interval or (0.0, 0.0)
        return "ahead" if low > 0 else "behind" if high < 0 else "not significant"

    def __str__(self) -> str:
        """For example "21.4 (19.4 to 23.3)", in points of the gap; "behind" and "not significant" are said."""
        interval = f" ({_points(self.interval[0])} to {_points(self.interval[1])})" if self.interval else ""
        return f"{_points(self.difference)}{interval}{'' if self.standing == 'ahead' else f', {self.standing}'}"


def paired_differences(values: dict[str, Any], metric: str) -> list[PairedDifference]:
    """Of every gist and every baseline of the same k, by k; empty without a gap or rows that a gist compresses."""
    has = _measured(values["rows"], metric)
    found: list[PairedDifference] = []
    for k in dict.fromkeys(each["k"] for each in values["conditions"] if each["name"] == "gist"):
        rows = compressed_rows(values, k)
        if not rows or not {"full", "none", label("gist", k)} <= has:
            continue
        counts, weights = row_counts(rows, values), _row_weights(rows, metric)
        none, full, gist = (_row_sums(rows, metric, condition) for condition in ("none", "full", label("gist", k)))
        names = [each["name"] for each in values["conditions"] if each["k"] == k and each["name"] != "gist"]
        for baseline in (name for name in names if label(name, k) in has):
            less = _row_sums(rows, metric, label(baseline, k)) - gist
            # none - (none - less) is less: what a condition closes that is better than none by the difference
            difference, interval = pooled_gap(counts, weights, none, full, none - less)
            if difference is not None:
                found.append(PairedDifference(k, baseline, len(rows), difference, interval if len(rows) > 1 else None))
    return found


def _points(fraction: float) -> str:
    """Three digits, so that none hides on which side of 0 it is."""
    return f"{100 * fraction:.3g}"


# Prompt length


@dataclass(frozen=True)
class LengthGroup:
    """Rows of like prompt length."""

    shortest: int
    longest: int
    """Tokens, the template's opening included."""
    rows: int
    gap_closed: float | None
    """None where full prompt and no prompt do as well."""
    interval: Interval | None
    """From a bootstrap over these rows."""

    @property
    def lengths(self) -> str:
        """For example "12 to 15"."""
        return str(self.shortest) if self.shortest == self.longest else f"{self.shortest} to {self.longest}"


def by_length(values: dict[str, Any], metric: str) -> dict[str, list[LengthGroup]]:
    """For the gist at every k, the gap closed over rows of like prompt length, shortest first.

    Means are pooled as they are over all rows: over tokens for token metrics, over rows for the others.
    """
    ks = sorted(each["k"] for each in values["conditions"] if each["name"] == "gist" and each["k"] is not None)
    has = _measured(values["rows"], metric)
    found: dict[str, list[LengthGroup]] = {}
    for rows in group_by_length(values["rows"]):
        counts, lengths = row_counts(rows, values), [row["prompt_tokens"] for row in rows]
        for name in (label("gist", k) for k in ks if label("gist", k) in has):
            closed = gap_over_rows(rows, metric, name, counts)
            found.setdefault(name, []).append(LengthGroup(min(lengths), max(lengths), len(rows), *closed))
    return found


def group_by_length(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows in groups cut at the quantiles of prompt length, so that prompts of one length are in one group."""
    lengths = sorted(row["prompt_tokens"] for row in rows)
    count = max(1, min(GROUPS, len(rows) // GROUP_ROWS))
    starts = [lengths[len(rows) * place // count] for place in range(1, count)]
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(bisect_right(starts, row["prompt_tokens"]), []).append(row)
    return [groups[place] for place in sorted(groups)]
