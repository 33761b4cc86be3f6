"""The scripts for a GPU: at tiny size on the CPU, and what they say where there is no GPU."""

from __future__ import annotations

import json
import random
import runpy
import sys
import time
from pathlib import Path
from subprocess import CalledProcessError
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from gistlm.errors import DataError, InputError
from gistlm.training import loop
from gistlm.training.batches import Example, Examples
from gistlm.training.config import TrainConfig, read_config
from gistlm.training.tokenized import Tokenized

FOLDER = Path(__file__).parents[1] / "benchmarks" / "gpu"
SCRIPTS = ["exactness.py", "paper_table.py", "train.py", "serve.py"]
"""In the order of the folder's README."""


def run(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str) -> None:
    """Run a script as if from the shell."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.syspath_prepend(str(FOLDER))  # as Python does for a script
    runpy.run_path(str(FOLDER / script), run_name="__main__")


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_works_at_tiny_size_and_writes_card_versions_and_date(
    script: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, script, "--cpu", "--json", str(tmp_path / "figures.json"))
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"card", "torch", "transformers", "date", "script", "settings"} <= set(figures)
    assert figures["script"] == script
    assert "|" in capsys.readouterr().out.splitlines()[-2], "a table comes last"


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_a_card_it_ends_with_a_sentence(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=rf"^{script}: there is no GPU here that torch can use"):
        run(monkeypatch, script)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_card_with_too_little_memory_ends_it_with_a_sentence(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 30, 8 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Small Card")
    with pytest.raises(SystemExit, match=r"needs [\d.]+ GiB .*; 1 of 8 GiB are free on Small Card"):
        run(monkeypatch, script)


def test_exactness_fails_where_logits_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    own = torch.Tensor.isfinite
    monkeypatch.setattr(torch.Tensor, "isfinite", lambda tensor: own(tensor) & (tensor.dim() != 2))
    with pytest.raises(SystemExit, match=r"cases are not exact; the first is llama frozen"):
        run(monkeypatch, "exactness.py", "--cpu")


def test_exactness_fails_in_both_dtypes_where_logits_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", ["exactness.py", "--cpu"])
    exactness = __import__("exactness")
    reference = exactness.reference
    monkeypatch.setattr(exactness, "reference", lambda *given: [logits + 9 for logits in reference(*given)])
    with pytest.raises(SystemExit, match=r"6 of 6 cases are not exact; the first is llama frozen"):
        exactness.main()


def test_prompts_are_as_long_as_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    for seed in (0, 1):
        lengths = __import__("paper_table").prompt_lengths(seed)
        assert (len(lengths), min(lengths), max(lengths)) == (252, 9, 460)
        assert abs(sum(lengths) / 252 - 69) < 0.5


def test_the_readme_names_every_script_with_its_minutes() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    for script in SCRIPTS:
        assert f"`{script}`" in page
        text: Any = (FOLDER / script).read_text(encoding="utf-8")
        assert "minutes; needs" in text


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """`prepare.py`, which makes all in a folder of its own."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for module in ("card", "prepare", "train"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    module = __import__("prepare")
    monkeypatch.setattr(module, "PREPARED", tmp_path)
    monkeypatch.setattr(module, "PARTS", tmp_path / "parts.json")
    return module


