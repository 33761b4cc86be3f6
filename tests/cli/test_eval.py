"""`gistlm eval`: tables and a whole result file from rows; errors in one sentence; a stopped run goes on."""

import json
import sqlite3
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from cli.running import Process, Run, error_line

from gistlm.errors import DataError
from gistlm.evaluation import judge, retention, runner
from gistlm.evaluation import results as result_file

FAST = ["--k", "1,2", "--new-tokens", "3", "--baselines", "truncation,last", "--batch-size", "2"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Three rows and a chat."""
    path = tmp_path / "rows.jsonl"
    lines: list[dict[str, Any]] = [
        {"instruction": f"Say the number {n} in words.", "input": f"{n}", "output": "It is so."} for n in range(3)
    ]
    chat = [("system", "Be very polite."), ("user", "Hello"), ("assistant", "Good day.")]
    lines.append({"messages": [{"role": role, "content": text} for role, text in chat]})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_rows_give_tables_and_a_whole_result_file(real: Run, checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "x.json"
    done = real("eval", "--data", rows, "--model", checkpoint, *FAST, "--json", out)
    assert done.exit_code == 0, done.stderr
    assert "references of 4 rows of rows.jsonl" in done.stdout and "generated answers" in done.stdout
    assert all(name in done.stdout for name in ("full prompt", "nothing", "gist@1", "gist@2", "truncation@2", "last@1"))
    found = result_file.read_results(out)
    assert found["data"]["rows"] == 4 and found["settings"]["k"] == [1, 2]
    assert found["retention"] is None and found["judge"] is None
    assert found["examples"][3]["prompt"] == "Be very polite."


def test_two_runs_with_one_seed_write_the_same_but_for_the_run(
    real: Run, process: Process, checkpoint: Path, rows: Path, tmp_path: Path
) -> None:
    command = ["eval", "--data", rows, "--checkpoint", checkpoint, *FAST, "--json"]
    here, there = real(*command, "one.json"), process(*command, tmp_path / "two.json", engine="transformers")
    assert (here.exit_code, there.returncode) == (0, 0), there.stderr
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    run, _ = two.pop("run"), one.pop("run")
    assert run["command"].startswith("gistlm eval --data rows.jsonl") and str(tmp_path) not in run["command"]
    assert json.dumps(one) == json.dumps(two)


def test_without_generation_and_baselines_only_references_are_scored(real: Run, checkpoint: Path, rows: Path) -> None:
    options = ["--k", "2", "--no-generate", "--baselines", "none", "--limit", "2", "--threads", "1"]
    done = real("eval", "--data", rows, "--model", checkpoint, *options)
    assert done.exit_code == 0, done.stderr
    assert "references of 2 rows" in done.stdout
    assert "generated answers" not in done.stdout and "truncation" not in done.stdout


def test_a_skipped_baseline_is_said_so(real: Run, checkpoint: Path, rows: Path) -> None:
    options = ["--k", "1", "--no-generate", "--baselines", "llmlingua2", "--llmlingua2", "./none"]
    done = real("eval", "--data", rows, "--model", checkpoint, *options)
    assert done.exit_code == 0, done.stderr
    assert "llmlingua2 was skipped: the classifier ./none cannot be loaded" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "missing.jsonl"], "does not exist"),
        (["--data", "rows.jsonl", "--k", "1,x"], "--k takes numbers"),
        (["--data", "rows.jsonl", "--k", "0"], "from 1 to 16"),
        (["--data", "rows.jsonl", "--k", "17"], "from 1 to 16"),
        (["--data", "rows.jsonl", "--baselines", "magic"], "no baseline 'magic'"),
        (["--data", "rows.jsonl", "--max-tokens", "2"], "none of the 4 rows"),
        (["--data", "rows.jsonl", "--new-tokens", "0"], "new_tokens must be greater than 0, got 0"),
        (["--data", "rows.jsonl", "--limit", "0"], "limit must be greater than 0, or null, got 0"),
        (["--data", "rows.jsonl", "--threads", "0"], "--threads must be 1 or more"),
        (["--data", "rows.jsonl", "--new-tokens", "999999"], "fits: a row has at most 1,024 tokens (max_tokens)"),
        (["--data", "rows.jsonl", "--seed", "-1"], "seed must be greater than or equal to 0, got -1"),
        (["--limit", "0"], "limit must be greater than 0, or null, got 0"),
        (["--data", "rows.jsonl", "--json", "."], "is a folder"),
        (["--data", "rows.jsonl", "--json", "rows.jsonl/x.json"], "cannot write to rows.jsonl/x.json: "),
        (["--data", "rows.jsonl", "--json", "./rows.jsonl"], "would be written over what it is made from"),
    ],
)
def test_a_mistake_is_one_sentence(real: Run, checkpoint: Path, rows: Path, options: list[str], message: str) -> None:
    before = rows.read_text()
    assert message in error_line(real("eval", "--model", checkpoint, *options))
    assert rows.read_text() == before


def test_a_closed_pipe_does_not_take_the_results(
    real: Run, checkpoint: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(results: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("gistlm.cli.eval.print_results", closed)
    real("eval", "--data", rows, "--model", checkpoint, *FAST, "--json", tmp_path / "x.json")
    assert result_file.read_results(tmp_path / "x.json")["data"]["rows"] == 4
    assert not (tmp_path / "x.json.partial").exists()


def test_rows_that_are_left_out_are_counted(real: Run, checkpoint: Path, rows: Path) -> None:
    with rows.open("a") as file:
        file.write(json.dumps({"instruction": "Repeat. " * 400, "input": "", "output": "No."}) + "\n")
    options = ["--k", "1", "--no-generate", "--baselines", "none", "--max-tokens", "100"]
    done = real("eval", "--data", rows, "--model", checkpoint, *options)
    assert "references of 4 rows" in done.stdout
    assert "1 rows of rows.jsonl were left out" in done.stdout


@pytest.mark.parametrize(
    "options",
    [
        ["--data", "rows.jsonl", "--judge", "http://127.0.0.1:1/v1"],
        ["--data", "rows.jsonl", "--judge-model", "any"],
        ["--judge", "http://127.0.0.1:1/v1", "--judge-model", "any"],
        ["--data", "rows.jsonl", "--judge", "http://127.0.0.1:1/v1", "--judge-model", "any", "--no-generate"],
    ],
)
def test_a_judge_without_what_it_needs_is_wrong_usage(real: Run, rows: Path, options: list[str]) -> None:
    assert real("eval", *options).exit_code == 2


def test_an_engine_without_a_checkpoint_is_one_sentence(fake: Run, rows: Path) -> None:
    assert "holds no checkpoint" in error_line(fake("eval", "--data", rows))


def test_ctrl_c_before_anything_is_measured_leaves_no_file(
    real: Run, checkpoint: Path, rows: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "measure", interrupt)
    stopped = real("eval", "--data", rows, "--model", checkpoint, *FAST, "--json", tmp_path / "x.json")
    assert (stopped.exit_code, stopped.stdout) == (130, "")
    assert stopped.stderr.splitlines()[-1] == "interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_run_that_was_stopped_goes_on_when_the_same_command_is_given_again(
    real: Run, checkpoint: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["eval", "--data", rows, "--model", checkpoint, *FAST, "--json"]
    assert real(*command, "whole.json").exit_code == 0
    measured: list[int] = []
    measure_batch = runner._measure_batch

    def interrupt_second(*arguments: Any) -> Any:
        if len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(len(arguments[1]))
        return measure_batch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "_measure_batch", interrupt_second)
        stopped = real(*command, "x.json")
    assert stopped.exit_code == 130
    assert "what was measured is in x.json.partial, and the same command goes on" in stopped.stderr
    assert not Path("x.json").exists()

    database = sqlite3.connect("x.json.partial")
    with database:
        database.execute("UPDATE pieces SET seconds = 5000.5")
    database.close()
    monkeypatch.setattr(runner, "_measure_batch", lambda *a: measured.append(len(a[1])) or measure_batch(*a))
    again = real(*command, "x.json")
    assert again.exit_code == 0 and "going on from x.json.partial" in again.stderr
    assert measured == [2, 2]
    assert not Path("x.json.partial").exists() and not Path("whole.json.partial").exists()
    one, two = (json.loads(Path(name).read_text()) for name in ("x.json", "whole.json"))
    assert one.pop("run")["seconds"] > 5000.5
    del two["run"]
    assert json.dumps(one) == json.dumps(two)


def test_another_process_goes_on_from_what_one_has_kept(
    real: Run, process: Process, checkpoint: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["eval", "--data", rows, "--model", checkpoint, *FAST, "--threads", "1", "--json", tmp_path / "x.json"]
    with monkeypatch.context() as patch:
        patch.setattr("gistlm.cli.eval._finish", Mock(side_effect=KeyboardInterrupt))
        assert real(*command).exit_code == 130
    before = (tmp_path / "x.json.partial").read_bytes()
    again = process(*command, engine="transformers")
    assert again.returncode == 0 and "going on from" in again.stderr, again.stderr
    assert result_file.read_results(tmp_path / "x.json")["data"]["rows"] == 4
    assert before and not (tmp_path / "x.json.partial").exists()


def test_results_that_cannot_be_written_are_kept_and_said_where(
    real: Run, checkpoint: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise DataError("cannot write the results")

    monkeypatch.setattr(result_file, "write_results", full)
    failed = real("eval", "--data", rows, "--model", checkpoint, *FAST, "--json", "x.json")
    assert failed.exit_code == 1
    assert failed.stderr.splitlines()[-2:] == [
        "what was measured is in x.json.partial, and the same command goes on from there",
        "error: cannot write the results",
    ]
    assert Path("x.json.partial").exists()


def test_a_file_that_stands_where_measured_rows_are_kept_is_left_alone(
    real: Run, checkpoint: Path, rows: Path, tmp_path: Path
) -> None:
    other = tmp_path / "x.json.partial"
    other.write_text("my notes")
    refused = real("eval", "--data", rows, "--model", checkpoint, *FAST, "--json", tmp_path / "x.json")
    assert "x.json.partial is another file" in error_line(refused)
    assert other.read_text() == "my notes"


def test_without_data_only_the_retention_probe_runs(
    real: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"kind": "name", "condition": "gist@2", "n": 4, "correct": 1, "score": 0.25, "score_95": [0.1, 0.6]}
    asked: list[Any] = []

    def probe(engine: Any, *arguments: Any) -> list[dict[str, Any]]:
        asked.extend(arguments[:3])
        return [entry]

    monkeypatch.setattr(retention, "measure", probe)
    done = real("eval", "--model", checkpoint, "--k", "2", "--limit", "4", "--seed", "7", "--json", tmp_path / "x.json")
    assert done.exit_code == 0, done.stderr
    assert asked == [(2,), 7, 4]
    assert "retention probe" in done.stdout and "1 of 4" in done.stdout
    found = result_file.read_results(tmp_path / "x.json")
    assert found["retention"] == [entry] and found["data"]["rows"] == 0 and found["conditions"] == []


class Judge:
    """Stands for `judge.compare`: remembers the pairs of every call and fails from the n-th on."""

    def __init__(self, fails_at: int = 99) -> None:
        self.calls: list[list[judge.AnswerPair]] = []
        self.fails_at = fails_at

    def __call__(self, pairs: list[judge.AnswerPair], url: str, model: str, *more: Any) -> dict[str, Any]:
        assert (url, model) == ("http://127.0.0.1:1/v1", "any")
        self.calls.append(pairs)
        if len(self.calls) > self.fails_at:
            raise judge.JudgeError("the judge is gone")
        return {"wins": 1, "ties": 2, "losses": 1, "win_rate": 0.5, "win_rate_95": [0.1, 0.9], "nonsense": 0}


JUDGED = [*FAST, "--judge", "http://127.0.0.1:1/v1", "--judge-model", "any", "--json", "x.json"]


def test_answers_are_judged_against_the_full_prompts(
    real: Run, checkpoint: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Judge()
    monkeypatch.setattr(judge, "compare", asked)
    done = real("eval", "--data", rows, "--model", checkpoint, *JUDGED)
    assert done.exit_code == 0 and "judged answers" in done.stdout
    found = result_file.read_results("x.json")
    assert [each["condition"] for each in found["judge"]] == ["none", "gist@1", "gist@2"]
    answers = [example["answers"] for example in found["examples"]]
    assert [(pair.a, pair.b) for pair in asked.calls[2]] == [(each["gist@1"], each["full"]) for each in answers]


def test_a_judge_that_cannot_be_asked_is_found_before_anything_is_measured(
    real: Run, checkpoint: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "compare", Judge(fails_at=0))
    monkeypatch.setattr(runner, "measure", None)
    assert "the judge is gone" in error_line(real("eval", "--data", rows, "--model", checkpoint, *JUDGED))
    assert not Path("x.json").exists()


def test_a_judge_that_goes_away_later_loses_nothing_that_was_measured(
    real: Run, checkpoint: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "compare", Judge(fails_at=2))
    done = real("eval", "--data", rows, "--model", checkpoint, *JUDGED)
    assert done.exit_code == 0 and "judge was skipped: the judge is gone" in done.stdout
    found = result_file.read_results("x.json")
    assert found["judge"] is None and found["data"]["rows"] == 4


def test_the_rows_texts_can_be_left_out_of_the_results(real: Run, checkpoint: Path, rows: Path) -> None:
    done = real("eval", "--data", rows, "--model", checkpoint, *FAST, "--no-examples", "--json", "x.json")
    assert done.exit_code == 0, done.stderr
    found = result_file.read_results("x.json")
    assert found["examples"] == [] and found["rows"]
