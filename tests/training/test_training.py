"""Both recipes and the controls on a tiny model: losses fall, a killed run resumes to the same losses, results load."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_tiny, tiny_model
from transformers import TrainerCallback

from gistlm import GistModel
from gistlm.errors import DataError, InputError, ModelError
from gistlm.models.checkpoint import ADAPTER
from gistlm.models.config import CONFIG, EMBEDDINGS
from gistlm.models.loading import load_base
from gistlm.training.config import TrainConfig, read_config
from gistlm.training.loop import train

COLOURS = ("red", "blue", "green", "black")
RECIPES: dict[str, dict[str, Any]] = {
    "frozen": {"recipe": "frozen", "lora_rank": 4, "learning_rate": 1e-2, "gist_learning_rate": 3e-2},
    "paper with a LoRA": {"recipe": "paper", "lora_rank": 4, "learning_rate": 1e-2},
    "paper with every weight": {"recipe": "paper", "lora_rank": None, "learning_rate": 3e-3},
    "positive control": {"recipe": "paper", "lora_rank": 4, "condition": "positive", "learning_rate": 1e-2},
    "negative control": {"recipe": "paper", "lora_rank": 4, "condition": "negative", "learning_rate": 1e-2},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("training") / "base", "llama"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prompts that name a colour, inputs that ask for it."""
    path = tmp_path_factory.mktemp("training") / "rows.jsonl"
    made = [
        {"prompt": f"{i}: it is {COLOURS[i % 4]}", "input": f"what {i % 3}?", "output": COLOURS[i % 4]}
        for i in range(32)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(path)


def options(base: str, rows: str, output: Path, **more: Any) -> dict[str, Any]:
    small = {"max_k": 4, "steps": 30, "batch_size": 4, "save_every": 100, "validation_rows": 4, "device": "cpu"}
    return {"base": base, "data": [{"path": rows}], "output": str(output), **small, **more}


def figures(output: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((output / "training.json").read_text())
    return made


def logged(output: Path) -> list[float]:
    """The losses in Trainer's own history of the newest save."""
    saves = sorted((output / "run").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    state = json.loads((saves[-1] / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_and_its_checkpoint_loads_and_generates(
    name: str, base: str, rows: str, tmp_path: Path
) -> None:
    output = train(TrainConfig.parse(options(base, rows, tmp_path / "out", **RECIPES[name])))

    losses = figures(output)["losses"]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    model = GistModel.from_pretrained(output, device="cpu")
    assert model.max_k == 4
    assert model.checkpoint.config.recipe == RECIPES[name]["recipe"]
    gists = model.compress(["1: it is blue", "2: it is green"], k=4)
    mixed = [gists[0], None, gists[1].shorten(1)]
    answers = model.generate(["what 1?", "what 2?", "what 3?"], mixed, max_new_tokens=4)
    assert len(answers) == 3 and all(isinstance(answer, str) for answer in answers)
    assert model.generate("what 1?", prompts="1: it is blue", max_new_tokens=4) is not None


def test_a_frozen_checkpoint_holds_adapter_and_embeddings_but_no_base(base: str, rows: str, tmp_path: Path) -> None:
    output = train(TrainConfig.parse(options(base, rows, tmp_path / "out", **RECIPES["frozen"], steps=2)))
    assert {CONFIG, EMBEDDINGS, ADAPTER, "adapter_model.safetensors"} <= {path.name for path in output.iterdir()}
    assert not (output / "model.safetensors").exists()
    assert all("lora_" in name for name in load_file(output / "adapter_model.safetensors"))
    assert figures(output)["base_unchanged"] is True


def test_a_trained_paper_checkpoint_reads_with_the_weights_it_was_trained_with(
    base: str, rows: str, tmp_path: Path
) -> None:
    with_lora, whole = tmp_path / "lora", tmp_path / "whole"
    train(TrainConfig.parse(options(base, rows, with_lora, **RECIPES["paper with a LoRA"], steps=3)))
    train(TrainConfig.parse(options(base, rows, whole, **RECIPES["paper with every weight"], steps=3)))
    stock = tiny_model("llama").state_dict()
    for output in (with_lora, whole):
        weights = GistModel.from_pretrained(output, device="cpu").checkpoint.reader.state_dict()
        assert weights.keys() == stock.keys()
        assert any(not torch.equal(weights[name], stock[name]) for name in stock)
    assert json.loads((whole / CONFIG).read_text())["bases"][0]["base"] == "."
    assert load_base(str(whole), "cpu", None)[0].config.model_type == "llama"


@pytest.mark.parametrize("condition", ["positive", "negative"])
def test_a_control_learns_nothing_about_gist_tokens(condition: str, base: str, rows: str, tmp_path: Path) -> None:
    chosen = {**RECIPES["paper with a LoRA"], "condition": condition}
    short = train(TrainConfig.parse(options(base, rows, tmp_path / "short", **chosen, steps=1)))
    longer = train(TrainConfig.parse(options(base, rows, tmp_path / "longer", **chosen, steps=4)))
    one, other = (load_file(output / EMBEDDINGS)["gist_embeddings"] for output in (short, longer))
    assert torch.equal(one, other)


def test_validation_is_measured_at_every_save_on_prompts_held_out(base: str, rows: str, tmp_path: Path) -> None:
    output = train(TrainConfig.parse(options(base, rows, tmp_path / "out", **RECIPES["frozen"], steps=6, save_every=3)))
    history = figures(output)["validation"]
    assert [entry["step"] for entry in history] == [3, 6]
    for entry in history:
        assert entry["rows"] == 4
        assert {"full", "none", "k=1", "k=4"} <= set(entry)
        assert entry["none"]["kl"] > 0


# Resuming

KILLED = """
import json, os, signal, sys
from transformers import TrainerCallback
from gistlm.training.config import TrainConfig
from gistlm.training.loop import train

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

train(TrainConfig.parse(json.loads(sys.argv[1])), [Kill()])
"""


class Steps(TrainerCallback):
    """Records the steps that a run takes."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.taken.append(state.global_step)


@pytest.mark.parametrize("name", ["frozen", "paper with a LoRA", "paper with every weight"])
def test_a_killed_run_goes_on_to_the_losses_of_one_that_was_not(
    name: str, base: str, rows: str, tmp_path: Path
) -> None:
    """Killed at step 8 of 14, in the second epoch, with its last save at step 6."""
    chosen = {**RECIPES[name], "steps": 14, "save_every": 3, "threads": 1}
    whole = train(TrainConfig.parse(options(base, rows, tmp_path / "whole", **chosen)))

    interrupted = options(base, rows, tmp_path / "killed", **chosen)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(interrupted), "8"], env=environment, capture_output=True, check=False
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()[-2000:]
    assert not (tmp_path / "killed" / "training.json").exists()
    steps = Steps()
    resumed = train(TrainConfig.parse(interrupted), [steps])

    assert steps.taken == list(range(7, 15))
    assert len(figures(whole)["losses"]) == 14
    assert figures(resumed)["losses"] == figures(whole)["losses"]
    assert figures(resumed)["tokens"] == figures(whole)["tokens"]
    assert figures(resumed)["validation"] == figures(whole)["validation"]
    assert logged(resumed) == logged(whole)
    one, other = (load_file(output / EMBEDDINGS)["gist_embeddings"] for output in (whole, resumed))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("trainer_state.json", None),
        ("trainer_state.json", 0.6),
        ("trainable.safetensors", None),
        ("trainable.safetensors", 0.6),
        ("optimizer.pt", 0.0),
        ("optimizer.pt", 0.6),
        ("scheduler.pt", 0.6),
        ("rng_state.pth", 0.6),
    ],
)
def test_a_save_that_was_cut_short_is_passed_over(
    name: str, share: float | None, base: str, rows: str, tmp_path: Path
) -> None:
    chosen = {**RECIPES["frozen"], "steps": 4, "save_every": 2, "threads": 1}
    output = train(TrainConfig.parse(options(base, rows, tmp_path / "out", **chosen)))
    losses = figures(output)["losses"]
    cut = output / "run" / "checkpoint-4" / name
    if share is None:
        cut.unlink()
    else:
        cut.write_bytes(cut.read_bytes()[: int(share * cut.stat().st_size)])
    steps = Steps()
    assert (
        figures(train(TrainConfig.parse(options(base, rows, tmp_path / "out", **chosen)), [steps]))["losses"] == losses
    )
    assert steps.taken == [3, 4]


def test_all_weights_of_a_bfloat16_base_are_trained_in_float32_and_saved_in_bfloat16(rows: str, tmp_path: Path) -> None:
    base = str(save_tiny(tmp_path / "base", "llama"))
    tiny_model("llama").to(torch.bfloat16).save_pretrained(base)
    kinds: set[torch.dtype] = set()

    class Probe(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            kinds.update(tensor.dtype for tensor in kwargs["model"].trainable().values())

    small = {**RECIPES["paper with every weight"], "steps": 8, "learning_rate": 1e-5}
    output = train(TrainConfig.parse(options(base, rows, tmp_path / "out", **small)), [Probe()])
    assert kinds == {torch.float32}
    saved, stock = (load_file(folder / "model.safetensors") for folder in (output, Path(base)))
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert any(not torch.equal(saved[name], stock[name]) for name in stock)


@pytest.mark.parametrize("name", ["frozen", "paper with every weight"])
def test_only_what_is_tuned_drops_out_and_never_when_it_is_measured(name: str, rows: str, tmp_path: Path) -> None:
    dropout = {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5}
    base = str(save_tiny(tmp_path / "base", "gpt2", **dropout))
    dropping: set[bool] = set()

    class Probe(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            model = kwargs["model"]
            model.train()
            dropping.update(module.training for module in model.modules() if isinstance(module, torch.nn.Dropout))

    small = {**RECIPES[name], "steps": 2, "save_every": 1, "learning_rate": 0.0, "gist_learning_rate": 0.0}
    output = train(TrainConfig.parse(options(base, rows, tmp_path / "out", **small)), [Probe()])
    assert dropping == {name != "frozen"}
    first, second = (
        {key: value for key, value in entry.items() if key != "step"} for entry in figures(output)["validation"]
    )
    assert first == second  # nothing was trained, so whatever differs was drawn


def test_a_frozen_run_whose_base_changed_is_no_checkpoint(
    base: str, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gistlm.training.validation.Validation.base_unchanged", lambda self: False)
    with pytest.raises(ModelError, match="changed during a frozen run; nothing was written"):
        train(TrainConfig.parse(options(base, rows, tmp_path / "out", **RECIPES["frozen"], steps=1)))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run"]


def test_the_figures_of_a_run_say_how_many_processes_shared_it_and_whether_the_base_is_as_it_was(
    base: str, rows: str, tmp_path: Path
) -> None:
    for name, unchanged in (("frozen", True), ("paper with a LoRA", None)):
        made = figures(train(TrainConfig.parse(options(base, rows, tmp_path / name, **RECIPES[name], steps=1))))
        assert (made["processes"], made["base_unchanged"]) == (1, unchanged)


def test_a_folder_with_a_run_of_another_recipe_is_refused(base: str, rows: str, tmp_path: Path) -> None:
    train(TrainConfig.parse(options(base, rows, tmp_path / "out", **RECIPES["frozen"], steps=2)))
    before = figures(tmp_path / "out")
    for _ in range(2):
        with pytest.raises(InputError, match=r"^\S+ holds a run of another recipe"):
            train(TrainConfig.parse(options(base, rows, tmp_path / "out", **RECIPES["frozen"], steps=3)))
        assert figures(tmp_path / "out") == before
        for save in (tmp_path / "out" / "run").glob("checkpoint-*"):
            shutil.rmtree(save)


def test_a_run_that_never_began_does_not_bind_its_folder_to_its_recipe(base: str, rows: str, tmp_path: Path) -> None:
    chosen = {**RECIPES["frozen"], "steps": 1}
    with pytest.raises(InputError, match="validation_rows must be from 0 to"):
        train(TrainConfig.parse(options(base, rows, tmp_path / "out", **chosen | {"validation_rows": 10_000})))
    assert figures(train(TrainConfig.parse(options(base, rows, tmp_path / "out", **chosen))))


def test_an_output_that_is_no_folder_is_one_sentence(base: str, rows: str) -> None:
    with pytest.raises(InputError, match=r"cannot write to output .*: Not a directory; name another folder"):
        train(TrainConfig.parse(options(base, rows, Path(rows), **RECIPES["frozen"], steps=1)))


def test_threads_may_change_between_the_two_halves_of_a_run(base: str, rows: str, tmp_path: Path) -> None:
    chosen = {**RECIPES["frozen"], "steps": 2}
    train(TrainConfig.parse(options(base, rows, tmp_path / "out", **chosen, threads=1)))
    train(TrainConfig.parse(options(base, rows, tmp_path / "out", **chosen)))


# Bad recipes


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps must be greater than 0, got 0"),
        ({"steps": "3"}, "steps must be a valid integer, got '3'"),
        ({"steps": True}, "steps must be a valid integer, got True"),
        ({"steps": 3.0}, "steps must be a valid integer, got 3.0"),
        ({"max_k": 0}, "max_k must be greater than 0, got 0"),
        ({"lora_rank": 0}, "lora_rank must be greater than 0, or null, got 0"),
        ({"lora_rank": True}, "lora_rank must be a valid integer, or null, got True"),
        ({"learning_rate": -1}, "learning_rate must be greater than or equal to 0, got -1"),
        ({"learning_rate": "nan"}, "learning_rate must be .*, got 'nan'"),
        ({"gist_learning_rate": "inf"}, "gist_learning_rate must be a finite number, got 'inf'"),
        ({"warmup": 1.5}, "warmup must be less than or equal to 1, got 1.5"),
        ({"seed": -1}, "seed must be greater than or equal to 0, got -1"),
        ({"seed": 2**32}, "seed must be less than 4294967296"),
        ({"threads": 0}, "threads must be"),
        ({"device": 3}, "device must be a valid string, or null, got 3"),
        ({"max_rest_tokens": 2.5}, "max_rest_tokens must be a valid integer, or null, got 2.5"),
        ({"validation_rows": -1}, "validation_rows must be"),
        ({"anchored": "yes"}, "anchored must be a valid boolean, or null, got 'yes'"),
        ({"output": ""}, "output must have at least 1 character, got ''"),
        ({"name": 7}, "name must be a valid string, got 7"),
        ({"exclude": "x"}, "exclude must be a valid list, or null, got 'x'"),
        ({"exclude": [""]}, "exclude.0 must have at least 1 character"),
        ({"lora_modules": "mlp"}, "lora_modules must be 'attention' or 'all', got 'mlp'"),
        ({"matmul_precision": "low"}, "matmul_precision must be 'highest', 'high' or 'medium', got 'low'"),
        ({"kept": 4}, "kept must be from 0 to max_k - 1 = 3, got 4"),
        ({"recipe": "paper", "kept": 1}, "tokens are kept under the frozen recipe only; set kept to 0"),
        ({"kept": -1}, "kept must be greater than or equal to 0, got -1"),
        ({"probes": 2}, "probe queries choose kept tokens; set probes and probe_weight to 0"),
        ({"probe_weight": 0.1}, "probe queries choose kept tokens"),
        ({"recipe": "paper", "data": [{"path": "x", "cross_entropy_weight": 1}]}, "is for the frozen recipe"),
        ({"recipe": "paper", "cross_entropy_weight": 0.1}, "cross_entropy_weight is for the frozen recipe"),
        ({"recipe": "paper", "teacher_cache": "x"}, "teacher_cache is for the frozen recipe"),
        ({"full_prompt_weight": 0.5}, "full_prompt_weight is for the paper recipe"),
        ({"learning_rate": True}, "learning_rate must be a valid number, got True"),
        (
            {"data": [{"path": "x", "cross_entropy_weight": "much"}]},
            "data.0.cross_entropy_weight must be a valid number",
        ),
        ({"data": [{"path": "x", "cross_entropy_weight": -1}]}, "data.0.cross_entropy_weight must be greater than or"),
        ({"data": [{"path": "x", "colour": 1}]}, "data.0: no option 'colour'; the options are path, limit"),
        ({"data": [{"path": "x", 3: 1}]}, "data.0: no option '3'"),
        ({"data": [{"limit": 3}]}, "data.0.path is missing; give it"),
        ({"data": [3]}, "data.0 must be a valid dictionary"),
        ({"data": {"path": "x"}}, "data must be a valid list"),
        ({"k": [1, 5]}, r"k must be a list of whole numbers from 1 to max_k=4, or null, got \[1, 5\]"),
        ({"k": []}, "k must be a list"),
        ({"k": 2}, "k must be a valid list, or null, got 2"),
        ({"k": [True]}, "k.0 must be a valid integer, got True"),
        ({"k": [1, 2]}, r"max_k=4 has gist tokens that k=\[1, 2\] never trains; make it 2"),
        ({"learning_rate": "fast"}, "learning_rate must be a valid number, got 'fast'"),
        ({"warmup": None}, "warmup must be a valid number, got None"),
        ({"lora_rank": None}, "frozen recipe needs a lora_rank"),
        ({"condition": "positive"}, "frozen recipe needs a lora_rank and trains the condition gist only"),
        ({"dtype": "int8"}, "dtype must be 'float32', 'bfloat16' or 'float16', or null, got 'int8'"),
        ({"recipe": "thawed"}, "recipe must be 'frozen' or 'paper', got 'thawed'"),
        ({"recipe": None}, "recipe must be 'frozen' or 'paper', got None"),
        ({"condition": None}, "condition must be 'gist', 'positive' or 'negative', got None"),
        ({"data": []}, "a recipe needs data"),
    ],
)
def test_an_impossible_option_is_refused(
    wrong: dict[str, Any], message: str, base: str, rows: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig.parse({**options(base, rows, tmp_path), **wrong})


def test_an_unknown_option_is_refused_with_those_there_are(base: str, rows: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^no option 'step'; the options are base, output"):
        TrainConfig.parse(options(base, rows, tmp_path, step=3))


@pytest.mark.parametrize("text", ["- a list", "a: [", "just words"])
def test_a_file_that_is_no_recipe_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match="recipe"):
        read_config(path)


def test_a_missing_recipe_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no recipe at"):
        read_config(tmp_path / "none.yaml")


def test_a_recipe_file_with_overrides_is_a_config(base: str, rows: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(options(base, rows, tmp_path)))
    made = read_config(path, {"steps": 7})
    assert (made.steps, made.data[0].path) == (7, rows)
    with pytest.raises(InputError, match=r"^\S+recipe\.yaml: steps must be greater than 0, got 0"):
        read_config(path, {"steps": 0})


def test_an_option_that_is_replaced_is_checked_again(base: str, rows: str, tmp_path: Path) -> None:
    config = TrainConfig.parse(options(base, rows, tmp_path))
    assert config.replace(steps=7).replace(steps=config.steps) == config
    for wrong in ({"steps": 0}, {"kept": config.max_k}, {"step": 3}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            config.replace(**wrong)


def test_an_option_that_is_missing_is_named(base: str, rows: str, tmp_path: Path) -> None:
    given = options(base, rows, tmp_path)
    for name in ("base", "output", "data"):
        with pytest.raises(InputError, match=f"^{name} is missing; give it"):
            TrainConfig.parse({key: value for key, value in given.items() if key != name})


def test_too_few_short_rows_are_refused(base: str, rows: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="short enough"):
        train(TrainConfig.parse(options(base, rows, tmp_path / "out", max_tokens=5)))


def test_a_run_killed_after_its_last_save_only_finishes(base: str, rows: str, tmp_path: Path) -> None:
    chosen = options(base, rows, tmp_path / "out", **RECIPES["frozen"], steps=4, save_every=4)
    train(TrainConfig.parse(chosen))
    before = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    losses = figures(tmp_path / "out")["losses"]
    for made in ("adapter_model.safetensors", "training.json"):
        (tmp_path / "out" / made).unlink()

    train(TrainConfig.parse(chosen))
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == before
    assert figures(tmp_path / "out")["losses"] == losses
    assert figures(tmp_path / "out")["tokens"] > 0


def test_a_learning_rate_may_be_written_with_an_exponent_and_must_be_a_number(
    base: str, rows: str, tmp_path: Path
) -> None:
    chosen = options(base, rows, tmp_path, **RECIPES["frozen"])
    assert TrainConfig.parse({**chosen, "learning_rate": "1e-4"}).learning_rate == 1e-4
    with pytest.raises(InputError, match="fast"):
        TrainConfig.parse({**chosen, "learning_rate": "fast"})
    with pytest.raises(InputError, match="steps must be a valid integer, got 'many'"):
        TrainConfig.parse({**chosen, "steps": "many"})
