"""The commands on an encoder-decoder checkpoint: the same words, and one sentence where something cannot be."""

import json
from pathlib import Path

import pytest
from cli.running import Run, error_line
from tiny import save_tiny_checkpoint

from gistlm.evaluation.results import read_results
from gistlm.gist import Gist


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("t5") / "checkpoint", "t5")


@pytest.fixture
def gist(real: Run, t5: Path, tmp_path: Path) -> Path:
    (tmp_path / "prompt.txt").write_text("Say everything twice, and mind the order of the words.")
    done = real("compress", tmp_path / "prompt.txt", "-o", tmp_path / "x.gist", "-k", "3", "--model", t5)
    assert done.exit_code == 0, done.stderr
    return tmp_path / "x.gist"


def test_a_prompt_is_compressed_inspected_and_answered_with(real: Run, t5: Path, gist: Path, tmp_path: Path) -> None:
    known = Gist.load(gist)
    assert known.k == 3 and known.states is not None
    shown = json.loads(real("inspect", gist, "--json").stdout)
    assert shown["kind"] == "encoder" and shown["nbytes"] == known.nbytes
    answer = real("generate", "--gist", gist, "--model", t5, "--max-new-tokens", "4", "--json", "hm")
    assert answer.exit_code == 0, answer.stderr
    assert json.loads(answer.stdout)["text"] is not None
    options = ["--compare", "--prompt-file", tmp_path / "prompt.txt", "--max-new-tokens", "4"]
    compared = real("generate", "--gist", gist, "--model", t5, *options, "hm")
    assert compared.exit_code == 0, compared.stderr
    assert "full prompt" in compared.stdout


def test_a_conversation_ends_after_one_message(real: Run, t5: Path, gist: Path) -> None:
    done = real("chat", "--gist", gist, "--model", t5, "--max-new-tokens", "3", stdin="hello\nagain\n")
    assert done.exit_code == 1
    assert "an encoder-decoder model answers one message" in done.stderr and "Traceback" not in done.stderr


def test_a_gist_of_a_decoder_is_refused_in_one_sentence(real: Run, t5: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Be brief.")
    other = tmp_path / "other.gist"
    assert real("compress", tmp_path / "prompt.txt", "-o", other, "-k", "2", "--model", checkpoint).exit_code == 0
    assert "compress the prompt again" in error_line(real("generate", "--gist", other, "--model", t5, "hm"))


def test_eval_measures_gists_and_the_baselines_that_an_encoder_can_have(real: Run, t5: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = [{"instruction": f"Say the number {n} in words.", "input": f"{n}", "output": "It is so."} for n in range(4)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "x.json"
    names = "truncation,tfidf,pooled,last,untrained"
    options = ["--k", "1,2", "--new-tokens", "3", "--baselines", names, "--json", out]
    done = real("eval", "--data", rows, "--model", t5, *options)
    assert done.exit_code == 0, done.stderr
    found = read_results(out)
    assert set(found["skipped"]) == {"pooled", "last"}
    made = {(condition["name"], condition["k"]): condition for condition in found["conditions"]}
    assert {("gist", 1), ("gist", 2), ("truncation", 2), ("tfidf", 2), ("untrained", 2)} <= set(made)
    assert made["full", None]["metrics"]["kl"]["value"] == 0
    assert made["gist", 2]["kv_bytes"] == made["truncation", 2]["kv_bytes"] == 2 * found["model"]["kv_bytes_per_token"]
