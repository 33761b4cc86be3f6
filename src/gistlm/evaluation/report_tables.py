"""A report's tables: every number as text, with what it is; computes nothing and knows no page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gistlm.evaluation import report
from gistlm.evaluation.leads import leads
from gistlm.evaluation.lengths import Bin, by_length
from gistlm.evaluation.report import Values, percent
from gistlm.evaluation.results import label

_ON_REFERENCES = ("nll", "kl", "agreement")
_FIGURES = "value (share of the gap between no prompt and full prompt that is closed, 95 % interval)"


@dataclass(frozen=True)
class Table:
    """Cells of text; the first of a row names it."""

    caption: str
    head: list[str]
    rows: list[list[str]]


def tables(values: Values) -> list[Table]:
    """Every table of a result."""
    return [*_conditions(values), *_leads(values), *_lengths(values), *_retention(values), *_judge(values)]


def _conditions(values: Values) -> list[Table]:
    conditions = values["conditions"]
    names = list(conditions[0]["metrics"]) if conditions else []
    parts = {
        "On the references": [name for name in names if name in _ON_REFERENCES],
        "On generated answers": [name for name in names if name not in _ON_REFERENCES],
    }
    sizes = ["condition", "KV bytes a prompt", "compression"]
    return [
        Table(f"{where}: {_FIGURES}", sizes + some, [_condition_row(each, some) for each in conditions])
        for where, some in parts.items()
        if some
    ]


def _condition_row(condition: dict[str, Any], names: Sequence[str]) -> list[str]:
    compression = condition["compression"]
    cells = [label(condition["name"], condition["k"]), f"{condition['kv_bytes']:,}"]
    cells.append("" if compression is None else f"{compression:.1f}x")
    return cells + [_figures(condition["metrics"][name], condition["k"] is not None) for name in names]


def _figures(figures: dict[str, Any], measured: bool) -> str:
    """The controls' shares are 0 and 1 by definition and are left out."""
    value, share, interval = figures["value"], figures["gap_closed"], figures["gap_closed_95"]
    return f"{value + 0.0:.3f}" + (f" ({_share(share, interval)})" if measured and share is not None else "")


def _share(share: float, interval: Sequence[float] | None) -> str:
    return percent(share) + (f", {round(100 * interval[0])} to {percent(interval[1])}" if interval else "")


def _leads(values: Values) -> list[Table]:
    found = []
    for metric in report.drawn_metrics(values):
        ahead = leads(values, metric)
        if ahead:
            rivals, heads = dict.fromkeys(lead.rival for lead in ahead), {lead.k: lead.rows for lead in ahead}
            cells = {(lead.rival, lead.k): str(lead) for lead in ahead}
            caption = (
                f"{metric}: the gist's lead over each baseline of the same bytes, in points, on longer prompts than k"
            )
            rows = [[rival, *(cells.get((rival, k), "") for k in heads)] for rival in rivals]
            head = ["baseline", *(f"{label('gist', k)}, {count} rows" for k, count in heads.items())]
            found.append(Table(f"{caption} (95 % interval, paired by row; unsure where that reaches 0)", head, rows))
    return found


def _lengths(values: Values) -> list[Table]:
    found = []
    for metric in report.drawn_metrics(values):
        if groups := by_length(values, metric):
            columns = list(zip(*groups.values(), strict=True))
            caption = f"{metric} by prompt length: share of the gap closed (95 % interval), pooled over a group's rows"
            rows = [[bins[0].lengths, str(bins[0].rows), *map(_bin, bins)] for bins in columns]
            found.append(Table(caption, ["prompt tokens", "rows", *groups], rows))
    return found


def _bin(each: Bin) -> str:
    return "no gap" if each.share is None else _share(each.share, each.interval)


def _retention(values: Values) -> list[Table]:
    probed = report.retention(values)
    if probed is None:
        return []
    kinds, conditions, scores = probed
    rows = [[kind, *(_score(scores.get((kind, each))) for each in conditions)] for kind in kinds]
    return [Table("Retention: right answers of all, by kind of content (95 % interval)", ["kind", *conditions], rows)]


def _score(score: report.Score | None) -> str:
    return f"{score.correct} of {score.n} ({_share(score.share, score.interval)})" if score else ""


def _judge(values: Values) -> list[Table]:
    head = ["condition", "against", "wins", "ties", "losses", "verdicts of another form", "win rate (95 %)"]
    rows = [
        [
            *(str(entry[name]) for name in ("condition", "against", "wins", "ties", "losses")),
            str(entry["nonsense"]),
            _share(entry["win_rate"], entry["win_rate_95"]),
        ]
        for entry in values["judge"] or []
    ]
    return [Table("The judge's verdicts; a tie is half a win", head, rows)] if rows else []
