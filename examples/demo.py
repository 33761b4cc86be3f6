"""Compress a real system prompt with the shipped checkpoint, reuse the gist, and show what was saved.

Run: python examples/demo.py [--prompt FILE] [--question TEXT ...] [-k 16]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from gistlm import Gist, GistModel
from gistlm.errors import GistlmError

PROMPT = Path(__file__).parent / "support_prompt.txt"
QUESTIONS = [
    "My parcel has not arrived. What can I do?",
    "Can I bring back shoes that I have worn?",
    "Who are you?",
]


def main() -> None:
    """Run, or say in a sentence why not."""
    try:
        run(parse())
    except (GistlmError, OSError, UnicodeDecodeError) as error:
        sys.exit(f"demo.py: {error}")


def run(options: argparse.Namespace) -> None:
    """The whole story: load, compress, save, load again, answer three ways, count."""
    console = Console()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    prompt = options.prompt.read_text(encoding="utf-8").strip()
    with console.status("Loading the model (the first time, its file is converted: about half a minute) ..."):
        model = GistModel.from_pretrained(options.model)

    started = time.perf_counter()
    gist = model.compress(prompt, k=options.k)
    seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        path = gist.save(Path(folder) / "support.gist")
        size = path.stat().st_size
        gist = Gist.load(path)
    info = gist.info()
    console.print(
        f"\n[bold]{info['prompt_tokens']} tokens became {gist.k} gist tokens[/] ({info['compression']:g}x) in "
        f"{seconds:.2f} s; KV cache {info['prompt_nbytes']:,} -> {info['nbytes']:,} bytes; file {size:,} bytes\n"
    )
    show_answers(console, model, prompt, gist, options.question)
    show_times(console, model, prompt, gist, options.question[0])


def show_answers(console: Console, model: GistModel, prompt: str, gist: Gist, questions: list[str]) -> None:
    """Every question over the gist, the full prompt and nothing, in one mixed batch."""
    n = len(questions)
    inputs = questions * 3
    gists = [gist] * n + [None] * (2 * n)
    prompts = [None] * n + [prompt] * n + [None] * n
    with console.status("Answering ..."):
        answers = model.generate(inputs, gists, prompts=prompts, max_new_tokens=48)
    for row, question in enumerate(questions):
        table = Table(title=question, title_justify="left", title_style="bold cyan", show_lines=True)
        table.add_column("before the question", no_wrap=True)
        table.add_column("answer")
        for at, name in enumerate(("the gist", "the full prompt", "nothing")):
            table.add_row(name, answers[row + at * n].strip())
        console.print(table)


def show_times(console: Console, model: GistModel, prompt: str, gist: Gist, question: str) -> None:
    """Time to first token, in turns, with the gist and with the prompt encoded anew."""
    times: dict[str, list[float]] = {"gist": [], "prompt": []}
    with console.status("Timing ..."):
        for _ in range(5):
            times["gist"].append(seconds_of(lambda: model.generate(question, gist, max_new_tokens=1)))
            times["prompt"].append(seconds_of(lambda: model.generate(question, prompts=prompt, max_new_tokens=1)))
    medians = {name: statistics.median(values) for name, values in times.items()}
    saved = 1 - medians["gist"] / medians["prompt"]
    console.print(
        f"\nTime to first token: {medians['gist'] * 1000:.0f} ms over the gist, {medians['prompt'] * 1000:.0f} ms "
        f"with the prompt encoded anew ([bold]{saved:.0%} saved[/], medians of 5)"
    )


def seconds_of(call: object) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - started


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="a name from `gistlm models`, a folder or a hub id")
    parser.add_argument("--prompt", type=Path, default=PROMPT, help="the prompt to compress")
    parser.add_argument("--question", action="append", help="ask this instead (repeatable)")
    parser.add_argument("-k", type=int, default=16, help="number of gist tokens")
    options = parser.parse_args()
    options.question = options.question or QUESTIONS
    return options


if __name__ == "__main__":
    main()
