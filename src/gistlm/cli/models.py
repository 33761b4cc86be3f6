"""`gistlm models`: the shipped checkpoints; reads their descriptions and no weights."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from gistlm.cli.options import JsonOption
from gistlm.cli.show import byte_count, print_json, print_table


def models(as_json: JsonOption = False) -> None:
    """List the checkpoints that come with gistlm; each name can be given as --model.

    "base here" says whether the model underneath is on this machine already or would be downloaded.

    \b
    Example:
      gistlm models
    """
    from gistlm.catalog import shipped

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
                ["on disk", byte_count(entry["nbytes"])],
            ],
            title=entry["name"],
        )


def _describe(name: str, folder: Path) -> dict[str, Any]:
    from gistlm.checkpoint_config import CONFIG
    from gistlm.errors import ModelError

    try:
        record = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        base, recipe = str(record["base"]), str(record["recipe"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / CONFIG} is damaged: {error!r}; install gistlm again") from error
    return {
        "name": name,
        "base": base,
        "recipe": recipe,
        "max_k": _max_k(folder, record.get("kept", 0)),
        "nbytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        "base_available": _is_here(base),
        "path": str(folder),
    }


def _max_k(folder: Path, kept: int) -> int | None:
    """Rows of the gist embeddings, from the file's header, and kept tokens; None when there is no such file."""
    from safetensors import SafetensorError, safe_open

    from gistlm.checkpoint import EMBEDDINGS

    try:
        with safe_open(folder / EMBEDDINGS, "pt") as file:
            return int(file.get_slice("gist_embeddings").get_shape()[0]) + kept
    except (OSError, SafetensorError):
        return None


def _is_here(base: str) -> bool:
    """Whether a base can be loaded without a connection."""
    from gistlm.base import PACKAGE

    if base.startswith(PACKAGE):
        return importlib.util.find_spec(base.removeprefix(PACKAGE).partition("/")[0]) is not None
    if base == "." or Path(base).expanduser().is_dir():
        return True
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(base, "config.json"), str)
    except HFValidationError:
        return False