@pytest.fixture
def training(prepare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """`train.py`, which reads what that one made."""
    module = __import__("train")
    monkeypatch.setattr(module, "PARTS", tmp_path / "parts.json")
    return module


@pytest.fixture
def parts(prepare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What `prepare.py` makes of one file, in parts of 1,000 bytes."""
    monkeypatch.setattr(prepare, "PART_BYTES", 1000)
    (tmp_path / "rows.safetensors").write_bytes(random.Random(0).randbytes(3500))
    made = prepare.write_parts([tmp_path / "rows.safetensors"])
    assert [path.name for path in made] == [f"part-{number}-of-4" for number in range(1, 5)]
    (tmp_path / "rows.safetensors").unlink()
    return tmp_path


def test_rows_are_made_anew_for_other_options_or_files_and_the_old_ones_stay(
    prepare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = list[Path]()

    def recipe(command: list[Any], **options: Any) -> None:
        out = command[command.index("--out") + 1]
        out.write_text(f"{len(made)}")
        made.append(out)

    monkeypatch.setattr(prepare.subprocess, "run", recipe)
    (tmp_path / "data").mkdir()
    tasks, rows = tmp_path / "tasks.jsonl", tmp_path / "data" / "system_rows.jsonl"
    tasks.write_text("one")
    four = ("--limit 4", "one", "0")
    for options, words, wanted in (four, four, ("", "one", "1"), ("", "two", "2"), four):
        tasks.write_text(words)
        prepare.make("system_rows", {"--tasks": tasks}, options)
        assert rows.read_text() == wanted
    assert len(set(made)) == 3 and all(path.exists() for path in made)


def test_rows_that_prepare_did_not_make_are_kept_and_it_says_so(
    prepare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = list[str]()
    monkeypatch.setattr(prepare, "say", said.append)
    rows = tmp_path / "data" / "system_rows.jsonl"
    rows.parent.mkdir()
    rows.write_text("mine")
    prepare.make("system_rows", {}, "")
    assert rows.read_text() == "mine" and "is kept as it is; remove it" in said[0]


def test_files_that_are_given_where_they_are_linked_from_stay(prepare: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("rows")
    prepare.link(tmp_path / "own", tmp_path / "own")
    assert (tmp_path / "own").read_text() == "rows" and not (tmp_path / "own").is_symlink()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (CalledProcessError(1, [sys.executable, Path("recipes/system_rows.py"), "--out"]), r"system_rows\.py failed"),
        (CalledProcessError(1, [sys.executable, "-m", "pip", "download"]), r"pip failed, as said above"),
        (DataError("no rows"), r"no rows$"),
    ],
)
def test_what_goes_wrong_beforehand_is_one_sentence(
    prepare: ModuleType, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fails(options: Any) -> None:
        raise error

    monkeypatch.setattr(prepare, "run", fails)
    monkeypatch.setattr(sys, "argv", ["prepare.py", "--data", "data"])
    with pytest.raises(SystemExit, match=rf"^prepare\.py: {said}"):
        prepare.main()


def test_parts_that_all_arrived_are_unpacked(training: ModuleType, parts: Path) -> None:
    training.unpack(parts)
    assert (parts / "rows.safetensors").read_bytes() == random.Random(0).randbytes(3500)


def test_other_parts_are_unpacked_over_those_of_before(prepare: ModuleType, training: ModuleType, parts: Path) -> None:
    rows = parts / "rows.safetensors"
    training.unpack(parts)
    rows.write_bytes(b"other rows")
    training.unpack(parts)
    assert rows.read_bytes() == b"other rows", "the same parts are unpacked once"
    prepare.write_parts([rows])
    rows.write_bytes(b"rows of before")
    training.unpack(parts)
    assert rows.read_bytes() == b"other rows"


def test_a_part_that_did_not_arrive_ends_training_with_a_sentence(training: ModuleType, parts: Path) -> None:
    (parts / "part-3-of-4").unlink()
    with pytest.raises(SystemExit, match=r"there is no .*part-3-of-4; carry each part and copy it there"):
        training.unpack(parts)


def test_a_part_that_is_damaged_ends_training_with_a_sentence(training: ModuleType, parts: Path) -> None:
    (parts / "part-2-of-4").write_bytes(b"x")
    with pytest.raises(SystemExit, match=r"part-2-of-4 is not what prepare\.py made; carry it again"):
        training.unpack(parts)
    assert not (parts / "rows.safetensors").exists()


@pytest.mark.parametrize("damaged", [b"{", b"[1]", b"\xff"])
def test_a_damaged_list_of_parts_ends_training_with_a_sentence(
    training: ModuleType, parts: Path, damaged: bytes
) -> None:
    (parts / "parts.json").write_bytes(damaged)
    with pytest.raises(SystemExit, match=r"^train\.py: .*parts\.json is damaged; carry it again"):
        training.unpack(parts)


def test_a_package_that_cannot_be_installed_ends_training_with_a_sentence(training: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^train\.py: pip cannot install gguf\.whl, as said above"):
        training.install([str(tmp_path / "gguf.whl")], tmp_path / "site")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch", "0"], r"--batch must be 1 or more, got 0"),
        (["--start", "runs/nothing"], r"--start: there is no folder runs/nothing; carry it"),
        (["--start", "/nothing"], r"there is no checkpoint '/nothing'"),
        (["--out", __file__], r"cannot write to "),
    ],
)
def test_training_refuses_at_once_what_would_fail_after_minutes(
    training: ModuleType, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--cpu", *arguments])
    monkeypatch.setattr(training, "tiny_run", None)
    with pytest.raises(SystemExit, match=rf"^train\.py: {said}"):
        training.main()


def test_a_batch_that_is_too_large_for_the_gpu_ends_training_with_a_sentence(
    training: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, "run", fails)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(
        SystemExit, match=r"^train\.py: .* too small for a step; give fewer rows of a step with --batch$"
    ):
        training.main()


def test_a_plan_is_made_anew_for_other_minutes_until_there_is_a_save(
    training: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = read_config(FOLDER / "train.yaml")
    monkeypatch.setattr(training, "measure_steps", lambda _, __, options, ___: {"steps": int(100 * options.minutes)})

    def steps(minutes: float) -> int:
        options = SimpleNamespace(work=tmp_path, minutes=minutes, calls=2)
        return int(training.planned(config, None, options, 0.0)[0].steps)

    assert [steps(8.0), steps(6.0), steps(6.0)] == [800, 600, 600]
    (tmp_path / "run" / "run" / "checkpoint-500").mkdir(parents=True)
    assert steps(6.0) == 600
    with pytest.raises(InputError, match=r"planned with --batch 64 --minutes 6\.0 --calls 2; give the same, or "):
        steps(8.0)


def test_steps_are_tried_anew_after_a_call_that_was_cut_off(
    training: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def tried(config: TrainConfig, callbacks: list[Any], tokens: Tokenized) -> None:
        assert not Path(config.output).exists()
        callbacks[0].seen = [(float(step), 640 * step) for step in range(training.TRIED + 1)]

    monkeypatch.setattr(training, "train", tried)
    (tmp_path / "tried" / "run" / "checkpoint-40").mkdir(parents=True)
    rows = Examples.of([Example([1] * 8, [2] * 2, 1)])
    options = SimpleNamespace(work=tmp_path, minutes=10.0, calls=2, reserve=0)
    plan = training.measure_steps(
        read_config(FOLDER / "train.yaml"), Tokenized(rows, rows, "", 0), options, time.monotonic()
    )
    assert plan["seconds_per_step"] == 1
    assert plan["steps"] == pytest.approx(0.85 * 1200, abs=1)


def test_a_call_without_a_step_has_no_speed(training: ModuleType) -> None:
    assert training.Clock(0.0).tokens_per_second() is None


def test_two_processes_that_make_batches_give_the_losses_of_none(
    training: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config, tokens = training.tiny_run(tmp_path)
    own, losses = loop._arguments, []
    for workers in (0, 2):

        def arguments(*given: Any, workers: int = workers) -> Any:
            made = own(*given)
            made.dataloader_num_workers = workers
            return made

        monkeypatch.setattr(loop, "_arguments", arguments)
        folder = loop.train(config.replace(steps=6, output=str(tmp_path / f"{workers}")), tokenized=tokens)
        losses.append(json.loads((folder / "training.json").read_text())["losses"])
    assert len(losses[0]) == 6
    assert losses[0] == losses[1]


def test_a_second_call_goes_on_with_the_run_of_the_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(FOLDER))
    work = tmp_path / "work"
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(work))
    found = []
    for _ in range(2):
        work.mkdir(exist_ok=True)
        run(monkeypatch, "train.py", "--cpu", "--calls", "3", "--json", str(tmp_path / "figures.json"))
        found.append(json.loads((tmp_path / "figures.json").read_text()))
    first, second = found
    assert first["plan"] == second["plan"]
    assert second["steps"] == first["steps"] + second["steps_of_this_call"] > first["steps"]
    assert (tmp_path / "runs" / "card" / "gistlm.json").exists()
