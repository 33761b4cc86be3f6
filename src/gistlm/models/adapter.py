"""Adds and loads the gist adapter, a LoRA, and limits it to a pass's last columns; knows no prompts and no gists."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gistlm.errors import ModelError, UnsupportedModelError


class LoraModules(StrEnum):
    """The linear layers that a LoRA is put on."""

    ATTENTION = "attention"
    """Queries, keys, values and outputs of every attention layer."""
    ALL = "all"
    """Every linear layer but the head."""


def add_lora(
    reader: PreTrainedModel, rank: int, *, share: bool, modules: LoraModules = LoraModules.ATTENTION
) -> nn.Module:
    """The reader with a new LoRA. share: add it to a copy that shares the tensors, so the reader stays as it is."""
    from peft import LoraConfig, get_peft_model

    targets: Any = "all-linear" if modules == LoraModules.ALL else _attention_layers(reader)
    encodes = reader.config.is_encoder_decoder
    if encodes and share:  # gist tokens pass the encoder alone
        linear = [name for name, module in reader.named_modules() if isinstance(module, nn.Linear)]
        targets = [name for name in (linear if targets == "all-linear" else targets) if name.startswith("encoder.")]
    task = "SEQ_2_SEQ_LM" if encodes else "CAUSAL_LM"
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type=task)
    return get_peft_model(_twin(reader) if share else reader, config).eval()


def _attention_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers inside attention modules. Raises `UnsupportedModelError` where none is found."""
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and re.search(r"att(n|ention)\.", name, re.IGNORECASE)
    ]
    if not found:
        raise UnsupportedModelError("no linear layer of this model lies in an attention module; use lora_modules: all")
    return found


def load_lora(reader: PreTrainedModel, folder: Path, *, share: bool) -> nn.Module:
    """The reader with the LoRA in ``folder``; ``share`` as in `add_lora`. Raises `ModelError` if it does not fit."""
    from peft import PeftModel

    try:
        writer = PeftModel.from_pretrained(
            _twin(reader) if share else reader,
            str(folder),
            autocast_adapter_dtype=False,
            torch_device=str(reader.device),
        )
    except Exception as error:  # peft raises many kinds; each means that the adapter does not fit
        raise ModelError(f"the adapter in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    for tensor in adapter_weights(writer).values():
        tensor.data = tensor.data.float()  # on a CPU, products of a few tokens take half the time in float32
    return writer.eval()


def adapter_weights(writer: nn.Module) -> dict[str, Tensor]:
    """The LoRA's tensors by name; empty for a model without one."""
    return {name: tensor for name, tensor in writer.named_parameters() if "lora_" in name}


class AdapterOnLast:
    """Lets a writer's adapter act on the last columns of a pass only; the other columns pass the bare base.

    The modules to change are looked up once, because for a short prompt a look-up in every pass would take long.
    """

    def __init__(self, writer: nn.Module) -> None:
        self._columns = 0
        self._last: tuple[Tensor, Tensor] | None = None
        layers: list[Any] = [module for module in writer.modules() if hasattr(module, "lora_A")]
        self._forwards = [(layer, self._forward(layer)) for layer in layers]

    @property
    def is_empty(self) -> bool:
        """Whether the writer has no adapter layers, so that there is nothing to keep off any column."""
        return not self._forwards

    @contextmanager
    def __call__(self, columns: int) -> Iterator[None]:
        """Within the `with` block, the adapter acts on the last ``columns`` columns only. For one pass at a time."""
        self._columns = columns
        for layer, forward in self._forwards:
            layer.__dict__["forward"] = forward
        try:
            yield
        finally:
            self._last = None
            for layer, _ in self._forwards:
                del layer.__dict__["forward"]

    def _tail(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The last columns of x [batch, tokens, channels] as [batch * columns, channels]; cached for the next layer."""
        if self._last is None or self._last[0] is not x:
            self._last = x, x[:, -self._columns :].to(dtype).flatten(0, 1)
        return self._last[1]

    def _forward(self, layer: Any) -> Callable[[Tensor], Tensor]:
        base = layer.base_layer
        terms = [(layer.lora_A[name], layer.lora_B[name], layer.scaling[name]) for name in layer.active_adapters]

        def forward(x: Tensor) -> Tensor:
            """x: [batch, tokens, channels]"""
            result: Tensor = base(x)
            updated = result[:, -self._columns :]
            for a, b, scaling in terms:
                down, up = a.weight, b.weight  # read in each pass: FSDP puts other tensors in their place
                update = self._tail(x, down.dtype).mm(down.t()).mm(up.t())
                updated.add_(update.view(updated.shape), alpha=scaling)
            return result

        return forward


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the modules over the same tensors: what is added to the copy leaves the model alone."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
