"""Inputs that begin with a dash, and options that are mistyped."""

import json
from pathlib import Path

import pytest
from cli.running import Run


@pytest.mark.parametrize(
    "text", ["-5 + 3 = ?", "-5", "-3.5", "- a list\n- of things", "-p is what?", "--stop that, please", "-\tx"]
)
def test_a_word_of_a_dash_and_a_digit_or_with_white_space_is_the_input(fake: Run, text: str) -> None:
    for arguments in ([text], [text, "--seed", "3"], ["--seed", "3", text]):
        result = fake("generate", *arguments, "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["text"].endswith(text.strip())


def test_an_options_value_stays_its_value(fake: Run) -> None:
    said = fake("generate", "-t", "-1", "Hi").stderr
    assert "temperature must be greater than or equal to 0, got -1.0" in said
    assert fake("generate", "--stop", "- x", "--stop=-7 z", "Hi").stdout == "answer 1 over no prompt: Hi\n"
    assert fake("generate", "--stop", "1 over", "Hi").stdout == "answer \n"


def test_a_file_whose_name_begins_with_a_dash_and_a_digit_is_compressed(fake: Run, prompt: Path) -> None:
    prompt.rename(prompt.with_name("-1.txt"))
    assert fake("compress", "-1.txt", "-o", "-1.gist").exit_code == 0
    assert Path("-1.gist").exists()


@pytest.mark.parametrize("word", ["-x", "--no-such-option", "-hello", "--", "-"])
def test_what_stands_behind_two_dashes_is_never_an_option(fake: Run, word: str) -> None:
    result = fake("generate", "--json", "--", word, stdin="from stdin")
    text = json.loads(result.stdout)["text"]
    assert text.endswith("from stdin" if word == "-" else word)


@pytest.mark.parametrize("word", ["-x", "--no-such-option", "--temprature", "-hello"])
def test_a_mistyped_option_is_wrong_usage_and_names_the_two_dashes(fake: Run, word: str) -> None:
    result = fake("generate", word, "Hi")
    assert (result.exit_code, result.stdout) == (2, "")
    said = " ".join(result.stderr.replace("│", " ").split())
    assert "No such option" in said
    assert "an input that begins with a dash goes behind two dashes: gistlm generate [OPTIONS] -- INPUT" in said


def test_a_command_without_an_input_does_not_speak_of_one(fake: Run) -> None:
    result = fake("models", "--no-such-option")
    assert result.exit_code == 2 and "two dashes" not in result.stderr


def test_two_inputs_are_wrong_usage(fake: Run) -> None:
    assert fake("generate", "-5 + 3", "Hi").exit_code == 2


@pytest.mark.parametrize(
    "arguments", [["-p", "my p.txt", "Hi"], ["-pmy p.txt", "Hi"], ["--prompt-file=my p.txt", "Hi"]]
)
def test_a_value_with_white_space_may_be_attached_to_its_option(fake: Run, prompt: Path, arguments: list[str]) -> None:
    prompt.rename(prompt.with_name("my p.txt"))
    assert fake("generate", *arguments).stdout == "answer 1 over a prompt of 16 tokens: Hi\n"


def test_two_dashes_may_be_an_options_value(fake: Run) -> None:
    result = fake("generate", "--stop", "--", "-5", "--json")
    assert json.loads(result.stdout)["text"].endswith(": -5")
