"""Training rows of the kinds that the retention probe asks for, from words that no probe has.

Run: python recipes/retention_rows.py --rows 2400 --out rows.jsonl [--seed 7] [--kinds rule pattern]

Knows nothing of training; what the kinds are is `gistlm.evaluation.probes`' business.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from gistlm.errors import GistlmError
from gistlm.evaluation.probes import KINDS, training_rows
from gistlm.files import write_atomically


def main() -> None:
    """Write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2400)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=[], help="all by default")
    options = parser.parse_args()
    try:
        rows = training_rows(options.seed, options.rows, options.kinds)
    except GistlmError as error:
        sys.exit(f"retention_rows.py: {error}")
    write_atomically(options.out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


if __name__ == "__main__":
    main()
