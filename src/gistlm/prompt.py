"""The only place where text becomes token ids; knows nothing of models or of what is compressed.

A request is  opening + prompt | gist | rest,  each part tokenised on its own, so that the ids of a cached
part and of a fresh one are the same by construction. Templates are split at their special tokens; the text
between two of them, template and user's words together, is tokenised as a whole and never parsed for
special tokens: a prompt that contains "<|im_end|>" is compressed as those characters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from gistlm.errors import InputError, ModelError
from gistlm.files import sha256
from gistlm.messages import Input, Message, check_text, turns


@dataclass(frozen=True)
class PromptFormat:
    """How a prompt, an input and an output are written around the gist; saved beside the checkpoint."""

    opening: str
    """Constant text before the prompt, for example "<|im_start|>system" and a newline."""
    prompt: str
    """The prompt's own template, with {prompt}."""
    rest: str
    """All that follows the gist up to where the answer begins, with {input}."""
    rest_without_input: str
    """The same for an empty input."""
    turn: str
    """What follows an answer when the conversation goes on, with {input}."""
    output_end: str
    """The special token that ends an answer."""
    opening_visible: bool
    """Whether the opening stays visible to the rest beside the gist (the paper hides it)."""

    def __post_init__(self) -> None:
        for name, slot in (("prompt", "{prompt}"), ("rest", "{input}"), ("turn", "{input}")):
            if getattr(self, name).count(slot) != 1:
                raise ModelError(f"a prompt format's {name!r} must contain {slot} once: {getattr(self, name)!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PromptFormat:
        """The inverse of `to_dict`; raises `ModelError` when fields are missing, unknown or of a wrong type."""
        kinds = {field.name: bool if field.name == "opening_visible" else str for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != set(kinds):
            raise ModelError(f"a prompt format has the fields {sorted(kinds)}, this one {sorted(values)}")
        for name, kind in kinds.items():
            if not isinstance(values[name], kind):
                raise ModelError(f"a prompt format's {name!r} must be a {kind.__name__}: {values[name]!r}")
        return cls(**values)


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


def chat_format(tokenizer: Any) -> PromptFormat:
    """The tokenizer's chat template taken apart, with the prompt as the system message.

    A template that has no system role takes the prompt at the head of the first user message.
    Raises `ModelError` when the template cannot be taken apart.
    """
    prompt, first, answer, second = (
        "\u2983prompt\u2984",
        "\u2983first\u2984",
        "\u2983answer\u2984",
        "\u2983second\u2984",
    )
    tail = [_message("assistant", answer), _message("user", second)]
    layouts = [
        [_message("system", prompt), _message("user", first), *tail],
        [_message("user", f"{prompt}\n\n{first}"), *tail],
    ]
    for messages in layouts:
        try:
            asked, text = (
                tokenizer.apply_chat_template(some, tokenize=False, add_generation_prompt=True)
                for some in (messages[:-2], messages)
            )
        except Exception:  # a template raises whatever its author chose
            continue
        pieces = re.split("|".join(map(re.escape, (prompt, first, answer, second))), text)
        if len(pieces) != 5:
            continue
        opening, before_input, _, before_second, end = pieces
        before_answer = asked.rpartition(first)[2]  # an answer that is quoted may have more around it, such as a space
        return PromptFormat(
            opening=opening,
            prompt="{prompt}",
            rest=f"{before_input}{{input}}{before_answer}",
            rest_without_input=f"{before_input}{before_answer}",
            turn=f"{before_second}{{input}}{end}",
            output_end=_first_special(tokenizer, before_second) or tokenizer.eos_token or "",
            opening_visible=True,
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
        special = [token.content for token in tokenizer.added_tokens_decoder.values()]
        self._special = re.compile("(" + "|".join(map(re.escape, sorted(special, key=len, reverse=True))) + ")")
        self._has_special = bool(special)
        known = tokenizer.added_tokens_decoder.items()
        self._special_ids = {index for index, token in known if token.special} - {tokenizer.unk_token_id}
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
        return sha256(*(index.to_bytes(4, "little") for index in self.prompt_ids(prompt)))

    def rest_ids(self, request: Input) -> list[int]:
        """All that follows the gist, up to where the answer begins. Raises `InputError` as `messages.turns` does."""
        texts = turns(request)
        template = self.format.rest if texts[0] else self.format.rest_without_input
        ids = self._encode(template, texts[0])
        for answer, question in zip(texts[1::2], texts[2::2], strict=True):
            ids += self.plain_ids(answer) + self._encode(self.format.turn, question)
        return ids

    def output_ids(self, output: str) -> list[int]:
        """An answer and the token that ends it."""
        check_text(output, "the output")
        return self.plain_ids(output) + self.output_end_ids

    def plain_ids(self, text: str) -> list[int]:
        """Text as it stands, with no template and no special tokens."""
        ids = self._split_ids(text)
        if self._special_ids.isdisjoint(ids):
            return ids
        # vocabularies like T5's hold special tokens as words: these are cut in two behind their first sign
        pieces = [part for piece in self._special.split(text) for part in self._cut(piece)]
        return [index for piece in pieces for index in self._split_ids(piece)]

    def _split_ids(self, text: str) -> list[int]:
        return list(
            self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else []
        )

    def _cut(self, piece: str) -> list[str]:
        return [piece[:1], piece[1:]] if self.tokenizer.convert_tokens_to_ids(piece) in self._special_ids else [piece]

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids back to text, special tokens left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _encode(self, template: str, value: str) -> list[int]:
        ids: list[int] = []
        for piece in self._special.split(template) if self._has_special else [template]:
            if self._has_special and self._special.fullmatch(piece):
                ids.append(self.tokenizer.convert_tokens_to_ids(piece))
            else:
                ids += self.plain_ids(re.sub(r"\{prompt\}|\{input\}", lambda _: value, piece))
        return ids


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _first_special(tokenizer: Any, text: str) -> str | None:
    found = [(text.find(token.content), token.content) for token in tokenizer.added_tokens_decoder.values()]
    return min(((at, token) for at, token in found if at >= 0), default=(0, None))[1]
