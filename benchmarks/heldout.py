"""How much of the full prompt a checkpoint's gists keep on a file of rows that it was never trained on.

Run: python benchmarks/heldout.py --data FILE.jsonl [--model smollm2-135m] [--k 1,2,4,8,16] [--json OUT.json]

Negative log-likelihood (nats a token) of the reference outputs, and KL divergence to the model with the full
prompt, under full prompt, no prompt and gists; with the share of the gap between no prompt and full prompt that
the gist closes, and 95 % intervals from a paired bootstrap over rows.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table

from gistlm.catalog import load_checkpoint
from gistlm.training.batches import Examples
from gistlm.training.rows import read_rows
from gistlm.training.validation import measure_rows

RESAMPLES = 2000


def main() -> None:
    """Measure every row, resample, print, save."""
    options = parse()
    torch.set_num_threads(options.threads)
    ks = [int(k) for k in options.k.split(",")]
    checkpoint = load_checkpoint(options.model)
    rows = read_rows(options.data, limit=options.limit)
    examples = Examples(rows, checkpoint.prompts, options.max_tokens)
    started = time.time()
    with Console(stderr=True).status(f"Measuring {len(examples)} rows ..."):
        found = measure_rows(checkpoint, examples, ks)
    table = {" ".join(key).strip(): sums.numpy() for key, sums in found.items()}
    figures = {
        "command": "python " + " ".join(sys.argv).replace(options.data, Path(options.data).name),
        "date": date.today().isoformat(),
        "machine": machine(options.threads),
        "model": options.model,
        "adapter": checkpoint.adapter_fingerprint[:16],
        "data": Path(options.data).name,
        "rows": len(examples),
        "output_tokens": int(table["tokens"].sum()),
        "seconds": round(time.time() - started, 1),
        "seed": options.seed,
        **summary(table, ks, options.seed),
    }
    show(figures, ks)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def summary(table: dict[str, np.ndarray], ks: list[int], seed: int) -> dict[str, Any]:
    """Means over tokens and gaps closed, each gap with a 95 % interval."""
    draws = np.random.default_rng(seed).integers(0, len(table["tokens"]), (RESAMPLES, len(table["tokens"])))

    def mean(name: str, rows: Any) -> Any:
        return table[name][rows].sum(-1) / table["tokens"][rows].sum(-1)

    def gap(k: int, key: str, rows: Any) -> Any:
        full = mean("full nll", rows) if key == "nll" else 0.0
        return (mean(f"none {key}", rows) - mean(f"k={k} {key}", rows)) / (mean(f"none {key}", rows) - full)

    whole = np.arange(len(table["tokens"]))
    result: dict[str, Any] = {
        "full": {"nll": round(float(mean("full nll", whole)), 4)},
        "none": {key: round(float(mean(f"none {key}", whole)), 4) for key in ("nll", "kl")},
    }
    for k in ks:
        result[f"k={k}"] = {key: round(float(mean(f"k={k} {key}", whole)), 4) for key in ("nll", "kl")}
        for key in ("nll", "kl"):
            low, high = np.percentile(gap(k, key, draws), [2.5, 97.5])
            result[f"k={k}"][f"{key}_gap_closed"] = round(float(gap(k, key, whole)), 4)
            result[f"k={k}"][f"{key}_gap_closed_95"] = [round(float(low), 4), round(float(high), 4)]
    return result


def show(figures: dict[str, Any], ks: list[int]) -> None:
    """The table for people."""
    table = Table(title=f"{figures['model']} on {figures['data']}: {figures['rows']} rows", title_justify="left")
    for column in ("before the input", "NLL", "KL to full prompt", "NLL gap closed", "KL gap closed"):
        table.add_column(column, justify="left" if column.startswith("before") else "right")
    table.add_row("full prompt", f"{figures['full']['nll']:.3f}", "0", "100 %", "100 %")
    for k in ks:
        found = figures[f"k={k}"]
        gaps = [
            f"{found[f'{key}_gap_closed']:.0%} ({found[f'{key}_gap_closed_95'][0]:.0%} to "
            f"{found[f'{key}_gap_closed_95'][1]:.0%})"
            for key in ("nll", "kl")
        ]
        table.add_row(f"gist, k={k}", f"{found['nll']:.3f}", f"{found['kl']:.3f}", *gaps)
    table.add_row("nothing", f"{figures['none']['nll']:.3f}", f"{figures['none']['kl']:.3f}", "0 %", "0 %")
    Console().print(table)


def machine(threads: int) -> dict[str, Any]:
    """What ran it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return {"cpu": name, "threads": threads, "torch": torch.__version__, "transformers": transformers.__version__}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="rows of instruction, input, output; see docs/training.md")
    parser.add_argument("--model", default="smollm2-135m", help="a name from `gistlm models`, a folder or a hub id")
    parser.add_argument("--k", default="1,2,4,8,16", help="numbers of gist tokens")
    parser.add_argument("--limit", type=int, help="use the first rows only")
    parser.add_argument("--max-tokens", type=int, default=1024, help="leave longer rows out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
