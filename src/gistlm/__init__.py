"""gistlm: compress prompts into a few gist tokens whose keys and values are cached and reused.

Mu, Li, Goodman 2023, "Learning to Compress Prompts with Gist Tokens", https://arxiv.org/abs/2304.08467.
Public names are loaded when first used; importing the package loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gistlm.errors import GistlmError

if TYPE_CHECKING:
    from gistlm.engines.base import Completion, Engine, Piece, Request, load_engine
    from gistlm.engines.sampling import Sampling
    from gistlm.engines.transformers import GistModel
    from gistlm.gist import Gist
    from gistlm.store import Store, open_store
    from gistlm.training.config import TrainConfig
    from gistlm.training.loop import train

__version__ = "0.1.0"
__all__ = [
    "Completion",
    "Engine",
    "Gist",
    "GistModel",
    "GistlmError",
    "Piece",
    "Request",
    "Sampling",
    "Store",
    "TrainConfig",
    "__version__",
    "load_engine",
    "open_store",
    "train",
]

_LAZY = {
    "Completion": "gistlm.engines.base",
    "Engine": "gistlm.engines.base",
    "Gist": "gistlm.gist",
    "GistModel": "gistlm.engines.transformers",
    "Piece": "gistlm.engines.base",
    "Request": "gistlm.engines.base",
    "Sampling": "gistlm.engines.sampling",
    "Store": "gistlm.store",
    "TrainConfig": "gistlm.training.config",
    "load_engine": "gistlm.engines.base",
    "open_store": "gistlm.store",
    "train": "gistlm.training.loop",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'gistlm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
