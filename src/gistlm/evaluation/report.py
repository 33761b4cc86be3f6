"""What a report shows of result files, as plain numbers; draws nothing, writes nothing and runs no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from gistlm.errors import DataError
from gistlm.evaluation.results import label, read_results

Result = dict[str, Any]

METRICS = {
    "nll": "likelihood of the references (negative log-likelihood, nats a token; less is better)",
    "kl": "divergence from the full prompt's model on the references (KL, nats a token; less is better)",
    "agreement": "same likeliest token as with the full prompt, on the references (share; more is better)",
    "answer_kl": "divergence on the full prompt's own answers (KL, nats a token; less is better)",
    "answer_agreement": "same likeliest token, on the full prompt's own answers (share; more is better)",
    "rouge1": "ROUGE-1 of answers against the references (F1; more is better)",
    "rouge2": "ROUGE-2 of answers against the references (F1; more is better)",
    "rougeL": "ROUGE-L of answers against the references (F1; more is better)",
    "answer_rouge1": "ROUGE-1 of answers against those of the full prompt (F1; more is better)",
    "answer_rouge2": "ROUGE-2 of answers against those of the full prompt (F1; more is better)",
    "answer_rougeL": "ROUGE-L of answers against those of the full prompt (F1; more is better)",
    "exact_match": "answers equal to the references (share; more is better)",
}
"""metric -> what it is."""
DRAWN = ("nll", "kl", "answer_kl")
"""Metrics whose share of the gap is drawn."""
BINS = 4
"""Groups of prompt lengths, of as many rows each."""
_ROW_WEIGHTS = {"nll": "output_tokens", "kl": "output_tokens", "answer_kl": "answer_tokens"}


@dataclass(frozen=True)
class Point:
    """One condition under one metric."""

    name: str
    k: int
    compression: float
    """Prompt tokens for each token in their place."""
    kv_bytes: int
    share: float
    """Of the gap between no prompt (0) and full prompt (1)."""
    interval: tuple[float, float]
    """95 %; the share twice where none is known."""


@dataclass(frozen=True)
class Bin:
    """Rows of like prompt lengths."""

    shortest: int
    longest: int
    """Tokens."""
    rows: int
    share: float | None
    """None where full prompt and no prompt do as well."""


def gather(paths: Sequence[str | Path]) -> list[Result]:
    """Read result files in their order. Raises `DataError` for one given twice or that is no result."""
    given = [Path(path).resolve() for path in paths]
    if twice := next((path for path, whole in zip(paths, given, strict=True) if given.count(whole) > 1), None):
        raise DataError(f"{twice} is given twice; name each result once")
    results = [read_results(path) for path in paths]
    for path, result in zip(paths, results, strict=True):
        _check_controls(path, result)
    return results


def _check_controls(path: str | Path, result: Result) -> None:
    """Raise `DataError` where a share of the gap could not be computed again."""
    conditions = result["conditions"]
    missing = {"full", "none"} - {condition["name"] for condition in conditions} if conditions else set()
    whole = [condition["metrics"].keys() for condition in conditions]
    labels = [label(condition["name"], condition["k"]) for condition in conditions]
    rows = all(
        row["metrics"].get(name, {}).keys() == metrics
        for row in result["rows"]
        for name, metrics in zip(labels, whole, strict=True)
    )
    if missing or not rows or any(metrics != whole[0] for metrics in whole):
        lacks = " and ".join(sorted(missing)) or "some conditions' figures"
        raise DataError(f"{path} is no whole result: it lacks {lacks}; run `gistlm eval` again")


def title(result: Result) -> str:
    """Model and data."""
    data = result["data"]
    return f"{result['model']['name']} on {data['name']}" if data["rows"] else result["model"]["name"]


def origin(result: Result) -> str:
    """Where the numbers come from."""
    run, data, settings = result["run"], result["data"], result["settings"]
    machine = run["machine"]
    where = f"{machine.get('cpu', 'an unknown machine')}, {machine.get('threads', '?')} threads"
    return f"{data['rows']} rows, seed {settings['seed']}. {run['command']}; {run['date']}; {where}."


def drawn_metrics(result: Result) -> list[str]:
    """Those of `DRAWN` that a result has."""
    known = {metric for condition in result["conditions"] for metric in condition["metrics"]}
    return [metric for metric in DRAWN if metric in known]


def points(result: Result, metric: str) -> dict[str, list[Point]]:
    """Gists and baselines by name, each by growing k, where the metric has a gap."""
    found: dict[str, list[Point]] = {}
    for condition in result["conditions"]:
        figures = condition["metrics"].get(metric, {})
        share = figures.get("gap_closed")
        if condition["k"] is None or share is None or not condition["compression"]:
            continue
        low, high = figures["gap_closed_95"] or (share, share)
        place = condition["compression"], condition["kv_bytes"]
        found.setdefault(condition["name"], []).append(
            Point(condition["name"], condition["k"], *place, share, (low, high))
        )
    return {name: sorted(some, key=lambda point: point.k) for name, some in found.items()}


def by_length(result: Result, metric: str) -> dict[str, list[Bin]]:
    """For the gist at every k, the share of the gap closed over rows of like prompt length, shortest first.

    Means are over the tokens of a bin's rows, as they are over those of all rows.
    """
    rows = sorted(result["rows"], key=lambda row: int(row["prompt_tokens"]))
    names = [label("gist", k) for k in result["settings"]["k"]]
    names = [name for name in names if rows and metric in rows[0]["metrics"].get(name, {})]
    edges = [round(place * len(rows) / BINS) for place in range(BINS + 1)]
    groups = [rows[start:end] for start, end in pairwise(edges) if end > start]
    return {name: [_bin(group, metric, name) for group in groups] for name in names}


def _bin(rows: Sequence[dict[str, Any]], metric: str, name: str) -> Bin:
    weights = [row[_ROW_WEIGHTS[metric]] for row in rows]

    def total(condition: str) -> float:
        each = (row["metrics"][condition][metric] for row in rows)
        return float(sum(weight * value for weight, value in zip(weights, each, strict=True)))

    none, full, own = total("none"), total("full"), total(name)
    lengths = [int(row["prompt_tokens"]) for row in rows]
    gap = none - full
    return Bin(min(lengths), max(lengths), len(rows), (none - own) / gap if abs(gap) > 1e-9 else None)


def full_bytes(result: Result) -> int:
    """KV bytes of the full prompt, a mean over rows."""
    return next(int(row["kv_bytes"]) for row in result["conditions"] if row["name"] == "full")


def retention(result: Result) -> tuple[list[str], list[str], list[list[float]]] | None:
    """Kinds of content, conditions, and scores [kinds][conditions]; None where nothing was probed."""
    entries = result["retention"]
    if not entries:
        return None
    kinds = list(dict.fromkeys(entry["kind"] for entry in entries))
    conditions = list(dict.fromkeys(entry["condition"] for entry in entries))
    scores: dict[tuple[str, str], list[float]] = {}
    for entry in entries:
        scores.setdefault((entry["kind"], entry["condition"]), []).append(entry["score"])
    empty = [float("nan")]
    return kinds, conditions, [[mean(scores.get((kind, each), empty)) for each in conditions] for kind in kinds]


def tables(result: Result) -> list[tuple[str, list[str], list[list[str]]]]:
    """Every table of a result: caption, head and rows."""
    found = []
    if result["conditions"]:
        names = list(result["conditions"][0]["metrics"])
        rows = [_condition_row(condition, names) for condition in result["conditions"]]
        caption = "Every condition: value, and share of the gap between no prompt and full prompt (95 % interval)"
        found.append((caption, ["condition", "KV bytes a prompt", "compression", *names], rows))
    if probed := retention(result):
        kinds, conditions, scores = probed
        each = result["retention"][0]["n"]
        rows = [[kind, *(f"{score:.0%}" for score in row)] for kind, row in zip(kinds, scores, strict=True)]
        found.append((f"Retention: right answers by kind of content, {each} probes each", ["kind", *conditions], rows))
    if result["judge"]:
        head = ["condition", "against", "wins", "ties", "losses", "win rate (95 %)"]
        found.append(("The judge's verdicts", head, [_judge_row(entry) for entry in result["judge"]]))
    return found


def _condition_row(condition: dict[str, Any], names: Sequence[str]) -> list[str]:
    compression = condition["compression"]
    cells = [label(condition["name"], condition["k"]), f"{condition['kv_bytes']:,}"]
    cells.append("" if compression is None else f"{compression:.1f}x")
    return cells + [_figures(condition["metrics"].get(name)) for name in names]


def _figures(figures: dict[str, Any] | None) -> str:
    if figures is None:
        return ""
    if figures["gap_closed"] is None:
        return f"{figures['value']:.3f}"
    interval = figures["gap_closed_95"]
    inner = f"{figures['gap_closed']:.0%}" + (f", {interval[0]:.0%} to {interval[1]:.0%}" if interval else "")
    return f"{figures['value']:.3f} ({inner})"


def _judge_row(entry: dict[str, Any]) -> list[str]:
    low, high = entry["win_rate_95"]
    counts = [str(entry[name]) for name in ("wins", "ties", "losses")]
    return [entry["condition"], entry["against"], *counts, f"{entry['win_rate']:.0%} ({low:.0%} to {high:.0%})"]
