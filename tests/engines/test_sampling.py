"""Temperatures from nothing to much: greedy below a bound, finite numbers at and above it, in every dtype."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from fake_engine import FakeEngine
from tiny import prepared_batch, tiny_checkpoint

from gistlm.engines.base import Engine, Request, with_sampling
from gistlm.engines.row_sampling import RowSampling
from gistlm.engines.sampling import GREEDY_BELOW, Sampling
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
    greedy = model(kind).complete(with_sampling([Request("hello")], Sampling(max_new_tokens=6)))
    for seed in (1, 2):
        assert (
            model(kind).complete(
                with_sampling([Request("hello")], Sampling(max_new_tokens=6, temperature=temperature, seed=seed))
            )
            == greedy
        )
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
            sampling = Sampling(max_new_tokens=3, temperature=temperature, top_p=top_p, top_k=top_k, seed=1)
            made = loaded._generate(
                prepared_batch(loaded, [Request("hello"), Request("go on")], 3), [sampling] * 2, **seen
            )
            for scores in made.scores:
                assert scores.dtype == torch.float32
                assert not bool(scores.isnan().any()) and bool(scores.max(-1).values.isfinite().all())
            assert len(loaded.complete(with_sampling([Request("hello")], sampling))) == 1


def test_at_the_bound_the_likeliest_token_is_all_but_certain() -> None:
    greedy = model("llama").complete(with_sampling([Request("hello")], Sampling(max_new_tokens=6)))
    assert (
        model("llama").complete(
            with_sampling([Request("hello")], Sampling(max_new_tokens=6, temperature=GREEDY_BELOW, seed=1))
        )
        == greedy
    )


def test_a_high_temperature_gives_other_answers_by_seed() -> None:
    texts = {model("llama").generate("hello", max_new_tokens=6, temperature=2, seed=seed) for seed in range(4)}
    assert len(texts) > 1


def test_every_engine_has_the_same_bound() -> None:
    engines: list[Engine] = [FakeEngine("m"), model("llama")]
    for engine in engines:
        greedy = engine.generate("x y", max_new_tokens=8)
        assert engine.generate("x y", max_new_tokens=8, temperature=1e-9, seed=1) == greedy


@pytest.mark.parametrize("kind", ["llama", "mistral", "t5"])
def test_a_request_with_a_seed_has_the_same_answer_alone_and_in_any_batch(kind: str) -> None:
    loaded = model(kind)
    gist = loaded.compress("be brief and kind", 3)
    options = [
        Sampling(max_new_tokens=12, temperature=1.5, seed=1),
        Sampling(max_new_tokens=4),
        Sampling(max_new_tokens=9, temperature=0.8, top_k=5, seed=2),
        Sampling(max_new_tokens=12, temperature=1.5, top_p=0.7, seed=1),
        Sampling(max_new_tokens=7, temperature=1.5, seed=3, stop="e"),
    ]
    asked = [
        Request(text, own, sampling=sampling)
        for text, own, sampling in zip(
            ("hello", "hm", "a longer one", "hello", "go"), (gist, None) * 3, options, strict=False
        )
    ]
    alone = [loaded.complete([request])[0] for request in asked]
    assert loaded.complete(asked) == alone
    assert loaded.complete(asked[::-1]) == alone[::-1]
    assert loaded.complete([asked[2]] * 3) == [alone[2]] * 3
    assert len({answer.new_tokens for answer in alone}) > 1


def test_without_a_seed_torchs_own_generator_decides_and_goes_on() -> None:
    loaded, request = model("llama"), Request("hello", sampling=Sampling(max_new_tokens=8, temperature=2.0))
    found = []
    for _ in range(2):
        torch.manual_seed(7)
        found.append([loaded.complete([request])[0].text for _ in range(2)])
    assert found[0] == found[1] and found[0][0] != found[0][1]


def test_draws_are_those_of_the_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(4000, -1)
    rows = [Sampling(temperature=0.8, top_k=3, seed=seed) for seed in range(4000)]
    tokens = RowSampling(rows, torch.device("cpu"))(torch.zeros(4000, 1, dtype=torch.long), logits).argmax(-1)
    wanted = (logits[0, :3] / 0.8).softmax(-1)
    counted = torch.bincount(tokens, minlength=4) / 4000
    assert torch.allclose(counted, torch.cat([wanted, torch.zeros(1)]), atol=0.03)
