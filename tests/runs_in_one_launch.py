"""Runs of several recipes, given as JSON, in one launch by accelerate.

With FSDP on the CPU, processes are taken for GPUs: accelerate has FSDP for these alone.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from rich.console import Console

from gistlm.training import loop, saves, validation
from gistlm.training.config import TrainConfig
from gistlm.training.progress import TrainingProgress

_init = PartialState.__init__


def _as_gpus(self: PartialState, *args: Any, **options: Any) -> None:
    _init(self, *args, **options)
    if self._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
        self._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def _refuse(*args: Any, **options: Any) -> None:
    raise AssertionError("only the main process writes")


if __name__ == "__main__":
    if os.environ["RANK"] != "0":
        saves.save_file = loop.write_atomically = validation.write_atomically = _refuse  # type: ignore[assignment]
        loop.Checkpoint.save_pretrained = _refuse  # type: ignore[assignment]
    if "ACCELERATE_USE_FSDP" in os.environ:
        PartialState.__init__ = _as_gpus  # type: ignore[method-assign]
    if "ACCELERATE_USE_DEEPSPEED" in os.environ:
        from deepspeed import ops

        ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would compile a sum of its own; gloo's serves
    for recipe in json.loads(sys.argv[1]):
        with TrainingProgress(Console(stderr=True)) as progress:
            loop.train(TrainConfig.parse(recipe), [progress])
        AcceleratorState._reset_state()  # DeepSpeed's engine is of one run
    torch.distributed.destroy_process_group()
