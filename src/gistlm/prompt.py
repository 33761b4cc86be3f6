"""The only place where text becomes token ids; knows nothing of models or of what is compressed.

A request over a gist is  opening + prompt | gist | rest,  each part tokenised on its own, so that the ids of a
cached part and of a fresh one are the same by construction. A request without a gist is what the tokenizer's own chat
template makes of its messages, where the format was taken from that template, and else the same parts.

Special tokens come from templates alone: a text that contains "<|im_end|>" is compressed and sent as those characters.
"""

from __future__ import annotations

import datetime
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import cycle
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from gistlm.errors import GistlmError, InputError, ModelError
from gistlm.files import sha256
from gistlm.messages import Input, check_text, turns
from gistlm.options import Options

_SLOTS = re.compile(r"\{prompt\}|\{input\}")
_STAND_INS = range(0xF0000, 0xFFFFE)
"""Private-use characters, which no template knows."""
_TOKENIZING = threading.Lock()
"""A fast tokenizer remembers between two calls whether it is to read special tokens: one thread at a time."""


def _with_one(slot: str) -> AfterValidator:
    def check(template: str) -> str:
        if template.count(slot) != 1:
            raise PydanticCustomError("slot", "Template should contain {slot} once", {"slot": slot})
        return template

    return AfterValidator(check)


def _check_date(date: str) -> str:
    try:
        _ = date and datetime.date.fromisoformat(date)
    except ValueError:
        raise PydanticCustomError("date", "Date should be YYYY-MM-DD or empty") from None
    return date


class PromptFormat(Options):
    """How a prompt, an input and an output are written around the gist; saved beside the checkpoint.

    Raises `ModelError` for one that cannot be.
    """

    _failure: ClassVar[type[GistlmError]] = ModelError

    opening: str
    """Constant text before the prompt, for example "<|im_start|>system" and a newline."""
    prompt: Annotated[str, _with_one("{prompt}")]
    """The prompt's own template, with {prompt}."""
    rest: Annotated[str, _with_one("{input}")]
    """All that follows the gist up to where the answer begins, with {input}."""
    rest_without_input: str
    """The same for an empty input."""
    turn: Annotated[str, _with_one("{input}")]
    """What follows an answer when the conversation goes on, with {input}."""
    output_end: str
    """The special token that ends an answer."""
    opening_visible: bool
    """Whether the opening stays visible to the rest beside the gist (the paper hides it)."""
    date: Annotated[str, AfterValidator(_check_date)] = ""
    """The day (YYYY-MM-DD) that a chat template writes where it asks for today's; empty where it asks for none."""

    @property
    def day(self) -> datetime.date | None:
        """The `date`, None where there is none."""
        return datetime.date.fromisoformat(self.date) if self.date else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; an empty date is left out, so that files and fingerprints stay as before dates."""
        return self.model_dump(exclude_defaults=True)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PromptFormat:
        """The inverse of `to_dict`; raises `ModelError` when fields are missing, unknown or of a wrong type."""
        return cls.parse(values, "a prompt format")


def paper_format(tokenizer: Any, encodes: bool = False) -> PromptFormat:
    """The plain format of the original project: "Instruction: ...", gist, "Input: ...", "Output:".

    For an encoder (``encodes``) its text ends with the input and the token that ends every text of the encoder's.
    """
    if encodes:
        ending = tokenizer.eos_token or ""
        return PromptFormat(
            opening="",
            prompt="Instruction: {prompt}\n",
            rest=f"\nInput: {{input}}{ending}",
            rest_without_input=ending or "\n",
            turn="\nInput: {input}",
            output_end=ending,
            opening_visible=False,
        )
    begins_with_bos = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    return PromptFormat(
        opening=tokenizer.bos_token if begins_with_bos else "",
        prompt="Instruction: {prompt}\n",
        rest="\nInput: {input}\nOutput:",
        rest_without_input="\nOutput:",
        turn="\nInput: {input}\nOutput:",
        output_end=tokenizer.eos_token or "",
        opening_visible=False,
    )


def chat_format(tokenizer: Any, today: datetime.date | None = None) -> PromptFormat:
    """The tokenizer's chat template taken apart, with the prompt as the system message.

    A template that has no place for a system message before the first user message takes the prompt at the head of
    that message. today: what a template that asks for the date is told. Raises `ModelError` when the template cannot
    be taken apart.
    """
    slots = ["\u2983prompt\u2984", "\u2983first\u2984", "\u2983answer\u2984", "\u2983second\u2984"]
    prompt, first, answer, second = slots
    tail = [("assistant", answer), ("user", second)]
    layouts = [
        [("system", prompt), ("user", first), *tail],
        [("user", _joined(prompt, first)), *tail],
    ]
    for messages in layouts:
        clock = _Clock(today or datetime.date.today())
        try:
            asked, text = (_rendered(tokenizer, some, clock) for some in (messages[:-2], messages))
        except Exception:  # a template raises whatever its author chose
            continue
        pieces = re.split(f"({'|'.join(map(re.escape, slots))})", text)
        if pieces[1::2] != slots:
            continue
        opening, before_input, _, before_second, end = pieces[::2]
        before_answer = asked.rpartition(first)[2]  # an answer that is quoted may have more around it, such as a space
        return PromptFormat(
            opening=opening,
            prompt="{prompt}",
            rest=f"{before_input}{{input}}{before_answer}",
            rest_without_input=f"{before_input}{before_answer}",
            turn=f"{before_second}{{input}}{end}",
            output_end=_first_special(tokenizer, before_second) or tokenizer.eos_token or "",
            opening_visible=True,
            date=clock.day.isoformat() if clock.was_asked else "",
        )
    raise ModelError("this model's chat template shows no place for a prompt before the first user message")


def default_format(tokenizer: Any, encodes: bool = False) -> PromptFormat:
    """The chat format where the tokenizer of a decoder-only model has a chat template, else the paper's."""
    chats = not encodes and getattr(tokenizer, "chat_template", None)
    return chat_format(tokenizer) if chats else paper_format(tokenizer, encodes)


