"""The made-up task of rules: what the prompts say is what the outputs do, and test rules are in no training row."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

from gistlm.engines.transformers import GistModel
from gistlm.models.checkpoint import Checkpoint, CheckpointOptions
from gistlm.models.config import Recipe
from gistlm.models.loading import load_base
from gistlm.prompt import PromptTokenizer, default_format
from gistlm.training.config import read_config

RECIPES = Path(__file__).parents[1] / "recipes"


def recipe(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rules() -> ModuleType:
    return recipe("rules")


def obey(prompt: str, text: str) -> str:
    """The output, read from the prompt's words alone."""
    said, words = [rule.split() for rule in prompt.split(" ; ")], text.split()
    changes = {rule[1]: rule[3] for rule in said if rule[0] == "change"}
    words = [changes.get(word, word) for word in words]
    if ["drop", "the", "first", "word"] in said:
        words.pop(0)
    if ["say", "it", "backwards"] in said:
        words.reverse()
    for rule in said:
        if rule[0] == "put":
            words.insert(0 if rule[2] == "first" else len(words), rule[1])
    return " ".join(words)


def test_outputs_follow_the_prompts_rules(rules: ModuleType) -> None:
    numbers = random.Random(0)
    for count in range(1, rules.MOST_RULES + 1):
        for held_out in (False, True):
            for _ in range(50):
                row = rules.make_row(count, held_out, numbers)
                assert len(row["prompt"].split(" ; ")) == count
                assert obey(row["prompt"], row["input"]) == row["output"]
                assert row["output"] != row["input"] or count > 1


def test_a_test_prompt_has_a_rule_that_no_training_prompt_has(rules: ModuleType) -> None:
    numbers = random.Random(1)
    trained, tested = (
        [set(rules.make_row(count, held_out, numbers)["prompt"].split(" ; ")) for count in (1, 4, 8) * 200]
        for held_out in (False, True)
    )
    known = set().union(*trained)
    assert all(prompt - known for prompt in tested)
    assert len(set().union(*tested) - known) > 20


def test_the_base_loads_and_knows_every_word_of_the_task(rules: ModuleType, tmp_path: Path) -> None:
    rules.save_base(tmp_path / "base", seed=0)
    base = load_base(str(tmp_path / "base"), "cpu", None)
    prompts, numbers = PromptTokenizer(base.tokenizer, default_format(base.tokenizer, encodes=True)), random.Random(2)
    for _ in range(50):
        row = rules.make_row(8, False, numbers)
        ids = prompts.prompt_ids(row["prompt"]) + prompts.rest_ids(row["input"]) + prompts.output_ids(row["output"])
        assert base.tokenizer.unk_token_id not in ids
        assert prompts.decode(prompts.output_ids(row["output"])) == row["output"]


def test_the_recipes_follow_one_another(rules: ModuleType) -> None:
    first, whole = (read_config(RECIPES / name) for name in ("t5-rules-first.yaml", "t5-rules.yaml"))
    assert (first.condition, whole.base) == ("positive", first.output)
    assert whole.full_prompt_weight > 0 and whole.max_k == rules.MOST_RULES


def test_the_measure_counts_exact_answers_by_rules_and_k_and_draws_them(
    rules: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    measure = recipe("rules_measure")
    rules.save_base(tmp_path / "base", seed=0)
    made = Checkpoint.create(
        str(tmp_path / "base"), CheckpointOptions(Recipe.PAPER, max_k=2, lora_rank=None), device="cpu"
    )
    made.save_pretrained(tmp_path / "model")
    for count in (1, 8):
        rows = [rules.make_row(count, True, random.Random(seed)) for seed in range(3)]
        rules.save_rows(tmp_path / f"test-{count}.jsonl", rows)

    def obedient(self: GistModel, inputs: list[str], *, prompts: list[str] | None = None, **_: object) -> list[str]:
        """Follows a full prompt, and ignores gists."""
        return list(map(obey, prompts, inputs)) if prompts else inputs

    monkeypatch.setattr(GistModel, "generate", obedient)
    out = tmp_path / "out" / "rules.json"
    given = ["--model", str(tmp_path / "model"), "--data", str(tmp_path), "--out", str(out), "--limit", "2"]
    monkeypatch.setattr(sys, "argv", ["rules_measure.py", *given])
    measure.main()
    found = json.loads(out.read_text())["by_rules"]
    assert list(found) == ["1", "8"] and found["1"]["rows"] == 2
    assert found["8"]["full"] == 1.0 and found["8"]["none"] == 0.0
    assert found["8"]["gist"] == found["8"]["gap_closed"] == {"1": 0.0, "2": 0.0}
    assert out.with_suffix(".png").stat().st_size > 1000
