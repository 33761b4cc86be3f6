"""Reading and splitting rows; every file is made here, nothing is downloaded."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gistlm.data import rows as rows_module
from gistlm.data.rows import MIN_SPLIT_CHARS, SPLIT_RANGE, Row, read_rows, split_text
from gistlm.errors import DataError, InputError

ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3"}
LONG_INPUT = "".join(f"This is sentence {i}.\n\n" for i in range(40))

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write records as JSON lines (or a text or bytes as they are) and return the path."""

    def _write(*records: Any, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        parts = [r if isinstance(r, bytes) else (json.dumps(r) + "\n").encode() for r in records]
        content = b"".join(parts)
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return str(path)

    return _write


# Formats


@pytest.mark.parametrize(
    ("record", "rows"),
    [
        (ALPACA, [Row("Add.", "1 2", "3")]),
        ({"instruction": "Hi.", "output": "Ho."}, [Row("Hi.", "", "Ho.")]),
        ({"template": "t", **ALPACA, "output": "3<|endoftext|>"}, [Row("Add.", "1 2", "3", task="t")]),
        ({**ALPACA, "output": "<|endoftext|> is a token"}, [Row("Add.", "1 2", "<|endoftext|> is a token")]),
        ({"prompt": "P", "instruction": "I", "input": "X", "output": "Y"}, [Row("P", "X", "Y")]),
        (
            {"instruction": "Name one.", "instances": [{"input": "a", "output": "b"}, {"output": "c"}]},
            [Row("Name one.", "a", "b"), Row("Name one.", "", "c")],
        ),
        (
            {
                "prompt": "also here",
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "assistant", "content": "Welcome."},
                    {"role": "user", "content": "Hello"},
                    {"role": "assistant", "content": "Hi"},
                    {"role": "user", "content": "Bye"},
                    {"role": "assistant", "content": "See you"},
                ],
            },
            [Row("Be brief.", "Hello", "Hi")],
        ),
        (
            {"conversations": [{"from": "human", "value": "List three."}, {"from": "gpt", "value": "1 2 3"}]},
            [Row("List three.", "", "1 2 3")],
        ),
        ({"messages": None, "instances": None, **ALPACA}, [Row("Add.", "1 2", "3")]),
        ({"prompt": "P", "completion": " C"}, [Row("P", "", " C")]),
        ({"instruction": "I", "input": "X", "completion": "C", "task": "t"}, [Row("I", "X", "C", task="t")]),
        ({"prompt": "P", "output": "O", "completion": "C"}, [Row("P", "", "O")]),
    ],
    ids=[
        "alpaca",
        "alpaca-no-input",
        "t0",
        "inner-suffix",
        "explicit",
        "seed-task",
        "chat",
        "sharegpt",
        "nulls",
        "completion",
        "instruction-completion",
        "output-before-completion",
    ],
)
def test_each_format_is_recognised_by_its_keys(write: Write, record: dict[str, Any], rows: list[Row]) -> None:
    assert read_rows(write(record)) == rows


def test_one_file_may_mix_formats_and_hold_blank_lines(write: Write) -> None:
    path = write(ALPACA, b"\n  \n", {"prompt": "P", "input": "X", "output": "Y"})
    assert read_rows(path) == [Row("Add.", "1 2", "3"), Row("P", "X", "Y")]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.json.gz"])
def test_every_kind_of_file_gives_the_same_rows(write: Write, name: str) -> None:
    records = [{**ALPACA, "output": f"größe {i}"} for i in range(5)]
    path = write(*(records if "jsonl" in name else [records]), name=name)
    assert [row.output for row in read_rows(path)] == [f"größe {i}" for i in range(5)]
    assert [row.output for row in read_rows(path, limit=2)] == ["größe 0", "größe 1"]


def test_a_byte_order_mark_is_not_part_of_the_text(write: Write) -> None:
    assert read_rows(write(b"\xef\xbb\xbf", ALPACA)) == [Row("Add.", "1 2", "3")]


def test_limit_stops_reading_before_a_broken_line(write: Write) -> None:
    assert len(read_rows(write(ALPACA, b"{broken\n"), limit=1)) == 1


