"""The original project's checkpoints: a transformers folder whose vocabulary ends in one <GIST> token."""

from __future__ import annotations

from pathlib import Path

import torch

from gistlm.checkpoint import Checkpoint


def is_legacy(folder: Path) -> bool:
    return False


def load_legacy(folder: Path, device: str | None, dtype: torch.dtype | None) -> Checkpoint:
    raise ValueError
