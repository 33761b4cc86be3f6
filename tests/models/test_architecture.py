"""What each stock architecture allows: described by the table or the probe, or refused by name with the reason."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from gistlm.errors import UnsupportedModelError
from gistlm.gisting.placement import Part
from gistlm.models.architecture import ENCODER_DECODERS, TESTED, inspect_architecture
from gistlm.models.loading import load_base
from gistlm.models.transformers_compat import CACHE

REASONS = {
    "bloom": "ALiBi biases are numbered by column",
    "mpt": "ALiBi biases are numbered by column",
    "mamba": "linear_attention layers keep a state",
    "longt5": "only those with T5's encoder",
    "t5gemma": "only those with T5's encoder",
    "bart": "only those with T5's encoder",
    "llama_dynamic": "dynamic rotary embedding changes with the sequence's length",
    "phi3_longrope": "longrope rotary embedding changes with the sequence's length",
    "lfm2": "conv layers keep a state",
    "jamba": "linear_attention layers keep a state",
    "llama4_text": "chunked_attention layers keep a state",
    "gpt_neo": "local attention counts columns",
    "openai": "takes no cache and position_ids",
}
ABSOLUTE = {"gpt2", "gpt_bigcode", "opt", "gptj", "codegen", "ministral3"}
"""Learned positions, tables of rotary angles that begin at zero, and attention scaled by the position."""
MIXED = {"full_attention", "sliding_attention"}


def test_every_architecture_in_the_table_is_covered_by_the_exactness_tests() -> None:
    assert set(TESTED) == set(tiny.TESTED)
    assert set(ENCODER_DECODERS) == set(tiny.ENCODER_DECODERS)


@pytest.mark.parametrize("kind", tiny.REFUSED)
def test_an_architecture_that_cannot_be_exact_is_refused_by_name_with_the_reason(kind: str) -> None:
    model = tiny.tiny_model(kind)
    with pytest.raises(UnsupportedModelError) as caught:
        inspect_architecture(model)
    assert repr(model.config.model_type) in str(caught.value)
    assert REASONS[kind] in str(caught.value)


@pytest.mark.parametrize("kind", ["bart", "bloom", "mamba"])
def test_loading_a_refused_model_names_the_reason_and_not_a_missing_feature(kind: str, tmp_path: Path) -> None:
    folder = tiny.save_tiny(tmp_path / kind, kind)
    with pytest.raises(UnsupportedModelError, match=kind):
        inspect_architecture(load_base(str(folder), "cpu", None)[0])


@pytest.mark.parametrize("kind", [*tiny.TESTED, *tiny.PROBED])
def test_numbering_is_absolute_just_where_positions_cannot_be_shifted_below_zero(kind: str) -> None:
    found = inspect_architecture(tiny.tiny_model(kind))
    assert found.name == kind
    assert found.numbering == ("absolute" if kind in ABSOLUTE else "relative")
    assert found.context == tiny.CONTEXT


@pytest.mark.parametrize("kind", [*tiny.TESTED, *tiny.PROBED])
def test_our_mask_of_plain_text_is_the_models_own(kind: str) -> None:
    """Sliding windows included: the text is four windows long."""
    model = tiny.tiny_model(kind)
    ids = torch.randint(3, 280, (2, 4 * tiny.WINDOW))
    positions = torch.arange(ids.shape[1]).expand(2, -1)
    parts = torch.full_like(ids, int(Part.REST))
    masks = inspect_architecture(model).masks(parts, positions, ids.shape[1], torch.float32)
    with torch.no_grad():
        own = model(ids).logits
        ours = model(ids, attention_mask=masks, position_ids=positions).logits
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "layer_types", "window"),
    [
        ("llama", {"full_attention"}, None),
        ("mistral", {"sliding_attention"}, tiny.WINDOW),
        ("gemma3_text", MIXED, tiny.WINDOW),
        ("cohere2", MIXED, tiny.WINDOW),
        ("gpt2", {"full_attention"}, None),
    ],
)
def test_sliding_windows_are_read_from_the_config(kind: str, layer_types: set[str], window: int | None) -> None:
    found = inspect_architecture(tiny.tiny_model(kind))
    assert (found.layer_types, found.window) == (layer_types, window)


def test_a_window_that_the_config_switches_off_is_no_window() -> None:
    found = inspect_architecture(tiny.tiny_model("qwen2", use_sliding_window=False, sliding_window=tiny.WINDOW))
    assert (found.layer_types, found.window) == ({"full_attention"}, None)


def test_qwen2_with_its_window_switched_on_mixes_layers() -> None:
    switched_on = {"use_sliding_window": True, "sliding_window": tiny.WINDOW, "max_window_layers": 1}
    found = inspect_architecture(tiny.tiny_model("qwen2", **switched_on))
    assert (found.layer_types, found.window) == (MIXED, tiny.WINDOW)


def test_rotary_scaling_that_does_not_depend_on_length_is_accepted() -> None:
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    assert inspect_architecture(tiny.tiny_model("llama", rope_parameters=rope)).numbering == "relative"


def test_an_untested_architecture_whose_cache_is_not_exact_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.tiny_model("olmo2")
    forward = type(model).forward

    @functools.wraps(forward)
    def forgetful(self: object, *args: object, **kwargs: Any) -> object:
        cache = kwargs.get(CACHE)
        if cache is not None and cache.get_seq_length():
            cache.layers[0].values.zero_()
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", forgetful)
    with pytest.raises(UnsupportedModelError, match=r"olmo2.* cannot be gisted exactly: .* gave other logits"):
        inspect_architecture(model)
