"""Exact match of a checkpoint on the rows of `rules.py`, by condition, gist tokens and rules in the prompt.

    python recipes/rules_measure.py --model runs/t5-rules --data runs/rules --out runs/t5-rules/rules.json

prints a table and writes the JSON file and, beside it, a PNG. The gap that a gist closes is its exact match above
that without a prompt, as a share of the full prompt's.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from datetime import date
from pathlib import Path
from typing import Any

from gistlm import GistModel
from gistlm.errors import DataError, GistlmError
from gistlm.evaluation.describe import machine
from gistlm.files import write_atomically

KS = (1, 2, 3, 4, 5, 6, 7, 8)
NEW_TOKENS = 12


def measure(model: GistModel, rows: list[dict[str, str]]) -> dict[str, Any]:
    """Exact match with the full prompt, with none and with gists of each k, and the share of the gap closed."""
    prompts, inputs = [row["prompt"] for row in rows], [row["input"] for row in rows]

    def exact_match(**given: Any) -> float:
        answers = model.generate(inputs, max_new_tokens=NEW_TOKENS, **given)
        return sum(answer == row["output"] for answer, row in zip(answers, rows, strict=True)) / len(rows)

    found: dict[str, Any] = {"full": exact_match(prompts=prompts), "none": exact_match()}
    found["gist"] = {str(k): exact_match(gists=model.compress(prompts, k)) for k in KS if k <= model.max_k}
    gap = found["full"] - found["none"]
    found["gap_closed"] = {k: (score - found["none"]) / gap if gap else None for k, score in found["gist"].items()}
    return found


def save_figure(by_rules: dict[str, Any], path: Path) -> None:
    """Exact match against the number of rules, a line for each condition."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    counts = sorted(map(int, by_rules))
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")

    def line(values: list[float], **style: Any) -> None:
        axes.plot(counts, [100 * value for value in values], marker="o", markersize=3, **style)

    line([by_rules[str(n)]["full"] for n in counts], label="full prompt", color="black")
    ks = list(by_rules[str(counts[0])]["gist"])
    for index, k in enumerate(ks):
        colour = matplotlib.colormaps["viridis"](index / max(1, len(ks) - 1))
        line([by_rules[str(n)]["gist"][k] for n in counts], label=f"gist, k = {k}", color=colour)
    line([by_rules[str(n)]["none"] for n in counts], label="no prompt", color="grey", linestyle="--")
    axes.set(xlabel="rules in the prompt", ylabel="exact match, %", ylim=(-2, 102), xticks=counts)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)


def show(by_rules: dict[str, Any]) -> None:
    """The table."""
    ks = list(next(iter(by_rules.values()))["gist"])
    print("rules    full    none " + " ".join(f"    k={k}" for k in ks) + "   gap closed at k=1")
    for count, found in by_rules.items():
        scores = [found["full"], found["none"], *found["gist"].values()]
        closed = found["gap_closed"]["1"]
        print(
            f"{count:>5} " + " ".join(f"{score:7.1%}" for score in scores), "-" if closed is None else f"{closed:10.1%}"
        )


def main() -> None:
    """Measure every file of test rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="folder that rules.py has written")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; the figure goes beside it")
    parser.add_argument("--limit", type=int, help="rows of each file")
    given = parser.parse_args()
    try:
        run(given)
    except GistlmError as error:
        sys.exit(f"rules_measure.py: {error}")


def run(given: argparse.Namespace) -> None:
    """The whole measurement for one command line."""
    files = sorted(given.data.glob("test-*.jsonl"), key=lambda path: int(path.stem.partition("-")[2]))
    if not files:
        raise DataError(f"{given.data} has no files test-N.jsonl; give the folder that rules.py has written")
    model = GistModel.from_pretrained(given.model)
    model.batch_size = 100
    by_rules = {}
    for file in files:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()][: given.limit]
        by_rules[file.stem.partition("-")[2]] = {"rows": len(rows), **measure(model, rows)}
    show(by_rules)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    origin = {"command": "python " + shlex.join(sys.argv), "date": date.today().isoformat(), "machine": machine()}
    figures = {"run": origin, "metric": "exact match", "by_rules": by_rules}
    write_atomically(given.out, (json.dumps(figures, indent=1) + "\n").encode())
    save_figure(by_rules, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
