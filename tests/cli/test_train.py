"""`gistlm train` and `gistlm convert`, and the whole way from a base model to an answer."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli.running import PROMPT, Run, error_line
from tiny import save_tiny

from gistlm.cli.train import read_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Two steps on twenty rows with a tiny random model."""
    rows = [
        {"instruction": f"Say the number {n} in words.", "input": f"{n}", "output": f"It is {n}."} for n in range(20)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {
        "base": str(save_tiny(tmp_path / "base")),
        "output": "out",
        "data": [{"path": "rows.jsonl"}],
        "steps": 2,
        "batch_size": 4,
        "validation_rows": 4,
        "save_every": 1,
        "lora_rank": 2,
        "max_k": 4,
        "device": "cpu",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(options))
    return tmp_path / "recipe.yaml"


def test_a_prompt_is_compressed_inspected_and_used_by_a_checkpoint_trained_here(real: Run, recipe: Path) -> None:
    trained = real("train", recipe)
    assert trained.exit_code == 0, trained.stderr
    assert "step 2/2  loss" in trained.stderr and "tokens/s" in trained.stderr and "left" in trained.stderr
    assert "the checkpoint is in out" in trained.stdout
    assert "4 held-out rows at step 2" in trained.stdout and "gist, k=4" in trained.stdout

    Path("prompt.txt").write_text(PROMPT)
    made = real("compress", "prompt.txt", "-o", "x.gist", "-k", "3", "--model", "out", "--json")
    assert json.loads(made.stdout)["k"] == 3, made.stderr
    assert json.loads(real("inspect", "x.gist", "--json").stdout)["id"] == json.loads(made.stdout)["id"]

    ask = ["generate", "--gist", "x.gist", "--model", "out", "-n", "6", "Hello"]
    told = json.loads(real(*ask, "--json").stdout)
    assert told["condition"] == "gist" and told["new_tokens"] <= 6
    assert real(*ask).stdout == told["text"] + "\n"

    sides = json.loads(real(*ask, "--prompt-file", "prompt.txt", "--compare", "--json").stdout)
    assert sides["gist"]["text"] == told["text"]
    assert sides["full"]["fresh_tokens"] > sides["gist"]["fresh_tokens"]
    assert real("chat", "--gist", "x.gist", "--model", "out", "-n", "2", stdin="a\nb\n").stdout.count("\n") >= 2


def test_a_run_that_was_stopped_goes_on_from_its_last_save(
    real: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = real("train", recipe, "--set", "output=whole", "--set", "steps=3")
    assert whole.exit_code == 0, whole.stderr

    from gistlm.training.progress import TrainingProgress

    shown = TrainingProgress.on_log

    def interrupt_at_step_2(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        shown(self, args, state, control, **kwargs)
        if state.global_step == 2:
            signal.raise_signal(signal.SIGINT)

    again = ["train", recipe, "--set", "output=parts", "--set", "steps=3"]
    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "on_log", interrupt_at_step_2)
        stopped = real(*again)
    assert stopped.exit_code == 130
    assert stopped.stderr.splitlines()[-1].startswith("interrupted: the same command resumes this run")
    assert "Traceback" not in stopped.stderr

    resumed = real(*again)
    assert resumed.exit_code == 0, resumed.stderr
    assert "resuming after step 1 of 3" in resumed.stderr
    first, second = (json.loads(Path(name, "training.json").read_text()) for name in ("whole", "parts"))
    assert first["losses"] == second["losses"] and first["tokens"] == second["tokens"]


def test_set_takes_yaml_values_and_leads_into_lists(recipe: Path) -> None:
    config = read_recipe(
        recipe,
        [(["steps"], 7), (["learning_rate"], 1e-4), (["data", "0", "limit"], 5), (["data", "0", "path"], "x.jsonl")],
    )
    assert (config.steps, config.learning_rate) == (7, 1e-4)
    assert (config.data[0].path, config.data[0].limit) == ("x.jsonl", 5)
    assert config.batch_size == 4


def test_set_reads_numbers_lists_and_null_from_the_command_line(
    real: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("gistlm.cli.train._run", seen.append)
    monkeypatch.setattr("gistlm.cli.train._report", lambda folder: None)
    changes = [
        "learning_rate=1e-4",
        "max_rest_tokens=null",
        "data=[{path: a.jsonl}, {path: b.jsonl}]",
        "data.1.limit=3",
    ]
    result = real("train", recipe, *(word for change in changes for word in ("--set", change)))
    assert result.exit_code == 0, result.stderr
    (config,) = seen
    assert (config.learning_rate, config.max_rest_tokens) == (1e-4, None)
    assert [(source.path, source.limit) for source in config.data] == [("a.jsonl", None), ("b.jsonl", 3)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("stepps=3", "no option 'stepps'"),
        ("steps=0", "recipe.yaml: steps must be greater than 0, got 0"),
        ("data.1.path=x", "there is no data.1; data has 1 entries"),
        ("data.first.path=x", "there is no data.first"),
        ("data.0.colour=x", "data.0: no option 'colour'"),
        ("steps=1e3", "steps must be a valid integer, got '1e3'"),
        ("anchored=maybe", "anchored must be a valid boolean, or null, got 'maybe'"),
        ("steps.0=1", "steps is neither a list nor a mapping"),
        ("steps=[", "the value is not YAML"),
        ("data.0.path=missing.jsonl", "missing.jsonl"),
    ],
)
def test_a_bad_setting_is_one_sentence(real: Run, recipe: Path, change: str, said: str) -> None:
    assert said in error_line(real("train", recipe, "--set", change))


def test_a_missing_base_is_one_sentence_after_what_the_data_gave(real: Run, recipe: Path) -> None:
    result = real("train", recipe, "--set", "base=./no/such/model")
    held_out, error = result.stderr.splitlines()
    assert held_out == "4 of 4 validation rows are held out, apart by prompt"
    assert error.startswith("error: there is no model at ./no/such/model")


@pytest.mark.parametrize("change", ["steps", "=3", "data..path=x"])
def test_a_setting_without_key_and_value_is_wrong_usage(real: Run, recipe: Path, change: str) -> None:
    result = real("train", recipe, "--set", change)
    assert (result.exit_code, result.stdout) == (2, "")


def test_a_missing_or_broken_recipe_is_one_sentence(real: Run, tmp_path: Path) -> None:
    assert "there is no recipe at none.yaml" in error_line(real("train", "none.yaml"))
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe")
    assert "cannot read the recipe bad.yaml" in error_line(real("train", "bad.yaml"))
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert "must be a mapping of options" in error_line(real("train", "list.yaml"))


def test_convert_hands_its_options_on_and_says_where_the_checkpoint_is(
    real: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, ...]] = []

    def add_base(*given: str) -> Path:
        seen.append(given)
        return Path(given[2])

    monkeypatch.setattr("gistlm.models.original_project.convert", add_base, raising=False)
    result = real("convert", "--diff", "d", "--base", "b", "-o", "o")
    assert result.exit_code == 0, result.stderr
    assert seen == [("d", "b", "o")]
    assert "o written" in result.stdout
