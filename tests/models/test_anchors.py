"""Which tokens a gist starts from, whatever is asked for and however the prompt is padded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import save_tiny_checkpoint, tiny_checkpoint

from gistlm.compress import gist_inputs
from gistlm.engines.transformers import GistModel
from gistlm.errors import ModelError
from gistlm.gisting.kv_cache import left_pad
from gistlm.gisting.placement import Part
from gistlm.models.checkpoint import Checkpoint
from gistlm.models.embeddings import NONE, anchor_ids

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


def test_the_template_around_a_prompt_gives_no_anchors() -> None:
    checkpoint = tiny_checkpoint(anchored=True)
    ids = checkpoint.prompts.prompt_ids("abc")
    tokens, parts = left_pad([ids], Part.PROMPT, torch.device("cpu"))
    inputs = gist_inputs(checkpoint, tokens, parts, 8)[0] - checkpoint.gist_embeddings[:8]
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
