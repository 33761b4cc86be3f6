"""How the processes of a launch divide a model, by the options of accelerate and DeepSpeed; knows no model."""

from __future__ import annotations

import os

from transformers.integrations.deepspeed import deepspeed_config

from gistlm.errors import InputError

_FSDP = {
    "VERSION": ("2", "1"),
    "STATE_DICT_TYPE": ("FULL_STATE_DICT", "SHARDED_STATE_DICT"),
    "CPU_RAM_EFFICIENT_LOADING": ("false", "false"),
}
"""The options of FSDP that must be so, as accelerate hands them on, and what it takes where they are not given."""


def check_launch() -> None:
    """Raise `InputError` where processes share out the weights in a way that is not built."""
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
