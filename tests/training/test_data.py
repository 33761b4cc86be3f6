"""Mixing sources and holding rows apart; every file is made here, nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gistlm.errors import DataError, InputError
from gistlm.training.data import DataSource, hold_out, load_sources, normalise, overlap
from gistlm.training.rows import Row

ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3"}

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write records as JSON lines and return the path."""

    def _write(*records: dict[str, str], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return str(path)

    return _write


# Mixing sources


def test_sources_are_mixed_in_an_order_that_only_the_seed_decides(write: Write) -> None:
    one = write(*({**ALPACA, "input": f"a{i}"} for i in range(20)), name="a.jsonl")
    two = write(*({**ALPACA, "input": f"b{i}"} for i in range(20)), name="b.jsonl")
    sources = [DataSource(one), DataSource(two, limit=5)]
    rows = load_sources(sources, seed=1)
    assert rows == load_sources(sources, seed=1)
    assert rows != load_sources(sources, seed=2)
    assert len(rows) == len(set(rows)) == 25
    assert {row.input for row in rows} > {f"a{i}" for i in range(20)}
    assert [row.input[0] for row in rows] != ["a"] * 20 + ["b"] * 5


def test_rows_over_max_chars_are_dropped_before_the_limit_counts(write: Write) -> None:
    path = write(*({**ALPACA, "input": "x" * (500 if i % 2 else 5)} for i in range(20)))
    rows = load_sources([DataSource(path, max_chars=10, limit=10)], seed=0)
    assert [row.input for row in rows] == ["x" * 5] * 10
    with pytest.raises(DataError, match="loosen them"):
        load_sources([DataSource(path, max_chars=1)], seed=0)


def test_rows_with_too_short_an_output_are_dropped_before_the_limit_counts(write: Write) -> None:
    path = write(*({**ALPACA, "output": "y" * (10 if i % 2 else 9)} for i in range(20)))
    rows = load_sources([DataSource(path, min_output_chars=10, limit=10)], seed=0)
    assert [row.output for row in rows] == ["y" * 10] * 10
    assert len(load_sources([DataSource(path)], seed=0)) == 20
    with pytest.raises(DataError, match="min_output_chars; loosen them"):
        load_sources([DataSource(path, min_output_chars=11)], seed=0)


def test_a_source_can_split_its_long_inputs(write: Write) -> None:
    text = "A sentence of some words.\n\n" * 40
    path = write({"instruction": "", "input": text, "output": "yes"})
    (row,) = load_sources([DataSource(path, split_long_inputs=True)], seed=0)
    assert f"{row.prompt}\n\n{row.input}" == text


def test_an_empty_list_of_sources_is_refused() -> None:
    with pytest.raises(InputError, match="name at least one file"):
        load_sources([], seed=0)


@pytest.mark.parametrize(
    "options",
    [
        {"path": ""},
        {"path": 5},
        {"path": "a.jsonl", "limit": 0},
        {"path": "a.jsonl", "limit": True},
        {"path": "a.jsonl", "max_chars": 1.5},
        {"path": "a.jsonl", "min_output_chars": -1},
        {"path": "a.jsonl", "split_long_inputs": "yes"},
    ],
)
def test_a_source_with_an_unusable_option_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        DataSource(**options)


# Holding apart

rows_with_few_prompts = st.lists(
    st.builds(Row, st.sampled_from(["A b", "a  B", "a\nb ", "c", "d", "e f"]), st.text(max_size=3), st.just("y"))
)


@given(rows_with_few_prompts, st.floats(0, 0.99) | st.integers(0, 30), st.integers(0, 9))
def test_hold_out_keeps_every_row_and_never_a_prompt_on_both_sides(rows: list[Row], size: float, seed: int) -> None:
    try:
        train, held = hold_out(rows, size, seed)
    except (InputError, DataError):
        return
    assert not {normalise(row.prompt) for row in train} & {normalise(row.prompt) for row in held}
    assert sorted(train + held, key=repr) == sorted(rows, key=repr)
    assert train == [row for row in rows if row in set(train)]
    assert len(held) <= (max(1, round(size * len(rows))) if isinstance(size, float) else size)
    assert train or not rows
    assert (train, held) == hold_out(rows, size, seed)


def test_hold_out_takes_a_fraction_or_a_number_of_rows() -> None:
    rows = [Row(f"prompt {i}", "x", "y") for i in range(50)]
    assert len(hold_out(rows, 0.2, seed=0)[1]) == 10
    assert len(hold_out(rows, 7, seed=0)[1]) == 7
    assert hold_out(rows, 0, seed=0) == (rows, [])
    assert hold_out(rows, 7, seed=0) != hold_out(rows, 7, seed=1)


@pytest.mark.parametrize("size", [-1, -0.1, 1.0, 3, 10, float("nan"), True, "2"])
def test_hold_out_refuses_a_size_out_of_range(size: Any) -> None:
    with pytest.raises(InputError, match="give a fraction"):
        hold_out([Row(str(i), "x", "y") for i in range(3)], size, seed=0)


def test_hold_out_refuses_to_part_rows_of_one_prompt() -> None:
    with pytest.raises(DataError, match="use data with more prompts"):
        hold_out([Row("the same", str(i), "y") for i in range(9)], 0.5, seed=0)


def test_overlap_finds_a_text_whatever_its_case_spacing_and_cut() -> None:
    seen = [Row("Sum up this:", "One Two\nthree", "x"), Row("only here", "", "x")]
    assert overlap(seen, [Row("sum  up THIS: one", "two three", "other")]) == {"sum up this: one two three"}
    assert overlap(seen, [Row("Sum up this:", "four", "x")]) == set()
