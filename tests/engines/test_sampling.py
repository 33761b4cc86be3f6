"""Temperatures from nothing to much: greedy below a bound, finite numbers at and above it, in every dtype."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from tiny import tiny_checkpoint

from gistlm.engines.base import GREEDY_BELOW, Engine, Request, Sampling
from gistlm.engines.fake import FakeEngine
from gistlm.engines.transformers import GistModel

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KINDS = ["llama", "t5"]


@cache
def model(kind: str, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> GistModel:
    """Its logits multiplied by ``scale``."""
    checkpoint = tiny_checkpoint(kind)
    with torch.no_grad():
        checkpoint.reader.get_output_embeddings().weight.mul_(scale)
    checkpoint.writer.to(dtype)
    checkpoint.reader.to(dtype)
    return GistModel(checkpoint)


@pytest.mark.parametrize("temperature", [0, 0.0, 5e-324, 1e-40, 1e-9, math.nextafter(GREEDY_BELOW, 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_temperature_below_the_bound_is_greedy(kind: str, temperature: float) -> None:
    greedy = model(kind).complete([Request("hello")], Sampling(6))
    for seed in (1, 2):
        assert model(kind).complete([Request("hello")], Sampling(6, temperature, seed=seed)) == greedy
    assert "".join(model(kind).stream("hello", max_new_tokens=6, temperature=temperature)) == greedy[0].text
    assert Sampling(temperature=temperature).greedy


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_temperature_from_the_bound_on_samples_from_finite_numbers(
    kind: str, dtype: torch.dtype, scale: float
) -> None:
    loaded = model(kind, dtype, scale)
    seen: dict[str, Any] = {"output_scores": True, "return_dict_in_generate": True}
    for temperature in (GREEDY_BELOW, 1e-3, 1, 2, 100):
        for top_p, top_k in ((1, 0), (0.5, 7), (1e-40, 0)):
            sampling = Sampling(3, temperature, top_p, top_k, seed=1)
            made = loaded._generate(loaded._prepare([Request("hello"), Request("go on")], 3), sampling, **seen)
            for scores in made.scores:
                assert scores.dtype == torch.float32
                shares = scores.softmax(-1)
                assert bool(shares.isfinite().all()) and bool((shares.sum(-1) - 1).abs().max() < 1e-4)
            assert len(loaded.complete([Request("hello")], sampling)) == 1


def test_at_the_bound_the_likeliest_token_is_all_but_certain() -> None:
    greedy = model("llama").complete([Request("hello")], Sampling(6))
    assert model("llama").complete([Request("hello")], Sampling(6, GREEDY_BELOW, seed=1)) == greedy


def test_a_high_temperature_gives_other_answers_by_seed() -> None:
    texts = {model("llama").generate("hello", max_new_tokens=6, temperature=2, seed=seed) for seed in range(4)}
    assert len(texts) > 1


def test_every_engine_has_the_same_bound() -> None:
    engines: list[Engine] = [FakeEngine("m"), model("llama")]
    for engine in engines:
        greedy = engine.generate("x y", max_new_tokens=8)
        assert engine.generate("x y", max_new_tokens=8, temperature=1e-9, seed=1) == greedy
