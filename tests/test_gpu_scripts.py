"""The scripts for a card: at tiny size on the CPU, and what they say where there is no card."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks" / "gpu"
SCRIPTS = ["exactness.py", "paper_table.py", "serve.py"]
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
    run(monkeypatch, script, "--cpu", "--json", str(tmp_path / "figures.json"))
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"card", "torch", "transformers", "date", "script", "settings"} <= set(figures)
    assert figures["script"] == script
    assert "|" in capsys.readouterr().out.splitlines()[-2], "a table comes last"


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_a_card_it_ends_with_a_sentence(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=rf"^{script}: there is no card here that torch can use"):
        run(monkeypatch, script)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_card_with_too_little_memory_ends_it_with_a_sentence(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 30, 8 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Small Card")
    with pytest.raises(SystemExit, match=r"needs [\d.]+ GiB .*; 1 of 8 GiB are free on Small Card"):
        run(monkeypatch, script)


def test_exactness_fails_where_logits_are_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    own = torch.Tensor.isfinite
    monkeypatch.setattr(torch.Tensor, "isfinite", lambda tensor: own(tensor) & (tensor.dim() != 2))
    with pytest.raises(SystemExit, match=r"cases are not exact; the first is llama frozen"):
        run(monkeypatch, "exactness.py", "--cpu")


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
