"""`gistlm compress`: a prompt file in, a gist file out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from gistlm.cli import options as opt
from gistlm.cli.show import byte_count, duration, print_json, print_table
from gistlm.cli.text import STDIN, read_prompt
from gistlm.errors import InputError
from gistlm.files import check_target


def compress(
    prompt: Annotated[str, typer.Argument(help="Text file with the prompt, UTF-8; - reads stdin.", metavar="PROMPT")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the gist, usually NAME.gist.")],
    k: Annotated[int, typer.Option("-k", help="Gist tokens, from 1 to the checkpoint's most.")] = 4,
    model: opt.Model = opt.DEFAULT_MODEL, base: opt.Base = None, device: opt.Device = None, dtype: opt.Dtype = None,
    as_json: opt.Json = False, engine: opt.Engine = "transformers",
) -> None:  # fmt: skip
    """Compress a prompt into k gist tokens and save them.

    One pass of the model over the prompt; use the file in the prompt's place from then on. An existing OUTPUT is
    replaced atomically. With a checkpoint that keeps tokens of the prompt, as the shipped one does, a prompt of at
    most k tokens is stored verbatim, and a slightly longer one uses kept tokens only.

    \b
    Example:
      gistlm compress system.txt -o system.gist -k 4
    """
    if k < 1:
        raise InputError(f"-k is the number of gist tokens, 1 or more; got {k}")
    text = read_prompt(prompt)
    check_target(output, None if prompt == STDIN else prompt)
    options = opt.EngineOptions(engine, model, base, device, dtype)
    if known := options.preflight():
        known.check_prompt(text, k)
    loaded = options.load()
    begin = time.perf_counter()
    gist = loaded.compress(text, k)
    seconds = time.perf_counter() - begin
    gist.save(output)
    loaded.close()
    report = {"path": str(output), "seconds": round(seconds, 4), **gist.info()}
    print_json(report) if as_json else _print(report)


def _print(report: dict[str, Any]) -> None:
    print_table(
        [
            ["tokens", f"{report['prompt_tokens']:,}", f"{report['k']:,}", f"{report['compression']:g}x fewer"],
            ["KV cache", byte_count(report["prompt_nbytes"]), byte_count(report["nbytes"]), report["dtype"]],
        ],
        header=["", "prompt", "gist", ""],
    )
    if report["kept"] == report["k"]:
        print("The gist keeps all or nearly all of the prompt's own tokens, and none is learned.")
    print(f"{report['path']} written; compressing took {duration(report['seconds'])}")
