"""What a report shows of result files: its numbers, and its tables of them as text; knows no page and runs no model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gistlm.errors import DataError
from gistlm.evaluation.results import label, read_results
from gistlm.evaluation.statistics import Interval, LengthGroup, by_length, paired_differences

Values = dict[str, Any]
"""A result as `results.read_results` gives it."""

METRICS = {
    "nll": "likelihood of the references (negative log-likelihood, nats a token; less is better)",
    "kl": "divergence from the full prompt's model on the references (KL, nats a token; less is better)",
    "agreement": "same likeliest token as with the full prompt, on the references (fraction; more is better)",
    "answer_kl": "divergence on the full prompt's own answers (KL, nats a token; less is better)",
    "answer_agreement": "same likeliest token, on the full prompt's own answers (fraction; more is better)",
    "rouge1": "ROUGE-1 of answers against the references (F1; more is better)",
    "rouge2": "ROUGE-2 of answers against the references (F1; more is better)",
    "rougeL": "ROUGE-L of answers against the references (F1; more is better)",
    "answer_rouge1": "ROUGE-1 of answers against those of the full prompt (F1; more is better)",
    "answer_rouge2": "ROUGE-2 of answers against those of the full prompt (F1; more is better)",
    "answer_rougeL": "ROUGE-L of answers against those of the full prompt (F1; more is better)",
    "exact_match": "answers equal to the references (fraction; more is better)",
}
"""metric -> what it is."""
DRAWN = ("nll", "kl", "answer_kl")
"""Metrics whose gap closed is drawn."""
MAX_FILES = 16
"""More do not fit into one picture."""
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Result:
    """A result file."""

    path: Path
    title: str
    """Model and data; no two results of one report have the same."""
    values: Values


@dataclass(frozen=True)
class Point:
    """One condition under one metric."""

    name: str
    k: int
    compression: float
    """Prompt tokens for each token in their place."""
    kv_bytes: int
    gap_closed: float
    """From no prompt (0) to full prompt (1)."""
    interval: Interval
    """The gap closed twice where none is known."""


@dataclass(frozen=True)
class Score:
    """Right answers of one kind under one condition."""

    correct: int
    n: int
    accuracy: float
    interval: Interval
    """Wilson's."""


def gather(paths: Sequence[str | Path]) -> list[Result]:
    """Read result files in their order.

    Raises `DataError` for a file given twice, for one that is no result, and for more than `MAX_FILES`.
    """
    given = [Path(path).resolve() for path in paths]
    if twice := next((path for path, whole in zip(paths, given, strict=True) if given.count(whole) > 1), None):
        raise DataError(f"{twice} is given twice; name each result once")
    if len(paths) > MAX_FILES:
        raise DataError(f"a report shows at most {MAX_FILES} results, got {len(paths)}; make several reports")
    found = [_printable(read_results(path)) for path in paths]
    for path, values in zip(paths, found, strict=True):
        _check_controls(path, values)
    titles = _told_apart([title(values) for values in found], [Path(path).name for path in paths])
    return [Result(Path(path), *each) for path, *each in zip(paths, titles, found, strict=True)]


def title(values: Values) -> str:
    """Model and data."""
    name, data = _one_line(values["model"]["name"]), values["data"]
    return f"{name} on {_one_line(data['name'])}" if data["rows"] else name


def origin(result: Result) -> list[tuple[str, str]]:
    """Where the numbers come from: names and what they are."""
    values = result.values
    run, data, model, settings = (values[part] for part in ("run", "data", "model", "settings"))
    machine = ", ".join(f"{name} {_one_line(str(value))}" for name, value in run["machine"].items())
    facts = [("file", result.path.name), ("command", run["command"]), ("date", run["date"]), ("machine", machine)]
    facts.append(
        (
            "model",
            f"{model['name']}, {model['dtype']}, {model['kv_bytes_per_token']:,} bytes of keys and values a token, "
            f"fingerprint {model['fingerprint'][:12]}, adapter {model['adapter'][:12]}",
        )
    )
    if data["rows"]:
        left_out = f", {data['skipped']:,} longer ones left out" if data["skipped"] else ""
        tokens = f"{data['output_tokens']:,} tokens of references"
        answers = f", {data['answer_tokens']:,} of the full prompt's answers" if data["answer_tokens"] else ""
        facts.append(("data", f"{data['name']}: {data['rows']:,} rows{left_out}, {tokens}{answers}"))
    drawn = f"; intervals from {settings['resamples']:,} resamples of the rows" if data["rows"] else ""
    facts.append(("seed", f"{settings['seed']}{drawn}"))
    facts += [(f"{name} was skipped", reason) for name, reason in values["skipped"].items()]
    return facts


