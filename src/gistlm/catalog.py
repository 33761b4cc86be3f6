"""From a name to a checkpoint: shipped ones, folders, hub ids, and the original project's checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from gistlm.checkpoint import Checkpoint
from gistlm.checkpoint_config import CONFIG
from gistlm.errors import ModelError, ModelNotFoundError
from gistlm.legacy import is_legacy, load_legacy

_FILES = [CONFIG, "*.json", "*.safetensors", "*.model", "*.jinja"]


def shipped() -> dict[str, Path]:
    """The checkpoints that come with gistlm, by name."""
    roots = (Path(__file__).parent / "checkpoints", Path(__file__).parents[2] / "checkpoints")
    return {folder.parent.name: folder.parent for root in roots for folder in sorted(root.glob(f"*/{CONFIG}"))}


def load_checkpoint(
    name: str, base: str | None = None, device: str | None = None, dtype: torch.dtype | None = None
) -> Checkpoint:
    """Load a checkpoint by shipped name, folder or hub id. Raises `ModelNotFoundError` or `ModelError`."""
    folder = shipped().get(name) or _expanded(name)
    if not folder.is_dir():
        folder = _download(name)
    if (folder / CONFIG).is_file():
        return Checkpoint.load(folder, base, device, dtype)
    if is_legacy(folder):
        return load_legacy(folder, device, dtype)
    if (folder / "config.json").is_file():
        raise ModelError(f"{name} is a plain model with no gist checkpoint; train one with: gistlm train RECIPE.yaml")
    raise ModelNotFoundError(f"{folder} holds neither a gist checkpoint nor a model; the shipped ones are {_known()}")


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~someone who is not here
        return Path(name)


def _download(name: str) -> Path:
    """A hub repository's folder; whatever is wrong with the name is one sentence."""
    looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1 or (os.sep != "/" and os.sep in name)
    if looks_local:
        raise ModelNotFoundError(
            f"there is no checkpoint {name!r}: no such folder, and the shipped ones are {_known()}"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except Exception as error:  # the hub's client raises many kinds
        raise ModelNotFoundError(
            f"cannot get {name} from the hub ({type(error).__name__}); check the name and the connection, "
            f"or use a shipped checkpoint: {_known()}"
        ) from error


def _known() -> str:
    return ", ".join(shipped()) or "(none)"
