"""Which of a prompt's tokens a gist keeps. That they are the right ones, `test_exactness` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import random_text, save_tiny_checkpoint, tiny_checkpoint

from gistlm.checkpoint import Checkpoint
from gistlm.compress import compress
from gistlm.engines.base import Request, Sampling
from gistlm.engines.transformers import GistModel
from gistlm.errors import ModelError, UnsupportedModelError
from gistlm.gist import Gist
from gistlm.observe import OBSERVERS, Observation, check_observable

KEEPING = tiny_checkpoint(max_k=64, kept=60, anchored=True)
LEARNED = 4
OPENING = len(KEEPING.prompts.opening_ids)


def own_cache(checkpoint: Checkpoint, prompt: str, first: int) -> Any:
    """By layer, the plain model's keys and values [kv_heads, own tokens, head_dim], numbered from ``first``."""
    ids = torch.tensor([checkpoint.prompts.prompt_ids(prompt)])
    positions = torch.arange(first, first + ids.shape[1])[None]
    with torch.no_grad():
        cache = checkpoint.reader(ids, position_ids=positions, use_cache=True).past_key_values
    return [(keys[0, :, OPENING:], values[0, :, OPENING:]) for keys, values, _ in cache]


def place(column: torch.Tensor, among: torch.Tensor) -> int:
    """Where [head_dim] stands among [tokens, head_dim]."""
    distances = (among - column).abs().amax(dim=1)
    assert float(distances.min()) < 1e-5
    return int(distances.argmin())


def places(gist: Gist, cache: Any) -> list[list[list[int]]]:
    """By layer and head, the prompt's tokens whose keys the gist keeps, all of whose values it keeps too."""
    found = []
    for (keys, values), own_keys, own_values in zip(cache, gist.keys, gist.values, strict=True):
        learned = gist.k - gist.provenance.kept
        layer = []
        for head in range(len(keys)):
            layer.append([place(column, keys[head]) for column in own_keys[head, learned:]])
            torch.testing.assert_close(own_values[head, learned:], values[head, layer[-1]], atol=1e-5, rtol=0)
        found.append(layer)
    return found


@given(st.integers(30, 90), st.integers(LEARNED + 1, 20))
def test_kept_tokens_are_the_prompts_own_and_every_head_chooses_for_itself(length: int, k: int) -> None:
    prompt = random_text(torch.Generator().manual_seed(length), length)
    gist = GistModel(KEEPING).compress(prompt, k)
    assert (gist.k, gist.provenance.kept, gist.end) == (k, k - LEARNED, gist.provenance.start + LEARNED)
    first = OPENING - len(KEEPING.prompts.prompt_ids(prompt))
    chosen = places(gist, own_cache(KEEPING, prompt, first))
    assert all(len(set(head)) == k - LEARNED for layer in chosen for head in layer)
    if k == 20:
        assert len({tuple(sorted(head)) for layer in chosen for head in layer}) > 1


