"""The recipe that gives system prompts inputs and answers, on a tiny random model."""

from __future__ import annotations

import gzip
import importlib
import json
import random
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny import save_tiny_checkpoint, tiny_checkpoint

from gistlm.data.rows import read_rows
from gistlm.data.sources import normalise
from gistlm.engines.sampling import Sampling
from gistlm.engines.transformers import GistModel

PROMPTS = [f"You are the assistant of shop {number}. " + "Be brief. " * number for number in range(5)]
LONG = "You write long letters. " * 8
TASKS = [{"instruction": f"Sort these {n} words.", "input": "pear, apple, fig", "output": "x"} for n in range(20)]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    """The script as a module, with two prompts a chunk."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))  # it imports self_generated.py
    module = importlib.import_module("system_rows")
    module.CHUNK = 2  # type: ignore[attr-defined]
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prompts, one of which is long and one comes twice, tasks and a checkpoint."""
    folder = tmp_path_factory.mktemp("system_rows")
    with gzip.open(folder / "prompts.jsonl.gz", "wt", encoding="utf-8") as file:
        lines = [json.dumps({"prompt": prompt, "licence": "MIT"}) for prompt in (*PROMPTS[:2], LONG, *PROMPTS[1:])]
        file.write("\n".join([*lines, ""]))
    (folder / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in TASKS))
    save_tiny_checkpoint(folder / "model")
    return folder


