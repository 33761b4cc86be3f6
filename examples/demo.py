"""Compress a system prompt with the shipped checkpoint, reuse the gist, and show what was saved.

Run: python examples/demo.py [--prompt FILE] [--question TEXT ...] [-k 16]
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gistlm.errors import GistlmError

if TYPE_CHECKING:
    from gistlm import Gist, GistModel

PROMPT = Path(__file__).parent / "support_prompt.txt"
QUESTIONS = {
    "My parcel has not arrived. What can I do?": "a friendly help desk; a parcel over ten days late is sent again",
    "How long do I have to return something?": "thirty days, if it was not worn or used outdoors",
    "What are your opening hours?": "Monday to Friday, nine to five",
    "Which company do you work for?": "Northwind Outdoor",
}
"""And what the prompt says to each."""
WHAT_HOLDS = (
    "This gist keeps the role and the tone. It loses names and numbers, and the model then makes up others: put what "
    "must be exact into the question, or try more gist tokens (-k 64). Where the answer over the full prompt is wrong "
    "too, the cause is the small base model, not the compression."
)
MAX_NEW_TOKENS = 40


def main() -> None:
    """Run, or say in a sentence why not."""
    try:
        run(parse())
    except (GistlmError, OSError, UnicodeDecodeError) as error:
        sys.exit(f"demo.py: {error}")


def run(options: argparse.Namespace) -> None:
    """The whole story: load, compress, save, load again, answer three ways, count."""
    console = Console()
    prompt = options.prompt.read_text(encoding="utf-8").strip()
    with step(console, "importing torch and transformers"):
        from transformers.utils import logging

        from gistlm import Gist, GistModel
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with step(console, "loading the model (the first time, conversion takes up to a minute)"):
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
    facts = QUESTIONS if options.prompt == PROMPT else {}
    show_answers(console, model, prompt, gist, {question: facts.get(question, "") for question in options.question})
    if list(facts) == options.question:
        console.print(WHAT_HOLDS)
    show_times(console, model, prompt, gist, options.question[0])


def show_answers(console: Console, model: GistModel, prompt: str, gist: Gist, facts: dict[str, str]) -> None:
    """Every question over the gist, the full prompt and nothing, in one mixed batch.

    facts: by question, what the prompt says to it; empty where that is not known.
    """
    n = len(facts)
    inputs = list(facts) * 3
    gists = [gist] * n + [None] * (2 * n)
    prompts = [None] * n + [prompt] * n + [None] * n
    with step(console, f"answering {n} questions in three ways"):
        answers = model.generate(inputs, gists, prompts=prompts, max_new_tokens=MAX_NEW_TOKENS)
    for row, (question, fact) in enumerate(facts.items()):
        table = Table(title=Text(question, "bold cyan"), title_justify="left", show_lines=True)
        table.add_column("context", no_wrap=True)
        table.add_column("answer")
        if fact:
            table.add_row("", Text(f"The prompt says: {fact}.", "italic"))
        for at, name in enumerate(("the gist", "the full prompt", "no prompt")):
            table.add_row(name, Text(shown(answers[row + at * n])))
        console.print(table)


def shown(answer: str) -> str:
    """An answer up to the first sentence that it says again, as small models may do without end."""
    sentences = re.findall(r"\S.*?(?:[.!?](?=\s|$)|$)", answer.strip(), re.DOTALL)
    for at, sentence in enumerate(sentences):
        if sentence in sentences[:at]:
            return " ".join(sentences[:at]) + " (repetition cut)"
    cut = "" if answer.strip().endswith((".", "!", "?")) else " ..."
    return answer.strip() + cut


def show_times(console: Console, model: GistModel, prompt: str, gist: Gist, question: str) -> None:
    """Time to first token, in turns, with the gist and with the prompt encoded anew."""
    times: dict[str, list[float]] = {"gist": [], "prompt": []}
    with step(console, "timing"):
        for _ in range(5):
            times["gist"].append(seconds_of(lambda: model.generate(question, gist, max_new_tokens=1)))
            times["prompt"].append(seconds_of(lambda: model.generate(question, prompts=prompt, max_new_tokens=1)))
    medians = {name: statistics.median(values) for name, values in times.items()}
    saved = 1 - medians["gist"] / medians["prompt"]
    console.print(
        f"\nTime to first token: {medians['gist'] * 1000:.0f} ms over the gist, {medians['prompt'] * 1000:.0f} ms "
        f"with the prompt encoded anew ([bold]{saved:.0%} saved[/], medians of 5). Where the full prompt's KV cache is "
        f"kept, less time is saved, and {1 - gist.nbytes / gist.info()['prompt_nbytes']:.0%} of that cache's memory."
    )


@contextmanager
def step(console: Console, what: str) -> Iterator[None]:
    """Say what is being done, with a spinner in a terminal, and then how long it took."""
    started = time.perf_counter()
    console.print(f"{what} ...", style="dim")
    with console.status("..."):
        yield
    console.print(f"... {time.perf_counter() - started:.1f} s", style="dim")


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
    options.question = options.question or list(QUESTIONS)
    return options


if __name__ == "__main__":
    main()
