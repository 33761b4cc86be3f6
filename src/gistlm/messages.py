"""What an input may be: a text, or a conversation whose messages are text. Knows no template, no tokens and no gist."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import NotRequired, TypedDict

from gistlm.errors import InputError


class TextPart(TypedDict):
    """A piece of a message's text."""

    type: str
    """ "text"."""
    text: str


class Message(TypedDict):
    """One message of a conversation, with the keys that chat APIs use."""

    role: str
    """ "user" or "assistant"; in front of these also "system" or "developer"."""
    content: str | Sequence[TextPart]
    """Parts are joined with nothing between them."""
    name: NotRequired[str]
    """Ignored."""


Input = str | Sequence[Message]

_SPEAKERS = ("user", "assistant")
_SYSTEM = ("system", "developer")
_TEXT_PARTS = ("text", "input_text", "output_text")


def split_system(given: Input) -> tuple[str | None, Input]:
    """The text of a conversation's system messages, None where there is none, and the input without them.

    System messages stand in front; several are joined by a blank line, those of them that are blank left out. The
    other messages are returned with their roles and texts alone. Raises `InputError` for anything that is no text and
    no such conversation.
    """
    if isinstance(given, str):
        check_text(given, "the input")
        return None, given
    system, spoken = _read(given)
    system = [text for text in system if text.strip()] or system[:1]  # clients send blank ones
    rest: list[Message] = [{"role": role, "content": text} for role, text in spoken]
    return "\n\n".join(system) if system else None, rest


def turns(given: Input) -> list[str]:
    """user, assistant, user, ...: always an odd number of texts. Raises `InputError` as `split_system` does, and for
    system messages.
    """
    if isinstance(given, str):
        check_text(given, "the input")
        return [given]
    system, spoken = _read(given)
    if system:
        raise InputError("a system message is no part of the input; give its text as the prompt, or compress it")
    return [text for _, text in spoken]


def check_text(text: object, what: str) -> None:
    """Raise `InputError` unless the value is a string that UTF-8 can write."""
    if not isinstance(text, str):
        raise InputError(f"{what} must be a string, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{what} is not text that UTF-8 can write: {error.reason} at {error.start}") from None


def is_text(value: str) -> bool:
    """Whether a string is not empty and UTF-8 can write it."""
    try:
        return bool(value.encode())
    except UnicodeEncodeError:
        return False


def _read(given: object) -> tuple[list[str], list[tuple[str, str]]]:
    """The system messages' texts, and role and text of the others."""
    if not isinstance(given, (list, tuple)):
        raise InputError(f"an input is a string or a list of messages, got {type(given).__name__}")
    messages = [_role_and_text(message) for message in given]
    system = [text for _, text in takewhile(lambda message: message[0] in _SYSTEM, messages)]
    spoken = messages[len(system) :]
    for place, (role, _) in enumerate(spoken):
        if role in _SYSTEM:
            raise InputError(
                f"system messages stand in front of all others, and message {len(system) + place + 1} is of the role "
                f"{role!r}; move it to the front, or put its text into a user message"
            )
        if role != _SPEAKERS[place % 2]:
            raise _not_alternating(f"message {len(system) + place + 1} is of the role {role!r}")
    if len(spoken) % 2 == 0:
        raise _not_alternating("the last is of the role 'assistant'" if spoken else "there is no user message")
    return system, spoken


def _not_alternating(fault: str) -> InputError:
    return InputError(f"messages must alternate user, assistant, ..., and end with user; {fault}")


def _role_and_text(message: object) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise InputError(f"a message has the keys 'role' and 'content', got {type(message).__name__}")
    found = sorted(str(key) for key, value in message.items() if key == "content" or not _is_empty(value))
    if "role" in found and message["role"] not in _SPEAKERS + _SYSTEM:
        raise InputError(
            f"a message's role must be one of {', '.join(_SPEAKERS + _SYSTEM)}, got {message['role']!r}; leave the "
            f"message out, or put its text into a user message"
        )
    others = [key for key in found if key not in ("role", "content", "name")]
    if others:
        raise InputError(
            f"a message has the keys 'role' and 'content', got also {', '.join(map(repr, others))}; leave that out, as "
            f"gistlm reads text alone"
        )
    if "role" not in found or "content" not in found:
        raise InputError(f"a message has the keys 'role' and 'content', got {found}")
    return message["role"], _text(message["content"])


def _is_empty(value: object) -> bool:
    """Whether a key says nothing: client libraries write those that have no value too."""
    return value is None or (isinstance(value, (list, tuple)) and not value)


def _text(content: object) -> str:
    """A message's content: a string, or the joined texts of its parts."""
    if isinstance(content, (list, tuple)):
        return "".join(map(_text_of_part, content))
    check_text(content, "a message's content")
    return str(content)


def _text_of_part(part: object) -> str:
    if not isinstance(part, dict):
        raise InputError(
            f"a message's content must be a string or a list of {{'type': 'text', 'text': ...}}, got a list with "
            f"{type(part).__name__}"
        )
    kind = part.get("type", "text")
    keys = sorted({"type", *(str(key) for key, value in part.items() if not _is_empty(value))})
    if kind not in _TEXT_PARTS:
        raise InputError(
            f"a message's content must be text, got a part of the type {kind!r}; leave it out, as gistlm reads no "
            f"images, audio or files"
        )
    if keys != ["text", "type"]:
        raise InputError(f"a part of a message's text has the keys 'type' and 'text', got {keys}")
    check_text(part["text"], "a message's content")
    return str(part["text"])