class PromptTokenizer:
    """A `PromptFormat` and a tokenizer: text in, token ids out."""

    def __init__(self, tokenizer: Any, prompt_format: PromptFormat) -> None:
        self.tokenizer = tokenizer
        self.format = prompt_format
        added = tokenizer.added_tokens_decoder
        self._added = _one_of(token.content for token in added.values())
        self._special = _one_of(token.content for token in added.values() if token.special)
        self._special_ids = {index for index, token in added.items() if token.special} - {tokenizer.unk_token_id}
        self.opening_ids: list[int] = self._encode(prompt_format.opening, "")
        self.output_end_ids: list[int] = self._encode(prompt_format.output_end, "")
        self.empty_rest_ids: list[int] = self._encode(prompt_format.rest_without_input, "")

    def prompt_ids(self, prompt: str) -> list[int]:
        """Opening and prompt: what a gist is made of. Raises `InputError` for an empty prompt."""
        check_text(prompt, "the prompt")
        if not prompt.strip():
            raise InputError("the prompt is empty; give the text that is to be compressed")
        return self.opening_ids + self._encode(self.format.prompt, prompt)

    def prompt_sha256(self, prompt: str) -> str:
        """The hash of `prompt_ids`, as the prompt's gists hold it."""
        return hash_ids(self.prompt_ids(prompt))

    def rest_ids(self, request: Input) -> list[int]:
        """All that follows the gist, up to where the answer begins. Raises `InputError` as `messages.turns` does."""
        texts = turns(request)
        template = self.format.rest if texts[0] else self.format.rest_without_input
        ids = self._encode(template, texts[0])
        for answer, question in zip(texts[1::2], texts[2::2], strict=True):
            ids += self.plain_ids(answer) + self._encode(self.format.turn, question)
        return ids

    def request_ids(self, prompt: str | None, request: Input, behind_prompt: Sequence[int] = ()) -> list[int]:
        """All that stands before an answer where there is no gist: a full prompt or None, and an input.

        behind_prompt: ids between the two in a format that is no chat template's. Raises `InputError` as `rest_ids`
        does, and for messages that the chat template refuses.
        """
        texts = turns(request)
        if prompt is not None:
            check_text(prompt, "the prompt")
        if self.follows_template:
            return self._template_ids(self._messages(prompt, texts))
        if prompt is None or not prompt.strip():
            return (self.opening_ids if self.format.opening_visible else []) + self.rest_ids(request)
        return self.prompt_ids(prompt) + list(behind_prompt) + self.rest_ids(request)

    @cached_property
    def follows_template(self) -> bool:
        """Whether the format is that of the tokenizer's own chat template, which then writes requests without gists."""
        try:
            own = chat_format(self.tokenizer, self.format.day)
        except ModelError:
            return False
        return own.replace(opening_visible=self.format.opening_visible) == self.format

    def output_ids(self, output: str) -> list[int]:
        """An answer and the token that ends it."""
        check_text(output, "the output")
        return self.plain_ids(output) + self.output_end_ids

    def plain_ids(self, text: str) -> list[int]:
        """Text as it stands, with no template and no special tokens."""
        ids = self._ids(text, split_special_tokens=True)
        if self._special_ids.isdisjoint(ids):
            return ids
        # vocabularies like T5's hold special tokens as words: these are cut in two behind their first sign
        pieces = [part for piece in self._added.split(text) for part in self._cut(piece)]
        return [index for piece in pieces for index in self._ids(piece, split_special_tokens=True)]

    def _ids(self, text: str, split_special_tokens: bool) -> list[int]:
        if not text:
            return []
        with _TOKENIZING:
            made = self.tokenizer(text, add_special_tokens=False, split_special_tokens=split_special_tokens)
        return list(made["input_ids"])

    def _cut(self, piece: str) -> list[str]:
        return [piece[:1], piece[1:]] if self.tokenizer.convert_tokens_to_ids(piece) in self._special_ids else [piece]

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids back to text, special tokens left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _encode(self, template: str, value: str) -> list[int]:
        return self._split_ids(self._added, template, lambda piece: _SLOTS.sub(lambda _: value, piece))

    def _split_ids(self, tokens: re.Pattern[str], text: str, filled: Callable[[str], str]) -> list[int]:
        """The ids of ``tokens`` in a text, and of what stands between them, filled, as plain text."""
        ids: list[int] = []
        for piece in tokens.split(text):
            if tokens.fullmatch(piece):
                ids.append(self.tokenizer.convert_tokens_to_ids(piece))
            else:
                ids += self.plain_ids(filled(piece))
        return ids

    def _template_ids(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """The ids of the chat template's text, in which only the template's own special tokens are read as such.

        Stand-ins take the place of their look-alikes in the messages until the text is split at the template's own. It
        is tokenised whole, as by `apply_chat_template`, unless something in the messages was read as a special token.
        """
        looking_alike = (token for _, text in messages for token in self._special.findall(text))
        unused = (sign for sign in map(chr, _STAND_INS) if not any(sign in text for _, text in messages))
        stand_ins = dict(zip(dict.fromkeys(looking_alike), unused, strict=False))
        text = self._render([(role, self._special.sub(lambda m: stand_ins[m[0]], text)) for role, text in messages])
        ids = self._ids(text, split_special_tokens=False)
        if stand_ins or sum(index in self._special_ids for index in ids) != len(self._special.findall(text)):
            back = {ord(sign): token for token, sign in stand_ins.items()}
            ids = self._split_ids(self._special, text, lambda piece: piece.translate(back))
        if not ids:
            raise InputError("the request is empty; give a prompt or an input that has some text")
        return ids

    def _messages(self, prompt: str | None, texts: Sequence[str]) -> list[tuple[str, str]]:
        """Roles and texts; the prompt at the head of the first user message where the template has no system role."""
        spoken = list(zip(cycle(("user", "assistant")), texts, strict=False))
        if prompt is None:
            return spoken
        if self._has_system_role:
            return [("system", prompt), *spoken]
        return [("user", _joined(prompt, texts[0])), *spoken[1:]]

    def _render(self, messages: Sequence[tuple[str, str]]) -> str:
        try:
            return _rendered(self.tokenizer, messages, _Clock(self.format.day or datetime.date.today()))
        except Exception as error:  # a template raises whatever its author chose
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"this model's chat template refuses the messages: {reason}") from error

    @cached_property
    def _has_system_role(self) -> bool:
        try:
            return "system's" in self._render([("system", "system's"), ("user", "user's")])
        except InputError:
            return False


