"""Training with compiled layers: the same losses, the same files, and a clear word where nothing can be compiled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_tiny
from torch._inductor import config as inductor

from gistlm.checkpoint import ADAPTER_WEIGHTS, Checkpoint
from gistlm.checkpoint_config import CheckpointOptions, Recipe
from gistlm.errors import InputError
from gistlm.training import start
from gistlm.training.config import parse_config
from gistlm.training.loop import train

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
FORMS: dict[str, dict[str, Any]] = {
    "frozen": {"kept": 3, "observers": 2, "observation_weight": 0.3, "lora_modules": "all"},
    "paper": {"recipe": "paper", "lora_rank": None},
}


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    made = [{"prompt": f"{i}: it is red", "input": "what?", "output": "red " * (1 + i % 4)} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(path)


def options(base: Path, rows: str, output: Path, **more: Any) -> dict[str, Any]:
    small = {"max_k": 4, "steps": 4, "batch_size": 4, "save_every": 100, "validation_rows": 4, "lora_rank": 2}
    return {"base": str(base), "data": [{"path": rows}], "output": str(output), "device": "cpu", **small, **more}


@needs_compiler
@pytest.mark.parametrize("form", FORMS)
def test_compiled_layers_train_to_the_same_losses_and_weights(form: str, rows: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = []
    for compiled in (False, True):
        output = tmp_path / f"{form}-{compiled}"
        train(parse_config(options(base, rows, output, compile=compiled, **FORMS[form])))
        weights = load_file(output / ADAPTER_WEIGHTS) if form == "frozen" else load_file(output / "model.safetensors")
        found.append((json.loads((output / "training.json").read_text())["losses"], weights))
    (losses, weights), (compiled_losses, compiled_weights) = found
    assert losses == pytest.approx(compiled_losses, rel=1e-4)
    assert weights.keys() == compiled_weights.keys()
    assert torch._dynamo.utils.counters["frames"]["ok"] > 1, "layers were compiled, not the trial alone"


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_every_part_of_a_layer_but_attention_is_compiled(name: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", name)
    checkpoint = Checkpoint.create(str(base), CheckpointOptions(Recipe.PAPER, max_k=2, lora_rank=2), device="cpu")
    start._compile_layers(checkpoint)
    compiled = {type(part).__name__ for part in checkpoint.reader.modules() if part._compiled_call_impl is not None}
    assert compiled == {
        "llama": {"LlamaMLP", "LlamaRMSNorm"},
        "gpt2": {"GPT2MLP", "LayerNorm"},
        "t5": {"T5LayerFF"},
    }[name]


def test_where_nothing_can_be_compiled_the_option_is_refused(
    rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(InputError, match=r"^compile: torch\.compile does not work here \(.*leave compile out$"):
        train(parse_config(options(save_tiny(tmp_path / "base"), rows, tmp_path / "out", compile=True)))
    torch._dynamo.reset()


def test_compiled_layers_are_refused_with_fsdp(monkeypatch: pytest.MonkeyPatch, rows: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    checkpoint = Checkpoint.create(str(base), CheckpointOptions(Recipe.PAPER, max_k=2, lora_rank=2), device="cpu")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="compile was not tried with FSDP"):
        start._compile_layers(checkpoint)
