"""`gistlm convert`: the original project's weight differences to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    diff: Annotated[str, typer.Option("--diff", help="The differences: a folder or a hub id.")],
    base: Annotated[str, typer.Option("--base", help="The model that they were taken from: a folder or a hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the whole checkpoint.")],
) -> None:
    """Add the original project's weight differences to their base model.

    Its LLaMA checkpoints are published as differences to the base weights. The result is a whole checkpoint
    in safetensors, to be given as --model. This command alone also reads weights in pytorch_model*.bin, as of
    2023: tensors only, no code in them is run.

    \b
    Example:
      gistlm convert --diff jayelm/llama-7b-gist-1 --base path/to/llama-7b -o llama-7b-gist-1
    """
    from gistlm.models.original_project import convert as add_base

    folder = add_base(diff, base, str(output))
    print(f"{folder} written; use it with: gistlm compress PROMPT.txt -o X.gist -k 1 --model {folder}")
