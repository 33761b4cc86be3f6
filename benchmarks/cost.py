"""What a gist costs and saves against the full prompt re-encoded and against its KV cache kept, in one run.

Run: python benchmarks/cost.py [--model smollm2-135m] [--prompts 32,128,512,2048] [--batches 1,4,16] [--json OUT.json]

Times are medians over interleaved rounds; ratios are taken within rounds. README.md beside this file explains
every column and key. Knows nothing of quality.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import plots
import torch
from conditions import (
    CACHED_PROMPT,
    FULL_PROMPT,
    GIST,
    SAME_TOKENS,
    FullLengthModel,
    Workload,
    all_ways,
    make_workload,
    prefill,
)
from measure import command, count_flops, interleaved, machine, paired_ratio, peak_memory, requests_to_pay, spread
from report import show
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gistlm.errors import GistlmError, InputError
from gistlm.files import write_atomically
from gistlm.gist import DTYPES
from gistlm.models.catalog import load_checkpoint
from gistlm.models.checkpoint import Checkpoint, CheckpointOptions
from gistlm.models.config import Recipe

Record = dict[str, Any]
SHORT_CELL = 10_000
"""Up to so many prompt tokens compression is timed in five times the rounds: a disturbance is longer than one."""
WIDTH = 180
"""Columns of the printed tables: Markdown must not wrap."""


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    k: int
    """Gist tokens."""
    prompts: list[int]
    """Tokens of a prompt, the template's opening included."""
    batches: list[int]
    """Requests that run together."""
    input_tokens: int
    """Tokens of an input, with the template around it."""
    new_tokens: int
    """Tokens of every answer."""
    repeats: int
    """Rounds that are counted; one more comes first."""
    seed: int
    """Of the random words."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            for number in value if isinstance(value, list) else [value]:
                if number < (0 if name == "seed" else 1):
                    raise InputError(f"{name} must be 1 or more, got {number}")
        if self.new_tokens < 2:
            raise InputError("new_tokens must be 2 or more; the first token is measured on its own")

    @property
    def tokens(self) -> int:
        """Prompt tokens of all cells, as a measure of the work."""
        return sum(self.prompts) * sum(self.batches)


def main() -> None:
    """Load, measure every cell, show, save."""
    options = parse()
    try:
        if options.plot:
            plots.require_matplotlib()
        run(options)
    except GistlmError as error:
        sys.exit(f"cost.py: {error}")


def run(options: argparse.Namespace) -> None:
    """The whole benchmark for one command line."""
    names = Settings.__dataclass_fields__
    settings = Settings(**{name: getattr(options, name) for name in names})
    torch.set_num_threads(options.threads)
    console = Console(stderr=True)
    with console.status("Loading the model ..."):
        model = load(options)
    check_lengths(model, settings)
    figures: Record = {
        "command": command(),
        "date": date.today().isoformat(),
        "machine": machine(model.dtype, model.device),
        "model": options.untrained or options.model,
        "trained": options.untrained is None,
        "parameters": sum(tensor.numel() for tensor in model.checkpoint.reader.parameters()),
        "settings": asdict(settings),
        "generation": [],
        "compression": [],
        "comparison": [],
    }
    with progress(console, settings) as advance:
        for prompt_tokens in settings.prompts:
            flops = count_all_flops(model, settings, prompt_tokens)
            for batch in settings.batches:
                cell = {"prompt_tokens": prompt_tokens, "batch": batch}
                measure_cell(model, settings, cell, flops, figures)
                advance(prompt_tokens * batch)
                if options.json:
                    write_atomically(options.json, (json.dumps(figures, indent=1) + "\n").encode())
    show(figures, Console(width=WIDTH))
    if options.plot:
        plots.draw(figures, options.plot)


def load(options: argparse.Namespace) -> FullLengthModel:
    """The checkpoint by name, or an untrained one of the same make."""
    dtype = DTYPES[options.dtype] if options.dtype else None
    if options.untrained is None:
        return FullLengthModel(load_checkpoint(options.model, dtype=dtype), batch_size=max(options.batches))
    made = Checkpoint.create(options.untrained, CheckpointOptions(Recipe.FROZEN), dtype=dtype)
    return FullLengthModel(made, batch_size=max(options.batches))


def check_lengths(model: FullLengthModel, settings: Settings) -> None:
    """Raise `InputError` before any work is done if a cell is impossible."""
    least = model.checkpoint.placement.opening + settings.k
    if min(settings.prompts) < least:
        raise InputError(f"prompts must have {least} tokens or more (opening and gist), got {min(settings.prompts)}")
    longest = max(settings.prompts) + settings.input_tokens + settings.new_tokens
    if longest > model.checkpoint.architecture.context:
        context = model.checkpoint.architecture.context
        raise InputError(f"prompt, input and answer have {longest:,} tokens; this model has room for {context:,}")


def measure_cell(
    model: FullLengthModel, settings: Settings, cell: dict[str, int], flops: dict[str, int], figures: Record
) -> None:
    """Everything about one prompt length and batch, added to ``figures``."""
    lengths = (cell["prompt_tokens"], settings.input_tokens)
    workload = make_workload(model.checkpoint, lengths, cell["batch"], settings.seed)
    compression = measure_compression(model, settings, workload)
    generation, comparison = measure_generation(model, settings, workload)
    batch = cell["batch"]
    compression |= {name: flops[name] * batch for name in ("compress_flops", "prefill_flops")}
    figures["compression"].append({**cell, **compression})
    figures["generation"] += [
        {**cell, "condition": name, **row, "flops": flops[name] * batch} for name, row in generation.items()
    ]
    full, gist = generation[FULL_PROMPT], generation[GIST]
    saving = full["answer_s"]["median"] - gist["answer_s"]["median"]
    cost = compression["compress_s"]["median"]
    kept = generation[CACHED_PROMPT]["cache_bytes"] - gist["cache_bytes"]
    comparison |= {"requests_to_pay": requests_to_pay(cost, saving), "cache_bytes_saved": kept}
    figures["comparison"].append({**cell, **comparison})


def measure_compression(model: FullLengthModel, settings: Settings, workload: Workload) -> Record:
    """`compress` from text to gists, against plain forward passes: of the same token ids, and of as many tokens."""
    ids = torch.tensor([model.checkpoint.prompts.prompt_ids(text) for text in workload.prompts], device=model.device)
    as_many = torch.cat([ids, ids[:, : settings.k]], dim=1)
    seconds = interleaved(
        {
            "prefill": lambda: prefill(model.checkpoint, ids),
            "prefill_as_many": lambda: prefill(model.checkpoint, as_many),
            "compress": lambda: model.compress(workload.prompts, settings.k),
        },
        settings.repeats * (5 if ids.numel() <= SHORT_CELL else 1),
    )
    prompt_tokens, gist_tokens = ids.numel(), len(workload) * settings.k
    per_prompt_token = paired_ratio(seconds["prefill"], seconds["compress"])
    lengthened = (prompt_tokens + gist_tokens) / prompt_tokens
    compress_s = spread(seconds["compress"])
    return {
        "k": settings.k,
        "compress_s": compress_s,
        "prefill_s": spread(seconds["prefill"]),
        "compress_tokens_per_s": (prompt_tokens + gist_tokens) / compress_s["median"],
        "compress_prompt_tokens_per_s": prompt_tokens / compress_s["median"],
        "prefill_tokens_per_s": prompt_tokens / median(seconds["prefill"]),
        "speed_ratio": {name: ratio * lengthened for name, ratio in per_prompt_token.items()},
        "speed_ratio_as_many": paired_ratio(seconds["prefill_as_many"], seconds["compress"]),
        "prompt_speed_ratio": per_prompt_token,
        "compress_peak_bytes": peak_memory(lambda: model.compress(workload.prompts, settings.k)),
        "prefill_peak_bytes": peak_memory(lambda: prefill(model.checkpoint, ids)),
    }


def measure_generation(
    model: FullLengthModel, settings: Settings, workload: Workload
) -> tuple[dict[str, Record], Record]:
    """Every condition's own figures, and the ratios between them."""
    ways = all_ways(model, workload, settings.k)
    first = interleaved({name: lambda way=way: way.answer(1) for name, way in ways.items()}, settings.repeats)
    whole = interleaved(
        {name: lambda way=way: way.answer(settings.new_tokens) for name, way in ways.items()}, settings.repeats
    )
    rows = {
        name: {
            "first_token_s": spread(first[name]),
            "answer_s": spread(whole[name]),
            "tokens_per_s": len(workload) * settings.new_tokens / median(whole[name]),
            "cache_bytes": way.cache_bytes // len(workload),
            "peak_bytes": held_peak(way.cache_bytes, lambda way=way: way.answer(settings.new_tokens)),
        }
        for name, way in ways.items()
    }
    ratios = {
        f"{kind}_vs_{other}": paired_ratio(seconds[GIST], seconds[other])
        for kind, seconds in (("first_token", first), ("answer", whole))
        for other in (FULL_PROMPT, CACHED_PROMPT, SAME_TOKENS)
    }
    return rows, ratios


