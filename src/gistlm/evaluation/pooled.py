"""The rows of a result as sums that can be drawn and pooled again; knows no condition and runs no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gistlm.evaluation.gaps import Floats, bootstrap_counts

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
