"""What `gistlm.json` says of a checkpoint, and who may read its gists; knows nothing of weights and loads no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from gistlm.errors import ModelError, ModelNotFoundError
from gistlm.files import sha256, write_atomically
from gistlm.prompt import PromptFormat

CONFIG = "gistlm.json"
EMBEDDINGS = "gist_embeddings.safetensors"
GIST_TOKEN = "<GIST>"
"""The original project's gist token, an entry of its vocabularies."""
VERSION = 1
MOST_KEPT = 1 << 16
_MAX_CONFIG_BYTES = 1 << 20


class Recipe(StrEnum):
    """How a checkpoint was trained."""

    FROZEN = "frozen"
    """The base is bit-identical; only gist tokens pass through the adapter."""
    PAPER = "paper"
    """The whole model, or a LoRA merged into it, was tuned under the gist mask."""


@dataclass(frozen=True)
class CheckpointConfig:
    """What `gistlm.json` says."""

    base: str
    """Folder, hub id or package file of the model underneath; "." when it lies in the checkpoint's own folder."""
    recipe: Recipe
    base_fingerprint: str
    """Of the base's weights: those trained on, and once loaded those in use."""
    name: str
    """For people."""
    anchored: bool = False
    """Whether each gist token starts from a token of the prompt (see `anchors`) beside its own embedding."""
    kept: int = 0
    """Most tokens of the prompt whose own keys and values a gist keeps behind its learned ones (`observe`)."""

    def __post_init__(self) -> None:
        for field in fields(self):
            kind = {"anchored": bool, "kept": int}.get(field.name, str)
            value = getattr(self, field.name)
            if not isinstance(value, kind) or (kind is int and type(value) is not int):
                raise ModelError(f"a checkpoint's {field.name!r} must be {kind.__name__}: {value!r}")
            if isinstance(value, str):
                value.encode()  # half a surrogate pair is no text: a UnicodeEncodeError is a ValueError
        if not 0 <= self.kept <= MOST_KEPT:
            raise ModelError(f"a checkpoint's 'kept' must be from 0 to {MOST_KEPT:,}: {self.kept!r}")


def write_config(folder: Path, config: dict[str, Any], prompt_format: PromptFormat) -> None:
    """Write `gistlm.json`, whole or not at all; config: the fields of a `CheckpointConfig`."""
    record = {"version": VERSION, **config, "prompt_format": prompt_format.to_dict()}
    write_atomically(folder / CONFIG, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def read_config(folder: Path) -> tuple[CheckpointConfig, PromptFormat]:
    """What a folder's `gistlm.json` says. Raises `ModelNotFoundError` without one, `ModelError` if it is damaged."""
    path = folder / CONFIG
    if not path.is_file():
        raise ModelNotFoundError(f"{folder} is not a gist checkpoint: it has no {CONFIG}")
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ModelError(f"{path} has {path.stat().st_size:,} bytes; {_MAX_CONFIG_BYTES:,} are allowed")
        record = json.loads(path.read_text(encoding="utf-8"))
        version = record.pop("version")
        prompt_format = PromptFormat.from_dict(record.pop("prompt_format"))
        record["recipe"] = Recipe(record["recipe"])
        config = CheckpointConfig(**record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ModelError) as error:
        raise ModelError(f"{path} is damaged: {error}") from error
    if version != VERSION:
        raise ModelError(f"{path} has checkpoint version {version}; this gistlm reads version {VERSION}")
    return config, prompt_format


def reader_fingerprint(
    config: CheckpointConfig, adapter: str, vocabulary: Mapping[str, int], prompt_format: PromptFormat
) -> str:
    """The fingerprint of what reads a gist: base weights, those tuned under `paper`, tokenizer and prompt format.

    adapter: fingerprint of what writes the gist.
    """
    return sha256(
        config.base_fingerprint.encode(),
        adapter.encode() if config.recipe == Recipe.PAPER else b"",
        sha256(*(f"{token} {index}".encode() for token, index in sorted(vocabulary.items()))).encode(),
        json.dumps(prompt_format.to_dict(), sort_keys=True).encode(),
    )
