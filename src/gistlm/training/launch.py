"""How the processes of a launch divide a model, by the options of accelerate and DeepSpeed; knows no model."""

from __future__ import annotations

import os

import torch
from accelerate import DistributedType, PartialState
from transformers.integrations.deepspeed import deepspeed_config

from gistlm.errors import InputError

_FSDP = {
    "VERSION": ("2", "1"),
    "STATE_DICT_TYPE": ("FULL_STATE_DICT", "SHARDED_STATE_DICT"),
    "AUTO_WRAP_POLICY": ("TRANSFORMER_BASED_WRAP", "NO_WRAP"),
    "CPU_RAM_EFFICIENT_LOADING": ("false", "false"),
    "ACTIVATION_CHECKPOINTING": ("false", "false"),
    "OFFLOAD_PARAMS": ("false", "false"),
}
"""The options of FSDP that gistlm is built for, as accelerate hands them on, and accelerate's own choice where one is
not given.
"""
_FSDP_TORCH = "2.13"
"""Older ones were not tried; they may keep hold of a pass that ends inside a layer, as a gist's does."""


def check_launch() -> None:
    """Raise `InputError` where the launch asks for what is not built. Comes after transformers' `TrainingArguments`."""
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":
        raise InputError(
            f"gistlm needs mixed_precision: no in accelerate's options, for the recipe's dtype says what is computed "
            f"in which; got {precision}"
        )
    if _zero_stage() == 3:
        raise InputError(
            "DeepSpeed's zero_stage 3 leaves each process a part of the weights, and gistlm saves whole ones; "
            "launch with zero_stage: 2, or with FSDP"
        )
    if not shares_weights():
        return
    for name, (wanted, default) in _FSDP.items():
        given = os.environ.get(f"FSDP_{name}", default)
        if given.lower() != wanted.lower():
            raise InputError(
                f"with FSDP, gistlm needs fsdp_{name.lower()}: {wanted} in accelerate's options; got {given}"
            )
    if torch.__version__ < _FSDP_TORCH:
        raise InputError(f"with FSDP, gistlm needs torch {_FSDP_TORCH} or newer; this is {torch.__version__}")
    if PartialState().distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU):
        raise InputError(
            "accelerate runs FSDP with several processes on accelerators alone, and here is one process, or a CPU; "
            "launch without FSDP (--multi_gpu serves CPUs too)"
        )


def shares_weights() -> bool:
    """Whether each process holds a part of every weight."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def launch_record(processes: int) -> dict[str, int]:
    """What a run keeps of its launch: it goes on only under the same."""
    record = {"processes": processes if processes > 1 else None, "zero_stage": _zero_stage()}
    if shares_weights():
        record["fsdp_version"] = 2
    return {name: value for name, value in record.items() if value is not None}


def _zero_stage() -> int | None:
    """DeepSpeed's, in a launch with DeepSpeed."""
    config = deepspeed_config()
    return None if config is None else int(config.get("zero_optimization", {}).get("stage", 0))
