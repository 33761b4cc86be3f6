"""How far a gist is ahead of each baseline of the same bytes, row by row; draws nothing and runs no model.

Two intervals that overlap can hide a sure difference, because both conditions find the same rows hard. A lead is the
difference of the two shares of the gap, (baseline - gist) / (none - full), and its interval is a bootstrap that draws
the same rows for all four.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gistlm.evaluation.gaps import gap_closed, gap_interval
from gistlm.evaluation.pooled import row_counts, row_sums, row_weights
from gistlm.evaluation.results import label


@dataclass(frozen=True)
class Lead:
    """The gist's share of the gap less a baseline's at the same k."""

    k: int
    rival: str
    share: float
    """1 is the whole gap; below 0 the baseline is ahead."""
    interval: tuple[float, float]
    """95 %, paired; the share twice where no resample has a gap."""

    @property
    def sure(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.interval[0] > 0


def leads(values: dict[str, Any], metric: str) -> list[Lead]:
    """Every gist's lead over every baseline of the same k, in the result's order; empty without a gap or rows."""
    rows = values["rows"]
    if not rows or any(metric not in row["metrics"].get("full", {}) for row in rows):
        return []
    weights, counts = row_weights(rows, metric), row_counts(rows, values)
    none, full = (row_sums(rows, metric, condition) for condition in ("none", "full"))
    whole = max(1.0, float(weights.sum()))
    gists = {each["k"] for each in values["conditions"] if each["name"] == "gist"}
    found = []
    for each in values["conditions"]:
        name, k = each["name"], each["k"]
        if name == "gist" or k not in gists:
            continue
        lag = row_sums(rows, metric, label(name, k)) - row_sums(rows, metric, label("gist", k))
        # none - (none - lag) is the lag: a lead is what a condition that is better by it would close
        share = gap_closed(*(float(sums.sum()) / whole for sums in (none, full, none - lag)))
        if share is not None:
            interval = gap_interval(counts, weights, none, full, none - lag)
            found.append(Lead(k, name, share, interval or (share, share)))
    return found