class _Clock:
    """A chat template's `strftime_now` on one day; remembers whether a template has asked."""

    def __init__(self, day: datetime.date) -> None:
        self.day, self.was_asked = day, False

    def __call__(self, form: str) -> str:
        self.was_asked = True
        return datetime.datetime.combine(self.day, datetime.time()).strftime(form)


def _rendered(tokenizer: Any, messages: Sequence[tuple[str, str]], clock: _Clock) -> str:
    """The chat template's text up to where the answer begins; raises what the template does."""
    chat = [{"role": role, "content": text} for role, text in messages]
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, strftime_now=clock))


def _joined(prompt: str, first: str) -> str:
    """A prompt at the head of the first user message, where there is no system message."""
    return f"{prompt}\n\n{first}" if prompt.strip() else first


def _one_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of the tokens, the longest first; nothing where there are none."""
    return re.compile(f"({'|'.join(map(re.escape, sorted(tokens, key=len, reverse=True))) or '(?!)'})")


def _first_special(tokenizer: Any, text: str) -> str | None:
    found = [(text.find(token.content), token.content) for token in tokenizer.added_tokens_decoder.values()]
    return min(((at, token) for at, token in found if at >= 0), default=(0, None))[1]


def hash_ids(ids: Sequence[int]) -> str:
    """The hash of a prompt's token ids, by which gists of one prompt are told from those of others."""
    return sha256(*(index.to_bytes(4, "little") for index in ids))
