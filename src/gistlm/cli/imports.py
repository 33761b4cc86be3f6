"""Keeps transformers from importing what no command needs of it; knows no command."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_UNNEEDED = ("pandas", "scipy", "sklearn")
"""Where they are installed, transformers imports them beside every model: for assisted generation and losses of
computer vision (docs/experiments.md, 2026-11-27, how long a command takes)."""


@contextmanager
def without_unneeded() -> Iterator[None]:
    """Meanwhile these packages seem not to be installed; what is loaded already stays."""
    hidden = [name for name in _UNNEEDED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: importing it fails, and it is not found
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
