"""`gistlm compress`: what it writes, what it prints, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
from cli.running import PROMPT, Run, error_line

from gistlm.gist import Gist


def test_the_gist_file_holds_k_tokens_of_the_prompt(fake: Run, prompt: Path) -> None:
    result = fake("compress", prompt, "-o", "x.gist", "-k", "3")
    assert result.exit_code == 0, result.output
    gist = Gist.load("x.gist")
    assert (gist.k, gist.provenance.prompt_tokens) == (3, 16)


def test_it_prints_tokens_bytes_ratio_and_time(fake: Run, prompt: Path) -> None:
    text = " ".join(fake("compress", prompt, "-o", "x.gist", "-k", "4").stdout.split())
    assert "tokens 16 4 4x fewer" in text
    assert "KV cache 1.0 KiB 256 bytes float32" in text
    assert "x.gist written; compressing took" in text


def test_json_is_all_that_is_on_stdout(fake: Run, prompt: Path) -> None:
    report = json.loads(fake("compress", prompt, "-o", "x.gist", "--json").stdout)
    assert report["path"] == "x.gist" and report["seconds"] >= 0
    assert (report["prompt_tokens"], report["k"], report["compression"]) == (16, 4, 4.0)
    assert (report["prompt_nbytes"], report["nbytes"]) == (1024, 256)
    assert report["id"] == Gist.load("x.gist").id


def test_a_prompt_from_stdin_gives_the_same_gist_as_one_from_a_file(fake: Run, prompt: Path) -> None:
    fake("compress", prompt, "-o", "file.gist")
    assert fake("compress", "-", "-o", "stdin.gist", stdin=PROMPT).exit_code == 0
    assert Gist.load("stdin.gist").id == Gist.load("file.gist").id


def test_a_byte_order_mark_is_no_part_of_the_prompt(fake: Run, prompt: Path) -> None:
    fake("compress", prompt, "-o", "plain.gist")
    fake("compress", "-", "-o", "marked.gist", stdin=b"\xef\xbb\xbf" + PROMPT.encode())
    assert Gist.load("marked.gist").id == Gist.load("plain.gist").id


def test_an_older_gist_is_replaced_and_nothing_else_is_left(fake: Run, prompt: Path, gist: Path) -> None:
    assert fake("compress", prompt, "-o", gist, "-k", "2").exit_code == 0
    assert Gist.load(gist).k == 2
    assert sorted(path.name for path in gist.parent.iterdir()) == ["prompt.gist", "prompt.txt"]


def test_a_failure_leaves_the_older_gist_as_it_was(fake: Run, prompt: Path, gist: Path) -> None:
    before = gist.read_bytes()
    error_line(fake("compress", prompt, "-o", gist, "-k", "1000"))
    assert gist.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        (b"", [], "prompt.txt is empty"),
        (b" \n\t\n", [], "prompt.txt is empty"),
        (b"caf\xe9", [], "prompt.txt is not valid UTF-8 (byte 3)"),
        (b"text", ["-k", "0"], "the number of gist tokens, 1 or more; got 0"),
        (b"text", ["-k", "-2"], "the number of gist tokens, 1 or more; got -2"),
        (b"text", ["-k", "17"], "from 1 to 16 for this checkpoint; got 17"),
        (b"text", ["--dtype", "int8"], "dtype must be one of float32, bfloat16, float16"),
        (b"word " * 5000, [], "the prompt has 5,000 tokens, but this model has room for 4,091"),
    ],
)
def test_a_bad_prompt_or_option_is_one_sentence(
    fake: Run, prompt: Path, content: bytes, arguments: list[str], said: str
) -> None:
    prompt.write_bytes(content)
    assert said in error_line(fake("compress", "prompt.txt", "-o", "x.gist", *arguments))
    assert not Path("x.gist").exists()


def test_a_missing_prompt_file_is_one_sentence(fake: Run) -> None:
    assert "there is no file missing.txt" in error_line(fake("compress", "missing.txt", "-o", "x.gist"))


def test_a_folder_as_prompt_or_as_output_is_one_sentence(fake: Run, prompt: Path) -> None:
    assert "cannot read ." in error_line(fake("compress", ".", "-o", "x.gist"))
    assert "cannot write to .: it is a folder" in error_line(fake("compress", prompt, "-o", "."))


def test_an_output_that_cannot_be_written_is_one_sentence(fake: Run, prompt: Path) -> None:
    assert "cannot write to prompt.txt/x.gist: " in error_line(fake("compress", prompt, "-o", "prompt.txt/x.gist"))


def test_a_prompt_is_not_overwritten_by_its_gist(fake: Run, prompt: Path) -> None:
    before = prompt.read_bytes()
    Path("link.txt").symlink_to(prompt)
    for output in ("prompt.txt", "./prompt.txt", "link.txt"):
        assert "written over what it is made from" in error_line(fake("compress", "prompt.txt", "-o", output))
    assert prompt.read_bytes() == before


def test_an_empty_stdin_is_one_sentence(fake: Run) -> None:
    assert "from stdin is empty" in error_line(fake("compress", "-", "-o", "x.gist", stdin=""))


@pytest.mark.parametrize("model", ["./no/such/folder", "nowhere/no-such-model", "no-such-model"])
def test_an_unknown_model_is_one_sentence(real: Run, prompt: Path, model: str) -> None:
    line = error_line(real("compress", prompt, "-o", "x.gist", "--model", model))
    assert model in line and ("no checkpoint" in line or "cannot get" in line)


def test_a_prompt_longer_than_a_models_context_is_one_sentence(real: Run, checkpoint: Path) -> None:
    result = real("compress", "-", "-o", "x.gist", "--model", checkpoint, stdin="word " * 600)
    assert "but this model has room for 507; shorten it" in error_line(result)


def test_more_gist_tokens_than_a_checkpoint_has_are_one_sentence(real: Run, checkpoint: Path) -> None:
    result = real("compress", "-", "-o", "x.gist", "-k", "17", "--model", checkpoint, stdin="text")
    assert "from 1 to 16 for this checkpoint; got 17" in error_line(result)


def test_it_says_when_a_short_prompt_is_kept_alone(real: Run, checkpoint: Path, tmp_path: Path) -> None:
    keeping = shutil.copytree(checkpoint, tmp_path / "keeping")
    record = json.loads((keeping / "gistlm.json").read_text())
    (keeping / "gistlm.json").write_text(json.dumps({**record, "kept": 60, "k": None}))
    (tmp_path / "short.txt").write_text("Be kind.")
    printed = real("compress", tmp_path / "short.txt", "-o", "short.gist", "-k", "30", "--model", keeping)
    assert printed.exit_code == 0, printed.output
    assert "nearly all of the prompt's own tokens, and none is learned" in printed.output
    assert Gist.load("short.gist").learned == 0
    (tmp_path / "long.txt").write_text("Be kind. " * 20)
    printed = real("compress", tmp_path / "long.txt", "-o", "l.gist", "-k", "30", "-m", keeping)
    assert printed.exit_code == 0 and "none is learned" not in printed.output


def test_an_unknown_engine_is_one_sentence(fake: Run, prompt: Path) -> None:
    line = error_line(fake("compress", prompt, "-o", "x.gist", "--engine", "steam"))
    assert "there is no engine 'steam'" in line
