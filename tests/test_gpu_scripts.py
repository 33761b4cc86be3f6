"""The scripts for a GPU: at tiny size on the CPU, and what they say where there is no GPU."""

from __future__ import annotations

import json
import random
import runpy
import sys
from pathlib import Path
from subprocess import CalledProcessError
from types import ModuleType
from typing import Any

import pytest
import torch

from gistlm.errors import DataError

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
def parts(prepare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What `prepare.py` makes of one file, in parts of 1,000 bytes."""
    monkeypatch.setattr(prepare, "PART_BYTES", 1000)
    monkeypatch.setattr(__import__("train"), "PARTS", tmp_path / "parts.json")
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


def test_parts_that_all_arrived_are_unpacked(parts: Path) -> None:
    __import__("train").unpack(parts)
    assert (parts / "rows.safetensors").read_bytes() == random.Random(0).randbytes(3500)


def test_a_part_that_did_not_arrive_ends_training_with_a_sentence(parts: Path) -> None:
    (parts / "part-3-of-4").unlink()
    with pytest.raises(SystemExit, match=r"there is no .*part-3-of-4; carry each part and copy it there"):
        __import__("train").unpack(parts)


def test_a_part_that_is_damaged_ends_training_with_a_sentence(parts: Path) -> None:
    (parts / "part-2-of-4").write_bytes(b"x")
    with pytest.raises(SystemExit, match=r"part-2-of-4 is not what prepare\.py made; carry it again"):
        __import__("train").unpack(parts)
    assert not (parts / "rows.safetensors").exists()


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
