"""A model whose weights several processes share out (FSDP, version 2); knows nothing of gists, losses or saves.

Outside the model's own pass a weight is a `DTensor`, of which a process holds a part: what needs it whole gathers it
from all processes, and all of them must take part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gistlm.training.launch import shares_weights


def part_parameters(model: nn.Module) -> None:
    """Give a model that shares its parameters with another one its own over the same memory: FSDP takes a parameter
    from one place alone. Those that the model itself has in several places it still shares.
    """
    own: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameter not in own:
                own[parameter] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
            setattr(module, name, own[parameter])


def whole(tensor: Tensor) -> Tensor:
    """A weight as it is without FSDP. Where the processes share it out, all of them must call."""
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
    """Meanwhile parts of a model that FSDP shares out can be called, and it need not be called as a whole.

    All processes must call the same parts in the same order, for each waits for the others' weights.
    """
    if not shares_weights():
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


def start_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give weights that have had no gradients yet the state with which AdamW would begin at the first: a LoRA's last
    layer has some that never get any, and accelerate reads a save only if every weight has a state.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if not optimizer.state[weight]:
                moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[weight] = {"step": torch.tensor(0.0), **moments}
