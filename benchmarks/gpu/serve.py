"""What a server would see: tokens a second and time to first token of GistModel on a GPU.

    python benchmarks/gpu/serve.py --json serve.json          about 2 minutes; needs the repository alone

The gist (k of 16) against the full prompt encoded with every request, and against the full prompt's KV cache; from
text to text, greedily; batches of 1 to 64 on prompts of 512 tokens, and of 1 to 16 on prompts of 2,000; inputs of 64,
answers of 32. The model has the shape of SmolLM2-1.7B and random weights, made on the GPU: times do not depend on what
they are. Conditions take turns, after a first round that is not counted.
"""

from __future__ import annotations

import sys
from statistics import median
from typing import Any

import torch
from card import ROOT, find_card, parser, timed, write_figures
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "tests"))

from conditions import CACHED_PROMPT, FULL_PROMPT, GIST, FullLengthModel, all_ways, make_workload
from measure import paired_ratio
from tiny import tiny_tokenizer

from gistlm.models.checkpoint import Checkpoint
from gistlm.models.config import Base, CheckpointConfig, Recipe
from gistlm.prompt import PromptTokenizer, default_format

K = 16
MEASURED = {512: (1, 4, 16, 64), 2000: (1, 4, 16)}
"""Batches by tokens of a prompt; 64 full prompts of 2,000 tokens would need 25 GB of cache three times over."""
TRIED = {100: (1, 2)}
SMOLLM2_1_7B = {
    "vocab_size": 49152, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 8192,
}  # fmt: skip
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 4, "vocab_size": 500}


def main() -> None:
    """Every prompt length and batch."""
    options = parser(__doc__).parse_args()
    device = find_card(options, gib=30)
    torch.manual_seed(options.seed)
    model = make_model(device, tiny=options.cpu)
    tokens, rounds = (3, 1) if options.cpu else (32, 2)
    rows = []
    for length, batches in (TRIED if options.cpu else MEASURED).items():
        for batch in batches:
            rows.append(measure(model, device, (length, batch, tokens, rounds), options.seed))
            write_figures(options, device, {"k": K, "rows": rows})
    show(rows)


def make_model(device: torch.device, tiny: bool) -> FullLengthModel:
    """A `GistModel` over random weights; what its gists hold is worthless, what they cost is not."""
    config = LlamaConfig(**(SMOLLM2_1_7B | (TINY if tiny else {})))
    with torch.device(device):
        reader = AutoModelForCausalLM.from_config(config, dtype=torch.float32 if tiny else torch.bfloat16).eval()
    tokenizer = tiny_tokenizer()
    prompts = PromptTokenizer(tokenizer, default_format(tokenizer))
    embeddings = torch.randn(K, config.hidden_size, device=device, dtype=reader.dtype)
    base = Base(base="random", weights="0" * 64, settings="0" * 64)
    made = CheckpointConfig(name="random", recipe=Recipe.PAPER, bases=[base])
    return FullLengthModel(Checkpoint(made, reader, reader, embeddings, prompts), batch_size=64)


def measure(model: FullLengthModel, device: torch.device, cell: tuple[int, int, int, int], seed: int) -> dict[str, Any]:
    """One prompt length and batch: (tokens of a prompt, requests, tokens of an answer, rounds)."""
    length, batch, tokens, rounds = cell
    ways = all_ways(model, make_workload(model.checkpoint, (length, 64), batch, seed), K)
    ways = {name: ways[name] for name in (FULL_PROMPT, CACHED_PROMPT, GIST)}
    times: dict[str, dict[str, list[float]]] = {name: {"first": [], "whole": []} for name in ways}
    for counted in [False, *[True] * rounds]:
        for name, way in ways.items():
            for part, new_tokens in (("first", 1), ("whole", tokens)):
                seconds = timed(device, lambda way=way, new_tokens=new_tokens: way.answer(new_tokens))["wall_s"]
                if counted:
                    times[name][part].append(seconds)
    return {
        "prompt_tokens": length,
        "batch": batch,
        "first_token_s": {name: median(taken["first"]) for name, taken in times.items()},
        "tokens_per_s": {name: batch * tokens / median(taken["whole"]) for name, taken in times.items()},
        "kept_bytes_per_request": {name: way.cache_bytes // batch for name, way in ways.items()},
        "first_token_ratio": {
            name: paired_ratio(times[GIST]["first"], times[name]["first"]) for name in (FULL_PROMPT, CACHED_PROMPT)
        },
    }


def show(rows: list[dict[str, Any]]) -> None:
    """A row for each prompt length and batch."""
    table = Table(box=box.MARKDOWN)
    for name in ("prompt", "batch", "first token, ms: full / cached / gist", "tokens/s: full / cached / gist"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        first, speed = row["first_token_s"], row["tokens_per_s"]
        table.add_row(
            str(row["prompt_tokens"]),
            str(row["batch"]),
            " / ".join(f"{1000 * first[name]:.1f}" for name in (FULL_PROMPT, CACHED_PROMPT, GIST)),
            " / ".join(f"{speed[name]:.0f}" for name in (FULL_PROMPT, CACHED_PROMPT, GIST)),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
