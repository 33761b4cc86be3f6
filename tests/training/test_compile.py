"""Training with compiled layers: the same losses, the same files, and a clear word where nothing can be compiled."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_tiny
from torch._inductor import config as inductor

from gistlm.errors import InputError
from gistlm.models.checkpoint import ADAPTER_WEIGHTS, Checkpoint, CheckpointOptions
from gistlm.models.config import Recipe
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
    base = save_tiny(tmp_path / "base", num_hidden_layers=1 if form == "frozen" else 2)  # each is compiled anew
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
    for name, tensor in weights.items():
        torch.testing.assert_close(compiled_weights[name], tensor, rtol=1e-2, atol=1e-4)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 1, "layers were compiled, not the trial alone"


@needs_compiler
def test_a_run_that_was_not_compiled_may_go_on_compiled(rows: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", num_hidden_layers=1)
    whole, halved = (options(base, rows, tmp_path / name, **FORMS["frozen"]) for name in ("whole", "halved"))
    train(parse_config(whole))
    train(parse_config(halved | {"stop_after": 2}))
    train(parse_config(halved | {"compile": True}))
    losses = [json.loads((tmp_path / name / "training.json").read_text())["losses"] for name in ("whole", "halved")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


PARTS = {
    "llama": {"LlamaMLP": 1, "LlamaRMSNorm": 2},
    "gpt2": {"GPT2MLP": 1, "LayerNorm": 2},
    "t5": {"T5LayerFF": 1},
}
"""What is compiled of each layer."""


@needs_compiler
@pytest.mark.parametrize("recipe", Recipe)
@pytest.mark.parametrize("name", PARTS)
def test_every_part_of_every_layer_beside_attention_is_compiled(name: str, recipe: Recipe, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", name)
    checkpoint = Checkpoint.create(str(base), CheckpointOptions(recipe, max_k=2, lora_rank=2), device="cpu")
    start._compile_layers(checkpoint)
    for model in (checkpoint.reader, checkpoint.writer):
        kinds = [type(part).__name__ for part in model.modules()]
        layers = sum(kinds.count(layer) for layer in checkpoint.reader._no_split_modules)
        compiled = [type(part).__name__ for part in model.modules() if part._compiled_call_impl is not None]
        assert layers > 1
        assert Counter(compiled) == {kind: count * layers for kind, count in PARTS[name].items()}


@needs_compiler
def test_a_model_that_names_no_layers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_tiny(tmp_path / "base")
    checkpoint = Checkpoint.create(str(base), CheckpointOptions(Recipe.PAPER, max_k=2, lora_rank=2), device="cpu")
    monkeypatch.setattr(checkpoint.reader, "_no_split_modules", set())
    with pytest.raises(InputError, match=r"^compile: \w+ does not say which of its modules are layers"):
        start._compile_layers(checkpoint)


@contextmanager
def another_compiler(path: str) -> Iterator[None]:
    """Meanwhile this one is asked, and nothing that was compiled before is found again."""
    torch._dynamo.reset()
    with inductor.patch({"force_disable_caches": True, "cpp.cxx": (path,)}):
        yield
    torch._dynamo.reset()


def test_where_nothing_can_be_compiled_the_option_is_refused(rows: str, tmp_path: Path) -> None:
    made = options(save_tiny(tmp_path / "base"), rows, tmp_path / "out", compile=True)
    refused = r"^compile: torch\.compile does not work here \(InductorError: InvalidCxxCompiler: .*leave compile out$"
    with another_compiler("no-such-compiler"), pytest.raises(InputError, match=refused):
        train(parse_config(made))


@needs_compiler
def test_a_compiler_that_fails_is_told(rows: str, tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exec g++ --version\necho "no room left" >&2\nexit 1\n')
    compiler.chmod(0o755)
    made = options(save_tiny(tmp_path / "base"), rows, tmp_path / "out", compile=True)
    refused = r"^compile: torch\.compile does not work here \(InductorError: .*leave compile out$"
    with another_compiler(str(compiler)), pytest.raises(InputError, match=refused):
        train(parse_config(made))


def test_compiled_layers_are_refused_with_fsdp(monkeypatch: pytest.MonkeyPatch, rows: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    checkpoint = Checkpoint.create(str(base), CheckpointOptions(Recipe.PAPER, max_k=2, lora_rank=2), device="cpu")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="compile was not tried with FSDP"):
        start._compile_layers(checkpoint)
