"""The paper's table of costs at the paper's size: LLaMA-7B and FLAN-T5-XXL, with random weights made on the GPU.

    python benchmarks/gpu/paper_table.py --json paper_table.json          about 5 minutes; needs the repository alone

A gist against no cache and, where there is such a thing, against the full prompt's cache (Mu et al. 2023): FLOPs, time
of the GPU, time of the processor and bytes. Times do not depend on what weights are. Prompts are as long as the
paper's 252, 69 tokens on average, from 9 to 460; and of 512 and 2,000 tokens. One forward pass over the input, and
whole answers of 64 tokens; batches of 1 and 16; k of 1, 4 and 16. Conditions take turns, after a first round that is
not counted; figures are medians of ratios within a round. An encoder reads prompt and input together, so a full
prompt's cache exists for the decoder-only model alone.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import torch
from card import ROOT, find_card, parser, timed, write_figures
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    T5Config,
)
from transformers.modeling_outputs import BaseModelOutput

sys.path.insert(0, str(ROOT / "benchmarks"))

from measure import count_flops, paired_ratio

from gistlm.gisting.encoder_attention import encode
from gistlm.gisting.placement import Part
from gistlm.models.transformers_compat import CACHE

KS = (1, 4, 16)
INPUT_TOKENS = 103
"""The paper does not say how long inputs were. With so many, a gist of one token in place of 69 tokens saves the 39.6 %
of FLOPs that it reports: 68 of 172 tokens."""
PAPER = {
    "flops": "39.6 % fewer", "card_s": "6.8 % less", "cpu_s": "4.4 % more",
    "against the full prompt's cache, card_s": "1.0 % less",
}  # fmt: skip
"""Published, of one forward pass over 252 prompts: a gist against no cache, and against the full prompt's."""
LLAMA_7B = {
    "vocab_size": 32001, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
}  # fmt: skip
FLAN_T5_XXL = {
    "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_decoder_layers": 24,
    "num_heads": 64, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0,
}  # fmt: skip
TINY = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 4, "vocab_size": 500}
TINY_T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
TINY_T5 |= {"vocab_size": 500}


def prompt_lengths(seed: int, count: int = 252) -> list[int]:
    """So many lengths from 9 to 460 tokens, 69 on average: lognormal between these two, scaled to that mean."""
    draw = random.Random(seed)
    drawn = [draw.lognormvariate(math.log(52), 0.75) for _ in range(count - 2)]
    low, high = 0.1, 10.0
    lengths: list[int] = []
    for _ in range(60):
        factor = (low + high) / 2
        lengths = [9, 460, *(min(460, max(9, round(length * factor))) for length in drawn)]
        low, high = (factor, high) if mean(lengths) < 69 else (low, factor)
    return lengths


class Llama:
    """LLaMA-7B's shape: the input runs over a cache of the prompt's keys and values, of a gist's, or over none."""

    name = "LLaMA-7B"

    def __init__(self, device: torch.device, tiny: bool) -> None:
        config = LlamaConfig(**(LLAMA_7B | (TINY if tiny else {})))
        self.model = on_device(AutoModelForCausalLM, config, device, tiny)
        self.heads, self.size = config.num_key_value_heads, config.head_dim
        self.device, self.layers, self.vocabulary = device, config.num_hidden_layers, config.vocab_size
        self.dtype = self.model.dtype

    def conditions(self, prompt: int, batch: int) -> dict[str, Callable[[int], object]]:
        """By name, what answers a batch with so many tokens; 0 is one forward pass."""
        ids = self.tokens(batch, prompt + INPUT_TOKENS)
        ways = {"no cache": self.way(ids, 0), "full prompt cached": self.way(ids, prompt)}
        return ways | {f"gist, k={k}": self.way(torch.cat([ids[:, :k], ids[:, prompt:]], 1), k) for k in KS}

    def way(self, ids: Tensor, cached: int) -> Callable[[int], object]:
        """Answers over ids [batch, tokens], of which the first are cached."""
        shape = (len(ids), self.heads, cached, self.size)
        kept = [
            tuple(torch.randn(shape, device=self.device, dtype=self.dtype) for _ in range(2))
            for _ in range(self.layers)
        ]

        def answer(new_tokens: int) -> object:
            cache = DynamicCache(kept) if cached else DynamicCache()
            if not new_tokens:
                return self.model(ids[:, cached:], **{CACHE: cache}, use_cache=True, logits_to_keep=1)
            mask = torch.ones_like(ids)
            return self.model.generate(ids, attention_mask=mask, **{CACHE: cache}, generation_config=whole(new_tokens))

        return answer

    def tokens(self, batch: int, length: int) -> Tensor:
        """Random ids [batch, length]."""
        return torch.randint(3, self.vocabulary, (batch, length), device=self.device)

    def kept_bytes(self, tokens: int) -> int:
        """Of a cache of so many tokens."""
        return 2 * self.layers * self.heads * self.size * tokens * self.dtype.itemsize


