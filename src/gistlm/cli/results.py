"""The figures of an evaluation as tables; measures nothing."""

from __future__ import annotations

from typing import Any

from gistlm.cli.show import byte_count, print_table

_CONTROLS = {"full": "full prompt", "none": "nothing"}


def print_results(results: dict[str, Any]) -> None:
    """The figures as tables."""
    conditions, data = results["conditions"], results["data"]
    if conditions:
        header = ["prompt as", "KV cache", "NLL", "gap closed %", "KL", "gap closed %", "top-1"]
        cells = [
            [
                _label(each),
                byte_count(each["kv_bytes"]),
                *_gap(each, "nll"),
                *_gap(each, "kl"),
                _value(each, "agreement"),
            ]
            for each in conditions
        ]
        print_table(cells, header, f"references of {data['rows']} rows of {data['name']}")
    if conditions and "rougeL" in conditions[0]["metrics"]:
        exact = ["exact_match"] if "exact_match" in conditions[0]["metrics"] else []
        header = ["prompt as", "ROUGE-L", "gap closed %", "to full", "answer KL", "gap closed %"]
        cells = [
            [_label(each), *_gap(each, "rougeL"), _value(each, "answer_rougeL"), *_gap(each, "answer_kl")]
            + [_value(each, metric) for metric in exact]
            for each in conditions
        ]
        print_table(cells, header + ["exact"] * len(exact), "generated answers")
    if results["retention"]:
        cells = [
            [each["kind"], each["condition"], f"{each['correct']} of {each['n']}", f"{each['score']:.3f}"]
            for each in results["retention"]
        ]
        print_table(cells, ["kind", "prompt as", "kept", "score"], "retention probe")
    if results["judge"]:
        columns = ("condition", "against", "wins", "ties", "losses", "win_rate")
        cells = [[str(each[name]) for name in columns] for each in results["judge"]]
        print_table(cells, [name.replace("_", " ") for name in columns], "judged answers")
        if nonsense := sum(each["nonsense"] for each in results["judge"]):
            print(f"{nonsense:,} of the judge's verdicts were none of A, B and tie, and count as ties")
    if data["skipped"]:
        print(f"{data['skipped']:,} rows of {data['name']} were left out: longer than --max-tokens, or than the model")
    for name, reason in results["skipped"].items():
        print(f"{name} was skipped: {reason}")


def _label(condition: dict[str, Any]) -> str:
    from gistlm.evaluation.results import label

    name = label(condition["name"], condition["k"])
    return _CONTROLS.get(name, name)


def _value(condition: dict[str, Any], metric: str) -> str:
    return f"{condition['metrics'][metric]['value']:.3f}"


def _gap(condition: dict[str, Any], metric: str) -> list[str]:
    """A metric's value, and its gap closed with the interval."""
    figures = condition["metrics"][metric]
    closed, interval = figures["gap_closed"], figures["gap_closed_95"]
    bounds = f" ({100 * interval[0]:.0f}–{100 * interval[1]:.0f})" if interval and condition["k"] else ""
    return [_value(condition, metric), "" if closed is None else f"{100 * closed:.0f}{bounds}"]
