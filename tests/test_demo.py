"""The demonstration that `make demo` runs, on a tiny model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tiny import save_tiny_checkpoint

FILE = Path(__file__).parents[1] / "examples" / "demo.py"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("I am a team. I am a team. I am a team. I am", "I am a team. (repetition cut)"),
        ("We are open. Come! We are open. Bye.", "We are open. Come! (repetition cut)"),
        ("It costs 1.25 or 1.25 each.", "It costs 1.25 or 1.25 each."),
        (" Two lines,\nall of it. ", "Two lines,\nall of it."),
        ("It ends before", "It ends before ..."),
        ("", " ..."),
    ],
)
def test_an_answer_is_shown_up_to_its_first_repetition(demo: ModuleType, answer: str, shown: str) -> None:
    assert demo.shown(answer) == shown


def test_it_says_what_it_does_and_shows_every_answer(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny_checkpoint(tmp_path / "tiny")
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Answer in rhymes, whatever you are asked.", encoding="utf-8")
    command = ["demo.py", "--model", str(folder), "--prompt", str(prompt), "--question", "Why [bold]?", "-k", "4"]
    monkeypatch.setattr(sys, "argv", command)
    demo.main()
    said = " ".join(capsys.readouterr().out.split())
    for part in (
        "importing torch",
        "loading the model (the first time",
        "became 4 gist tokens",
        "Why [bold]?",
        "the full prompt",
    ):
        assert part in said
    assert "Time to first token" in said


def test_a_mistake_is_one_sentence(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["demo.py", "--prompt", "no-such-file.txt"])
    with pytest.raises(SystemExit, match=r"^demo\.py: .*no-such-file\.txt"):
        demo.main()