def test_rows_that_lack_something_are_dropped_and_counted_by_reason_with_the_first_of_each(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gistlm")
    unanswered = {"messages": [{"role": "user", "content": "Anyone?"}]}
    no_output = {**ALPACA, "output": " "}, {**ALPACA, "output": None}
    seeds = [{"instruction": "Name one.", "instances": instances} for instances in ([], [{"input": "a"}])]
    path = write(ALPACA, *no_output, {**ALPACA, "instruction": ""}, unanswered, *seeds)
    assert read_rows(path) == [Row("Add.", "1 2", "3")]
    assert caplog.messages == [
        f"3 rows dropped: no output (first: {path}:2)",
        f"1 row dropped: no prompt (first: {path}:4)",
        f"1 row dropped: no assistant message after the user message (first: {path}:5)",
        f"1 row dropped: no instances (first: {path}:6)",
    ]


def test_a_limit_counts_the_rows_that_are_dropped_before_it(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="gistlm")
    lacking = {**ALPACA, "output": ""}
    path = write(lacking, ALPACA, lacking)
    assert len(read_rows(path, limit=1)) == 1
    assert caplog.messages == [f"1 row dropped: no output (first: {path}:1)"]


def test_a_file_whose_rows_are_all_usable_is_read_without_a_word(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gistlm")
    read_rows(write(ALPACA))
    assert not caplog.messages


# Splitting


def test_a_long_input_without_a_prompt_is_cut_into_prompt_and_input_when_asked(write: Write) -> None:
    path = write({"template": "t", "instruction": "", "input": LONG_INPUT, "output": "yes<|endoftext|>"}, ALPACA)
    cut, kept = read_rows(path, split_long_inputs=True)
    assert f"{cut.prompt}\n\n{cut.input}" == LONG_INPUT
    assert cut.output == "yes"
    assert kept == Row("Add.", "1 2", "3")
    assert read_rows(path) == [kept]


def test_a_short_input_without_a_prompt_is_dropped(write: Write) -> None:
    assert read_rows(write({**ALPACA, "instruction": ""}, ALPACA), split_long_inputs=True) == [Row("Add.", "1 2", "3")]


def test_the_cut_depends_on_the_text_and_the_seed_but_not_on_the_other_rows(write: Write) -> None:
    record = {"instruction": "", "input": LONG_INPUT, "output": "yes"}
    alone, after = write(record), write(ALPACA, record, name="after.jsonl")
    assert read_rows(alone, split_long_inputs=True)[0] == read_rows(after, split_long_inputs=True)[1]
    assert len({read_rows(alone, split_long_inputs=True, seed=seed)[0] for seed in range(8)}) > 1


@pytest.mark.parametrize(
    ("filler", "separator"),
    [
        ("One. Two\nthree\n\n", "\n\n"),
        ("One. Two\r\nthree\r\n\r\n", "\r\n\r\n"),
        ("One. Two\n", "\n"),
        ('He said "One." Two ', " "),
        ("\u4e00\u4e8c\u4e09\u3002", ""),
    ],
    ids=["paragraph", "paragraph-crlf", "line", "sentence", "sentence-without-spaces"],
)
def test_the_cut_is_at_the_best_kind_of_boundary_there_is(filler: str, separator: str) -> None:
    parts = split_text(filler * 60, random.Random(0))
    assert parts is not None
    assert parts[1] == separator


def test_a_text_without_a_boundary_is_not_cut() -> None:
    assert split_text("word " * 200, random.Random(0)) is None


pieces = st.sampled_from(["word ", "wordwordword", 'end." ', "What?", "\n", "\r\n\r\n", " \t", "\u4e00\u3002"])


@given(st.lists(pieces, min_size=40, max_size=120), st.integers(0, 9))
def test_splitting_loses_no_text(texts: list[str], seed: int) -> None:
    text = "".join(texts)
    parts = split_text(text, random.Random(seed))
    if parts is None:
        return
    head, separator, tail = parts
    assert head + separator + tail == text
    assert not separator.strip()
    assert head.strip()
    assert tail.strip()
    assert SPLIT_RANGE[0] * len(text) <= len(head) <= SPLIT_RANGE[1] * len(text)
    assert len(text) >= MIN_SPLIT_CHARS


# What cannot be read


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty or has no usable row"),
        (b'{"instruction": "", "output": "x"}', "is empty or has no usable row"),
        (b'{"instruction": "a", "output": "b"}\n{"instruction":\n', r"rows\.jsonl:2 is not valid JSON"),
        (b'{"instruction": "a", "output": "b"}\n"\xff"\n', r"rows\.jsonl:2 is not UTF-8"),
        (b"[" * 100_000, r"rows\.jsonl:1 is JSON that cannot be read"),
        (b'{"question": "a", "answer": "b"}', r"rows\.jsonl:1 has no known .* \(found: question, answer\)"),
        (
            b'{"instruction": "a", "output": null}',
            r"no usable row \(1 row dropped: no output \(first: .*:1\)\)",
        ),
        (b'{"instruction": "a", "result": "b"}', r"found: instruction, result\); allowed are prompt or instruction"),
        (b"{}", "found: none"),
        (b"[1]", r"rows\.jsonl:1: a row is a JSON list; it must be an object"),
        (b'{"instruction": "a", "output": 5}', "'output' is a JSON number; it must be text"),
        (b'{"instruction": "a", "output": "\\ud800"}', "surrogate"),
        (b'{"instruction": "a", "instances": {}}', "'instances' is a JSON object; it must be a list"),
        (b'{"messages": "hi"}', "'messages' is a JSON string; it must be a list"),
        (b'{"messages": [null]}', "a message is a JSON null"),
        (b'{"messages": [{"role": "user", "content": 1}]}', "'content' is a JSON number; it must be text, so put it"),
        (b'{"messages": [{"role": "user", "content": {}}]}', "'content' is a JSON object; it must be text$"),
        (b'{"messages": [{"role": "user", "content": [1]}]}', "a content part is a JSON number; it must be an object"),
        (b'{"messages": [{"role": "user", "content": [{"text": 1}]}]}', "'text' is a JSON number; it must be text"),
        (b'{"prompt": [], "completion": "text"}', "no user message"),
        (b'{"prompt": "text", "completion": []}', "no assistant message after the user message"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(write: Write, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_rows(write(content))
    assert "\n" not in str(caught.value)


def test_a_fault_in_a_json_list_is_named_by_its_line_or_row(write: Write) -> None:
    with pytest.raises(DataError, match=r"rows\.json:3 is not valid JSON"):
        read_rows(write(b'[\n{"instruction": "a",\n"output" "b"}\n]', name="rows.json"))
    with pytest.raises(DataError, match=r"rows\.json:2 is not UTF-8"):
        read_rows(write(b'["a",\n"\xff"]', name="rows.json"))
    with pytest.raises(DataError, match=r"rows\.json, row 2 has no known set of keys"):
        read_rows(write([ALPACA, {"a": "b"}], name="rows.json"))
    with pytest.raises(DataError, match="give a list of rows"):
        read_rows(write(ALPACA, name="rows.json"))


@pytest.mark.parametrize("name", ["missing.jsonl", "missing", "m\0.jsonl", "m" * 5000 + ".json", ""])
def test_a_missing_file_is_refused_with_what_may_be_given(name: str) -> None:
    with pytest.raises(DataError, match=r"does not exist; give a \.jsonl, .* or hf:owner/name"):
        read_rows(name)


def test_a_file_of_another_kind_is_refused(write: Write) -> None:
    with pytest.raises(DataError, match="is not a kind of file that can be read"):
        read_rows(write(ALPACA, name="rows.csv"))


@pytest.mark.parametrize("damage", [lambda c: c[:-12], lambda c: b"plain text", lambda c: c[:20] + b"\xff" * 30])
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(damage(gzip.compress(json.dumps(ALPACA).encode() * 50)))
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(str(path))


def test_a_line_over_the_bound_is_refused_without_reading_it_whole(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "MAX_LINE_BYTES", 2**20)
    bomb = write(ALPACA, b"\n", b" " * 2**24, name="bomb.jsonl.gz")
    with pytest.raises(DataError, match=r"bomb\.jsonl\.gz:3 is over 1 MB"):
        read_rows(bomb)


def test_a_json_file_over_the_bound_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "MAX_JSON_BYTES", 2**20)
    with pytest.raises(DataError, match="is over 1 MB; write it as"):
        read_rows(write(b" " * 2**24, name="bomb.json.gz"))


@pytest.mark.parametrize("limit", [0, -1, True, 1.0])
def test_a_limit_that_is_no_count_is_refused(write: Write, limit: Any) -> None:
    with pytest.raises(InputError, match="limit is"):
        read_rows(write(ALPACA), limit=limit)
