"""The mean of two checkpoints' trained weights, where the second's training went on from the first's.

Run: python recipes/average.py runs/smollm2-135m-3 runs/smollm2-135m-4 --out runs/smollm2-135m-mean [--share 0.5]

What the first has no tensor for (it was trained without) is the second's. Two ends of one training mostly lie in one
valley of the loss, and their mean in a flatter part of it: Wortsman et al. 2022, "Model soups". Trains and measures
nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gistlm.models.checkpoint import ADAPTER, ADAPTER_WEIGHTS
from gistlm.models.config import CONFIG, EMBEDDINGS

FIGURES = "training.json"
WEIGHTS = (EMBEDDINGS, ADAPTER_WEIGHTS)


def main() -> None:
    """Read, mix, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.5, help="of the second, from 0 to 1")
    options = parser.parse_args()
    if not 0 <= options.share <= 1:
        sys.exit(f"average.py: --share must be from 0 to 1, got {options.share}")
    if options.out.exists():
        sys.exit(f"average.py: {options.out} exists; name a new folder")
    check_make(options.first, options.second)
    figures = read_json(options.second / FIGURES)
    mixed = {name: mix(options.first / name, options.second / name, options.share) for name in WEIGHTS}
    figures["averaged"] = {"with": str(options.first), "share": options.share}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out.parent) as folder:
        made = Path(folder) / options.out.name
        shutil.copytree(options.second, made, ignore=shutil.ignore_patterns("run"))
        for name, tensors in mixed.items():
            save_file(tensors, made / name, {"format": "pt"})
        (made / FIGURES).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        made.rename(options.out)


def check_make(first: Path, second: Path) -> None:
    """End unless both have one base, one prompt format and one kind of adapter; names and kept tokens may differ."""
    for name in (CONFIG, ADAPTER):
        one, other = (read_json(folder / name) for folder in (first, second))
        for key in sorted((one.keys() | other.keys()) - {"name", "kept"}):
            if _in_order(one.get(key)) != _in_order(other.get(key)):
                sys.exit(f"average.py: {first} and {second} differ in {key!r} of {name}; they must be of one make")


def _in_order(value: Any) -> Any:
    """peft writes sets as lists in any order."""
    return sorted(value) if isinstance(value, list) else value


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint's folder."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"average.py: {path} cannot be read: {error}")
    if not isinstance(found, dict):
        sys.exit(f"average.py: {path} holds no JSON object")
    return found


def mix(first: Path, second: Path, share: float) -> dict[str, Tensor]:
    """The tensors of two files, (1 - share) of the first and share of the second."""
    try:
        one, other = load_file(first), load_file(second)
    except (OSError, SafetensorError) as error:
        sys.exit(f"average.py: {first} or {second} cannot be read: {error}")
    if misfits := [name for name, tensor in one.items() if name not in other or other[name].shape != tensor.shape]:
        sys.exit(f"average.py: {first} and {second} differ in {misfits[0]}; they must be of one make")
    return other | {
        name: tensor.float().lerp(other[name].float(), share).to(tensor.dtype) for name, tensor in one.items()
    }


if __name__ == "__main__":
    main()