def held_peak(cache_bytes: int, call: Callable[[], object]) -> int | None:
    """Most bytes above the loaded model: what is held between requests, and what the call adds to it."""
    peak = peak_memory(call)
    return None if peak is None else cache_bytes + peak


def count_all_flops(model: FullLengthModel, settings: Settings, prompt_tokens: int) -> dict[str, int]:
    """FLOPs of one answer by condition, of compressing and of plain prefill, for a batch of one: they grow with it."""
    workload = make_workload(model.checkpoint, (prompt_tokens, settings.input_tokens), 1, settings.seed)
    ids = torch.tensor([model.checkpoint.prompts.prompt_ids(workload.prompts[0])], device=model.device)
    ways = all_ways(model, workload, settings.k)
    return {
        **{name: count_flops(lambda way=way: way.answer(settings.new_tokens)) for name, way in ways.items()},
        "compress_flops": count_flops(lambda: model.compress(workload.prompts, settings.k)),
        "prefill_flops": count_flops(lambda: prefill(model.checkpoint, ids)),
    }


@contextmanager
def progress(console: Console, settings: Settings) -> Iterator[Callable[[int], None]]:
    """A bar over all cells, weighted by their tokens; yields what advances it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"{len(settings.prompts) * len(settings.batches)} cells", total=settings.tokens)
        yield lambda tokens: bar.advance(task, tokens)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a name from `gistlm models`, a folder or a hub id")
    parser.add_argument(
        "--untrained", metavar="BASE", help="a fresh checkpoint over this base instead: it costs the same"
    )
    parser.add_argument("--dtype", choices=list(DTYPES), help="of weights and caches; the base's own by default")
    parser.add_argument("--k", type=int, default=4, help="gist tokens")
    parser.add_argument("--prompts", type=numbers, default=[32, 128, 512, 2048], help="prompt lengths in tokens")
    parser.add_argument("--batches", type=numbers, default=[1, 4, 16], help="requests that run together")
    parser.add_argument("--input-tokens", type=int, default=32, help="tokens of an input, its template included")
    parser.add_argument("--new-tokens", type=int, default=16, help="tokens of every answer")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that are counted")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--json", type=Path, help="write the figures here, after every cell")
    parser.add_argument("--plot", type=Path, help="draw the figures here (needs gistlm[bench])")
    parser.add_argument("--seed", type=int, default=0, help="of the random words in prompts and inputs")
    return parser.parse_args()


def numbers(text: str) -> list[int]:
    """ "32,128" -> [32, 128]."""
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
