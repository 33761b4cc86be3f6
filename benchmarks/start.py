"""How long commands take from the shell: help and descriptions, mistakes, a prompt's compression, the first token.

Every command is a process of its own, as a user's is. They take turns, round after round, after one round that is not
counted: it brings files into the system's memory, and converts the default model at its first use.

Run: python benchmarks/start.py [--model NAME] [--rounds 5] [--json start.json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from functools import partial
from pathlib import Path

import torch
from measure import command, interleaved, machine, spread
from rich import box
from rich.console import Console
from rich.table import Table

from gistlm import GistModel

PROMPT = Path(__file__).parents[1] / "examples" / "support_prompt.txt"
GISTLM = [sys.executable, "-m", "gistlm"]


def main() -> None:
    """Measure, show, and write."""
    options = parse()
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.model)
        calls = {what: partial(run, words, folder) for what, words in commands(options.model).items()}
        with Console(stderr=True).status(f"{options.rounds + 1} rounds of {len(calls)} commands ..."):
            seconds = interleaved(calls, options.rounds)
    figures = {
        "command": command(),
        "date": date.today().isoformat(),
        "model": options.model,
        "rounds": options.rounds,
        "machine": machine(torch.get_default_dtype(), torch.device("cpu")),
        "seconds": {what: spread(taken) for what, taken in seconds.items()},
    }
    show(figures["seconds"])
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def prepare(folder: Path, model: str) -> None:
    """Prompts, a gist, a gist of another model by its file, and a damaged one."""
    text = PROMPT.read_text(encoding="utf-8")
    (folder / "prompt.txt").write_text(text, encoding="utf-8")
    (folder / "long.txt").write_text(text * 100, encoding="utf-8")
    gist = GistModel.from_pretrained(model).compress("Answer briefly and politely.")
    data = gist.save(folder / "own.gist").read_bytes()
    (folder / "damaged.gist").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def commands(model: str) -> dict[str, list[str]]:
    """What is typed behind `gistlm`."""
    over = ["generate", "--model", model, "--gist", "own.gist"]
    compress = ["compress", "--model", model, "-o", "x.gist"]
    return {
        "help": ["--help"],
        "models": ["models"],
        "inspect": ["inspect", "own.gist"],
        "mistake: missing file": [*compress, "none.txt"],
        "mistake: k too large": [*compress, "prompt.txt", "-k", "100000"],
        "mistake: prompt too long": [*compress, "long.txt"],
        "mistake: damaged gist": ["generate", "--model", model, "--gist", "damaged.gist", "Hi"],
        "compress to the file": [*compress, "prompt.txt"],
        "generate to the first token": [*over, "What can I do?", "-n", "1"],
    }


def run(words: list[str], folder: Path) -> None:
    """Run a command to its end; what a mistake says is the end of it."""
    result = subprocess.run([*GISTLM, *words], cwd=folder, capture_output=True, text=True, check=False)
    if (result.returncode != 0) != ("error: " in result.stderr):
        raise SystemExit(f"start.py: gistlm {' '.join(words)} ended with {result.returncode}: {result.stderr.strip()}")


def show(seconds: dict[str, dict[str, float]]) -> None:
    """A row for each command."""
    table = Table("command", "median, s", "least", "most", box=box.MARKDOWN)
    for what, taken in seconds.items():
        table.add_row(what, *(f"{taken[name]:.2f}" for name in ("median", "min", "max")))
    Console().print(table)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a name from `gistlm models`, a folder or a hub id")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that are counted")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
