"""Read one row from a chat, as OpenAI or ShareGPT writes it; knows nothing of files and of other formats.

    system messages before the first user message    the prompt
    user messages before the first answer            the input, or the prompt where there is no system message
    first assistant message after them               the output

Several messages are joined with a blank line. A message's content is a text or a list of parts; text parts are joined
with nothing between them, as chat templates do. Other keys of a message, such as `name`, do no harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gistlm.data.fields import RowCounts, UnusableRowError, items, mapping, text

_ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user"}
_ROLES |= {"assistant": "assistant", "gpt": "assistant", "model": "assistant"}
_ROLES |= dict.fromkeys(("tool", "function", "function_call", "observation"), "tool")
_TEXT_PARTS = ("text", "input_text", "output_text")
_BETWEEN_MESSAGES = "\n\n"
_REFUSAL = "the answer is a refusal"
_UNREAD = ("reasoning_content", "reasoning", "audio", "refusal")
"""Keys of an answer that are not its text."""


@dataclass(frozen=True, slots=True)
class _Message:
    role: str
    """system, user, assistant or tool; empty for any other."""
    text: str = ""
    fault: str = ""
    """Why a row with this message in its first turn cannot be used; empty if it can."""
    ignored: str = ""
    """What of this message is not used."""


def chat_texts(messages: list[object], where: str, counts: RowCounts, completion_from: int = 0) -> tuple[str, str, str]:
    """Prompt, input and output of a chat; counts what is not used of it.

    completion_from: the number of messages that are the prompt of a completion; the answer must not be one of them.
    Raises `UnusableRowError` for a chat without such a row, and `DataError` for a damaged one.
    """
    chat = [_message(item, where) for item in messages]
    start, end = _first_turn([message.role for message in chat], completion_from)
    opening, turn, answer, later = chat[:start], chat[start:end], chat[end], chat[end + 1 :]
    _check_usable(opening, turn, answer)
    prompt, given = _joined(opening, "system"), _joined(turn, "user")
    if not answer.text.strip():
        raise UnusableRowError("no output")
    if not prompt and not given:
        raise UnusableRowError("no prompt")
    if any(message.role == "assistant" for message in opening):
        counts.use_in_part("the assistant message before the first user message is ignored", where)
    if answer.ignored:
        counts.use_in_part(answer.ignored, where)
    if later:
        counts.use_in_part("what follows the first answer is ignored", where)
    return (prompt, given, answer.text) if prompt else (given, "", answer.text)


def _first_turn(roles: list[str], completion_from: int) -> tuple[int, int]:
    """Places of the first user message and of the answer to it."""
    if "user" not in roles:
        raise UnusableRowError("no user message")
    start = roles.index("user")
    if "assistant" not in roles[start:]:
        raise UnusableRowError("no assistant message after the user message")
    end = roles.index("assistant", start)
    if end < completion_from:
        raise UnusableRowError("an earlier answer before the completion")
    return start, end


def _check_usable(opening: list[_Message], turn: list[_Message], answer: _Message) -> None:
    """Raise `UnusableRowError` for the first message that the row needs and cannot have."""
    if any(message.role == "system" for message in turn):
        raise UnusableRowError("a system message after the user message")
    for message in [*opening, *turn, answer]:
        if message.fault and (message is answer or message.role != "assistant"):
            raise UnusableRowError(message.fault)


def _joined(messages: list[_Message], role: str) -> str:
    texts = [message.text for message in messages if message.role == role and message.text.strip()]
    return _BETWEEN_MESSAGES.join(texts)


def _message(item: object, where: str) -> _Message:
    fields = mapping(item, where, "a message")
    role_key, text_key = ("role", "content") if "role" in fields else ("from", "value")
    role = _ROLES.get(text(fields, role_key, where).lower(), "")
    if role == "tool":
        return _Message(role, fault="a tool message before the answer")
    if not role:
        return _Message(role, fault="a message of an unknown role before the answer")
    said, fault = _content(fields, text_key, where)
    if role != "assistant":
        return _Message(role, said, fault)
    calls_tools = bool(fields.get("tool_calls") or fields.get("function_call"))
    fault = fault or _fault_of_answer(fields, said, calls_tools)
    unread = ["tool calls"] * calls_tools + [key for key in _UNREAD if fields.get(key)]
    return _Message(role, said, fault, f"the answer's {' and '.join(unread)} are ignored" if unread else "")


def _content(fields: dict[str, Any], key: str, where: str) -> tuple[str, str]:
    """The text of a message's content, and why it cannot be used where it is not text alone."""
    if not isinstance(fields.get(key), list):
        return text(fields, key, where), ""
    said, fault = "", ""
    for item in items(fields, key, where):
        part = mapping(item, where, "a content part")
        part_type = text(part, "type", where) or "text"
        if part_type in _TEXT_PARTS:
            said += text(part, "text", where)
        elif not fault:
            fault = _REFUSAL if part_type == "refusal" else "a content part that is not text, such as an image"
    return said, fault


def _fault_of_answer(fields: dict[str, Any], said: str, calls_tools: bool) -> str:
    if str(fields.get("weight")) in ("0", "0.0", "False"):
        return "the answer has weight 0, which keeps it out of training"
    if said.strip():
        return ""
    if calls_tools:
        return "the answer is a tool call without text"
    return _REFUSAL if fields.get("refusal") else ""
