"""Mixing sources and holding rows apart; every file is made here, nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import save_tiny

from gistlm.data.rows import Row
from gistlm.data.sources import DataSource, hold_out, load_sources, normalise, without
from gistlm.errors import DataError, InputError
from gistlm.training.config import TrainConfig
from gistlm.training.loop import train

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
    sources = [DataSource(path=one), DataSource(path=two, limit=5)]
    rows = load_sources(sources, seed=1)
    assert rows == load_sources(sources, seed=1)
    assert rows != load_sources(sources, seed=2)
    assert len(rows) == len(set(rows)) == 25
    assert {row.input for row in rows} > {f"a{i}" for i in range(20)}
    assert [row.input[0] for row in rows] != ["a"] * 20 + ["b"] * 5


def test_rows_over_max_chars_are_dropped_before_the_limit_counts(write: Write) -> None:
    path = write(*({**ALPACA, "input": "x" * (500 if i % 2 else 5)} for i in range(20)))
    rows = load_sources([DataSource(path=path, max_chars=10, limit=10)], seed=0)
    assert [row.input for row in rows] == ["x" * 5] * 10
    with pytest.raises(DataError, match="loosen them"):
        load_sources([DataSource(path=path, max_chars=1)], seed=0)


def test_rows_with_too_short_an_output_are_dropped_before_the_limit_counts(write: Write) -> None:
    path = write(*({**ALPACA, "output": "y" * (10 if i % 2 else 9)} for i in range(20)))
    rows = load_sources([DataSource(path=path, min_output_chars=10, limit=10)], seed=0)
    assert [row.output for row in rows] == ["y" * 10] * 10
    assert len(load_sources([DataSource(path=path)], seed=0)) == 20
    with pytest.raises(DataError, match="min_output_chars; loosen them"):
        load_sources([DataSource(path=path, min_output_chars=11)], seed=0)


def test_a_source_can_split_its_long_inputs(write: Write) -> None:
    text = "A sentence of some words.\n\n" * 40
    path = write({"instruction": "", "input": text, "output": "yes"})
    (row,) = load_sources([DataSource(path=path, split_long_inputs=True)], seed=0)
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
    with pytest.raises(InputError, match=[*options][-1]):
        DataSource.parse(options)


# Holding apart

rows_with_few_prompts = st.lists(
    st.builds(
        Row,
        st.sampled_from(["A b", "a  B", "a\nb ", "c", "d", "e f", "g", "h"]),
        st.text(max_size=3),
        st.just("y"),
        task=st.sampled_from(["", "", "one", "two"]),
    )
)


@given(rows_with_few_prompts, st.integers(0, 30), st.integers(0, 9))
def test_hold_out_keeps_every_row_and_never_a_prompt_or_task_on_both_sides(
    rows: list[Row], size: int, seed: int
) -> None:
    try:
        train, held = hold_out(rows, size, seed)
    except (InputError, DataError):
        return
    assert not {normalise(row.prompt) for row in train} & {normalise(row.prompt) for row in held}
    if {row.task for row in train if row.task} & {row.task for row in held}:
        assert 2 * sum(count for count in tied(rows) if count <= size) < size  # tasks cannot fill half of it
    assert sorted(train + held, key=repr) == sorted(rows, key=repr)
    assert train == [row for row in rows if row in set(train)]
    assert len(held) <= size
    assert train or not rows
    assert (train, held) == hold_out(rows, size, seed)


def tied(rows: list[Row]) -> list[int]:
    """How many rows each set has that shares a prompt or a task, be it over others."""
    sets: list[list[Row]] = []
    for row in rows:
        near = [each for each in sets if any(meets(row, other) for other in each)]
        sets = [*(each for each in sets if each not in near), [row, *(other for each in near for other in each)]]
    return list(map(len, sets))


def meets(one: Row, other: Row) -> bool:
    return normalise(one.prompt) == normalise(other.prompt) or (bool(one.task) and one.task == other.task)


def test_a_task_is_named_by_a_row_and_held_out_whole(write: Write) -> None:
    path = write(
        *({"template": f"t{i % 10}", "instruction": f"do {i}", "input": "x", "output": "y"} for i in range(40))
    )
    rows = load_sources([DataSource(path=path)], seed=0)
    train, held = hold_out(rows, 9, seed=0)
    assert len(held) == 8 and len({row.task for row in held}) == 2
    assert len({row.task for row in train}) == 8


@pytest.mark.parametrize(
    ("named", "task"),
    [
        ({"task": "one", "template": "two"}, "one"),
        ({"task": None, "template": "two"}, "two"),
        ({"task": "", "template": "two"}, "two"),
        ({"task": 0}, "0"),
        ({}, ""),
    ],
)
def test_a_task_goes_before_a_template(write: Write, named: dict[str, Any], task: str) -> None:
    (row,) = load_sources([DataSource(path=write({**ALPACA, **named}))], seed=0)
    assert row.task == task


def test_a_task_of_one_name_is_one_task_in_all_sources(write: Write) -> None:
    named = [{"task": "sum", "prompt": f"add {i}", "output": "y"} for i in range(4)]
    paths = write(*named[:2], name="a.jsonl"), write(*named[2:], name="b.jsonl")
    others = [Row(f"other {i}", "", "y") for i in range(4)]
    for seed in range(9):
        held = hold_out([*load_sources([DataSource(path=path) for path in paths], seed), *others], 5, seed)[1]
        assert sum(row.task == "sum" for row in held) in (0, 4)


def rows_of(task: str, count: int) -> list[Row]:
    return [Row(f"prompt {i} of {task}", "x", "y", task=task) for i in range(count)]


@pytest.mark.parametrize(
    ("sizes", "held", "apart"),
    [
        ([50], 8, "prompt"),
        ([50, 1], 8, "prompt"),
        ([50, 3], 8, "prompt"),
        ([50, 4], 4, "prompt and task"),
        ([50, 3, 7], 7, "prompt and task"),
        ([50, 2, 1, 3], 6, "prompt and task"),
    ],
)
def test_rows_are_held_out_by_prompt_where_tasks_cannot_fill_half(
    sizes: list[int], held: int, apart: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gistlm")
    rows = [row for number, size in enumerate(sizes) for row in rows_of(f"task {number}", size)]
    for seed in range(9):
        found = hold_out(rows, 8, seed)[1]
        assert len(found) == held
        assert ("task 0" in {row.task for row in found}) == (apart == "prompt")
    assert set(caplog.messages) == {f"{held} of 8 validation rows are held out, apart by {apart}"}


def test_rows_without_tasks_are_said_to_be_held_out_by_prompt(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="gistlm")
    hold_out([Row(f"prompt {i}", "x", "y") for i in range(9)], 3, seed=0)
    assert caplog.messages == ["3 of 3 validation rows are held out, apart by prompt"]


def test_hold_out_takes_a_number_of_rows() -> None:
    rows = [Row(f"prompt {i}", "x", "y") for i in range(50)]
    assert len(hold_out(rows, 7, seed=0)[1]) == 7
    assert hold_out(rows, 0, seed=0) == (rows, [])
    assert hold_out(rows, 7, seed=0) != hold_out(rows, 7, seed=1)


@pytest.mark.parametrize("size", [-1, 3, 10])
def test_hold_out_refuses_a_size_out_of_range(size: int) -> None:
    with pytest.raises(InputError, match="validation_rows must be from 0 to 2"):
        hold_out([Row(str(i), "x", "y") for i in range(3)], size, seed=0)


def test_hold_out_refuses_to_part_rows_of_one_prompt() -> None:
    with pytest.raises(DataError, match="use data with more prompts"):
        hold_out([Row("the same", str(i), "y") for i in range(9)], 5, seed=0)


# Leaving evaluation rows out

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def test_without_leaves_out_a_row_whose_text_is_excluded_whatever_its_case_spacing_and_cut() -> None:
    rows = [Row("Add up", "1 2", "3"), Row("ADD", "up  1\n2", "three"), Row("Add up", "1 3", "4")]
    assert without(rows, [Row("add up", "1 2", "another output")]) == [rows[2]]


@pytest.mark.parametrize(("prompt", "is_left_out"), [("name A  colour", True), ("name colours", False), ("", False)])
def test_without_leaves_out_a_prompt_of_three_words_that_is_evaluated(prompt: str, is_left_out: bool) -> None:
    row = Row(prompt, "of the sky", "blue")
    assert without([row], [Row(prompt.title(), "of grass", "green")]) == ([] if is_left_out else [row])


@pytest.mark.parametrize("length", [12, 13])
def test_without_leaves_out_a_row_that_shares_a_run_of_13_words_with_a_long_excluded_row(length: int) -> None:
    shared = LONG.split()[1:][:length]
    row = Row("Look: " + "; ".join(shared[:5]), " ".join(shared[5:]).upper() + ".", "a number")
    assert without([row], [Row("Count", LONG, "14")]) == ([row] if length == 12 else [])


@pytest.mark.parametrize("length", [7, 8])
def test_without_leaves_out_a_row_that_shares_a_run_of_8_words_with_a_short_excluded_row(length: int) -> None:
    row = Row("Look:", " ".join(LONG.split()[:length]) + " and so on", "a number")
    assert without([row], [Row(" ".join(LONG.split()[:10]), "?", "11")]) == ([row] if length == 7 else [])


def test_without_finds_the_same_words_only_in_the_same_order() -> None:
    row = Row("Look:", " ".join(reversed(LONG.split())), "a number")
    assert without([row], [Row("Count", LONG, "14")]) == [row]


@given(rows_with_few_prompts, rows_with_few_prompts)
def test_without_keeps_order_and_every_row_when_nothing_is_excluded(rows: list[Row], excluded: list[Row]) -> None:
    assert without(rows, []) == rows
    kept = without(rows, excluded)
    assert kept == [row for row in rows if row in set(kept)]
    texts = {normalise(f"{row.prompt} {row.input}") for row in excluded}
    assert not [row for row in kept if normalise(f"{row.prompt} {row.input}") in texts]


@pytest.mark.parametrize("exclude", ["eval.jsonl", [""], [5], 3])
def test_a_recipe_with_an_unusable_exclude_is_refused(exclude: Any) -> None:
    with pytest.raises(InputError, match=r"^exclude(\.0)? must "):
        TrainConfig.parse({"base": "b", "output": "o", "data": [{"path": "a.jsonl"}], "exclude": exclude})


def test_a_run_trains_without_the_rows_to_exclude_and_says_how_many(write: Write, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}: it is blue", "input": "what?", "output": "blue"} for i in range(12)]
    recipe = {
        "base": str(save_tiny(tmp_path / "base", "llama")),
        "data": [{"path": write(*rows)}],
        "exclude": [write(*rows[:3], name="eval.jsonl")],
        "output": str(tmp_path / "out"),
    }
    small = {"max_k": 1, "lora_rank": 2, "steps": 1, "batch_size": 9, "validation_rows": 0, "device": "cpu"}
    train(TrainConfig.parse(recipe | small))
    assert json.loads((tmp_path / "out" / "training.json").read_text())["rows_left_out"] == 3
    with pytest.raises(DataError, match="only 9 rows are short enough, and a step takes 10"):
        train(TrainConfig.parse(recipe | small | {"batch_size": 10, "output": str(tmp_path / "other")}))
    with pytest.raises(DataError, match="all 12 rows are in the data to exclude"):
        recipe |= {"exclude": [write(*rows)], "output": str(tmp_path / "none")}
        train(TrainConfig.parse(recipe | small))
