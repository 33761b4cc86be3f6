"""`gistlm generate`: what stands before the input, where output goes, and the comparison."""

import io
import json
from pathlib import Path

import pytest
from cli.running import Run, Terminal, error_line
from fake_engine import FAKE

from gistlm.cli.generate import generate
from gistlm.cli.text import read_input


def test_the_answer_is_made_over_the_gist(fake: Run, gist: Path) -> None:
    result = fake("generate", "--gist", gist, "Where is it?")
    assert (result.exit_code, result.stdout) == (0, "answer 1 over a gist of 4 tokens: Where is it?\n")
    assert result.stderr == ""


def test_a_prompt_file_without_a_gist_is_read_in_full(fake: Run, prompt: Path) -> None:
    assert fake("generate", "-p", prompt, "Hi").stdout == "answer 1 over a prompt of 16 tokens: Hi\n"


def test_without_gist_and_prompt_file_there_is_no_prompt(fake: Run) -> None:
    assert fake("generate", "Hi").stdout == "answer 1 over no prompt: Hi\n"


def test_a_dash_reads_the_input_from_stdin(fake: Run) -> None:
    report = json.loads(fake("generate", "--json", "-", stdin="one\ntwo\n").stdout)
    assert report["text"] == "answer 1 over no prompt: one\ntwo"


@pytest.mark.parametrize(("piped", "read"), [(b"a\nb\n", "a\nb"), (b"a\r\n", "a"), (b"a\n\n", "a\n"), (b" a", " a")])
def test_only_the_last_newline_of_stdin_is_left_out(monkeypatch: pytest.MonkeyPatch, piped: bytes, read: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(piped)))
    assert read_input("-") == read


def test_the_answer_appears_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    generate("Hi", engine=FAKE)
    assert terminal.flushed[:2] == ["answer", "answer 1"]


def test_the_model_is_loaded_in_the_gists_dtype_unless_told_otherwise(fake: Run, prompt: Path) -> None:
    fake("compress", prompt, "-o", "half.gist", "--dtype", "float16")
    assert fake("generate", "--gist", "half.gist", "Hi").exit_code == 0
    result = fake("generate", "--gist", "half.gist", "--dtype", "float32", "Hi")
    assert "this gist is float16, the model is float32" in error_line(result)


def test_json_tells_what_the_answer_took(fake: Run, gist: Path) -> None:
    result = fake("generate", "--gist", gist, "--json", "Where is it?")
    report = json.loads(result.stdout)
    assert report.pop("seconds") >= 0
    assert report == {
        "condition": "gist",
        "gist": json.loads(fake("inspect", gist, "--json").stdout)["id"],
        "text": "answer 1 over a gist of 4 tokens: Where is it?",
        "finish_reason": "stop",
        "fresh_tokens": 3,
        "cached_tokens": 4,
        "new_tokens": 12,
    }


@pytest.mark.parametrize(("given", "condition"), [(["-p", "prompt.txt"], "full prompt"), ([], "none")])
def test_json_says_what_stood_before_the_input(fake: Run, prompt: Path, given: list[str], condition: str) -> None:
    report = json.loads(fake("generate", *given, "--json", "Hi").stdout)
    assert (report["condition"], report["gist"]) == (condition, None)


def test_the_answer_ends_after_max_new_tokens(fake: Run) -> None:
    assert fake("generate", "-n", "3", "Hi").stdout == "answer 1 over\n"
    assert json.loads(fake("generate", "-n", "3", "--json", "Hi").stdout)["finish_reason"] == "length"


def test_the_answer_ends_at_the_first_of_several_stop_strings(fake: Run) -> None:
    assert fake("generate", "--stop", "tomorrow", "--stop", "er no", "Hi").stdout == "answer 1 ov\n"


def test_a_seed_makes_sampling_repeatable(fake: Run) -> None:
    sample = ["generate", "-t", "0.8", "Hi", "--seed"]
    assert fake(*sample, "1").stdout == fake(*sample, "1").stdout != fake(*sample, "2").stdout