class FlanT5(Llama):
    """FLAN-T5-XXL's shape: the encoder runs over the input and a gist's keys and values, or prompt and input."""

    name = "FLAN-T5-XXL"

    def __init__(self, device: torch.device, tiny: bool) -> None:
        config = T5Config(**(FLAN_T5_XXL | (TINY_T5 if tiny else {})))
        self.model = on_device(AutoModelForSeq2SeqLM, config, device, tiny)
        self.heads, self.size, self.hidden = config.num_heads, config.d_kv, config.d_model
        self.device, self.layers, self.vocabulary = device, config.num_layers, config.vocab_size
        self.dtype = self.model.dtype

    def conditions(self, prompt: int, batch: int) -> dict[str, Callable[[int], object]]:
        """As above; there is no cache of a full prompt."""
        ids = self.tokens(batch, prompt + INPUT_TOKENS)
        return {"no cache": self.way(ids, 0)} | {f"gist, k={k}": self.way(ids[:, prompt:], k) for k in KS}

    def way(self, ids: Tensor, cached: int) -> Callable[[int], object]:
        """Answers over ids [batch, tokens] behind a gist of so many tokens."""
        batch, fresh = ids.shape
        draw: Any = {"device": self.device, "dtype": self.dtype}
        shape = (batch, self.heads, cached, self.size)
        kept = [(torch.randn(shape, **draw), torch.randn(shape, **draw)) for _ in range(self.layers)]
        states = torch.randn(batch, cached, self.hidden, **draw)
        parts = torch.tensor([[Part.GIST] * cached + [Part.REST] * fresh] * batch, device=self.device)
        positions = torch.arange(cached + fresh, device=self.device).expand(batch, -1)
        start = torch.zeros(batch, 1, dtype=torch.long, device=self.device)

        def answer(new_tokens: int) -> object:
            if cached:
                embeddings = self.model.get_input_embeddings()(ids)
                made, _ = encode(self.model.get_encoder(), embeddings, parts, positions, past=kept)
                encoded = torch.cat([states, made], dim=1)
            else:
                encoded = self.model.get_encoder()(input_ids=ids).last_hidden_state
            outputs = BaseModelOutput(last_hidden_state=encoded)
            if not new_tokens:
                return self.model(encoder_outputs=outputs, decoder_input_ids=start)
            return self.model.generate(encoder_outputs=outputs, generation_config=whole(new_tokens))

        return answer

    def kept_bytes(self, tokens: int) -> int:
        """As above, with the final states that the decoder reads."""
        return super().kept_bytes(tokens) + self.hidden * tokens * self.dtype.itemsize


def on_device(kind: Any, config: Any, device: torch.device, tiny: bool) -> Any:
    """A random model made on the GPU, in bfloat16; in float32 at tiny size."""
    with torch.device(device):
        return kind.from_config(config, dtype=torch.float32 if tiny else torch.bfloat16).eval()


def whole(new_tokens: int) -> GenerationConfig:
    """Greedy answers of exactly so many tokens."""
    length = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    return GenerationConfig(**length, do_sample=False, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)


@dataclass(frozen=True)
class Cell:
    """Prompt lengths that are measured one after the other, and how."""

    label: str
    lengths: list[int]
    batch: int
    new_tokens: int
    rounds: int


