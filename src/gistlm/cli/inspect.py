"""`gistlm inspect`: what a gist file holds; loads no model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gistlm.cli import options as opt
from gistlm.cli.show import byte_count, print_json, print_table


def inspect(
    path: Annotated[Path, typer.Argument(help="The gist file.", metavar="GIST")],
    as_json: opt.Json = False,
) -> None:
    """Show what a gist file holds and who may read it, after checking that it is whole.

    \b
    Example:
      gistlm inspect system.gist
      gistlm inspect system.gist --json
    """
    from gistlm.gist_file import GistFile

    info = GistFile.load(path).info()
    if as_json:
        print_json(info)
        return
    shape = f"{info['layers']} layers, {info['kv_heads']} KV heads of {info['head_dim']}, {info['dtype']}"
    print_table(
        [
            ["id", info["id"]],
            ["made by", info["base"]],
            ["prompt", f"{info['prompt_tokens']:,} tokens, {byte_count(info['prompt_nbytes'])} of KV cache"],
            ["gist", f"{info['k']:,} tokens, {byte_count(info['nbytes'])} of KV cache"],
            ["kept", f"{info['kept']:,} of these are the prompt's own tokens"],
            ["compression", f"{info['compression']:g}x"],
            ["shape", shape],
            ["starts at", str(info["start"])],
            ["prompt hash", info["prompt_sha256"]],
            ["model", info["model"]],
            ["adapter", info["adapter"]],
        ],
        title=str(path),
    )
