"""Evaluation rows that are near training rows, and what a result says of them and of the others.

Run: python recipes/near_duplicates.py ROWS.jsonl --training ROWS.jsonl [--results RESULT.json]

Near is what `exclude` would leave out (`gistlm.data.sources.without`). RESULT.json is what `gistlm eval` measured on
the first rows of the evaluation file. Trains and measures nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gistlm.data.rows import read_rows
from gistlm.data.sources import normalise, without
from gistlm.errors import GistlmError, InputError
from gistlm.evaluation.results import label, read_results
from gistlm.evaluation.statistics import gap_closed


def main() -> None:
    """Compare, show."""
    options = parse()
    try:
        run(options)
    except GistlmError as error:
        sys.exit(f"near_duplicates.py: {error}")


def run(options: argparse.Namespace) -> None:
    """The whole recipe for one command line."""
    rows = read_rows(options.rows)
    results = read_results(options.results) if options.results else None
    if results and len(results["rows"]) > len(rows):
        raise InputError(f"{options.results} has {len(results['rows'])} rows, {options.rows} only {len(rows)}")
    rows = rows[: len(results["rows"])] if results else rows
    training = read_rows(options.training)
    prompts, apart = {normalise(row.prompt) for row in training}, set(without(rows, training))
    same = sum(normalise(row.prompt) in prompts for row in rows)
    print(
        f"{sum(row not in apart for row in rows)} of {len(rows)} rows of {options.rows} are near rows of training, "
        f"{same} with the same prompt"
    )
    if results:
        pairs = list(zip(rows, results["rows"], strict=True))
        near, far = ([own for row, own in pairs if (row in apart) == is_far] for is_far in (False, True))
        print("KL gap closed, all, near, others:")
        for condition in results["conditions"]:
            name = label(condition["name"], condition["k"])
            shares = (kl_gap_closed(own, name) for own in (results["rows"], near, far))
            print(name, *("-" if share is None else f"{share:.0%}" for share in shares), sep="\t")


def kl_gap_closed(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    """The share of the gap that a condition closes over rows of a result, pooled over output tokens."""
    sums = (sum(row["output_tokens"] * row["metrics"][each]["kl"] for row in rows) for each in ("none", "full", name))
    return gap_closed(*sums)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", help="evaluation rows")
    parser.add_argument("--training", required=True, help="training rows")
    parser.add_argument("--results", type=Path, help="a result file of `gistlm eval` on the first of the rows")
    return parser.parse_args()


if __name__ == "__main__":
    main()
