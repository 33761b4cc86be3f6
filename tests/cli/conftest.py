"""Running the command line in this process or in a new one; knows no command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli.running import PROMPT, Process, Run
from fake_engine import FAKE
from tiny import save_tiny_checkpoint
from typer.testing import CliRunner, Result

import gistlm
from gistlm.cli.app import app

SOURCES = os.pathsep.join([str(Path(gistlm.__file__).parents[1]), str(Path(__file__).parents[1])])
"""So that a new process in another folder runs the same sources, and finds the fake engine."""


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in this process, in an empty folder, on the real engine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", False)  # as `main` has it in a process of its own

    def run(*arguments: str | Path, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(app, list(map(str, arguments)), input=stdin, prog_name="gistlm")

    return run


@pytest.fixture
def fake(real: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The same on the fake engine."""
    monkeypatch.setenv("GISTLM_ENGINE", FAKE)
    return real


@pytest.fixture
def process(tmp_path: Path) -> Process:
    """The command line in a process of its own, on the fake engine unless told otherwise."""

    def run(
        *arguments: str | Path, stdin: str = "", engine: str = FAKE, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gistlm", *map(str, arguments)],
            input=stdin, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=240,
            env={**os.environ, "PYTHONPATH": SOURCES, "GISTLM_ENGINE": engine, **environment},
        )  # fmt: skip

    return run


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    """A file with a prompt of 16 words."""
    path = tmp_path / "prompt.txt"
    path.write_text(PROMPT, encoding="utf-8")
    return path


@pytest.fixture
def gist(fake: Run, prompt: Path, tmp_path: Path) -> Path:
    """A gist of the prompt, made by the fake engine."""
    path = tmp_path / "prompt.gist"
    assert fake("compress", prompt, "-o", path).exit_code == 0
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random gist checkpoint with a context of 512 tokens, for the real engine."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")
