"""The command line as a whole: help, version, exit codes, separate streams, and the generated page."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli.running import Process, Run, error_line
from tiny import save_tiny, save_tiny_checkpoint

import gistlm
from gistlm.cli.app import COMMANDS, app

ROOT = Path(__file__).parents[2]
NAMES = [command.__name__ for command in COMMANDS]


@pytest.mark.parametrize("arguments", [[], *([name] for name in NAMES)], ids=lambda words: "-".join(words) or "gistlm")
def test_help_loads_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from gistlm.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'peft', 'safetensors', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--help"], capture_output=True, text=True, check=False
    )
    assert "Usage: gistlm" in result.stdout
    assert result.stderr == "[]\n"


@pytest.mark.parametrize("name", NAMES)
def test_every_commands_help_has_an_example(real: Run, name: str) -> None:
    result = real(name, "--help")
    assert result.exit_code == 0
    assert "Example:" in result.stdout and f"gistlm {name} " in result.stdout.partition("Example:")[2]


def test_the_version_is_the_packages(process: Process) -> None:
    assert process("--version").stdout == f"gistlm {gistlm.__version__}\n"


def test_an_unknown_command_is_wrong_usage_on_stderr(process: Process) -> None:
    result = process("compres")
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr


def test_an_error_is_one_line_on_stderr_without_a_traceback(process: Process) -> None:
    result = process("compress", "missing.txt", "-o", "x.gist", engine="transformers")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: there is no file missing.txt") and result.stderr.count("\n") == 1


def test_an_unknown_model_is_one_line_on_stderr_without_a_traceback(process: Process, prompt: Path) -> None:
    result = process("compress", prompt, "-o", "x.gist", "--model", "nowhere/none", engine="transformers")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: cannot get nowhere/none") and result.stderr.count("\n") == 1


def test_a_real_model_prints_nothing_but_the_answer(process: Process, checkpoint: Path, prompt: Path) -> None:
    made = process("compress", prompt, "-o", "x.gist", "--model", checkpoint, engine="transformers")
    assert (made.returncode, made.stderr) == (0, "")
    asked = process("generate", "-g", "x.gist", "--model", checkpoint, "-n", "4", "Hi", engine="transformers")
    assert (asked.returncode, asked.stderr) == (0, "")


def test_the_first_use_of_a_packaged_model_is_said_on_stderr_and_the_next_is_silent(
    real: Run, prompt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    for path, text in (
        ("tiny_model/__init__.py", ""),
        ("tiny_model/tiny.gguf", ""),
        ("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"),
    ):
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("GISTLM_HOME", str(tmp_path / "home"))
    checkpoint = save_tiny_checkpoint(tmp_path / "checkpoint")
    monkeypatch.setattr("gistlm.models.loading._convert_gguf", lambda source, file, target: save_tiny(target))
    compress = ("compress", prompt, "-o", "x.gist", "--model", checkpoint, "--base", "package:tiny_model/tiny.gguf")
    first = real(*compress, "--json")
    assert first.exit_code == 0, first.output
    assert first.stderr == "converting tiny.gguf for its first use; this is done once and takes up to a minute\n"
    assert json.loads(first.stdout)["k"] == 4
    again = real(*compress)
    assert (again.exit_code, again.stderr) == (0, "")
    assert logging.getLogger("gistlm").handlers == [], "a program that runs commands keeps its own logging"


def test_an_unexpected_error_is_one_sentence_that_says_how_to_see_more(
    fake: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise KeyError("two\nlines")

    monkeypatch.setattr("gistlm.engines.base.load_engine", fail)
    line = error_line(fake("generate", "Hi"))
    assert "unexpected KeyError" in line and "GISTLM_DEBUG=1" in line


def test_debug_shows_the_traceback_too(process: Process) -> None:
    result = process("inspect", "missing.gist", GISTLM_DEBUG="1")
    assert result.returncode == 1
    assert "Traceback" in result.stderr and result.stderr.splitlines()[-1].startswith("error: ")


def test_output_that_the_terminal_cannot_show_does_not_stop_an_answer(process: Process) -> None:
    result = process("generate", "naïve", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (result.returncode, result.stdout) == (0, "answer 1 over no prompt: na?ve\n")


@pytest.mark.skipif(os.name != "posix", reason="needs a pipe that can be closed at the other end")
def test_a_reader_that_goes_away_ends_the_command_silently(gist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]))
    command = f"{sys.executable} -m gistlm chat --gist {gist}; echo $? >&2"
    script = f"(while true; do echo hello; done) 2>/dev/null | ({command}) | head -1"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert (result.stdout, result.stderr) == ("answer 1 over a gist of 4 tokens: hello\n", "141\n")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_ctrl_c_ends_with_130_and_no_traceback() -> None:
    code = (
        "import gistlm.cli.text as text, time\n"
        "from gistlm.cli import main\n"
        "def wait(source): print('waiting', flush=True); time.sleep(60)\n"
        "text._read = wait\n"
        "main()"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", code, "compress", "-", "-o", "x.gist"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert running.stdout is not None and running.stdout.readline() == "waiting\n"
    time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=30)
    assert (running.returncode, said) == (130, "interrupted\n")


def test_the_reference_page_is_what_the_commands_help_says() -> None:
    result = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], check=False)
    assert result.returncode == 0


@pytest.mark.parametrize("columns", ["40", "200"])
def test_the_reference_page_is_the_same_on_every_terminal(columns: str) -> None:
    environment = {**os.environ, "COLUMNS": columns, "TERMINAL_WIDTH": columns, "FORCE_COLOR": "1"}
    result = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], env=environment, check=False)
    assert result.returncode == 0


def test_a_stale_reference_page_fails_the_check(tmp_path: Path) -> None:
    script = tmp_path / "generate.py"
    script.write_text((ROOT / "docs" / "generate.py").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "cli.md").write_text("old")
    stale = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert stale.returncode == 1 and "stale" in stale.stderr
    assert subprocess.run([sys.executable, script], check=False).returncode == 0
    assert (tmp_path / "cli.md").read_text(encoding="utf-8") == (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def test_the_app_has_one_command_for_each_file() -> None:
    assert [command.name for command in app.registered_commands] == NAMES
