"""How much memory long rows take, by the tokens that run together.

Run: python benchmarks/memory.py [--rows 4] [--tokens 8000] [--batch-tokens 8192,16384,32768] [--json OUT.json]

Every call has a process of its own, so that none works in memory that another has used. README.md beside this file
explains every key. Knows nothing of quality.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from conditions import fit_text
from measure import command, machine, peak_memory
from rich import box
from rich.console import Console
from rich.table import Table
from worker import Worker

from gistlm.engines.base import Request, with_sampling
from gistlm.engines.sampling import Sampling
from gistlm.engines.transformers import GistModel
from gistlm.errors import GistlmError, InputError
from gistlm.files import write_atomically
from gistlm.gist import DTYPES
from gistlm.models.catalog import load_checkpoint
from gistlm.models.checkpoint import Checkpoint, CheckpointOptions
from gistlm.models.config import Recipe

CALLS = ("compress", "complete", "score")
QUESTION = "What is it?"


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    model: str
    untrained: str | None
    dtype: str | None
    calls: list[str]
    """Some of `CALLS`: prompts to gists; full prompts, answered; full prompts, their outputs scored."""
    rows: int
    tokens: int
    """Of a row: prompt, input and output; for `compress` of a prompt."""
    output_tokens: int
    """Of a row's output, or of its answer."""
    k: int
    """Gist tokens."""
    batch_tokens: list[int]
    """Values of `GistModel.batch_tokens`."""
    threads: int
    seed: int

    def __post_init__(self) -> None:
        if unknown := [name for name in self.calls if name not in CALLS]:
            raise InputError(f"there is no call {unknown[0]!r}; there are {', '.join(CALLS)}")
        for name in ("rows", "tokens", "output_tokens", "k", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if min(self.batch_tokens) < 1:
            raise InputError(f"batch_tokens must be 1 or more, got {min(self.batch_tokens)}")


def main() -> None:
    """Measure every call under every bound, show, save."""
    options = vars(parse())
    path = options.pop("json")
    try:
        run(Settings(**options), path)
    except GistlmError as error:
        sys.exit(f"memory.py: {error}")


def run(settings: Settings, path: Path | None) -> None:
    """The whole benchmark for one command line."""
    figures: dict[str, Any] = {"command": command(), "date": date.today().isoformat()}
    cells = []
    for call in settings.calls:
        for bound in settings.batch_tokens:
            worker = Worker(call, measure, settings, call, bound)
            model, cell = worker.facts()
            worker.end()
            cells.append({"call": call, "batch_tokens": bound, **cell})
            figures |= {**model, "settings": asdict(settings), "cells": cells}
            if path:
                write_atomically(path, (json.dumps(figures, indent=1) + "\n").encode())
    show(figures)


def measure(settings: Settings, call: str, bound: int) -> tuple[tuple[dict[str, Any], dict[str, Any]], Any]:
    """In a process of its own: what the model is, and peak and seconds of one call."""
    torch.set_num_threads(settings.threads)
    model = load(settings)
    model.batch_size, model.batch_tokens = settings.rows, bound
    work = make_call(model, settings, call)
    begin = time.perf_counter()
    peak = peak_memory(work)
    cell = {"peak_bytes": peak, "seconds": round(time.perf_counter() - begin, 1)}
    facts = {
        "machine": machine(model.dtype, model.device),
        "model": settings.untrained or settings.model,
        "trained": settings.untrained is None,
        "parameters": sum(tensor.numel() for tensor in model.checkpoint.reader.parameters()),
    }
    return (facts, cell), work


def load(settings: Settings) -> GistModel:
    """The checkpoint by name, or an untrained one of the same make."""
    dtype = DTYPES[settings.dtype] if settings.dtype else None
    if settings.untrained is None:
        return GistModel(load_checkpoint(settings.model, dtype=dtype))
    return GistModel(Checkpoint.create(settings.untrained, CheckpointOptions(Recipe.FROZEN), dtype=dtype))


def make_call(model: GistModel, settings: Settings, call: str) -> Callable[[], object]:
    """The call on rows of random words."""
    ids, draw = model.checkpoint.prompts, random.Random(settings.seed)
    around = 0 if call == "compress" else len(ids.rest_ids(QUESTION)) + settings.output_tokens
    prompts = [
        fit_text(draw, settings.tokens - around, lambda text: len(ids.prompt_ids(text))) for _ in range(settings.rows)
    ]
    if call == "compress":
        return lambda: model.compress(prompts, settings.k)
    requests = [Request(QUESTION, prompt=prompt) for prompt in prompts]
    if call == "complete":
        return lambda: model.complete(with_sampling(requests, Sampling(max_new_tokens=settings.output_tokens)))
    output = fit_text(draw, settings.output_tokens, lambda text: len(ids.output_ids(text)))
    return lambda: model.score([QUESTION] * settings.rows, [output] * settings.rows, prompts=prompts)


def show(figures: dict[str, Any]) -> None:
    """One Markdown table."""
    settings, cores = figures["settings"], figures["machine"]
    console = Console(width=120)
    console.print(
        f"{figures['model']}, {settings['rows']} rows of {settings['tokens']:,} tokens, outputs of "
        f"{settings['output_tokens']:,}; {cores['cpu']}, {cores['threads']} threads, {cores['dtype']}",
        highlight=False,
    )
    table = Table("call", "tokens together", "peak memory", "seconds", box=box.MARKDOWN)
    for cell in figures["cells"]:
        peak = "unknown" if cell["peak_bytes"] is None else f"{cell['peak_bytes'] / 1e9:.2f} GB"
        table.add_row(cell["call"], f"{cell['batch_tokens']:,}", peak, f"{cell['seconds']:.1f}")
    console.print(table)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a name from `gistlm models`, a folder or a hub id")
    parser.add_argument(
        "--untrained", metavar="BASE", help="a fresh checkpoint over this base instead: it takes the same"
    )
    parser.add_argument("--dtype", choices=list(DTYPES), help="of weights and caches; the base's own by default")
    parser.add_argument("--calls", type=lambda text: text.split(","), default=list(CALLS), help="by default all")
    parser.add_argument("--rows", type=int, default=4, help="rows of a call")
    parser.add_argument("--tokens", type=int, default=8000, help="tokens of a row: prompt, input and output")
    parser.add_argument("--output-tokens", type=int, default=32, help="tokens of a row's output, or of its answer")
    parser.add_argument("--k", type=int, default=4, help="gist tokens")
    parser.add_argument(
        "--batch-tokens",
        type=lambda text: [int(number) for number in text.split(",")],
        default=[8192, 16384, 32768],
        help="tokens that run together",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--json", type=Path, help="write the figures here, after every call")
    parser.add_argument("--seed", type=int, default=0, help="of the random words")
    return parser.parse_args()


if __name__ == "__main__":
    main()
