"""Where the gist adapter is put, and what of a pass it changes."""

from __future__ import annotations

import pytest
import torch
from tiny import TESTED, shake, tiny_model
from torch import nn

from gistlm.errors import UnsupportedModelError
from gistlm.models.adapter import AdapterOnLast, LoraModules, add_lora


def adapted(writer: nn.Module) -> set[str]:
    return {name.rpartition(".")[2] for name, module in writer.named_modules() if hasattr(module, "lora_A")}


@pytest.mark.parametrize("kind", TESTED)
def test_an_attention_adapter_leaves_every_other_layer_alone(kind: str) -> None:
    model = tiny_model(kind)
    some = add_lora(model, 2, share=True, modules=LoraModules.ATTENTION)
    every = add_lora(model, 2, share=True, modules=LoraModules.ALL)
    names = {name for name, module in some.named_modules() if hasattr(module, "lora_A")}
    assert names
    assert all("att" in name.lower() and "mlp" not in name.lower() for name in names)
    assert len(names) < len([module for module in every.modules() if hasattr(module, "lora_A")])


def test_the_attention_layers_of_a_llama_are_its_four_projections() -> None:
    writer = add_lora(tiny_model("llama"), 2, share=True, modules=LoraModules.ATTENTION)
    assert adapted(writer) == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_a_model_without_attention_layers_is_refused_in_one_sentence() -> None:
    with pytest.raises(UnsupportedModelError, match="lora_modules: all"):
        add_lora(nn.Sequential(nn.Linear(2, 2)), 2, share=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("columns", [1, 3])
@torch.no_grad()
def test_the_adapter_changes_the_last_columns_and_no_others(columns: int) -> None:
    model = tiny_model("llama")
    writer = shake(add_lora(model, 2, share=True, modules=LoraModules.ALL))
    tokens = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])
    plain, whole = model(tokens).logits, writer(tokens).logits
    with AdapterOnLast(writer)(columns):
        some = writer(tokens).logits
    torch.testing.assert_close(some[:, :-columns], plain[:, :-columns])
    assert not torch.allclose(some[:, -columns:], plain[:, -columns:], atol=1e-3)
    assert torch.equal(writer(tokens).logits, whole)