def origin_line(result: Result) -> str:
    """The same in a few words, beside a picture."""
    values = result.values
    rows = f"{values['data']['rows']:,} rows, " if values["data"]["rows"] else ""
    cpu = values["run"]["machine"].get("cpu")
    where = f", {_one_line(str(cpu))}" if cpu else ""
    return f"{rows}seed {values['settings']['seed']}, {_one_line(values['run']['date'])}{where}"


def points(values: Values, metric: str) -> dict[str, list[Point]]:
    """Gists and baselines by name, each by growing k, where the metric has a gap."""
    found: dict[str, list[Point]] = {}
    for condition in values["conditions"]:
        figures = condition["metrics"].get(metric, {})
        closed, compression = figures.get("gap_closed"), condition["compression"]
        if condition["k"] is None or closed is None or compression is None or compression <= 0:
            continue
        interval = tuple(figures["gap_closed_95"] or (closed, closed))
        sizes = compression, condition["kv_bytes"]
        found.setdefault(condition["name"], []).append(
            Point(condition["name"], condition["k"], *sizes, closed, interval)
        )
    return {name: sorted(some, key=lambda point: point.k) for name, some in found.items()}


def drawn_metrics(values: Values) -> list[str]:
    """Those of `DRAWN` for which a result has points."""
    return [metric for metric in DRAWN if points(values, metric)]


def control_bytes(values: Values, name: str) -> int:
    """KV bytes of the full prompt, or of no prompt; a mean over rows."""
    return next(int(row["kv_bytes"]) for row in values["conditions"] if row["name"] == name)


def retention(values: Values) -> tuple[list[str], list[str], dict[tuple[str, str], Score]] | None:
    """Kinds of content, conditions, and scores by both; None where nothing was probed."""
    entries = values["retention"]
    if not entries:
        return None
    kinds = list(dict.fromkeys(entry["kind"] for entry in entries))
    conditions = list(dict.fromkeys(entry["condition"] for entry in entries))
    scores = {
        (entry["kind"], entry["condition"]): Score(
            entry["correct"], entry["n"], entry["score"], (entry["score_95"][0], entry["score_95"][1])
        )
        for entry in entries
    }
    return kinds, conditions, scores


def examples(values: Values) -> list[dict[str, str]]:
    """Texts of the rows that have answers, by name: prompt, input, reference, and each condition's answer."""
    return [
        {**{name: example[name] for name in ("prompt", "input", "reference")}, **example["answers"]}
        for example in values["examples"]
        if example["answers"]
    ]


def metrics_of(results: Sequence[Result]) -> list[tuple[str, str]]:
    """The metrics that any result has, and what they are."""
    conditions = [condition for result in results for condition in result.values["conditions"]]
    found = {name for condition in conditions for name in condition["metrics"]}
    return [(name, text) for name, text in METRICS.items() if name in found]


def percent(fraction: float) -> str:
    """For example "75 %"; never minus zero."""
    return f"{round(100 * fraction):,} %"


def _check_controls(path: str | Path, values: Values) -> None:
    """Raise `DataError` where a gap closed could not be computed again."""
    conditions = values["conditions"]
    missing = {"full", "none"} - {condition["name"] for condition in conditions} if conditions else set()
    whole = [condition["metrics"].keys() for condition in conditions]
    labels = [label(condition["name"], condition["k"]) for condition in conditions]
    rows = all(
        row["metrics"].get(name, {}).keys() == metrics
        for row in values["rows"]
        for name, metrics in zip(labels, whole, strict=True)
    )
    if missing or not rows or any(metrics != whole[0] for metrics in whole):
        lacks = " and ".join(sorted(missing)) or "some conditions' figures"
        raise DataError(f"{path} is no whole result: it lacks {lacks}; run `gistlm eval` again")


