"""Chats as OpenAI, ShareGPT and TRL write them: what is a row, what is dropped, what is used in part."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gistlm.data.chats import chat_texts
from gistlm.data.fields import RowCounts
from gistlm.data.rows import Row, read_rows
from gistlm.errors import DataError

Write = Callable[..., str]

PLAIN = {"prompt": "P", "output": "O"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
NOT_TEXT = "a content part that is not text, such as an image"
TOOL_CALL = "the answer is a tool call without text"
IGNORED_TURNS = "what follows the first answer is ignored"
CALLS = [{"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write records as JSON lines and return the path."""

    def _write(*records: dict[str, Any]) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return str(path)

    return _write


def system(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "system", "content": content, **more}


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def tool(content: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "1", "content": content}


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


# What is a row


@pytest.mark.parametrize(
    ("messages", "row"),
    [
        (
            [system(parts("Be ", "brief.")), user(parts("Hi")), assistant(parts("Ho", "."))],
            Row("Be brief.", "Hi", "Ho."),
        ),
        (
            [user([{"type": "input_text", "text": "Hi"}]), assistant([{"type": "output_text", "text": "Ho"}])],
            Row("Hi", "", "Ho"),
        ),
        ([user([{"text": "Hi"}]), assistant("Ho")], Row("Hi", "", "Ho")),
        ([system("A"), {"role": "developer", "content": "B"}, user("Hi"), assistant("Ho")], Row("A\n\nB", "Hi", "Ho")),
        ([system(" "), system("B"), user("Hi"), assistant("Ho")], Row("B", "Hi", "Ho")),
        ([system(""), user("Hi"), assistant("Ho")], Row("Hi", "", "Ho")),
        ([system("A"), user(""), assistant("Ho")], Row("A", "", "Ho")),
        ([system("A"), user("Hi"), user("You?"), assistant("Ho")], Row("A", "Hi\n\nYou?", "Ho")),
        ([user("Hi"), user("You?"), assistant("Ho")], Row("Hi\n\nYou?", "", "Ho")),
        (
            [
                system("A", name="boss"),
                user("Hi", name="ann", id=7),
                assistant("Ho", refusal=None, audio=None, tool_calls=[]),
            ],
            Row("A", "Hi", "Ho"),
        ),
        ([user("Hi"), assistant("Ho", weight=1)], Row("Hi", "", "Ho")),
    ],
    ids=[
        "parts",
        "parts-of-responses",
        "part-without-type",
        "two-system-messages",
        "empty-system-message",
        "no-system-text",
        "no-user-text",
        "two-user-messages",
        "two-user-messages-are-the-prompt",
        "other-keys",
        "weight-1",
    ],
)
def test_a_chat_is_one_row_and_nothing_of_it_is_lost(
    write: Write, messages: list[dict[str, Any]], row: Row, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gistlm")
    assert read_rows(write({"messages": messages})) == [row]
    assert not caplog.messages


@pytest.mark.parametrize("key", ["completion", "output"])
def test_a_prompt_and_a_completion_of_chat_messages_are_one_chat(write: Write, key: str) -> None:
    record = {"prompt": [system("A"), user(parts("Hi"))], key: [assistant("Ho")], "task": "greet"}
    assert read_rows(write(record)) == [Row("A", "Hi", "Ho", task="greet")]


def test_parts_of_a_dataset_s_table_have_nulls_for_what_they_lack(write: Write) -> None:
    part = {"type": "text", "text": "Hi", "image_url": None}
    message = {"tool_calls": None, "name": None, "weight": None}
    assert read_rows(write({"messages": [user([part], **message), assistant("Ho", **message)]})) == [
        Row("Hi", "", "Ho")
    ]


# What is dropped


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": []}, "no user message"),
        ({"messages": None}, "no user message"),
        ({"messages": [system("A"), assistant("Ho")]}, "no user message"),
        ({"messages": [system("A"), user("Hi")]}, "no assistant message after the user message"),
        ({"messages": [assistant("Ho"), user("Hi")]}, "no assistant message after the user message"),
        ({"messages": [user("Hi"), assistant("")]}, "no output"),
        ({"messages": [user("Hi"), assistant(None)]}, "no output"),
        ({"messages": [user("Hi"), {"role": "assistant"}]}, "no output"),
        ({"messages": [user(""), assistant("Ho")]}, "no prompt"),
        ({"messages": [user([*parts("Look:"), IMAGE]), assistant("Ho")]}, NOT_TEXT),
        ({"messages": [user([AUDIO]), assistant("Ho")]}, NOT_TEXT),
        ({"messages": [system([IMAGE]), user("Hi"), assistant("Ho")]}, NOT_TEXT),
        ({"messages": [user("Hi"), assistant(None, tool_calls=CALLS)]}, TOOL_CALL),
        (
            {"messages": [user("Hi"), assistant(None, tool_calls=CALLS), tool("3"), assistant("It is 3.")]},
            TOOL_CALL,
        ),
        ({"messages": [user("Hi"), assistant("", function_call={"name": "look"})]}, TOOL_CALL),
        ({"messages": [user("Hi"), tool({"found": 3}), assistant("It is 3.")]}, "a tool message before the answer"),
        (
            {"messages": [user("Hi"), {"role": "function", "name": "look", "content": "3"}, assistant("It is 3.")]},
            "a tool message before the answer",
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "observation", "value": "3"},
                    {"from": "gpt", "value": "Ho"},
                ]
            },
            "a tool message before the answer",
        ),
        (
            {"messages": [{"role": "context", "content": 3}, user("Hi"), assistant("Ho")]},
            "a message of an unknown role before the answer",
        ),
        (
            {"messages": [{"content": "A"}, user("Hi"), assistant("Ho")]},
            "a message of an unknown role before the answer",
        ),
        ({"messages": [user("Hi"), assistant(None, refusal="I won't.")]}, "the answer is a refusal"),
        (
            {"messages": [user("Hi"), assistant([{"type": "refusal", "refusal": "I won't."}])]},
            "the answer is a refusal",
        ),
        (
            {"messages": [user("Hi"), assistant("Ho", weight=0)]},
            "the answer has weight 0, which keeps it out of training",
        ),
        (
            {"messages": [system("A"), user("Hi"), system("B"), assistant("Ho")]},
            "a system message after the user message",
        ),
        ({"messages": [user("Hi"), system("B"), assistant("Ho")]}, "a system message after the user message"),
        (
            {"prompt": [user("Hi"), assistant("Ho"), user("You?")], "completion": [assistant("Well.")]},
            "an earlier answer before the completion",
        ),
        ({"prompt": [system("A")], "completion": [assistant("Ho")]}, "no user message"),
        ({"prompt": [user("Hi")], "completion": []}, "no assistant message after the user message"),
        (
            {"prompt": [user("Hi")], "input": "X", "completion": [assistant("Ho")]},
            "an input beside a prompt of chat messages",
        ),
        ({"prompt": "P", "completion": None}, "no output"),
        ({"prompt": None, "completion": "C"}, "no prompt"),
    ],
)
def test_a_row_that_cannot_be_used_is_dropped_and_the_log_says_why_and_where(
    write: Write, record: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gistlm")
    path = write(PLAIN, record, PLAIN, record)
    assert read_rows(path) == [Row("P", "", "O")] * 2
    assert caplog.messages == [f"2 rows dropped: {reason} (first: {path}:2)"]


def test_a_file_of_unusable_rows_is_refused_with_the_reasons_in_one_sentence(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gistlm")
    path = write({"messages": [user([IMAGE]), assistant("Ho")]}, {"messages": [user("Hi")]})
    with pytest.raises(DataError, match=rf"1 row dropped: {NOT_TEXT}.*; 1 row dropped: no assistant"):
        read_rows(path)
    assert not caplog.messages


# What is used in part


@pytest.mark.parametrize(
    ("record", "note"),
    [
        ({"messages": [user("Hi"), assistant("Ho"), user("You?")]}, IGNORED_TURNS),
        (
            {"messages": [user("Hi"), assistant("Ho"), assistant("And you?")]},
            IGNORED_TURNS,
        ),
        ({"messages": [user("Hi"), assistant("Ho"), system("B")]}, IGNORED_TURNS),
        (
            {"messages": [user("Hi"), assistant("Ho"), user([IMAGE]), tool(3)]},
            IGNORED_TURNS,
        ),
        ({"messages": [user("Hi"), assistant("Ho", tool_calls=CALLS)]}, "the answer's tool calls are ignored"),
        (
            {"messages": [user("Hi"), assistant("Ho", reasoning_content="Hm")]},
            "the answer's reasoning_content are ignored",
        ),
        ({"messages": [user("Hi"), assistant("Ho")], "tools": [{"type": "function"}]}, "the key 'tools' is ignored"),
        (
            {"messages": [assistant("Welcome!"), user("Hi"), assistant("Ho")]},
            "the assistant message before the first user message is ignored",
        ),
        (
            {"prompt": [user("Hi")], "completion": [assistant("Ho"), user("You?"), assistant("Well.")]},
            IGNORED_TURNS,
        ),
    ],
)
def test_what_is_not_used_of_a_chat_is_counted_and_the_log_says_where(
    write: Write, record: dict[str, Any], note: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gistlm")
    path = write(PLAIN, record, record)
    assert read_rows(path) == [Row("P", "", "O"), *[Row("Hi", "", "Ho")] * 2]
    assert caplog.messages == [f"2 rows used in part: {note} (first: {path}:2)"]


def test_a_row_that_is_dropped_is_not_also_counted_as_used_in_part(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gistlm")
    path = write(PLAIN, {"messages": [user("Hi"), assistant(" ", tool_calls=[]), user("You?")], "tools": [{}]})
    read_rows(path)
    assert caplog.messages == [f"1 row dropped: no output (first: {path}:2)"]


# In any chat

contents = st.one_of(
    st.none(),
    st.text("ab ", max_size=3),
    st.lists(st.sampled_from([{"type": "text", "text": "c"}, IMAGE, {"type": "refusal", "refusal": "no"}]), max_size=2),
)
messages = st.builds(
    lambda role, content, more: {"role": role, "content": content, **more},
    st.sampled_from(["system", "developer", "user", "assistant", "tool", "other"]),
    contents,
    st.sampled_from([{}, {"tool_calls": CALLS}, {"refusal": "no"}, {"weight": 0}, {"name": "x"}]),
)


@given(st.lists(messages, max_size=6))
def test_every_chat_of_known_kinds_is_a_row_or_dropped_for_a_reason(chat: list[dict[str, Any]]) -> None:
    counts = RowCounts()
    try:
        prompt, _, output = chat_texts(list(chat), "place", counts)
    except DataError as reason:
        assert str(reason) and not counts.sentences()
    else:
        assert prompt.strip() and output.strip()


@pytest.mark.parametrize(
    ("record", "row"),
    [
        ({"system": "A", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
         Row("A", "Hi", "Ho")),
        ({"system": "A", "messages": [system("B"), user("Hi"), assistant("Ho")]}, Row("A\n\nB", "Hi", "Ho")),
        ({"system": "A", "instruction": "B", "input": "Hi", "output": "Ho"}, Row("A\n\nB", "Hi", "Ho")),
        ({"system": "", "instruction": "B", "output": "Ho"}, Row("B", "", "Ho")),
        ({"prompt": [system("A"), user("Hi")], "completion": "Ho"}, Row("A", "Hi", "Ho")),
        ({"prompt": "Hi", "completion": [assistant("Ho")]}, Row("Hi", "", "Ho")),
        ({"messages": [{"role": "User", "content": "Hi"}, {"role": "MODEL", "content": "Ho"}]}, Row("Hi", "", "Ho")),
    ],
)  # fmt: skip
def test_a_record_of_another_projects_shape_is_one_row(
    write: Write, record: dict[str, Any], row: Row, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gistlm")
    assert read_rows(write(record)) == [row]
    assert not caplog.messages


@pytest.mark.parametrize("key", ["history", "context", "completion", "rejected"])
def test_a_key_that_is_not_read_is_named(write: Write, key: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="gistlm")
    plain = {"instruction": "A", "output": "Ho", "id": 7}
    assert read_rows(write(plain, {**plain, key: "more"}, {**plain, key: None})) == [Row("A", "", "Ho")] * 3
    (said,) = caplog.messages
    assert said.startswith(f"1 row used in part: the key '{key}' is ignored (first: ") and said.endswith(":2)")


@pytest.mark.parametrize("weight", [0, 0.0, "0", False])
def test_an_answer_of_weight_0_is_not_trained_on_however_that_is_written(write: Write, weight: Any) -> None:
    with pytest.raises(DataError, match="weight 0"):
        read_rows(write({"messages": [user("Hi"), assistant("Ho", weight=weight)]}))
