"""`python -m gistlm` is the `gistlm` command; knows nothing else."""

from __future__ import annotations

from gistlm.cli import main

if __name__ == "__main__":
    main()
