"""A GPU that is none: tensors that say they are on one and compute on the CPU, and refuse what a GPU refuses.

Under `pretend_card`, `torch.empty(3, device=CARD)` gives such a tensor. An operator over it and a tensor in the CPU's
memory raises, as on a GPU, unless that has no dimensions or is an index; so does reading it by numpy, and drawing for
it from a generator of the CPU. Not checked: dtypes and operators that a GPU lacks, what its kernels round or draw, how
much memory there is, where the host waits, streams, pinned memory and inference mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CPU = torch.device("cpu")
CARD = torch.device("cuda", 0)
_READS = {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::allclose"}
_COPIES = {"aten::copy_", "aten::_to_copy"}
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
"""A GPU's tensors take indices, the second argument, that lie in the CPU's memory; values must be on the GPU."""


class OnCard(Tensor):
    """Values on the CPU, which say that they are on the GPU."""

    values: Tensor
    device = property(lambda _: CARD)  # type: ignore[assignment]
    """torch itself, which here knows no GPUs, takes it for a tensor on the CPU."""

    @staticmethod
    def __new__(cls, values: Tensor) -> OnCard:
        made: OnCard = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, values.shape, values.stride(), values.storage_offset(), dtype=values.dtype, device=CPU
        )
        made.values = values.detach()
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnCard({self.values})"

    def tolist(self) -> Any:
        """As torch's own, which reads memory itself."""
        return self.values.tolist()

    def numpy(self, **_: Any) -> Any:
        """As torch's own of a GPU's tensor."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name, kwargs or {}
        leaves = tree_leaves((args[:1], args[2:], kwargs) if name in _INDEXING else (args, kwargs))
        given = [each for each in leaves if is_tensor(each)]
        refuse_other_generators(leaves)
        if name not in _COPIES and any(is_elsewhere(each) for each in given):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found cuda:0 and cpu")
        made = func(*tree_map(_values, args), **tree_map(_values, kwargs))
        if name in _READS:
            return made
        if name == "aten::copy_" or (name.endswith("_") and args[0] is not None):
            return args[0]
        return tree_map(lambda each: OnCard(each) if is_tensor(each) else each, made)


class _Device(TorchFunctionMode):
    """What is made on the GPU, or moved there."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.to and any(map(is_card, (*args[1:], *kwargs.values()))):
            rest = [CPU if is_card(each) else each for each in args[1:]]
            return to_card(_values(args[0]).to(*rest, **{k: CPU if is_card(v) else v for k, v in kwargs.items()}))
        if func is Tensor.cpu or (func is Tensor.to and any(map(_is_cpu, (*args[1:], *kwargs.values())))):
            return func(_values(args[0]), *args[1:], **kwargs)
        if is_card(kwargs.get("device")) and not any(isinstance(each, OnCard) for each in tree_leaves(args)):
            refuse_other_generators(kwargs.values())
            return to_card(func(*args, **{**kwargs, "device": CPU}))
        return func(*args, **kwargs)


def is_tensor(value: object) -> bool:
    """Whether it is a tensor of either kind."""
    return isinstance(value, Tensor)


def is_elsewhere(tensor: Tensor) -> bool:
    """Whether a GPU's operator cannot take the tensor."""
    return not isinstance(tensor, OnCard) and tensor.dim() > 0


def refuse_other_generators(values: Iterable[object]) -> None:
    """Raise for a generator among the values: there are none of a pretended GPU."""
    if any(isinstance(each, torch.Generator) for each in values):
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")


def is_card(device: object) -> bool:
    """Whether a device, or its name, is the GPU's."""
    return (isinstance(device, torch.device) and device.type == "cuda") or device in ("cuda", "cuda:0")


def _is_cpu(device: object) -> bool:
    return device == CPU or (isinstance(device, str) and device == "cpu")


def to_card(tensor: Tensor) -> Tensor:
    """The same values on the GPU."""
    return tensor if isinstance(tensor, OnCard) else OnCard(tensor)


def _values(each: Any) -> Any:
    return each.values if isinstance(each, OnCard) else each


@contextmanager
def pretend_card() -> Iterator[torch.device]:
    """Meanwhile there is a GPU."""
    own_run = Thread.run

    def run(thread: Thread) -> None:
        with _Device():  # modes are of one thread
            own_run(thread)

    # such tensors know no inference mode
    with _Device(), patch.object(torch, "inference_mode", torch.no_grad), patch.object(Thread, "run", run):
        yield CARD


def move_module(module: nn.Module) -> None:
    """Put parameters and buffers on the GPU: nn.Module's own way swaps memory, which such tensors have not."""
    moved: dict[Tensor, nn.Parameter] = {}  # parameters that are tied stay so
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and not isinstance(parameter, OnCard):
                if parameter not in moved:
                    moved[parameter] = nn.Parameter(OnCard(parameter.detach()), parameter.requires_grad)
                part._parameters[name] = moved[parameter]
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else to_card(buffer)
