"""From a name to a checkpoint: shipped ones, folders, hub ids, and the original project's checkpoints.

Finding one reads small files and loads no torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gistlm.errors import ModelError, ModelNotFoundError
from gistlm.files import read_json
from gistlm.models.base_files import expanded, is_folder
from gistlm.models.config import CONFIG, GIST_TOKEN

if TYPE_CHECKING:
    import torch

    from gistlm.models.checkpoint import Checkpoint

_FILES = [CONFIG, "*.json", "*.safetensors", "*.model", "*.jinja"]


def shipped() -> dict[str, Path]:
    """The checkpoints that come with gistlm, by name."""
    roots = (Path(__file__).parents[1] / "checkpoints", Path(__file__).parents[3] / "checkpoints")
    return {folder.parent.name: folder.parent for root in roots for folder in sorted(root.glob(f"*/{CONFIG}"))}


def find_checkpoint(name: str) -> Path | None:
    """The folder of a checkpoint that is on this machine; None for a hub id, which only the hub can tell.

    Raises `ModelNotFoundError` or `ModelError` for a name that is no checkpoint.
    """
    folder = shipped().get(name) or expanded(name)
    if is_folder(folder):
        _check_is_checkpoint(folder, name)
        return folder
    looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1 or (os.sep != "/" and os.sep in name)
    if looks_local:
        raise ModelNotFoundError(
            f"there is no checkpoint {name!r}: no such folder, and the shipped ones are {_known()}"
        )
    return None


def load_checkpoint(
    name: str, base: str | None = None, device: str | None = None, dtype: torch.dtype | None = None
) -> Checkpoint:
    """Load a checkpoint by shipped name, folder or hub id. Raises `ModelNotFoundError` or `ModelError`."""
    folder = find_checkpoint(name) or _download(name)
    if (folder / CONFIG).is_file():
        from gistlm.models.checkpoint import Checkpoint

        return Checkpoint.load(folder, base, device, dtype)
    from gistlm.models.original_project import load_legacy

    return load_legacy(folder, device, dtype)


def is_legacy(folder: Path) -> bool:
    """Whether a folder is a checkpoint of the original project, where <GIST> is the last entry of the vocabulary.

    Reads bounded JSON files and never raises.
    """
    try:
        last = read_json(folder / "config.json")["vocab_size"] - 1
        return bool(_gist_index(folder) == last)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _check_is_checkpoint(folder: Path, name: str) -> None:
    if (folder / CONFIG).is_file() or is_legacy(folder):
        return
    if (folder / "config.json").is_file():
        raise ModelError(f"{name} is a plain model with no gist checkpoint; train one with: gistlm train RECIPE.yaml")
    raise ModelNotFoundError(f"{folder} holds neither a gist checkpoint nor a model; the shipped ones are {_known()}")


def _download(name: str) -> Path:
    """A hub repository's folder; whatever is wrong with the name is one sentence."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=_FILES))
    except Exception as error:  # the hub's client raises many kinds
        raise ModelNotFoundError(
            f"cannot get {name} from the hub ({type(error).__name__}); check the name and the connection, "
            f"or use a shipped checkpoint: {_known()}"
        ) from error
    _check_is_checkpoint(folder, name)
    return folder


def _gist_index(folder: Path) -> object:
    """The id of <GIST> as the first of the tokenizer's files that has it says; None when none has."""
    if (file := folder / "added_tokens.json").is_file() and GIST_TOKEN in (tokens := read_json(file)):
        return tokens[GIST_TOKEN]
    if (file := folder / "tokenizer_config.json").is_file():
        for index, token in read_json(file).get("added_tokens_decoder", {}).items():
            if token["content"] == GIST_TOKEN:
                return int(index)
    for token in read_json(folder / "tokenizer.json")["added_tokens"]:
        if token["content"] == GIST_TOKEN:
            return token["id"]
    return None


def _known() -> str:
    return ", ".join(shipped()) or "(none)"
