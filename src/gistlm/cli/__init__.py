"""The `gistlm` command's entry point; the commands are put together in `app`."""

from __future__ import annotations

import gc
import os
import sys
import warnings

_ALLOCATIONS = 20_000
"""Allocations between two runs of the garbage collector; Python's default is 700. Imports allocate millions of objects
and leave hardly any garbage (docs/experiments.md, 2026-11-27, how long a command takes)."""


def main() -> None:
    """Run the command line on the process's arguments; what other libraries would print is silenced first."""
    from gistlm.cli.app import app

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    gc.set_threshold(_ALLOCATIONS)
    try:
        app(prog_name="gistlm")
    finally:
        gc.freeze()  # the process ends: collecting its garbage would take most of a second