def write(recipe: ModuleType, data: Path, out: Path, *more: object) -> list[dict[str, Any]]:
    """Run the recipe's command line and read what it writes."""
    given: dict[str, object] = {
        "--prompts": data / "prompts.jsonl.gz", "--tasks": data / "tasks.jsonl", "--model": data / "model",
        "--out": out, "--answer-tokens": 8, "--max-prompt-tokens": 120, "--threads": 1,
    }  # fmt: skip
    given |= dict(zip(more[::2], more[1::2], strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["system_rows.py", *(str(part) for pair in given.items() for part in pair)])
        recipe.main()
    return [json.loads(line) for line in out.read_bytes().splitlines()]


@pytest.fixture(scope="module")
def whole(recipe: ModuleType, data: Path) -> Path:
    """A finished file with four inputs for each prompt."""
    write(recipe, data, data / "whole.jsonl")
    return data / "whole.jsonl"


def test_every_prompt_that_is_short_enough_has_inputs_of_all_kinds_and_none_twice(whole: Path) -> None:
    rows = [json.loads(line) for line in whole.read_bytes().splitlines()]
    assert {row["prompt"] for row in rows} == set(PROMPTS)
    assert {row["kind"] for row in rows} == {"own", "general", "task"}
    assert len({(row["prompt"], normalise(row["input"])) for row in rows}) == len(rows) > 15
    assert all(len(row["output"]) >= 4 and row["output"] == row["output"].strip() for row in rows)
    assert {row["input"] for row in rows if row["kind"] == "task"} <= {
        f"{task['instruction']}\n{task['input']}" for task in TASKS
    }


def test_training_reads_the_rows(whole: Path) -> None:
    written = [json.loads(line) for line in whole.read_bytes().splitlines()]
    assert [(row.prompt, row.input, row.output) for row in read_rows(str(whole))] == [
        (row["prompt"], row["input"], row["output"]) for row in written
    ]


def test_one_seed_gives_one_file_and_a_killed_run_goes_on_to_the_same(
    recipe: ModuleType, data: Path, whole: Path, tmp_path: Path
) -> None:
    lines = whole.read_bytes().splitlines(keepends=True)
    begun = [line for line in lines if json.loads(line)["chunk"] < 2]
    (tmp_path / "resumed.jsonl.part").write_bytes(b"".join(begun)[:-9])
    write(recipe, data, tmp_path / "resumed.jsonl")
    assert (tmp_path / "resumed.jsonl").read_bytes() == whole.read_bytes()
    assert not (tmp_path / "resumed.jsonl.part").exists()
    other = write(recipe, data, tmp_path / "other.jsonl", "--seed", 1, "--limit", 2)
    assert {row["prompt"] for row in other} == set(PROMPTS[:2])
    assert [row["output"] for row in other] != [json.loads(line)["output"] for line in lines[: len(other)]]


def test_a_finished_file_is_left_as_it_is_and_the_user_is_told(
    recipe: ModuleType, data: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = whole.stat().st_mtime_ns
    write(recipe, data, whole)
    assert whole.stat().st_mtime_ns == before
    assert "is finished, so nothing is done" in capsys.readouterr().out


def test_prompts_that_are_left_out_are_counted(
    recipe: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(recipe, data, tmp_path / "rows.jsonl", "--inputs", 1, "--limit", 3)
    assert f"has {len(rows)} rows of 2 prompts; 1 prompts were left out as too long" in capsys.readouterr().out


@pytest.mark.parametrize("count", [1, 2, 3, 5, 40])
def test_half_of_all_inputs_are_the_models_own_whatever_their_number(recipe: ModuleType, count: int) -> None:
    prompts, draw, kinds = tiny_checkpoint().prompts, random.Random(0), Counter[str]()
    own = [f"Question {place}: what is that?" for place in range(20)]
    for _ in range(200):
        drawn = recipe.draw_inputs(prompts, own, [f"Do task {place}." for place in range(10)], count, draw)
        kinds.update(kind for _, kind in drawn)
        assert len({given for given, _ in drawn}) == count
    assert [kinds[kind] / count / 200 for kind in ("own", "general", "task")] == pytest.approx(
        [0.5, 0.25, 0.25], abs=0.07
    )


def test_general_questions_stand_in_for_inputs_that_are_unusable(recipe: ModuleType) -> None:
    own = ["", "Hi", "x" * 2000, recipe.GENERAL[0], recipe.GENERAL[0].upper()]
    for seed in range(20):
        drawn = recipe.draw_inputs(tiny_checkpoint().prompts, own, ["Go."], 40, random.Random(seed))
        assert {given for given, _ in drawn} == set(recipe.GENERAL)


def test_an_answer_is_what_the_model_says_under_the_full_prompt(recipe: ModuleType) -> None:
    model = GistModel(tiny_checkpoint())
    inputs = ["Who are you?", "What can you do for me, and what can you not do?"]
    prompts = model.checkpoint.prompts
    prefix = recipe.Prefix.encode(model.checkpoint, [prompts.prompt_ids(prompt) for prompt in PROMPTS[1:4]])
    rests = [prompts.rest_ids(given) for given in inputs] * 3
    made = prefix.generate(
        rests, Sampling(max_new_tokens=12, temperature=0.7), recipe.Greedy(torch.ones(6, dtype=torch.bool))
    )
    asked = [prompt for prompt in PROMPTS[1:4] for _ in inputs]
    assert made == model.generate(inputs * 3, prompts=asked, max_new_tokens=12)


def test_only_the_rows_that_are_greedy_take_their_likeliest_token(recipe: ModuleType) -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0], [1.0, 3.0, 2.0]])
    found = recipe.Greedy(torch.tensor([True, False]))(torch.zeros(2, 1), scores)
    assert found.tolist() == [[-torch.inf, 3.0, -torch.inf], [1.0, 3.0, 2.0]]


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--inputs", 0, "--inputs must be from 1 to 40, got 0"),
        ("--limit", 0, "must be 1 or more"),
        ("--max-prompt-tokens", 3, "no prompt has at most 3 tokens"),
        ("--prompts", "missing.jsonl", "missing.jsonl cannot be read (No such file or directory)"),
        ("--prompts", "damaged.jsonl", "damaged.jsonl:2 cannot be read"),
        ("--prompts", "tasks.jsonl", "tasks.jsonl has no prompt"),
        ("--prompts", "prompts.jsonl.gz", "was begun with other prompts"),
        ("--tasks", "missing.jsonl", "missing.jsonl does not exist"),
        ("--model", "missing", "there is no checkpoint"),
    ],
)
def test_a_mistake_is_said_in_one_sentence(
    recipe: ModuleType, data: Path, tmp_path: Path, option: str, value: object, sentence: str
) -> None:
    (data / "damaged.jsonl").write_text('{"prompt": "x"}\n{"prompt"')
    if "begun" in sentence:
        (tmp_path / "rows.jsonl.part").write_text('{"prompt": "another", "chunk": 0}\n{"prompt": "x", "chunk": 1}\n')
    given = data / value if isinstance(value, str) else value
    with pytest.raises(SystemExit) as ended:
        write(recipe, data, tmp_path / "rows.jsonl", option, given)
    assert str(ended.value.code).startswith("system_rows.py: ") and sentence in str(ended.value.code)
    assert "\n" not in str(ended.value.code) and not (tmp_path / "rows.jsonl").exists()
