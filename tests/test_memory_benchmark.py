"""The memory benchmark on a tiny model: a cell for every call and bound, each from a process of its own."""

from __future__ import annotations

import io
import json
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from tiny import save_tiny

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run_memory(*arguments: str) -> str:
    """Run the script as if from the shell; returns what it printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(printed):
        monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / "memory.py"), *arguments, "--threads", "1"])
        monkeypatch.syspath_prepend(str(BENCHMARKS))  # as Python does for a script
        runpy.run_path(str(BENCHMARKS / "memory.py"), run_name="__main__")
    return printed.getvalue()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("memory") / "base", max_position_embeddings=2048)


def test_more_tokens_together_take_more_memory(base: Path, tmp_path: Path) -> None:
    sizes = ["--calls", "score", "--rows", "6", "--tokens", "1500", "--output-tokens", "4"]
    sizes += ["--batch-tokens", "1500,9000"]
    printed = run_memory("--untrained", str(base), *sizes, "--json", str(tmp_path / "memory.json"))
    figures: dict[str, Any] = json.loads((tmp_path / "memory.json").read_text())
    peaks = {(cell["call"], cell["batch_tokens"]): cell["peak_bytes"] for cell in figures["cells"]}
    assert set(peaks) == {("score", 1500), ("score", 9000)}
    assert printed.count("\n| ") == len(peaks) + 1
    assert figures["settings"]["rows"] == 6 and "memory.py" in figures["command"] and not figures["trained"]
    assert figures["machine"]["threads"] == 1 and figures["parameters"] > 0
    if sys.platform == "linux":
        mask = 1500 * 1500 * 4
        assert peaks["score", 9000] - peaks["score", 1500] > 4 * mask  # six rows' masks, and one row's


@pytest.mark.parametrize("call", ["compress", "complete", "score"])
def test_every_call_is_measured(base: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    memory = __import__("memory")
    settings = memory.Settings("none", str(base), None, [call], 3, 200, 4, 2, [400], 1, 0)
    (facts, cell), work = memory.measure(settings, call, 400)
    assert len(work()) == 3
    assert cell["seconds"] >= 0 and facts["model"] == str(base)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--calls", "score,sing"], "there is no call 'sing'; there are compress, complete, score"),
        (["--rows", "0"], "rows must be 1 or more, got 0"),
        (["--batch-tokens", "0"], "batch_tokens must be 1 or more, got 0"),
        (["--calls", "compress", "--tokens", "4000", "--rows", "1"], "has 4,000 tokens, but this model has room for"),
    ],
)
def test_an_impossible_setting_is_one_sentence(base: Path, options: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=rf"^memory\.py: .*{message}"):
        run_memory("--untrained", str(base), *options)
