"""Which tokens a gist starts from and which it keeps, whatever is asked for and however the prompt is padded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import save_tiny_checkpoint, tiny_checkpoint

from gistlm.anchors import NONE, anchor_ids, kept_columns
from gistlm.checkpoint import Checkpoint
from gistlm.compress import left_pad
from gistlm.engines.transformers import GistModel
from gistlm.errors import ModelError, UnsupportedModelError
from gistlm.mask import Part

PROMPTS = st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=40), min_size=1, max_size=5)


@given(PROMPTS, st.integers(1, 64))
def test_anchors_are_the_distinct_tokens_highest_id_first(prompts: list[list[int]], most: int) -> None:
    tokens, parts = left_pad(prompts, Part.PROMPT, torch.device("cpu"))
    found = anchor_ids(tokens, parts == Part.PROMPT, most).tolist()
    for row, prompt in zip(found, prompts, strict=True):
        wanted = sorted(set(prompt), reverse=True)[:most]
        assert row == wanted + [NONE] * (most - len(wanted))


@given(PROMPTS, st.integers(1, 32), st.integers(1, 32))
def test_the_first_anchors_do_not_depend_on_how_many_are_asked_for(
    prompts: list[list[int]], some: int, more: int
) -> None:
    tokens, parts = left_pad(prompts, Part.PROMPT, torch.device("cpu"))
    few, many = sorted((some, more))
    longer = anchor_ids(tokens, parts == Part.PROMPT, many)
    assert torch.equal(anchor_ids(tokens, parts == Part.PROMPT, few), longer[:, :few])


def by_rank(ranks: list[int]) -> list[int]:
    """Places by the words of `kept_columns`."""
    return sorted(range(len(ranks)), key=lambda place: (ranks[place + 1 :].count(ranks[place]), -ranks[place]))


@given(PROMPTS, st.integers(1, 64))
def test_kept_tokens_are_those_of_highest_rank_each_once_before_any_comes_again(
    prompts: list[list[int]], most: int
) -> None:
    ranks, parts = left_pad(prompts, Part.PROMPT, torch.device("cpu"))
    found = kept_columns(ranks, parts == Part.PROMPT, most).tolist()
    for row, prompt in zip(found, prompts, strict=True):
        wanted = [ranks.shape[1] - len(prompt) + place for place in by_rank(prompt)[:most]]
        assert row == wanted + [NONE] * (most - len(wanted))


@given(PROMPTS, st.integers(1, 32), st.integers(1, 32))
def test_the_first_kept_tokens_do_not_depend_on_how_many_are_asked_for(
    prompts: list[list[int]], some: int, more: int
) -> None:
    ranks, parts = left_pad(prompts, Part.PROMPT, torch.device("cpu"))
    few, many = sorted((some, more))
    longer = kept_columns(ranks, parts == Part.PROMPT, many)
    assert torch.equal(kept_columns(ranks, parts == Part.PROMPT, few), longer[:, :few])


def test_a_gist_keeps_numbers_first_and_nothing_of_the_template() -> None:
    checkpoint = tiny_checkpoint(max_k=64, kept=60)
    ids = checkpoint.prompts.prompt_ids("zz 7 q 41 zz")
    tokens, parts = left_pad([ids], Part.PROMPT, torch.device("cpu"))
    kept = [column for column in checkpoint.kept_columns(tokens, parts, 60)[0].tolist() if column != NONE]
    assert sorted(kept) == list(range(len(checkpoint.prompts.opening_ids), len(ids)))
    assert sorted(checkpoint.prompts.decode([ids[column] for column in kept[:3]])) == ["1", "4", "7"]
    gist = GistModel(checkpoint).compress("zz 7 q 41 zz", 64)
    assert (gist.k, gist.provenance.kept) == (4 + len(kept), len(kept))
    assert gist.end == gist.provenance.start + 4


def test_kept_tokens_are_the_prompts_own_keys_and_values() -> None:
    checkpoint = tiny_checkpoint(max_k=8, kept=7)
    gist = GistModel(checkpoint).compress("some words of 5 letters", 8)
    ids = checkpoint.prompts.prompt_ids("some words of 5 letters")
    tokens, parts = left_pad([ids], Part.PROMPT, torch.device("cpu"))
    columns = checkpoint.kept_columns(tokens, parts, 7)[0]
    with torch.no_grad():
        positions = torch.arange(len(ids))[None] - len(ids) + checkpoint.opening_tokens
        cache = checkpoint.reader(tokens, position_ids=positions, use_cache=True).past_key_values
    for layer, (keys, values, _) in enumerate(cache):
        torch.testing.assert_close(gist.keys[layer][:, 1:], keys[0][:, columns], atol=1e-5, rtol=0)
        torch.testing.assert_close(gist.values[layer][:, 1:], values[0][:, columns], atol=1e-5, rtol=0)


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
    plain = GistModel(checkpoint).compress("a prompt of 3 words", 2)
    record = json.loads((tiny_saved / "gistlm.json").read_text())
    (tiny_saved / "gistlm.json").write_text(json.dumps({**record, "kept": 5}))
    keeping = Checkpoint.load(tiny_saved, device="cpu")
    assert (keeping.max_k, keeping.learned) == (checkpoint.max_k + 5, checkpoint.max_k)
    gist = GistModel(keeping).compress("a prompt of 3 words", keeping.max_k)
    assert gist.provenance.kept == 5 and gist.provenance.adapter != plain.provenance.adapter
    torch.testing.assert_close(gist.shorten(2).keys[1], plain.keys[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["mistral", "gemma3_text", "t5"])
def test_models_that_read_no_kept_tokens_are_refused(kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match="set kept to 0"):
        tiny_checkpoint(kind, "paper", kept=2)


def test_the_template_around_a_prompt_gives_no_anchors() -> None:
    checkpoint = tiny_checkpoint(anchored=True)
    ids = checkpoint.prompts.prompt_ids("abc")
    tokens, parts = left_pad([ids], Part.PROMPT, torch.device("cpu"))
    inputs = checkpoint.gist_inputs(tokens, parts, 8)[0] - checkpoint.gist_embeddings[:8]
    own = sorted(set(ids[len(checkpoint.prompts.opening_ids) :]), reverse=True)
    embeddings = checkpoint.reader.get_input_embeddings()(torch.tensor(own))
    torch.testing.assert_close(inputs[: len(own)], embeddings)
    assert not inputs[len(own) :].any()


def test_a_checkpoint_keeps_whether_it_is_anchored(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(anchored=True)
    plain = tiny_checkpoint(anchored=False)
    assert checkpoint.adapter_fingerprint != plain.adapter_fingerprint
    one, other = (GistModel(made).compress("a prompt of some words", 4) for made in (checkpoint, plain))
    assert not torch.equal(one.keys[0], other.keys[0])
    checkpoint.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "gistlm.json").read_text())["anchored"] is True


def test_a_checkpoint_that_says_nothing_of_anchors_has_none(tmp_path: Path, tiny_saved: Path) -> None:
    record = json.loads((tiny_saved / "gistlm.json").read_text())
    del record["anchored"]
    (tiny_saved / "gistlm.json").write_text(json.dumps(record))
    assert Checkpoint.load(tiny_saved, device="cpu").config.anchored is False


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_anchored_must_be_true_or_false(tiny_saved: Path, value: object) -> None:
    record = json.loads((tiny_saved / "gistlm.json").read_text())
    (tiny_saved / "gistlm.json").write_text(json.dumps({**record, "anchored": value}))
    with pytest.raises(ModelError, match="damaged"):
        Checkpoint.load(tiny_saved, device="cpu")


@pytest.fixture
def tiny_saved(tmp_path: Path) -> Path:
    return save_tiny_checkpoint(tmp_path / "checkpoint")
