"""The `gistlm` command's entry point; the commands are put together in `app`."""

from __future__ import annotations

import os
import sys
import warnings


def main() -> None:
    """Run the command line on the process's arguments; what other libraries do by default is set first."""
    from gistlm.cli.app import app

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # a thread that waits for another spins by default: beside any other busy process commands took four times as long
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    app(prog_name="gistlm")
