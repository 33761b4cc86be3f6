"""`gistlm generate`: one answer over a gist, over a full prompt, or over neither."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gistlm.cli import options as opt
from gistlm.cli.show import print_json
from gistlm.cli.text import STDIN, read_input, read_prompt

if TYPE_CHECKING:
    from gistlm.engines.base import Engine, Request
    from gistlm.gist import Gist
    from gistlm.gist_file import GistFile


def generate(
    text: Annotated[
        str, typer.Argument(help="What to answer. - reads stdin. After --, any text is the input.", metavar="INPUT")
    ],
    gist: Annotated[Path | None, typer.Option("--gist", "-g", help="The gist that stands before the input.")] = None,
    prompt_file: Annotated[
        str | None, typer.Option("--prompt-file", "-p", help="A full prompt in the gist's place; - reads stdin.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Answer over the gist and over --prompt-file, side by side, timed.")
    ] = False,
    max_new_tokens: opt.MaxNewTokens = 128, temperature: opt.Temperature = 0.0, top_p: opt.TopP = 1.0,
    top_k: opt.TopK = 0, stop: opt.Stop = None, seed: opt.Seed = None, model: opt.Model = opt.DEFAULT_MODEL,
    base: opt.Base = None, device: opt.Device = None, dtype: opt.Dtype = None, as_json: opt.Json = False,
    engine: opt.Engine = "transformers",
) -> None:  # fmt: skip
    """Answer an input, with a gist in place of the prompt, and write the answer to stdout as it is made.

    Without --gist, the text of --prompt-file is an ordinary prompt. With neither, there is only what the chat template
    says of itself. An input that begins with a dash is taken as one if a digit follows or it has white space in it; put
    any other after --.

    \b
    Example:
      gistlm generate --gist system.gist "What is your refund policy?"
      gistlm generate --gist system.gist -- --help
      echo "Where is my order?" | gistlm generate --gist system.gist --json -
      gistlm generate --gist system.gist --prompt-file system.txt --compare "Where is my order?"
    """
    _check_usage(text, gist, prompt_file, compare)
    from gistlm.engines.base import Request
    from gistlm.gist_file import GistFile

    sampling = opt.sampling(max_new_tokens, temperature, top_p, top_k, stop, seed)
    file = GistFile.load(gist) if gist is not None else None
    prompt = read_prompt(prompt_file) if prompt_file is not None else None
    question = read_input(text)
    options = opt.EngineOptions(engine, model, base, device, dtype)
    if known := options.preflight(file):
        known.check_request(question, prompt, file, max_new_tokens)
    loaded = options.load(file)
    request = Request(question, read_gist(file), None if compare else prompt, sampling)
    from gistlm.cli.compare import answer, compare_answers, print_comparison

    if compare:
        report = compare_answers(loaded, request, prompt or "")
        print_json(report) if as_json else print_comparison(report)
    elif as_json:
        print_json(answer(loaded, request))
    else:
        _stream(loaded, request)
    loaded.close()


def read_gist(file: GistFile | None) -> Gist | None:
    """The gist of a file, to be computed with; loads torch, which the file alone does not."""
    from gistlm.gist import Gist

    return None if file is None else Gist.from_file(file)


def _check_usage(text: str, gist: Path | None, prompt_file: str | None, compare: bool) -> None:
    """Raise Typer's usage error where the options contradict each other."""
    if compare and (gist is None or prompt_file is None):
        raise typer.BadParameter("--compare needs both --gist and --prompt-file: a gist file does not hold its prompt")
    if gist is not None and prompt_file is not None and not compare:
        raise typer.BadParameter("--gist stands in place of --prompt-file; give one of them, or add --compare")
    if text == STDIN and prompt_file == STDIN:
        raise typer.BadParameter("only one of INPUT and --prompt-file can be read from stdin")


def _stream(engine: Engine, request: Request) -> None:
    pieces = engine.stream_request(request)
    with contextlib.closing(pieces):  # type: ignore[type-var]  # an engine's iterator is a generator
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    print()
