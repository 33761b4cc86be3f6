"""gistlm: compress prompts into a few gist tokens whose keys and values are cached and reused.

Mu, Li, Goodman 2023, "Learning to Compress Prompts with Gist Tokens", https://arxiv.org/abs/2304.08467.
Public names are loaded when first used; importing the package loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gistlm.errors import GistlmError

if TYPE_CHECKING:
    from gistlm.engines.transformers import GistModel
    from gistlm.gist import Gist

__version__ = "0.1.0"
__all__ = ["Gist", "GistModel", "GistlmError", "__version__"]

_LAZY = {"Gist": "gistlm.gist", "GistModel": "gistlm.engines.transformers"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'gistlm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