def _told_apart(titles: Sequence[str], files: Sequence[str]) -> list[str]:
    """Titles that occur several times get their file's name, and where even that is the same, a number."""
    counts, seen, found = Counter(titles), Counter[str](), list[str]()
    for name, file in zip(titles, files, strict=True):
        longer = name if counts[name] == 1 else f"{name} ({_one_line(file)})"
        seen[longer] += 1
        found.append(longer if seen[longer] == 1 else f"{longer}, {seen[longer]}")
    return found


def _printable(value: Any) -> Any:
    """The same with every text free of characters that no page can hold."""
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\ufffd", value.replace("\r\n", "\n").replace("\r", "\n"))
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else value


def _one_line(text: str) -> str:
    return " ".join(text.split())


_ON_REFERENCES = ("nll", "kl", "agreement")
_FIGURES = "value (gap closed between no prompt and full prompt, 95 % interval)"


@dataclass(frozen=True)
class Table:
    """Cells of text; the first of a row names it."""

    caption: str
    head: list[str]
    rows: list[list[str]]


def tables(values: Values) -> list[Table]:
    """Every table of a result."""
    return [*_conditions(values), *_paired_differences(values), *_lengths(values), *_retention(values), *_judge(values)]


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
    """The controls close 0 and 1 of the gap by definition, which is left out."""
    value, closed, interval = figures["value"], figures["gap_closed"], figures["gap_closed_95"]
    return f"{value + 0.0:.3f}" + (f" ({_percent(closed, interval)})" if measured and closed is not None else "")


def _percent(fraction: float, interval: Sequence[float] | None) -> str:
    return percent(fraction) + (f", {round(100 * interval[0])} to {percent(interval[1])}" if interval else "")


def _paired_differences(values: Values) -> list[Table]:
    found = []
    for metric in drawn_metrics(values):
        if differences := paired_differences(values, metric):
            baselines = dict.fromkeys(each.baseline for each in differences)
            compared = {each.k: each.rows for each in differences}
            cells = {(each.baseline, each.k): str(each) for each in differences}
            caption = (
                f"{metric}: paired difference, gist less each baseline of the same bytes, in points of the gap, on "
                "longer prompts than k (95 % interval; not significant where that includes 0)"
            )
            rows = [[name, *(cells.get((name, k), "") for k in compared)] for name in baselines]
            head = ["baseline", *(f"{label('gist', k)}, {count} rows" for k, count in compared.items())]
            found.append(Table(caption, head, rows))
    return found


def _lengths(values: Values) -> list[Table]:
    found = []
    for metric in drawn_metrics(values):
        if groups := by_length(values, metric):
            columns = list(zip(*groups.values(), strict=True))
            caption = f"{metric} by prompt length: gap closed (95 % interval), pooled over a group's rows"
            rows = [[group[0].lengths, str(group[0].rows), *map(_gap_closed, group)] for group in columns]
            found.append(Table(caption, ["prompt tokens", "rows", *groups], rows))
    return found


def _gap_closed(group: LengthGroup) -> str:
    return "no gap" if group.gap_closed is None else _percent(group.gap_closed, group.interval)


def _retention(values: Values) -> list[Table]:
    probed = retention(values)
    if probed is None:
        return []
    kinds, conditions, scores = probed
    rows = [[kind, *(_score(scores.get((kind, each))) for each in conditions)] for kind in kinds]
    return [Table("Retention: right answers of all, by kind of content (95 % interval)", ["kind", *conditions], rows)]


def _score(score: Score | None) -> str:
    return f"{score.correct} of {score.n} ({_percent(score.accuracy, score.interval)})" if score else ""


def _judge(values: Values) -> list[Table]:
    head = ["condition", "against", "wins", "ties", "losses", "verdicts of another form", "win rate (95 %)"]
    rows = [
        [
            *(str(entry[name]) for name in ("condition", "against", "wins", "ties", "losses")),
            str(entry["nonsense"]),
            _percent(entry["win_rate"], entry["win_rate_95"]),
        ]
        for entry in values["judge"] or []
    ]
    return [Table("The judge's verdicts; a tie is half a win", head, rows)] if rows else []


def answers(values: Values) -> Table | None:
    """The texts of `examples` side by side; None where there are none."""
    found = examples(values)
    if not found:
        return None
    names = list(dict.fromkeys(name for example in found for name in example))
    rows = [[str(place), *(example.get(name, "") for name in names)] for place, example in enumerate(found, 1)]
    return Table("Answers side by side, of the file's first rows", ["example", *names], rows)