def cells(options: Any) -> Iterator[Cell]:
    """The paper's prompts in one forward pass each, then answers and longer prompts."""
    lengths = prompt_lengths(options.seed)
    if options.cpu:
        yield Cell("252 prompts as the paper's", lengths[:3], 1, 0, 1)
        yield Cell("69", [69], 2, 3, 1)
        return
    yield Cell("252 prompts as the paper's", lengths, 1, 0, 1)
    for length in (69, 512, 2000):
        for batch in (1, 16):
            yield Cell(str(length), [length], batch, 0, 10)
            yield Cell(str(length), [length], batch, 64, 2)


@torch.inference_mode()
def measure(model: Llama, cell: Cell) -> dict[str, Any]:
    """Every condition's times and FLOPs in a cell, and the gists' ratios to the others."""
    times: dict[str, list[dict[str, float]]] = {}
    flops: dict[str, list[int]] = {}
    for place, length in enumerate(cell.lengths):
        ways = model.conditions(length, cell.batch)
        for counted in [False] * (not place) + [True] * cell.rounds:
            for name, way in ways.items():
                taken = timed(model.device, lambda way=way: way(cell.new_tokens))
                if counted:
                    times.setdefault(name, []).append(taken)
        if not cell.new_tokens and place < 8:
            for name, way in ways.items():
                flops.setdefault(name, []).append(count_flops(lambda way=way: way(0)))
    ratios = {
        f"{name} / {other}": {
            clock: paired_ratio([each[clock] for each in times[name]], [each[clock] for each in times[other]])
            for clock in ("card_s", "cpu_s", "wall_s")
        }
        for name in times
        for other in ("no cache", "full prompt cached")
        if name.startswith("gist") and other in times
    }
    return {
        "model": model.name,
        "prompts": cell.label,
        "mean_tokens": mean(cell.lengths),
        "batch": cell.batch,
        "new_tokens": cell.new_tokens,
        "median_s": {
            name: {clock: median(each[clock] for each in rows) for clock in ("card_s", "cpu_s", "wall_s")}
            for name, rows in times.items()
        },
        "flops": {name: sum(counts) for name, counts in flops.items()},
        "ratios": ratios,
        "kept_bytes_per_prompt": {
            "full prompt": round(model.kept_bytes(1) * mean(cell.lengths)),
            **{f"gist, k={k}": model.kept_bytes(k) for k in KS},
        },
    }


def main() -> None:
    """Both models, one after the other: together they need not fit."""
    options = arguments()
    device = find_card(options, gib=55)
    torch.manual_seed(options.seed)
    rows = []
    for kind in (Llama, FlanT5):
        model = kind(device, tiny=options.cpu)
        for cell in cells(options):
            rows.append(measure(model, cell))
            write_figures(options, device, {"cells": rows, "published": PAPER})
        del model
        if device.type == "cuda":
            torch.cuda.empty_cache()
    show(rows)


def show(rows: list[dict[str, Any]]) -> None:
    """A gist of one token against the other conditions, less than 0 is less."""
    console, table = Console(width=140), Table(box=box.MARKDOWN)
    for name in ("model", "prompt tokens", "batch", "new tokens", "FLOPs", "GPU", "processor", "GPU, to the cache"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        flops, none = row["flops"], row["ratios"]["gist, k=1 / no cache"]
        saved = change(flops["gist, k=1"] / flops["no cache"]) if flops else ""
        cached = row["ratios"].get("gist, k=1 / full prompt cached")
        table.add_row(
            row["model"],
            row["prompts"],
            str(row["batch"]),
            str(row["new_tokens"]) if row["new_tokens"] else "one pass",
            saved,
            change(none["card_s"]["median"]),
            change(none["cpu_s"]["median"]),
            change(cached["card_s"]["median"]) if cached else "",
        )
    console.print("A gist of one token against no cache, and (last column) against the full prompt's cache. Published:")
    console.print("; ".join(f"{name}: {value}" for name, value in PAPER.items()))
    console.print(table)


def change(ratio: float) -> str:
    """0.9 as -10.0 %."""
    return f"{100 * (ratio - 1):+.1f} %"


def arguments() -> Any:
    """The command line."""
    return parser(__doc__).parse_args()


if __name__ == "__main__":
    main()
