"""How the processes of a launch divide a model, by the options of accelerate and DeepSpeed; knows no loss and no gist.

Under FSDP (version 2) a weight outside the model's own pass is a `DTensor`, of which a process holds a part: what needs
it whole gathers it from all processes, and all of them must take part.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from torch import Tensor, nn
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
"""Older ones were not tried."""


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
    if not is_sharded():
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


def is_sharded() -> bool:
    """Whether each process holds a part of every weight."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def launch_record(processes: int) -> dict[str, int]:
    """What a run keeps of its launch: it goes on only under the same."""
    record = {"processes": processes if processes > 1 else None, "zero_stage": _zero_stage()}
    if is_sharded():
        record["fsdp_version"] = 2
    return {name: value for name, value in record.items() if value is not None}


def _zero_stage() -> int | None:
    """DeepSpeed's, in a launch with DeepSpeed."""
    config = deepspeed_config()
    return None if config is None else int(config.get("zero_optimization", {}).get("stage", 0))


def part_parameters(model: nn.Module) -> None:
    """Give a model its own parameters over the same memory, where another model has them too: FSDP takes a parameter
    from one place alone. What the model itself has in several places stays one parameter.
    """
    own: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameter not in own:
                own[parameter] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
            setattr(module, name, own[parameter])


def whole(tensor: Tensor) -> Tensor:
    """A weight as it is without FSDP. Where FSDP shards it, all processes must call."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # a DTensor, with FSDP alone
    return full.detach()


def gather(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Weights as by `whole`, one after the other, in the CPU's memory of the processes that ``keep`` them."""
    kept = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if keep:
            kept[name] = full.cpu()
    return kept


@contextmanager
def outside_a_step(model: Any) -> Iterator[None]:
    """Meanwhile parts of a model that FSDP shards can be called, and it need not be called as a whole.

    All processes must call the same parts in the same order, for each waits for the others' weights.
    """
    if not is_sharded():
        yield
        return
    from torch.distributed.fsdp import FSDPModule  # not every build of torch has it

    model.unshard()
    try:
        yield
    finally:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def hold_last_layers(models: Iterable[nn.Module]) -> None:
    """Let FSDP hold the weights of each model's last attention layer from its pass to its gradients.

    A gist takes keys and values from inside that layer and not its output: FSDP does not see its backward pass begin.
    """
    from torch.distributed.fsdp import FSDPModule

    for model in models:
        layers = [
            module
            for module in model.modules()
            if isinstance(module, FSDPModule) and any("Attention" in type(part).__name__ for part in module.children())
        ]
        if layers:
            layers[-1].set_reshard_after_forward(False, recurse=False)


def start_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give weights that have had no gradients yet the state with which AdamW would begin at the first: a LoRA's last
    layer has some that never get any, and accelerate reads a save only if every weight has a state.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if not optimizer.state[weight]:
                moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[weight] = {"step": torch.tensor(0.0), **moments}
