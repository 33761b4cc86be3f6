"""What is encoded for a request: behind a gist the rest, else the chat template's ids, or the bare opening."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import tiny_checkpoint

from gistlm import GistModel
from gistlm.engines.base import Request, with_sampling
from gistlm.engines.layout import fresh_ids
from gistlm.engines.sampling import Sampling

TALK: list[Any] = [
    {"role": "user", "content": " hello\r\n"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "\nand <|im_end|> now? \U0001f600"},
]


@pytest.fixture(scope="module")
def model() -> GistModel:
    return GistModel(tiny_checkpoint())


def test_requests_without_a_gist_are_the_chat_templates(model: GistModel) -> None:
    prompts = model.checkpoint.prompts
    for prompt in (None, " be kind\n"):
        request = Request(TALK, prompt=prompt)
        assert fresh_ids(model.checkpoint, request) == prompts.request_ids(prompt, TALK)
        (done,) = model.complete(with_sampling([request], Sampling(max_new_tokens=1)))
        assert done.fresh_tokens == len(prompts.request_ids(prompt, TALK))
    assert "system" not in prompts.tokenizer.decode(prompts.request_ids(None, TALK)[:8])


def test_a_gist_and_the_bare_opening_stand_before_the_same_rest(model: GistModel) -> None:
    rest = model.checkpoint.prompts.rest_ids(TALK)
    assert fresh_ids(model.checkpoint, Request(TALK, model.compress("be kind", 2))) == rest
    opening = model.checkpoint.visible_opening_ids
    assert opening and fresh_ids(model.checkpoint, Request(TALK, bare_opening=True)) == opening + rest


@pytest.mark.parametrize("recipe", ["frozen", "paper"])
def test_an_encoders_requests_are_the_parts_that_they_were(recipe: str) -> None:
    checkpoint = tiny_checkpoint("t5", recipe, opening_visible=False)
    prompts = checkpoint.prompts
    assert not prompts.follows_template
    for request in (Request("hi"), Request("hi", bare_opening=True)):
        assert fresh_ids(checkpoint, request) == prompts.rest_ids("hi")
    whole = fresh_ids(checkpoint, Request("hi", prompt="be kind"))
    assert whole == prompts.prompt_ids("be kind") + prompts.rest_ids("hi")
