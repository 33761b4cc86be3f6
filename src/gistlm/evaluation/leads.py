"""How far a gist is ahead of each baseline of the same bytes, row by row; draws nothing and runs no model.

Two intervals that overlap can hide a sure difference, because both conditions find the same rows hard. A lead is the
difference of the two shares of the gap, (baseline - gist) / (none - full), and its interval is a bootstrap that draws
the same rows for all four. Only rows with a prompt of more tokens than the gist are compared: a shorter prompt fits
whole, and then every condition is the full prompt, rounding aside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gistlm.evaluation.gaps import pooled_gap
from gistlm.evaluation.pooled import measured, row_counts, row_sums, row_weights
from gistlm.evaluation.results import label


@dataclass(frozen=True)
class Lead:
    """The gist's share of the gap less a baseline's at the same k, over rows whose prompt does not fit whole."""

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


def leads(values: dict[str, Any], metric: str) -> list[Lead]:
    """Every gist's lead over every baseline of the same k, in the result's order; empty without a gap or rows
    that such a gist compresses.
    """
    has = measured(values["rows"], metric)
    if not {"full", "none"} <= has:
        return []
    found = []
    for each in values["conditions"]:
        name, k = each["name"], each["k"]
        if name == "gist" or not {label(name, k), label("gist", k)} <= has:
            continue
        rows = [row for row in values["rows"] if row["prompt_tokens"] - values["model"]["opening_tokens"] > k]
        if not rows:
            continue
        none, full = (row_sums(rows, metric, condition) for condition in ("none", "full"))
        lag = row_sums(rows, metric, label(name, k)) - row_sums(rows, metric, label("gist", k))
        # none - (none - lag) is the lag: a lead is what a condition that is better by it would close
        counts, weights = row_counts(rows, values), row_weights(rows, metric)
        share, interval = pooled_gap(counts, weights, none, full, none - lag)
        if share is not None:
            found.append(Lead(k, name, len(rows), share, interval if len(rows) > 1 else None))
    return found


def _points(share: float) -> str:
    """Three digits, so that none hides on which side of 0 it is."""
    return f"{100 * share:.3g}"
