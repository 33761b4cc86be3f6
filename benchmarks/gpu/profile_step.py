"""What a training step would ask of a GPU, counted on the CPU: operators, and where the host waits for the device.

    python benchmarks/gpu/profile_step.py          a minute; needs the default model

Steps of `train.yaml` on random rows. On a GPU every operator is a kernel or more, which the host launches in some ten
microseconds, and at every synchronisation the host waits until all kernels are done. A GPU has fewer operators than are
counted: attention is fused, and the divergence is cut into fewer parts. Copies from the host to the device, which wait
too, are none on a CPU and cannot be seen here.
"""

from __future__ import annotations

import argparse
import collections
import random
import traceback
from pathlib import Path
from typing import Any

import torch
from card import FOLDER
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

from gistlm.training.batches import Collator, Example
from gistlm.training.config import read_config
from gistlm.training.loop import Objective
from gistlm.training.start import create_checkpoint

WAITS = {
    "_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_assert_async", "_linalg_check_errors",
}  # fmt: skip


class Counter(TorchDispatchMode):
    """Counts operators, and for those that wait for the device the line of gistlm that asked for them."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0
        self.waits: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and not func.is_view:
            self.operators += 1
        by_mask = name in ("index", "index_put", "index_put_") and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        if name in WAITS or by_mask:
            own = [frame for frame in traceback.extract_stack() if "/gistlm/" in frame.filename]
            place = f"{Path(own[-1].filename).name}: {own[-1].line}" if own else "torch's or transformers' own"
            self.waits[place] += 1
        return func(*args, **(kwargs or {}))


def main() -> None:
    """A step without counting, then one with it."""
    options = parse()
    config = read_config(FOLDER / "train.yaml")
    config = config.replace(device="cpu", batch_size=options.batch)
    objective = Objective(create_checkpoint(config), config).train()
    batches = make_batches(objective, options)
    step(objective, batches[0])
    counter = Counter()
    with counter:
        for batch in batches[1:]:
            step(objective, batch)
    show(counter, len(batches) - 1)


def step(objective: Objective, batch: dict[str, Any]) -> None:
    """One step without the optimiser, which is torch's."""
    objective(**batch)["loss"].backward()
    objective.zero_grad()


def make_batches(objective: Objective, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Random ids in rows of train.yaml's kind, by its collator."""
    draw, config = random.Random(options.seed), objective.options
    own = objective.checkpoint.prompts
    collate = Collator(objective.checkpoint.placement, config.k, config.seed)

    def example(tokens: int) -> Example:
        prompt = own.opening_ids + [draw.randrange(3, 40_000) for _ in range(tokens)]
        return Example(prompt, own.rest_ids("") + [draw.randrange(3, 40_000) for _ in range(40)], 24)

    rows = [[example(draw.choice((20, 60, 120))) for _ in range(options.batch)] for _ in range(options.steps + 1)]
    return [collate([{"example": row, "draw": place} for place, row in enumerate(some)]) for some in rows]


def show(counter: Counter, steps: int) -> None:
    """A row for every place that waits."""
    table = Table(box=box.MARKDOWN)
    table.add_column("waits a step", justify="right", no_wrap=True)
    table.add_column("where", no_wrap=True)
    for place, times in counter.waits.most_common():
        table.add_row(f"{times / steps:.1f}", escape(place))
    console = Console(width=160)
    console.print(f"{counter.operators / steps:,.0f} operators and {counter.waits.total() / steps:.1f} waits a step")
    console.print(table)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
