"""One number for each row, condition and metric, and what is read off them; knows no engine and runs no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gistlm.data.rows import Row
from gistlm.evaluation import metrics
from gistlm.evaluation.conditions import FULL, NONE, EvalCondition
from gistlm.evaluation.results import EXAMPLES, Int, Plain, is_of
from gistlm.evaluation.statistics import WEIGHTS, Floats, bootstrap_counts, pooled_gap
from gistlm.prompt import PromptTokenizer

Ints = NDArray[np.int64]


class Part(Plain):
    """What was measured on some rows: a list of values has one for each."""

    answer_tokens: list[Int]
    held: dict[str, list[Int]]
    answers: dict[str, list[str]]
    sums: dict[str, dict[str, list[float]]]


class Measurements:
    """What was measured on rows; filled by a runner, row by row."""

    def __init__(self, rows: Sequence[Row], prompts: PromptTokenizer, labels: Sequence[str], generate: bool) -> None:
        self.rows = list(rows)
        self.prompt_tokens = _lengths(prompts.prompt_ids(row.prompt) for row in rows)
        """[rows], the opening included"""
        self.input_tokens = _lengths(prompts.rest_ids(row.input) for row in rows)
        """[rows]: all between prompt and output, the template's tokens included"""
        self.output_tokens = _lengths(prompts.output_ids(row.output) for row in rows)
        """[rows], the ending token included"""
        self.answer_tokens = np.zeros(len(rows), dtype=np.int64)
        """[rows]: of the full-prompt model's answers"""
        self.held: dict[str, Ints] = {name: np.zeros(len(rows), dtype=np.int64) for name in labels}
        """label -> [rows]: tokens in the prompt's place, for gists and baselines"""
        self.answers: dict[str, list[str]] = {name: [""] * len(rows) for name in labels} if generate else {}
        """label -> a generated answer for each row"""
        self.sums: dict[str, dict[str, Floats]] = {name: {} for name in labels}
        """label -> metric -> [rows]"""

    def length(self, place: int) -> int:
        """Tokens of a row, by which rows are sorted into batches."""
        return int(self.prompt_tokens[place] + self.input_tokens[place] + self.output_tokens[place])

    def add(self, name: str, place: int, values: dict[str, float]) -> None:
        """One row's values under the condition with that label."""
        for metric, value in values.items():
            self.sums[name].setdefault(metric, np.zeros(len(self.rows)))[place] = value

    def part(self, places: Sequence[int]) -> dict[str, Any]:
        """All that was measured on those rows, as plain values: a `Part`."""
        return {
            "answer_tokens": self.answer_tokens[places].tolist(),
            "held": {name: held[places].tolist() for name, held in self.held.items()},
            "answers": {name: [answers[place] for place in places] for name, answers in self.answers.items()},
            "sums": {
                name: {metric: values[places].tolist() for metric, values in sums.items()}
                for name, sums in self.sums.items()
            },
        }

    def put(self, places: Sequence[int], part: Any) -> bool:
        """Take in what `part` gave for those rows; False, and nothing changed, for anything else."""
        if not is_of(part, Part):
            return False
        sums, labels = part["sums"], set(self.sums)
        if set(sums) != labels or set(part["held"]) != labels or set(part["answers"]) != set(self.answers):
            return False
        expected = {metric for metric in WEIGHTS if self.answers or not metric.startswith("answer_")}
        columns = [part["answer_tokens"], *part["held"].values(), *part["answers"].values()]
        columns += [values for each in sums.values() for values in each.values()]
        if any(set(each) != expected for each in sums.values()) or any(len(each) != len(places) for each in columns):
            return False
        self.answer_tokens[places] = part["answer_tokens"]
        for row, place in enumerate(places):
            for name, held in part["held"].items():
                self.held[name][place] = held[row]
            for name, answers in part["answers"].items():
                self.answers[name][place] = answers[row]
            for name, each in sums.items():
                self.add(name, place, {metric: values[row] for metric, values in each.items()})
        return True

    def compare_answers(self) -> None:
        """Score all answers, once they are there: against the references and the full-prompt model's answers."""
        short = metrics.short_references([row.output for row in self.rows])
        for name, answers in self.answers.items():
            for place, (answer, full, row) in enumerate(zip(answers, self.answers[FULL.label], self.rows, strict=True)):
                self.add(name, place, metrics.rouge(answer, row.output))
                to_full = metrics.rouge(answer, full)
                self.add(name, place, {f"answer_{metric}": value for metric, value in to_full.items()})
                if short:
                    self.add(name, place, {"exact_match": metrics.exact_match(answer, row.output)})

    def weights(self, metric: str) -> Floats:
        """[rows] by which a metric's sums are divided."""
        if metric not in WEIGHTS:
            return np.ones(len(self.rows))
        return np.asarray(getattr(self, WEIGHTS[metric]), dtype=np.float64)

    def conditions(
        self, conditions: Sequence[EvalCondition], model: dict[str, Any], seed: int, resamples: int
    ) -> list[dict[str, Any]]:
        """ "conditions" of the results, from their "model": means, gaps closed and intervals."""
        counts = bootstrap_counts(len(self.rows), resamples, seed)
        return [
            {
                "name": condition.name,
                "k": condition.k,
                **self._sizes(condition, model),
                "metrics": {metric: self._figures(condition.label, metric, counts) for metric in self._metrics},
            }
            for condition in conditions
        ]

    def rows_as_values(self) -> list[dict[str, Any]]:
        """ "rows" of the results."""
        weights = {metric: np.maximum(1.0, self.weights(metric)) for metric in self._metrics}
        return [
            {
                "prompt_tokens": int(self.prompt_tokens[place]),
                "input_tokens": int(self.input_tokens[place]),
                "output_tokens": int(self.output_tokens[place]),
                "answer_tokens": int(self.answer_tokens[place]),
                "kind": None,
                "metrics": {
                    name: {metric: float(sums[metric][place] / each[place]) for metric, each in weights.items()}
                    for name, sums in self.sums.items()
                },
            }
            for place in range(len(self.rows))
        ]

    def examples(self) -> list[dict[str, Any]]:
        """ "examples" of the results: the first rows with every condition's answer."""
        return [
            {
                "prompt": row.prompt,
                "input": row.input,
                "reference": row.output,
                "answers": {name: answers[place] for name, answers in self.answers.items()},
            }
            for place, row in enumerate(self.rows[:EXAMPLES])
        ]

    @property
    def _metrics(self) -> list[str]:
        return list(self.sums[FULL.label])

    def _figures(self, name: str, metric: str, counts: Floats) -> dict[str, Any]:
        none, full, mine = (self.sums[each][metric] for each in (NONE.label, FULL.label, name))
        weights = self.weights(metric)
        closed, interval = pooled_gap(counts, weights, none, full, mine)
        return {
            "value": float(mine.sum()) / max(1.0, float(weights.sum())),
            "gap_closed": closed,
            "gap_closed_95": list(interval) if interval else None,
        }

    def _sizes(self, condition: EvalCondition, model: dict[str, Any]) -> dict[str, Any]:
        """Means over rows of what stands in the prompt's place."""
        own = float(self.prompt_tokens.mean()) - model["opening_tokens"]
        held = {FULL: own, NONE: 0.0}.get(condition, float(self.held[condition.label].mean()))
        cached = held + model["opening_tokens"]
        return {
            "kv_bytes": round(cached * model["kv_bytes_per_token"]),
            "cached_tokens": cached,
            "prompt_tokens": float(self.prompt_tokens.mean()),
            "compression": own / held if held else None,
        }


def _lengths(ids: Any) -> Ints:
    return np.array([len(row) for row in ids], dtype=np.int64)
