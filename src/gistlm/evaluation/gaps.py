"""How much of the gap between no prompt and full prompt is closed, with its interval; needs numpy alone.

The share of a gap closed is (none - x) / (none - full), with an interval from a paired bootstrap over rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
