"""A run goes on only with the rows that it began with; on a tiny model, with files made here."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import save_tiny
from transformers import TrainerCallback

from gistlm.data.rows import Row
from gistlm.data.sources import hash_rows
from gistlm.errors import InputError
from gistlm.training import saves
from gistlm.training.config import TrainConfig
from gistlm.training.loop import train

RECIPE: dict[str, Any] = {
    "base": "./base",
    "data": [{"path": "rows.jsonl"}],
    "exclude": ["eval.jsonl"],
    "output": "out",
    "max_k": 2,
    "lora_rank": 2,
    "steps": 4,
    "batch_size": 4,
    "save_every": 2,
    "validation_rows": 3,
    "device": "cpu",
    "threads": 1,
}
"""Its paths lead from the working directory, so that a copy of the folder holds the same run."""
REFUSED = "^out/run holds a run on other data: .*; put the files back as they were, choose another output, or delete"


def row(number: int, **changed: str) -> str:
    made = {"prompt": f"{number}: it is blue", "input": "what?", "output": f"blue {number}", "task": "colour"}
    return json.dumps(made | changed) + "\n"


ROWS = [row(number) for number in range(20)]


class Stop(TrainerCallback):
    """Ends a run after a step, with a save, as a limit of time does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = control.should_training_stop = state.global_step == self.step


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, data, and their run: stopped at step 2 of 4 in "out", whole in "whole"."""
    made = tmp_path_factory.mktemp("changes")
    save_tiny(made / "base", "llama")
    (made / "rows.jsonl").write_text("".join(ROWS))
    (made / "eval.jsonl").write_text(row(0) + row(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        train(TrainConfig.parse(RECIPE), [Stop(2)])
        train(TrainConfig.parse(RECIPE | {"output": "whole"}))
    return made


@pytest.fixture
def folder(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it that a test may change."""
    copy = shutil.copytree(begun, tmp_path / "copy")
    monkeypatch.chdir(copy)
    return copy


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()}


def losses(output: Path) -> list[float]:
    figures: dict[str, Any] = json.loads((output / "training.json").read_text())
    return list(figures["losses"])


@pytest.mark.parametrize(
    "rows",
    [
        [*ROWS, row(20)],
        ROWS[:-1],
        [ROWS[1], ROWS[0], *reversed(ROWS[2:])],
        [*ROWS[:-1], row(19, prompt="19: it is red")],
        [*ROWS[:-1], row(19, input="which?")],
        [*ROWS[:-1], row(19, output="green")],
        [*ROWS[:-1], row(19, task="another")],
    ],
    ids=["appended", "removed", "reordered", "prompt", "input", "output", "task"],
)
def test_a_run_whose_data_changed_is_refused_and_nothing_of_it_is_written(rows: list[str], folder: Path) -> None:
    before = contents(folder)
    (folder / "rows.jsonl").write_text("".join(rows))
    with pytest.raises(InputError, match=REFUSED):
        train(TrainConfig.parse(RECIPE))
    assert contents(folder) == before

    (folder / "rows.jsonl").write_text("".join(ROWS))  # and put back, it goes on
    assert losses(train(TrainConfig.parse(RECIPE))) == losses(folder / "whole")


def test_changed_evaluation_data_counts_where_it_leaves_out_other_rows(folder: Path) -> None:
    (folder / "eval.jsonl").write_text(row(0) + row(1) + row(2))
    with pytest.raises(InputError, match=REFUSED):
        train(TrainConfig.parse(RECIPE))
    (folder / "eval.jsonl").write_text(row(1) + row(0) + row(99, input="far from any row"))
    assert losses(train(TrainConfig.parse(RECIPE))) == losses(folder / "whole")


def test_a_finished_run_whose_data_changed_is_refused_too(folder: Path) -> None:
    (folder / "rows.jsonl").write_text("".join([*ROWS, row(20)]))
    with pytest.raises(InputError, match=r"^whole/run holds a run on other data"):
        train(TrainConfig.parse(RECIPE | {"output": "whole"}))


def test_other_bytes_that_give_the_same_rows_are_the_same_data(folder: Path) -> None:
    (folder / "rows.jsonl").write_text("\n".join(ROWS) + '{"prompt": "no answer", "output": ""}\n')
    assert losses(train(TrainConfig.parse(RECIPE))) == losses(folder / "whole")


def test_saves_of_an_older_gistlm_go_on_and_the_log_says_that_the_data_was_not_compared(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gistlm")
    weights = folder / "out" / "run" / "checkpoint-2" / saves.WEIGHTS
    save_file(load_file(weights), weights, {"tokens": str(saves.read_tokens(weights.parent))})
    assert losses(train(TrainConfig.parse(RECIPE))) == losses(folder / "whole")
    said = [message for message in caplog.messages if "older gistlm" in message]
    assert said == ["an older gistlm made the saves in out/run; whether the data has changed could not be checked"]
    with safe_open(folder / "out" / "run" / "checkpoint-4" / saves.WEIGHTS, "pt") as file:
        assert file.metadata()["data"]  # its own saves name the data


def test_the_log_says_how_many_rows_are_too_long(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="gistlm")
    (folder / "rows.jsonl").write_text("".join([*ROWS, row(20, input="what? " * 500)]))
    train(TrainConfig.parse(RECIPE | {"output": "other", "steps": 1}))
    assert "1 of 19 rows left out: longer than max_tokens or max_rest_tokens" in caplog.messages


# The hash


def test_the_hash_of_rows_tells_every_field_the_order_and_the_side() -> None:
    one, two = Row("p", "i", "o", 0.5, "t"), Row("q", "", "o")
    changes = {"prompt": "pi", "input": "", "output": "oo", "cross_entropy": 0.25, "task": ""}
    hashes = [hash_rows([replace(one, **{name: value})], [two]) for name, value in changes.items()]  # type: ignore[arg-type]
    hashes += [hash_rows(*sides) for sides in (([one], [two]), ([two], [one]), ([one, two], []), ([two, one], []))]
    assert len(set(hashes)) == len(hashes)
    assert hash_rows([replace(one)], [replace(two)]) == hash_rows([one], [two])


def test_a_task_that_is_no_text_has_a_hash() -> None:
    assert hash_rows([Row("p", "i", "o", task="\ud800")], []) != hash_rows([Row("p", "i", "o", task="\ud801")], [])
