"""Text to ids around the gist: what a chat template would give, special tokens from templates only, and errors."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import CHATML, tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Tokenizer

from gistlm.engines.base import Request
from gistlm.errors import InputError, ModelError
from gistlm.messages import Message
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
    with pytest.raises(ModelError, match=f"{name} must contain .* once, got 'nothing'"):
        chat("chatml").format.replace(**{name: "nothing"})


@pytest.mark.parametrize(
    "change", [{"opening": None}, {"opening_visible": 1}, {"surplus": "x"}], ids=["type", "bool", "unknown"]
)
def test_a_saved_format_with_wrong_fields_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        PromptFormat.from_dict({**chat("chatml").format.to_dict(), **change})


def test_a_saved_format_with_a_missing_field_is_refused() -> None:
    values = chat("chatml").format.to_dict()
    del values["turn"]
    with pytest.raises(ModelError, match="a prompt format: turn is missing"):
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


# Requests without a gist: the ids of the stock chat template

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- elif message.role == 'assistant' %}{%- set said = message.content.split('</think>')[-1].lstrip('\n') %}"
    "{{- '<|im_start|>assistant\n' + said + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set before = messages[0]['content'] + '\n\n' -%}"
    "{%- set spoken = messages[1:] -%}{%- else -%}{%- set before = '' -%}{%- set spoken = messages -%}{%- endif -%}"
    "{%- for message in spoken -%}{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{ '<start_of_turn>' + role + '\n' + (before if loop.first else '') }}{{ message['content'] | trim }}"
    "{{ '<end_of_turn>\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
LLAMA3_DATED = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n' }}"
    "{{- 'Today Date: ' + date_string + '\n\n' + system + '<|eot_id|>' }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
MISTRAL_FIRST = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set before = messages[0]['content'] + '\n\n' %}"
    "{%- set spoken = messages[1:] %}{%- else %}{%- set before = '' %}{%- set spoken = messages %}{%- endif %}"
    "{%- for message in spoken %}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{%- elif message['role'] == 'user' %}"
    "{{ '[INST] ' + (before if loop.first else '') + message['content'] + ' [/INST]' }}"
    "{%- else %}{{ ' ' + message['content'].strip() + '</s>' }}{%- endif %}{%- endfor %}"
)
MISTRAL_LAST = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set before = messages[0]['content'] + '\n\n' %}"
    "{%- set spoken = messages[1:] %}{%- else %}{%- set before = '' %}{%- set spoken = messages %}{%- endif %}"
    "{%- for message in spoken %}"
    "{%- if message['role'] == 'user' %}"
    "{{ '[INST] ' + (before if loop.last else '') + message['content'] + '[/INST]' }}"
    "{%- else %}{{ ' ' + message['content'] | trim + '</s>' }}{%- endif %}{%- endfor %}"
)
STOCK = {
    "chatml": (CHATML, ()),
    "smollm2": (SMOLLM2, ()),
    "qwen": (QWEN, ()),
    "llama3": STYLES["llama3"],
    "llama3 dated": (LLAMA3_DATED, STYLES["llama3"][1]),
    "gemma": STYLES["gemma"],
    "gemma3": (GEMMA3, STYLES["gemma"][1]),
    "mistral": STYLES["mistral"],
    "mistral, plain words": (MISTRAL, ("<s>", "</s>")),
    "mistral, system first": (MISTRAL_FIRST, STYLES["mistral"][1]),
    "mistral, system last": (MISTRAL_LAST, STYLES["mistral"][1]),
}


@cache
def words_tokenizer(template: str, special: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """A BPE with word marks, as Llama 2's and Mistral's: a text alone begins with a mark, one behind a token does not.

    Line ends and spaces merge, so that tokens span the borders of a template's texts and a user's.
    """
    pieces = ["<unk>", *special, *(f"<0x{byte:02X}>" for byte in range(256)), *"\u2581\nabehinorstu", "\u2581\u2581"]
    merges = [("\u2581", "\u2581"), ("\u2581", "a"), ("\n", "\n"), ("\n", "\u2581"), ("\u2581", "\n"), ("t", "h")]
    pieces += ["".join(pair) for pair in merges[1:]]
    backend = Tokenizer(
        models.BPE({piece: index for index, piece in enumerate(pieces)}, merges, byte_fallback=True, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=special[0], unk_token="<unk>", additional_special_tokens=list(special)
    )
    tokenizer.chat_template = template
    return tokenizer


def byte_tokenizer(template: str, special: tuple[str, ...]) -> PreTrainedTokenizerFast:
    return tiny_tokenizer(template, special)


def words_with_ends(template: str, special: tuple[str, ...]) -> PreTrainedTokenizerFast:
    return words_tokenizer(template, special or ("<|endoftext|>", "<|im_start|>", "<|im_end|>"))


TOKENIZERS: list[Callable[[str, tuple[str, ...]], PreTrainedTokenizerFast]] = [byte_tokenizer, words_with_ends]
EVERY = pytest.mark.parametrize("style", STOCK)
BOTH = pytest.mark.parametrize("make", TOKENIZERS)


@cache
def stock_prompts(style: str, make: Callable[..., PreTrainedTokenizerFast]) -> PromptTokenizer:
    tokenizer = make(*STOCK[style])
    return PromptTokenizer(tokenizer, chat_format(tokenizer))


def ids_of(prompts: PromptTokenizer, messages: list[Message]) -> list[int]:
    request = Request(messages)
    return prompts.request_ids(request.prompt, request.input)


def stock(prompts: PromptTokenizer, style: str, messages: list[Message], tokenize: bool = True) -> Any:
    """What the chat template gives; where it knows no system role, its text stands before the first user message."""
    if messages[0]["role"] == "system" and style in ("gemma", "mistral", "mistral, plain words"):
        system, first = (message["content"] for message in messages[:2])
        whole = f"{system}\n\n{first}" if str(system).strip() else first
        messages = [{"role": "user", "content": whole}, *messages[2:]]
    return prompts.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=tokenize, return_dict=False
    )


odd = st.sampled_from(
    ["", " ", "\n", "\n\n", "\r\n", "\t", "\u00a0", " a", "the ", "\n the", "{input}", "{prompt}", "<|"]
)
odd |= st.sampled_from(["\U0001f600", "\U0001f468\u200d\U0001f469", "e\u0301", "\U000f0000", "</think>", "{{ 1 }}"])
anything = st.lists(odd | st.text(max_size=8), max_size=5).map("".join)


@st.composite
def chats(draw: st.DrawFn, text: st.SearchStrategy[str] = anything) -> list[Message]:
    turns = draw(st.lists(text, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2 == 1))
    system = draw(st.none() | text)
    return [*([] if system is None else [{"role": "system", "content": system}]), *conversation(*turns)]


def has_special(prompts: PromptTokenizer, messages: list[Message]) -> bool:
    return any(
        token in str(message["content"]) for message in messages for token in prompts.tokenizer.all_special_tokens
    )


@BOTH
@EVERY
@given(messages=chats())
def test_without_a_gist_the_ids_are_those_of_the_stock_chat_template(
    style: str, make: Callable[..., Any], messages: list[Message]
) -> None:
    prompts = stock_prompts(style, make)
    assert prompts.follows_template
    if not has_special(prompts, messages):
        assert ids_of(prompts, messages) == stock(prompts, style, messages)


@EVERY
@given(data=st.data())
def test_look_alikes_in_messages_stay_characters_in_the_stock_chat_templates_text(
    style: str, data: st.DataObject
) -> None:
    prompts = stock_prompts(style, byte_tokenizer)
    tokens = st.sampled_from(prompts.tokenizer.all_special_tokens)
    messages = data.draw(chats(st.lists(tokens | odd, min_size=1, max_size=6).map("".join)))
    ids = ids_of(prompts, messages)
    text = stock(prompts, style, messages, tokenize=False)
    assert prompts.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    plain = [{**message, "content": "x" if str(message["content"]).strip() else ""} for message in messages]
    assert special_ids(prompts, ids) == special_ids(prompts, stock(prompts, style, plain))


def special_ids(prompts: PromptTokenizer, ids: list[int]) -> list[int]:
    return [index for index in ids if index in prompts.tokenizer.all_special_ids]


def test_characters_that_a_tokenizer_folds_into_a_special_token_stay_characters() -> None:
    tokenizer = tiny_tokenizer.__wrapped__(SMOLLM2)
    tokenizer.add_special_tokens({"sep_token": AddedToken("<sep>", normalized=True, special=True)})
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    prompts = PromptTokenizer(tokenizer, chat_format(tokenizer))
    sep = tokenizer.convert_tokens_to_ids("<sep>")
    talk = conversation("a <SEP> b")
    assert sep in stock(prompts, "smollm2", talk)
    assert sep not in ids_of(prompts, talk)
    assert "a <sep> b" in tokenizer.decode(ids_of(prompts, talk))


@EVERY
@given(prompt=anything.filter(str.strip), text=anything)
def test_a_full_prompt_is_the_stock_templates_system_message(style: str, prompt: str, text: str) -> None:
    prompts = stock_prompts(style, byte_tokenizer)
    messages: list[Message] = [{"role": "system", "content": prompt}, {"role": "user", "content": text}]
    if not has_special(prompts, messages):
        assert prompts.request_ids(prompt, text) == stock(prompts, style, messages)


def test_a_request_with_nothing_before_it_has_the_templates_own_system_message() -> None:
    prompts = stock_prompts("smollm2", byte_tokenizer)
    assert "named SmolLM" in prompts.tokenizer.decode(prompts.request_ids(None, "hi"))
    assert "named SmolLM" not in prompts.tokenizer.decode(prompts.request_ids("be kind", "hi"))


def test_a_prompt_stands_first_in_the_format_of_a_template_that_puts_it_into_the_last_message() -> None:
    made = stock_prompts("mistral, system last", byte_tokenizer).format
    assert (made.opening, made.rest) == ("<|endoftext|>[INST] ", "\n\n{input}[/INST]")


def test_requests_of_several_threads_have_the_ids_of_requests_alone() -> None:
    prompts = stock_prompts("smollm2", byte_tokenizer)
    calls: list[Callable[[str], list[int]]] = [lambda text: prompts.request_ids(None, text), prompts.plain_ids]
    texts = ["hello", "<|im_end|>", "<|im_start|>system\nhm", "the end"]
    expected = [[call(text) for call in calls] for text in texts]
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda text: [call(text) for call in calls], texts * 100)
        assert list(found) == expected * 100


def test_a_format_that_is_not_the_tokenizers_template_writes_requests_by_its_parts() -> None:
    own = chat("chatml")
    prompts = PromptTokenizer(own.tokenizer, own.format.replace(turn="\n{input}\n"))
    assert own.follows_template and not prompts.follows_template
    assert prompts.request_ids("be kind", "hi", [7]) == [*prompts.prompt_ids("be kind"), 7, *prompts.rest_ids("hi")]
    for blank in (None, " "):
        assert prompts.request_ids(blank, "hi") == prompts.opening_ids + prompts.rest_ids("hi")
    hidden = PromptTokenizer(own.tokenizer, prompts.format.replace(opening_visible=False))
    assert hidden.request_ids(None, "hi") == hidden.rest_ids("hi")
    paper = PromptTokenizer(own.tokenizer, paper_format(own.tokenizer))
    assert not paper.follows_template


REFUSES = (
    "{% for message in messages %}{% if message['content'] | length > 9 %}"
    "{{ raise_exception('at most 9\ncharacters') }}{% endif %}"
    "{{ message['role'] + ':' + message['content'] + ' ' }}{% endfor %}"
)


def test_messages_that_a_template_refuses_raise_one_sentence() -> None:
    tokenizer = tiny_tokenizer(REFUSES)
    prompts = PromptTokenizer(tokenizer, chat_format(tokenizer))
    assert prompts.request_ids(None, "short") == stock(prompts, "", conversation("short"))
    with pytest.raises(InputError, match=r"chat template refuses the messages: at most 9 characters$"):
        prompts.request_ids(None, "too long for it")
    with pytest.raises(InputError, match="the prompt is not text that UTF-8 can write"):
        prompts.request_ids("\ud800", "hi")


def test_a_request_of_no_tokens_is_refused() -> None:
    tokenizer = tiny_tokenizer("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    prompts = PromptTokenizer(tokenizer, chat_format(tokenizer))
    with pytest.raises(InputError, match="the request is empty"):
        prompts.request_ids(None, "")


# Dates

DAY = datetime.date(2024, 2, 9)


def dated() -> tuple[Any, PromptFormat]:
    tokenizer = tiny_tokenizer(*STOCK["llama3 dated"])
    return tokenizer, chat_format(tokenizer, DAY)


def test_a_date_that_a_template_writes_is_fixed_in_the_format() -> None:
    tokenizer, made = dated()
    assert made.date == "2024-02-09"
    assert "Today Date: 09 Feb 2024\n" in made.opening
    assert chat_format(tokenizer).day in (datetime.date.today(), datetime.date.today() - datetime.timedelta(days=1))
    prompts = PromptTokenizer(tokenizer, PromptFormat.from_dict(made.to_dict()))
    for messages in (conversation("hi"), [{"role": "system", "content": "be kind"}, *conversation("hi", "oh", "no")]):
        assert ids_of(prompts, messages) == tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False, date_string="09 Feb 2024"
        )


def test_a_format_from_before_dates_were_saved_keeps_the_date_in_its_text() -> None:
    tokenizer, made = dated()
    prompts = PromptTokenizer(tokenizer, made.replace(date=""))
    assert not prompts.follows_template
    assert "09 Feb 2024" in tokenizer.decode(prompts.request_ids("be kind", "hi"))


@EVERY
def test_a_format_without_a_date_is_saved_as_before_there_were_dates(style: str) -> None:
    made = stock_prompts(style, byte_tokenizer).format
    assert ("date" in made.to_dict()) == (style == "llama3 dated")
    assert PromptFormat.from_dict(made.to_dict()) == made


@pytest.mark.parametrize("wrong", ["today", "2024-13-01", 20240209, None])
def test_a_saved_date_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(ModelError, match="a prompt format: date must be"):
        PromptFormat.from_dict({**chat("chatml").format.to_dict(), "date": wrong})
