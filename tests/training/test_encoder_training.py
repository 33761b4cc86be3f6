"""Both recipes and the controls on a tiny encoder-decoder model: losses fall, results load, the base is as before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_tiny, tiny_checkpoint

from gistlm import GistModel
from gistlm.data.rows import Row
from gistlm.gisting.placement import Placement
from gistlm.training.batches import Collator, tokenize
from gistlm.training.config import TrainConfig
from gistlm.training.loop import train

COLOURS = ("red", "blue", "green", "black")
RECIPES: dict[str, dict[str, Any]] = {
    "frozen": {"recipe": "frozen", "lora_rank": 4, "learning_rate": 1e-2, "gist_learning_rate": 3e-2},
    "frozen in every layer": {"recipe": "frozen", "lora_rank": 4, "learning_rate": 1e-2, "lora_modules": "all"},
    "paper with a LoRA": {"recipe": "paper", "lora_rank": 4, "lora_modules": "all", "learning_rate": 3e-2},
    "paper with every weight": {"recipe": "paper", "lora_rank": None, "learning_rate": 3e-3},
    "positive control": {
        "recipe": "paper",
        "lora_rank": 4,
        "lora_modules": "all",
        "condition": "positive",
        "learning_rate": 3e-2,
    },
    "negative control": {
        "recipe": "paper",
        "lora_rank": 4,
        "lora_modules": "all",
        "condition": "negative",
        "learning_rate": 3e-2,
    },
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("encoder") / "base", "t5"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prompts that name a colour, inputs that ask for it."""
    path = tmp_path_factory.mktemp("encoder") / "rows.jsonl"
    made = [
        {"prompt": f"{i}: it is {COLOURS[i % 4]}", "input": f"what {i % 3}?", "output": COLOURS[i % 4]}
        for i in range(32)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(path)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_and_its_checkpoint_loads_and_generates(
    name: str, base: str, rows: str, tmp_path: Path
) -> None:
    small = {"max_k": 4, "steps": 30, "batch_size": 4, "save_every": 100, "validation_rows": 4, "device": "cpu"}
    asked = {"base": base, "data": [{"path": rows}], "output": str(tmp_path / "out"), **small, **RECIPES[name]}
    before = load_file(Path(base) / "model.safetensors")

    output = train(TrainConfig.parse(asked))

    made = json.loads((output / "training.json").read_text())
    losses = made["losses"]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    assert set(made["validation"][0]) >= {"full", "none", "k=1", "k=4"}
    assert all(torch.equal(tensor, before[key]) for key, tensor in load_file(Path(base) / "model.safetensors").items())
    model = GistModel.from_pretrained(output, device="cpu")
    gists = [model.compress("1: it is blue", k=4), None, model.compress("2: it is green", k=1)]
    answers = model.generate(["what 1?", "what 2?", "what 3?"], gists, max_new_tokens=4)
    assert len(answers) == 3 and all(isinstance(answer, str) for answer in answers)
    if made["config"]["recipe"] == "frozen":
        names = load_file(output / "adapter_model.safetensors")
        assert names and all(".encoder." in key for key in names)
        assert made["base_unchanged"] is True


def test_every_k_is_drawn_where_gists_are_not_nested() -> None:
    prompts = tiny_checkpoint("t5").prompts
    items = [{"example": tokenize(Row("x", "y", "z"), prompts), "draw": draw} for draw in range(200)]
    assert set(Collator(Placement("relative", 0, 7), None, 0, nested=False)(items)["k"].tolist()) == {
        1,
        2,
        3,
        4,
        5,
        6,
        7,
    }
    assert set(Collator(Placement("relative", 0, 7), None, 0)(items)["k"].tolist()) == {1, 2, 4, 7}
    assert set(Collator(Placement("relative", 0, 7), [3], 0, nested=False)(items)["k"].tolist()) == {3}
    assert Collator(Placement("relative", 0, 256), None, 0).choices == [1, 2, 4, 8, 16, 32, 64, 128, 256]


def test_a_loss_on_full_prompts_can_be_added(base: str, rows: str, tmp_path: Path) -> None:
    small = {
        "max_k": 2,
        "steps": 1,
        "batch_size": 4,
        "validation_rows": 0,
        "device": "cpu",
        **RECIPES["paper with a LoRA"],
    }

    def first_loss(name: str, **more: Any) -> float:
        asked = {"base": base, "data": [{"path": rows}], "output": str(tmp_path / name), **small, **more}
        return float(json.loads((train(TrainConfig.parse(asked)) / "training.json").read_text())["losses"][0])

    both = first_loss("both", full_prompt_weight=0.5)
    assert both == pytest.approx(first_loss("gist") + 0.5 * first_loss("full", condition="positive"), abs=2e-3)