@pytest.mark.parametrize("opening_visible", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_a_prompt_of_at_most_k_tokens_is_kept_whole_and_answered_as_in_full(kind: str, opening_visible: bool) -> None:
    model = GistModel(tiny_checkpoint(kind, opening_visible=opening_visible, max_k=40, kept=38))
    prompts = ["short", "some words of 5 letters or so", "x"]
    gists = model.compress(prompts, 39)
    hidden = 0 if opening_visible else len(model.checkpoint.prompts.opening_ids)
    for prompt, gist in zip(prompts, gists, strict=True):
        own = len(model.checkpoint.prompts.prompt_ids(prompt)) - len(model.checkpoint.prompts.opening_ids)
        assert gist.whole and gist.k == own + hidden
    texts = ["hello", "a question?", ""]
    sampling = Sampling(max_new_tokens=5)
    full = [Request(text, prompt=prompt) for text, prompt in zip(texts, prompts, strict=True)]
    kept = [Request(text, gist) for text, gist in zip(texts, gists, strict=True)]
    for one, other in zip(model.complete(full, sampling), model.complete(kept, sampling), strict=True):
        assert one.text == other.text


def test_one_token_more_than_k_and_a_gist_is_learned_again() -> None:
    model = GistModel(tiny_checkpoint(max_k=20, kept=19))
    prompt = "abcdefgh ij"
    own = len(model.checkpoint.prompts.prompt_ids(prompt)) - OPENING
    whole, learned = model.compress(prompt, own), model.compress(prompt, own - 1)
    assert (whole.whole, whole.k, whole.provenance.kept) == (True, own, own)
    assert (learned.whole, learned.k, learned.provenance.kept) == (False, own - 1, own - 2)


def test_gists_do_not_depend_on_their_batch() -> None:
    generator = torch.Generator().manual_seed(1)
    prompts = [random_text(generator, length) for length in (3, 18, 70, 41)]
    together = compress(KEEPING, prompts, 24)
    for prompt, gist in zip(prompts, together, strict=True):
        (alone,) = compress(KEEPING, [prompt], 24)
        assert alone.provenance == gist.provenance
        for one, other in zip((*alone.keys, *alone.values), (*gist.keys, *gist.values), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_choosing_leaves_the_model_as_it_was() -> None:
    configs = [KEEPING.reader.config, KEEPING.writer_decoder.config]
    before = [config._attn_implementation for config in configs]
    compress(KEEPING, ["some words of 5 letters"], 9)
    assert [config._attn_implementation for config in configs] == before
    watch = Observation(torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool), 9)
    with pytest.raises(ZeroDivisionError), watch(KEEPING.writer_decoder):
        _ = 1 / 0
    assert [config._attn_implementation for config in configs] == before


def test_the_order_of_what_is_kept_follows_the_observers_attention() -> None:
    """One head, one observer that points along the keys' only dimension: larger keys get more."""
    watch = Observation(torch.tensor([[False, True, True, True]]), torch.tensor([[False, True]]), 2)
    keys = torch.tensor([9.0, 1.0, 3.0, 2.0, 0.0, 0.0]).view(1, 1, 6, 1)
    queries = torch.tensor([0.0, 0.0, 0.0, 0.0, -1.0, 1.0]).view(1, 1, 6, 1)
    watch.see(queries, keys, None)
    assert watch.columns(torch.tensor([[False, True, True, True]]), 3)[0].tolist() == [[[2, 3, 1]]]
    assert watch.columns(torch.tensor([[False, False, True, True]]), 2)[0].tolist() == [[[2, 3]]]
    torch.testing.assert_close(watch.shares[0][0, 0, 1:], torch.tensor([1.0, 3.0, 2.0]).softmax(0))


def test_only_so_many_of_a_prompts_last_tokens_are_read_again() -> None:
    """What stands before them changes what is kept only through what they read."""
    assert OBSERVERS == 16
    ids: list[int] = []
    embed = KEEPING.reader.get_input_embeddings()
    hook = embed.register_forward_hook(lambda _, inputs, __: ids.append(inputs[0].shape[1]))
    compress(KEEPING, [random_text(torch.Generator().manual_seed(2), 60)], 9)
    hook.remove()
    assert OBSERVERS in ids


def test_a_model_whose_attention_cannot_be_watched_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = KEEPING.reader.get_decoder()
    check_observable(decoder)
    monkeypatch.setattr(type(decoder), "_supports_sdpa", False)
    with pytest.raises(UnsupportedModelError, match="LlamaModel does not use; set kept to 0"):
        check_observable(decoder)


@pytest.mark.parametrize(
    ("kept", "match"), [(-1, "from 0 to 65,536"), (65_537, "from 0 to"), ("2", "must be int"), (True, "must be int")]
)
def test_kept_must_be_a_number_within_bounds(tiny_saved: Path, kept: object, match: str) -> None:
    record = json.loads((tiny_saved / "gistlm.json").read_text())
    (tiny_saved / "gistlm.json").write_text(json.dumps({**record, "kept": kept}))
    with pytest.raises(ModelError, match=match):
        Checkpoint.load(tiny_saved, device="cpu")


def test_a_checkpoint_comes_back_with_what_it_keeps(tiny_saved: Path) -> None:
    checkpoint = Checkpoint.load(tiny_saved, device="cpu")
    plain = GistModel(checkpoint).compress("a prompt of some more words than 5", 2)
    record = json.loads((tiny_saved / "gistlm.json").read_text())
    (tiny_saved / "gistlm.json").write_text(json.dumps({**record, "kept": 5}))
    keeping = Checkpoint.load(tiny_saved, device="cpu")
    assert (keeping.max_k, keeping.learned) == (checkpoint.max_k + 5, checkpoint.max_k)
    gist = GistModel(keeping).compress("a prompt of some more words than 5", keeping.max_k)
    assert gist.provenance.kept == 5 and gist.provenance.adapter != plain.provenance.adapter
    torch.testing.assert_close(gist.shorten(2).keys[1], plain.keys[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["mistral", "gemma3_text", "t5"])
def test_models_that_read_no_kept_tokens_are_refused(kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match="set kept to 0"):
        tiny_checkpoint(kind, "paper", kept=2)


@pytest.fixture
def tiny_saved(tmp_path: Path) -> Path:
    return save_tiny_checkpoint(tmp_path / "checkpoint")