def test_compare_shows_both_answers_with_what_they_took(fake: Run, gist: Path, prompt: Path) -> None:
    result = fake("generate", "--gist", gist, "-p", prompt, "--compare", "Why?")
    text = " ".join(result.stdout.split())
    assert result.exit_code == 0, result.stderr
    assert "full prompt gist" in text
    assert "prompt's tokens 16 4" in text
    assert "prompt's KV cache 1.0 KiB 256 bytes" in text
    assert "tokens encoded 17 1" in text
    assert "time to first token" in text and "total time" in text
    assert "16 tokens" in text and "gist of 4" in text


def test_compare_as_json_has_one_entry_for_each_side(fake: Run, gist: Path, prompt: Path) -> None:
    report = json.loads(fake("generate", "-g", gist, "-p", prompt, "--compare", "--json", "Why?").stdout)
    assert {name: (side["condition"], side["prompt_tokens"], side["kv_nbytes"]) for name, side in report.items()} == {
        "gist": ("gist", 4, 256),
        "full": ("full prompt", 16, 1024),
    }
    assert all(side["first_token_seconds"] >= 0 and side["seconds"] >= 0 for side in report.values())


def test_compare_refuses_a_prompt_that_the_gist_was_not_made_of(fake: Run, gist: Path) -> None:
    Path("other.txt").write_text("Another prompt.")
    line = error_line(fake("generate", "-g", gist, "-p", "other.txt", "--compare", "Why?"))
    assert "made of another prompt (16 tokens) than the one given (2 tokens)" in line


def test_compare_names_another_model_before_another_prompt(fake: Run, gist: Path) -> None:
    Path("other.txt").write_text("Another prompt.")
    line = error_line(fake("generate", "-g", gist, "-p", "other.txt", "--compare", "--model", "other", "Why?"))
    assert "made for smollm2-135m" in line and "not for other" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["--gist", "prompt.gist", "--prompt-file", "prompt.txt", "Hi"],
        ["--gist", "prompt.gist", "--compare", "Hi"],
        ["--prompt-file", "prompt.txt", "--compare", "Hi"],
        ["--prompt-file", "-", "-"],
        ["--gist", "prompt.gist"],
        ["--no-such-option", "Hi"],
    ],
)
def test_options_that_contradict_each_other_are_wrong_usage(fake: Run, gist: Path, arguments: list[str]) -> None:
    result = fake("generate", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage: gistlm generate" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gist", "missing.gist", "Hi"], "there is no gist at missing.gist"),
        (["--gist", "prompt.txt", "Hi"], "prompt.txt is not a gist"),
        (["--prompt-file", "missing.txt", "Hi"], "there is no file missing.txt"),
        (["-n", "0", "Hi"], "max_new_tokens must be greater than 0, got 0"),
        (["-t", "-1", "Hi"], "temperature must be greater than or equal to 0, got -1.0"),
        (["--top-p", "0", "Hi"], "top_p must be greater than 0, got 0.0"),
        (["--top-k", "-1", "Hi"], "top_k must be greater than or equal to 0, got -1"),
        (["--stop", "", "Hi"], "a stop string must be a text that is not empty"),
        (["--seed", "-1", "Hi"], "seed must be greater than or equal to 0"),
        (["--gist", "prompt.gist", "--model", "other", "Hi"], "not for other"),
        (["--gist", "prompt.gist", "--dtype", "bfloat16", "Hi"], "this gist is float32, the model is"),
        (["-n", "5000", "Hi"], "this model has room for 4,096"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_bad_input_is_one_sentence(fake: Run, gist: Path, more: list[str], arguments: list[str], said: str) -> None:
    assert said in error_line(fake("generate", *arguments, *more))


def test_a_damaged_gist_is_one_sentence(fake: Run, gist: Path) -> None:
    data = bytearray(gist.read_bytes())
    data[-1] ^= 1
    gist.write_bytes(data)
    assert "its content does not match its hash" in error_line(fake("generate", "--gist", gist, "Hi"))


def test_input_in_wrong_utf8_is_one_sentence(fake: Run) -> None:
    assert "stdin is not valid UTF-8" in error_line(fake("generate", "-", stdin=b"caf\xe9"))
    assert "the input is not valid UTF-8" in error_line(fake("generate", "caf\udce9"))
