"""What a gist costs and saves on an encoder-decoder model, against the full prompt encoded with every request.

Run: python benchmarks/cost_encoder_decoder.py [--prompts 32,69,256,1024] [--batches 1,4] [--json OUT.json]

The model has the shape of FLAN-T5-small (or --base) and random weights, which cost the same. An encoder-decoder model
cannot keep a plain prompt's cache: its prompt reads the input. Knows nothing of quality.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
from conditions import WORDS, FullLengthModel, Gists, Workload, make_workload
from measure import command, count_flops, interleaved, machine, paired_ratio, requests_to_pay, spread
from rich import box
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from gistlm.errors import GistlmError
from gistlm.files import write_atomically
from gistlm.models.checkpoint import Checkpoint, CheckpointOptions
from gistlm.models.config import Recipe

FULL_PROMPT, GIST = "full_prompt", "gist"
FLAN_T5_SMALL: dict[str, Any] = {
    "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0,
}  # fmt: skip


@dataclass(frozen=True)
class FullPrompt:
    """Plain transformers: prompt and input through the encoder, for every request."""

    plain: Any
    checkpoint: Checkpoint
    workload: Workload

    def answer(self, new_tokens: int) -> list[str]:
        """Answers of exactly ``new_tokens`` tokens."""
        prompts = self.checkpoint.prompts
        pairs = zip(self.workload.prompts, self.workload.inputs, strict=True)
        ids = torch.tensor([prompts.prompt_ids(prompt) + prompts.rest_ids(text) for prompt, text in pairs])
        length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        with torch.no_grad():
            output = self.plain.generate(
                ids.to(self.plain.device),
                attention_mask=torch.ones_like(ids).to(self.plain.device),
                generation_config=GenerationConfig(
                    **length, do_sample=False, eos_token_id=prompts.output_end_ids[0], pad_token_id=0,
                    decoder_start_token_id=self.plain.config.decoder_start_token_id,
                ),
            )  # fmt: skip
        return [prompts.decode(row) for row in output[:, 1:].tolist()]


def main() -> None:
    """Measure every prompt length and batch, show, save."""
    options = parse()
    torch.set_num_threads(options.threads)
    try:
        model, plain = load(options.base)
        names = ("k", "prompts", "batches", "input_tokens", "new_tokens", "repeats", "seed")
        figures: dict[str, Any] = {
            "command": command(),
            "date": date.today().isoformat(),
            "machine": machine(model.dtype, model.device),
            "model": options.base or "random weights in the shape of FLAN-T5-small",
            "parameters": sum(tensor.numel() for tensor in model.checkpoint.reader.parameters()),
            "settings": {name: getattr(options, name) for name in names},
            "cells": [],
        }
        for prompt_tokens in options.prompts:
            for batch in options.batches:
                cell = {"prompt_tokens": prompt_tokens, "batch": batch}
                figures["cells"].append({**cell, **measure_cell(model, plain, options, **cell)})
                if options.json:
                    write_atomically(options.json, (json.dumps(figures, indent=1) + "\n").encode())
    except GistlmError as error:
        sys.exit(f"cost_encoder_decoder.py: {error}")
    show(figures)


def load(base: str | None) -> tuple[FullLengthModel, Any]:
    """An untrained checkpoint over the base or a random model, and the stock model that gistlm has not touched."""
    with tempfile.TemporaryDirectory() as folder:
        if base is None:
            save_random(Path(folder))
        made = Checkpoint.create(base or folder, CheckpointOptions(Recipe.PAPER, lora_rank=None))
    return FullLengthModel(made, batch_size=64), copy.deepcopy(made.reader)


def save_random(folder: Path) -> None:
    """A random model and a tokenizer of the benchmark's words."""
    vocabulary = dict.fromkeys(["<pad>", "</s>", "<unk>", "Instruction", "Input", ":", *WORDS])
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    T5ForConditionalGeneration(T5Config(**FLAN_T5_SMALL)).save_pretrained(folder)


def measure_cell(
    model: FullLengthModel, plain: Any, options: argparse.Namespace, prompt_tokens: int, batch: int
) -> dict[str, Any]:
    """Both conditions' figures and the gist's ratios to the full prompt, of one prompt length and batch."""
    workload = make_workload(model.checkpoint, (prompt_tokens, options.input_tokens), batch, options.seed)
    gists = model.compress(workload.prompts, options.k)
    ways = {FULL_PROMPT: FullPrompt(plain, model.checkpoint, workload), GIST: Gists(model, workload, gists)}

    def timed(tokens: int, clock: Any = time.perf_counter) -> dict[str, list[float]]:
        calls = {name: lambda way=way: way.answer(tokens) for name, way in ways.items()}
        return interleaved(calls, options.repeats, clock)

    found = {
        "first_token": timed(1),
        "answer": timed(options.new_tokens),
        "answer_cpu": timed(options.new_tokens, time.process_time),
    }
    flops = {name: count_flops(lambda way=way: way.answer(1)) for name, way in ways.items()}
    compress = interleaved({"compress": lambda: model.compress(workload.prompts, options.k)}, options.repeats)
    saving = median(found["answer"][FULL_PROMPT]) - median(found["answer"][GIST])
    per_token = gists[0].nbytes // options.k
    return {
        **{f"{name}_s": {way: spread(seconds) for way, seconds in times.items()} for name, times in found.items()},
        **{f"{name}_ratio": paired_ratio(times[GIST], times[FULL_PROMPT]) for name, times in found.items()},
        "first_token_flops": flops,
        "flops_ratio": flops[GIST] / flops[FULL_PROMPT],
        "compress_s": spread(compress["compress"]),
        "requests_to_pay": requests_to_pay(median(compress["compress"]), saving),
        "gist_bytes": gists[0].nbytes,
        "prompt_bytes": per_token * prompt_tokens,
    }


def show(figures: dict[str, Any]) -> None:
    """One Markdown table."""
    names = [
        "prompt",
        "batch",
        "FLOPs, first token",
        "first token",
        "answer",
        "answer, CPU time",
        "pays after",
        "bytes",
    ]
    table = Table(*names, box=box.MARKDOWN)
    for cell in figures["cells"]:
        ratios = [cell["first_token_ratio"], cell["answer_ratio"], cell["answer_cpu_ratio"]]
        table.add_row(
            str(cell["prompt_tokens"]),
            str(cell["batch"]),
            f"{cell['flops_ratio']:.2f}",
            *(f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})" for ratio in ratios),
            "never" if cell["requests_to_pay"] is None else str(cell["requests_to_pay"]),
            f"{cell['gist_bytes']:,} of {cell['prompt_bytes']:,}",
        )
    Console(width=180).print(table)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    parser.add_argument("--base", help="a T5 by folder or hub id; random weights by default")
    parser.add_argument("--k", type=int, default=1, help="gist tokens")
    parser.add_argument("--prompts", type=numbers, default=[32, 69, 256, 1024], help="prompt lengths in tokens")
    parser.add_argument("--batches", type=numbers, default=[1, 4], help="requests that run together")
    parser.add_argument("--input-tokens", type=int, default=32, help="tokens of an input, its template included")
    parser.add_argument("--new-tokens", type=int, default=16, help="tokens of every answer")
    parser.add_argument("--repeats", type=int, default=7, help="rounds that are counted")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--json", type=Path, help="write the figures here, after every cell")
    parser.add_argument("--seed", type=int, default=0, help="of the random words in prompts and inputs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
