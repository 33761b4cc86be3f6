"""A dtype that cannot hold a gist's numbers is refused by the model that would make it, not by the file's reader."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_checkpoint

from gistlm import GistModel
from gistlm.errors import InputError


def overflowing(kind: str, dtype: torch.dtype, kept: int, factor: float) -> GistModel:
    """A model whose keys are too large for its dtype from some size of the key weights on."""
    checkpoint = tiny_checkpoint(kind, kept=kept)
    name = "k_proj" if kind != "t5" else "SelfAttention.k"
    for model in {checkpoint.reader, checkpoint.writer}:
        for key, weight in model.named_parameters():
            if name in key and "lora" not in key and "decoder" not in key:
                weight.data = weight.data * factor
    checkpoint.reader.to(dtype)
    checkpoint.writer.to(dtype)
    return GistModel(checkpoint)


@pytest.mark.parametrize(("kind", "kept"), [("llama", 0), ("llama", 15), ("t5", 0)])
def test_an_overflow_names_the_dtype_and_what_to_use(kind: str, kept: int) -> None:
    model = overflowing(kind, torch.float16, kept, 1e6 if kind == "llama" else 1e7)
    for k in (1, 4, 16):
        with pytest.raises(InputError, match=r"^in float16 .* not finite .*'Answer in rhymes, wha"):
            model.compress(["Answer in rhymes, whatever it is that you are asked by people."], k)
    wide = overflowing(kind, torch.float32, kept, 1e6 if kind == "llama" else 1e7)
    assert wide.compress("Answer in rhymes, whatever it is that you are asked by people.", 4).is_finite()


def test_broken_weights_are_not_blamed_on_the_dtype() -> None:
    model = overflowing("llama", torch.float32, 0, float("nan"))
    with pytest.raises(InputError, match=r"in float32 .* check the base model's weights"):
        model.compress("words", 2)
