"""`gistlm models`: the shipped checkpoints; reads their descriptions and no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gistlm.cli import options as opt
from gistlm.cli.show import byte_count, print_json, print_table


def models(as_json: opt.Json = False) -> None:
    """List the checkpoints that come with gistlm; each name can be given as --model.

    "base here" says whether the model underneath is on this machine already or would be downloaded. "date in the
    prompt" is shown where the chat template writes a date: the day on which the checkpoint was made.

    \b
    Example:
      gistlm models
    """
    from gistlm.models.catalog import shipped

    found = [_describe(name, folder) for name, folder in shipped().items()]
    if as_json:
        print_json(found)
        return
    if not found:
        print("none is shipped with this copy; train one with: gistlm train RECIPE.yaml")
        return
    for entry in found:
        print_table(
            [
                ["base", entry["base"]],
                ["base here", "yes" if entry["base_available"] else "no"],
                ["recipe", entry["recipe"]],
                ["gist tokens", f"1 to {entry['max_k']}" if entry["max_k"] else "?"],
                *([["date in the prompt", entry["date"]]] if entry["date"] else []),
                ["on disk", byte_count(entry["nbytes"])],
            ],
            title=entry["name"],
        )


def _describe(name: str, folder: Path) -> dict[str, Any]:
    from gistlm.cli.preflight import embedding_shapes
    from gistlm.models.base_files import is_here
    from gistlm.models.config import read_config

    config, prompt_format = read_config(folder)
    shapes = embedding_shapes(folder)
    return {
        "name": name,
        "base": config.base,
        "recipe": config.recipe.value,
        "max_k": config.k.most if config.k else None if shapes is None else shapes[0] + config.kept,
        "date": prompt_format.date or None,
        "nbytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        "base_available": config.base == "." or is_here(config.base),
        "path": str(folder),
    }
