"""How far a gist is ahead of each baseline of the same bytes, row by row; draws nothing and runs no model.

Two intervals that overlap can hide a sure difference, because both conditions find the same rows hard. A lead is the
difference of the two shares of the gap, (baseline - gist) / (none - full), and its interval is a bootstrap that draws
the same rows for all four. Only rows with a prompt of more tokens than the gist are compared: a shorter one is not
compressed, and every baseline, and a gist that keeps tokens, holds it whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gistlm.evaluation.gaps import pooled_gap
from gistlm.evaluation.pooled import measured, row_counts, row_sums, row_weights
from gistlm.evaluation.results import label


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
