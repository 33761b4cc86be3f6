"""Conversations as inputs: system messages, parts of text, names, and what is refused, in every engine's calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from fake_engine import FakeEngine
from tiny import tiny_checkpoint

from gistlm.engines.base import Engine, Request, with_sampling
from gistlm.engines.sampling import Sampling
from gistlm.engines.transformers import GistModel
from gistlm.errors import InputError
from gistlm.messages import split_system, turns

ENGINES = ["llama", "t5", "fake"]
PROMPT = "be brief and kind"


@cache
def engine(name: str) -> Engine:
    return FakeEngine("m") if name == "fake" else GistModel(tiny_checkpoint(name))


def message(role: str, content: Any, **more: Any) -> Any:
    return {"role": role, "content": content, **more}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


USER = message("user", "hello there")
TALK = [USER, message("assistant", "good day"), message("user", "and now?")]
SYSTEM = message("system", PROMPT)

Call = Callable[[Engine, Any, Any, Any], Any]
"""From engine, conversation, gist and prompt to what a call says."""
CALLS: dict[str, Call] = {
    "generate": lambda made, talk, gist, prompt: made.generate(talk, gist, prompts=prompt, max_new_tokens=5),
    "generate several": lambda made, talk, gist, prompt: made.generate(
        [talk, "hm"], [gist, None], prompts=[prompt, None], max_new_tokens=5
    ),
    "complete": lambda made, talk, gist, prompt: made.complete(
        with_sampling([Request(talk, gist, prompt)], Sampling(max_new_tokens=5))
    ),
    "stream": lambda made, talk, gist, prompt: list(made.stream(talk, gist, prompt=prompt, max_new_tokens=5)),
    "score": lambda made, talk, gist, prompt: made.score(talk, "it is", gist, prompts=prompt).tolist(),
}


def logits(made: Engine, talk: Any, gist: Any, prompt: Any) -> Any:
    return [each.tolist() for each in made.logits([Request(talk, gist, prompt)], ["it is"])]


EVERY = [(name, call) for name in ENGINES for call in CALLS] + [("llama", "logits"), ("t5", "logits")]
CALLS["logits"] = logits


@pytest.mark.parametrize(("name", "call"), EVERY)
def test_a_system_message_is_the_full_prompt(name: str, call: str) -> None:
    for role in ("system", "developer"):
        said = CALLS[call](engine(name), [message(role, PROMPT), USER], None, None)
        assert said == CALLS[call](engine(name), USER["content"], None, PROMPT)
        if (name, call) not in (("t5", "generate"), ("t5", "generate several"), ("t5", "stream")):  # too tame for that
            assert said != CALLS[call](engine(name), USER["content"], None, None)


@pytest.mark.parametrize(("name", "call"), [each for each in EVERY if each[0] != "t5"])
def test_a_system_message_stands_before_a_whole_conversation(name: str, call: str) -> None:
    said = CALLS[call](engine(name), [SYSTEM, *TALK], None, None)
    assert said == CALLS[call](engine(name), TALK, None, PROMPT)


@pytest.mark.parametrize(("name", "call"), EVERY)
def test_several_system_messages_are_joined_by_a_blank_line(name: str, call: str) -> None:
    talk = [SYSTEM, message("developer", "Say no more."), message("system", [text("x"), text(" y")]), USER]
    joined = f"{PROMPT}\n\nSay no more.\n\nx y"
    assert CALLS[call](engine(name), talk, None, None) == CALLS[call](engine(name), "hello there", None, joined)


@pytest.mark.parametrize(("name", "call"), EVERY)
def test_a_system_message_beside_a_gist_or_a_prompt_is_refused(name: str, call: str) -> None:
    gist = engine(name).compress(PROMPT, 2)
    with pytest.raises(InputError, match=r"a gist stands where a system message would.*user message"):
        CALLS[call](engine(name), [SYSTEM, USER], gist, None)
    with pytest.raises(InputError, match="a system message is the full prompt, so give it or a prompt"):
        CALLS[call](engine(name), [SYSTEM, USER], None, "another")


@pytest.mark.parametrize(("name", "call"), EVERY)
def test_parts_of_text_are_joined_and_names_are_ignored(name: str, call: str) -> None:
    gist = engine(name).compress(PROMPT, 2)
    talk = [message("user", [text("hello"), text(" there")], name="Ada")]
    assert CALLS[call](engine(name), talk, gist, None) == CALLS[call](engine(name), "hello there", gist, None)


def test_a_request_keeps_roles_and_texts_alone() -> None:
    talk = [
        message("developer", [text("Be "), text("kind.")]),
        message("user", [text("a"), text("b")], name="Ada", audio=None),
        message("assistant", "c", refusal=None, tool_calls=[], function_call=None),
        message("user", []),
    ]
    request = Request(talk)
    assert request.prompt == "Be kind."
    assert request.input == [message("user", "ab"), message("assistant", "c"), message("user", "")]
    assert Request(tuple(talk)) == request
    assert split_system("hello") == (None, "hello")
    assert turns(request.input) == ["ab", "c", ""]


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10_000}}
REFUSED = [
    ([message("user", [text("see"), IMAGE])], "'image_url'"),
    ([message("user", [{"type": "image"}])], "'image'"),
    ([message("user", [{"type": "input_audio", "input_audio": {"data": "x"}}])], "'input_audio'"),
    ([message("user", [{"type": "file", "file": {}}])], "'file'"),
    ([message("user", [{"type": "video_url"}])], "'video_url'"),
    ([message("user", [{"type": "refusal", "refusal": "no"}])], "'refusal'"),
    ([message("user", [{"type": "text"}])], r"keys 'type' and 'text', got \['type'\]"),
    ([message("user", [{**text("x"), "cache_control": {"type": "ephemeral"}}])], "'cache_control'"),
    ([message("user", ["x"])], "got a list with str"),
    ([message("user", [text(5)])], "must be a string, got int"),  # type: ignore[arg-type]
    ([message("user", 5)], "must be a string, got int"),
    ([message("user", None)], "must be a string, got NoneType"),
    ([message("user", text("x"))], "must be a string, got dict"),
    ([message("user", "a\ud800b")], "UTF-8"),
    ([message("user", [text("a\ud800b")])], "UTF-8"),
    ([USER, message("assistant", None, tool_calls=[{"id": "x"}]), USER], "'tool_calls'"),
    ([USER, message("assistant", "", function_call={"name": "f"}), USER], "'function_call'"),
    ([USER, message("assistant", "x", audio={"id": "y"}), USER], "'audio'"),
    ([USER, message("tool", "42", tool_call_id="x"), USER], "got 'tool'"),
    ([USER, message("function", "42", name="f"), USER], "got 'function'"),
    ([message(5, "x")], "got 5"),
    ([message(["user"], "x")], r"got \['user'\]"),
    ([{"role": "user"}], r"keys 'role' and 'content', got \['role'\]"),
    ([{"content": "x"}], r"keys 'role' and 'content', got \['content'\]"),
    ([message("user", "x", surplus=1)], "'surplus'"),
    ([{**USER, 5: 1}], "'5'"),
    ([*TALK[:2], SYSTEM, USER], "system messages stand in front"),
    ([*TALK, SYSTEM], "system messages stand in front"),
    ([SYSTEM, USER, message("developer", "x")], "message 3 is of the role 'developer'; move it to the front"),
    ([SYSTEM], "must alternate.*there is no user message"),
    ([USER, USER], "must alternate.*message 2 is of the role 'user'"),
    ([SYSTEM, *TALK[:2]], "must alternate.*the last is of the role 'assistant'"),
    ([SYSTEM, *TALK[1:]], "must alternate.*message 2 is of the role 'assistant'"),
    ([*[*TALK[:2]] * 500, TALK[1]], "must alternate.*message 1001 is of the role 'assistant'"),
]


@pytest.mark.parametrize(("talk", "wanted"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_conversation_of_texts_is_refused_in_one_sentence(talk: Any, wanted: str) -> None:
    with pytest.raises(InputError, match=wanted) as caught:
        Request(talk)
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 300
    for name in ENGINES:
        for call in ("generate", "stream", "score"):
            with pytest.raises(InputError, match=wanted):
                CALLS[call](engine(name), talk, None, None)


@pytest.mark.parametrize("given", [5, None, {"role": "user"}, b"x", [], ["x"], [[USER]]])
def test_an_input_that_is_neither_text_nor_messages_is_refused_when_a_request_is_made(given: Any) -> None:
    with pytest.raises(InputError):
        Request(given)


def test_a_system_message_is_no_part_of_what_follows_the_prompt() -> None:
    made = engine("llama")
    assert isinstance(made, GistModel)
    with pytest.raises(InputError, match="a system message is no part of the input"):
        made.checkpoint.prompts.rest_ids([SYSTEM, USER])


def test_a_blank_system_message_is_as_none_beside_a_gist_or_a_prompt_and_else_the_templates_affair() -> None:
    made, blank = engine("llama"), message("system", " \n")
    gist = made.compress("be brief", 2)
    for before in ({"gists": gist}, {"prompts": "be brief"}):
        assert made.generate([blank, USER], **before) == made.generate([USER], **before)
    assert Request([blank, USER], gist).prompt is None
    assert Request([blank, USER]).prompt == " \n"
    assert engine("t5").generate([blank, USER]) == engine("t5").generate([USER])
    two = Request([message("system", ""), message("developer", "be brief"), USER])
    assert two.prompt == "be brief"


def test_an_empty_prompt_is_refused() -> None:
    for name in ("llama", "t5"):
        with pytest.raises(InputError, match="the prompt is empty"):
            engine(name).generate([USER], prompts=" ")


@pytest.mark.parametrize("part", [{"text": "x"}, {"type": "input_text", "text": "x"}, {"type": "text", "text": "x"}])
def test_a_part_of_text_may_lack_its_type_or_have_that_of_another_api(part: dict[str, str]) -> None:
    assert Request([message("user", [part])]).input == [message("user", "x")]


def test_the_bare_opening_has_neither_gist_nor_prompt() -> None:
    made = Request(TALK, bare_opening=True)
    assert (made.gist, made.prompt, made.input) == (None, None, TALK)
    gist = engine("llama").compress("be brief", 2)
    for wrong in ({"gists": gist}, {"prompt": "be brief"}, {"input": [SYSTEM, USER]}):
        with pytest.raises(InputError, match="bare_opening is for a request with neither gist nor prompt"):
            Request(**{"input": "hm", "bare_opening": True, **wrong})


def test_an_encoder_decoder_model_takes_a_system_message_and_one_turn() -> None:
    with pytest.raises(InputError, match="answers one message"):
        engine("t5").generate([SYSTEM, *TALK])


def test_scores_over_a_system_message_are_those_over_the_prompt() -> None:
    made = engine("llama")
    one = made.score([[SYSTEM, USER], "hm"], ["it is", "so"])
    other = made.score(["hello there", "hm"], ["it is", "so"], prompts=[PROMPT, None])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))
