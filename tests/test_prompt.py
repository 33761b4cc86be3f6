"""Text to ids around the gist: what a chat template would give, special tokens from templates only, and errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import CHATML, tiny_tokenizer
from transformers import T5Tokenizer

from gistlm.errors import InputError, ModelError
from gistlm.prompt import PromptFormat, PromptTokenizer, chat_format, default_format, paper_format

LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ '<s>' }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('Only user and assistant roles are supported') }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + '</s>' }}{% endif %}{% endfor %}"
)
STYLES = {
    "chatml": (CHATML, ()),
    "llama3": (LLAMA3, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "gemma": (GEMMA, ("<bos>", "<start_of_turn>", "<end_of_turn>")),
    "mistral": (MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]")),
}
WITHOUT_SYSTEM = {"gemma", "mistral"}
ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "mistral": "</s>"}
OPENINGS = {
    "chatml": "<|im_start|>system\n",
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n",
    "gemma": "<bos><start_of_turn>user\n",
    "mistral": "<s>[INST] ",
}

# a text whose edges are no spaces: where a template joins parts without a special token, words stay words
clean = st.from_regex(r"[a-z0-9]([a-zA-Z0-9 ,.!?\n\u00e9\u4e16]{0,40}[a-z0-9.])?", fullmatch=True)


def chat(style: str) -> PromptTokenizer:
    tokenizer = tiny_tokenizer(*STYLES[style])
    return PromptTokenizer(tokenizer, chat_format(tokenizer))


def template_ids(prompts: PromptTokenizer, style: str, prompt: str, turns: list[str]) -> list[int]:
    """What the chat template itself gives for user, assistant, user, ... turns under a prompt."""
    roles = ["user", "assistant"] * len(turns)
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    if style in WITHOUT_SYSTEM:
        messages[0]["content"] = f"{prompt}\n\n{turns[0]}"
    else:
        messages.insert(0, {"role": "system", "content": prompt})
    made: dict[str, Any] = prompts.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    return list(made["input_ids"])


def conversation(*turns: str) -> Any:
    roles = ["user", "assistant"] * len(turns)
    return [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]


@pytest.mark.parametrize("style", ["chatml", "llama3"])
@given(prompt=clean, text=clean)
def test_the_parts_together_are_the_chat_templates_ids(style: str, prompt: str, text: str) -> None:
    prompts = chat(style)
    assert prompts.prompt_ids(prompt) + prompts.rest_ids(text) == template_ids(prompts, style, prompt, [text])


@pytest.mark.parametrize("style", STYLES)
@given(prompt=clean, text=clean)
def test_the_parts_together_are_the_chat_templates_text(style: str, prompt: str, text: str) -> None:
    """Where a style has no special token between prompt and input, ids may meet otherwise; the text does not."""
    prompts = chat(style)
    ids = prompts.prompt_ids(prompt) + prompts.rest_ids(text)
    expected = template_ids(prompts, style, prompt, [text])
    assert prompts.tokenizer.decode(ids) == prompts.tokenizer.decode(expected)


@pytest.mark.parametrize("style", ["chatml", "llama3"])
@given(prompt=clean, turns=st.lists(clean, min_size=3, max_size=5).filter(lambda turns: len(turns) % 2 == 1))
def test_a_conversation_is_the_chat_templates_ids(style: str, prompt: str, turns: list[str]) -> None:
    prompts = chat(style)
    ids = prompts.prompt_ids(prompt) + prompts.rest_ids(conversation(*turns))
    assert ids == template_ids(prompts, style, prompt, turns)


@pytest.mark.parametrize("style", STYLES)
def test_a_conversation_is_the_chat_templates_text(style: str) -> None:
    prompts = chat(style)
    turns = ["hello", "good day", "how is it", "fine", "bye"]
    # where the template puts a space before an answer, the model made that space itself
    made = [" " + turn if style == "mistral" and turn in turns[1::2] else turn for turn in turns]
    ids = prompts.prompt_ids("be kind") + prompts.rest_ids(conversation(*made))
    assert prompts.tokenizer.decode(ids) == prompts.tokenizer.decode(template_ids(prompts, style, "be kind", turns))


@pytest.mark.parametrize("style", STYLES)
@given(prompts_texts=st.tuples(clean, clean))
def test_every_prompt_begins_with_the_same_opening(style: str, prompts_texts: tuple[str, str]) -> None:
    prompts = chat(style)
    opening = prompts.opening_ids
    assert opening and prompts.tokenizer.decode(opening) == OPENINGS[style]
    for text in prompts_texts:
        ids = prompts.prompt_ids(text)
        assert ids[: len(opening)] == opening
        assert ids[len(opening) :] == prompts.plain_ids(text)


@pytest.mark.parametrize("style", STYLES)
def test_an_answer_ends_with_the_styles_own_ending_token(style: str) -> None:
    prompts = chat(style)
    ending = prompts.tokenizer.convert_tokens_to_ids(ENDS[style])
    assert prompts.output_end_ids == [ending]
    assert prompts.output_ids("yes") == [*prompts.plain_ids("yes"), ending]


@pytest.mark.parametrize("style", STYLES)
@given(data=st.data())
def test_special_tokens_in_a_users_text_stay_characters(style: str, data: st.DataObject) -> None:
    prompts = chat(style)
    special = sorted(prompts.tokenizer.get_added_vocab())
    words = st.lists(st.sampled_from([*special, "{prompt}", "{input}", "word", " "]), min_size=1, max_size=6)
    text = "x" + "".join(data.draw(words))
    special_ids = set(prompts.tokenizer.get_added_vocab().values())
    own = prompts.plain_ids(text)
    assert not special_ids & set(own)
    assert prompts.tokenizer.decode(own) == text
    assert prompts.prompt_ids(text) == prompts.opening_ids + own

    def count(ids: list[int]) -> int:
        return sum(index in special_ids for index in ids)

    assert count(prompts.rest_ids(text)) == count(prompts.rest_ids("x"))
    assert count(prompts.rest_ids(conversation("x", text, text))) == count(
        prompts.rest_ids(conversation("x", "x", "x"))
    )
    assert count(prompts.output_ids(text)) == 1


@pytest.mark.parametrize("style", STYLES)
def test_the_opening_of_a_chat_stays_visible_and_the_format_survives_json(style: str) -> None:
    made = chat(style).format
    assert made.opening_visible
    assert PromptFormat.from_dict(made.to_dict()) == made


def test_the_papers_format_is_the_original_projects_text() -> None:
    tokenizer = tiny_tokenizer(None)
    prompts = PromptTokenizer(tokenizer, paper_format(tokenizer))
    assert not prompts.format.opening_visible
    assert prompts.opening_ids == []
    assert tokenizer.decode(prompts.prompt_ids("Add.")) == "Instruction: Add.\n"
    assert tokenizer.decode(prompts.rest_ids("1 2")) == "\nInput: 1 2\nOutput:"
    assert tokenizer.decode(prompts.rest_ids("")) == "\nOutput:"
    assert prompts.output_ids("3")[-1] == tokenizer.eos_token_id


def test_the_default_format_is_the_chat_template_where_there_is_one() -> None:
    with_template, without = tiny_tokenizer(), tiny_tokenizer(None)
    assert default_format(with_template) == chat_format(with_template)
    assert default_format(without) == paper_format(without)


def test_a_template_that_shows_no_place_for_a_prompt_is_refused() -> None:
    with pytest.raises(ModelError, match="shows no place for a prompt"):
        chat_format(tiny_tokenizer("{{ messages[-1]['content'] }}"))


@pytest.mark.parametrize("prompt", ["", " ", "\n\t "])
def test_an_empty_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(InputError, match="the prompt is empty"):
        chat("chatml").prompt_ids(prompt)


@pytest.mark.parametrize("prompt", [None, b"bytes", 3])
def test_a_prompt_that_is_no_string_is_refused(prompt: Any) -> None:
    with pytest.raises(InputError, match="the prompt must be a string"):
        chat("chatml").prompt_ids(prompt)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "must alternate"),
        ([{"role": "assistant", "content": "a"}], "must alternate"),
        ([{"role": "system", "content": "a"}], "must alternate"),
        ([], "must alternate"),
        ([{"role": "user"}], "keys 'role' and 'content'"),
        (["a"], "keys 'role' and 'content'"),
        ([{"role": "user", "content": 1}], "must be a string"),
    ],
)
def test_messages_that_are_no_conversation_are_refused(messages: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        chat("chatml").rest_ids(messages)


@pytest.mark.parametrize("name", ["prompt", "rest", "turn"])
def test_a_format_without_its_slot_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=f"'{name}' must contain"):
        replace(chat("chatml").format, **{name: "nothing"})


@pytest.mark.parametrize(
    "change", [{"opening": None}, {"opening_visible": 1}, {"surplus": "x"}], ids=["type", "bool", "unknown"]
)
def test_a_saved_format_with_wrong_fields_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        PromptFormat.from_dict({**chat("chatml").format.to_dict(), **change})


def test_a_saved_format_with_a_missing_field_is_refused() -> None:
    values = chat("chatml").format.to_dict()
    del values["turn"]
    with pytest.raises(ModelError, match="has the fields"):
        PromptFormat.from_dict(values)


def test_a_users_text_never_becomes_a_special_token_that_the_vocabulary_holds_as_a_word() -> None:
    """As T5's does: its words end with those of its special tokens."""
    letters = "▁abcdefghijklmnopqrstuvwxyzIO:.<>/_0"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -5.0) for letter in letters)]
    tokenizer = T5Tokenizer(vocab=[*pieces, ("<extra_id_0>", 0.0)], extra_ids=1)
    prompts = PromptTokenizer(tokenizer, default_format(tokenizer, encodes=True))
    special = {tokenizer.convert_tokens_to_ids(token) for token in ("<pad>", "</s>", "<extra_id_0>")}
    assert special & set(tokenizer("mind </s>", add_special_tokens=False, split_special_tokens=True)["input_ids"])
    assert not special & set(prompts.prompt_ids("mind </s> and <extra_id_0> and <pad>."))
    assert not special & set(prompts.rest_ids("is it </s>?")[:-1])
    assert prompts.decode(prompts.plain_ids("mind </s> now")).replace(" ", "") == "mind</s>now"
