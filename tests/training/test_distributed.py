"""Two processes on the CPU (DDP over gloo) train as one does with the same global batch, and resume after a kill."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from safetensors.torch import load_file
from tiny import save_tiny

from gistlm.cli.train import train as train_command
from gistlm.errors import InputError, ModelError
from gistlm.gisting.placement import Placement
from gistlm.models.checkpoint import ADAPTER_WEIGHTS
from gistlm.models.config import EMBEDDINGS
from gistlm.training.batches import Collator, Draws, Example, Examples
from gistlm.training.config import TrainConfig
from gistlm.training.loop import Objective, _finish, train
from gistlm.training.objectives import output_mean
from gistlm.training.saves import check_same_run, last_save
from gistlm.training.start import create_checkpoint

PROCESSES = 2
STEPS = 7
ROWS_A_STEP = 8
SECONDS = 240
"""Enough for a machine that is busy with other things; alone it takes a twentieth."""
RECIPES: dict[str, dict[str, Any]] = {
    "frozen": {"recipe": "frozen", "cross_entropy_weight": 0.5},
    "kept": {"recipe": "frozen", "kept": 3, "probes": 2, "probe_weight": 0.3},
    "paper": {"recipe": "paper"},
    "every weight": {"recipe": "paper", "lora_rank": None},
    "encoder": {"recipe": "frozen", "cross_entropy_weight": 0.5},
}
BASES = {"encoder": "t5"}
"""The others have llama."""
ANSWERED = {"kept": {"cross_entropy_weight": 0.5}}
"""Of half of a recipe's rows, so that some processes have none of them in a step."""

WORKER = """
import json, os, signal, sys
from transformers import TrainerCallback
from gistlm.training import loop, saves, validation
from gistlm.training.config import TrainConfig

def refuse(*args, **options):
    raise AssertionError("only the main process writes")

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 6:
            os.kill(os.getpid(), signal.SIGKILL)

if os.environ["RANK"] != "0":
    saves.save_file = loop.write_atomically = loop.Checkpoint.save_pretrained = validation.write_atomically = refuse
*whole, killed = json.loads(sys.argv[1])
for options in whole:
    loop.train(TrainConfig.parse(options))
loop.train(TrainConfig.parse(killed), [Kill()])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny bases, and rows whose outputs differ much in length; in it the runs come to lie."""
    made = tmp_path_factory.mktemp("distributed")
    for kind in ("llama", *BASES.values()):
        save_tiny(made / kind, kind)
    rows = [
        {"prompt": f"{i}: it is {'red' if i % 2 else 'blue'}", "input": f"what {i % 3}?", "output": "so " * (1 + i % 7)}
        for i in range(40)
    ]
    for name, part in (("rows", rows[:20]), ("more", rows[20:])):
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return made


def options(folder: Path, name: str, processes: int, output: str) -> dict[str, Any]:
    """A recipe whose steps take the same rows for any number of processes: two passes, less what fills no step."""
    return {
        "base": str(folder / BASES.get(name, "llama")),
        "data": [
            {"path": str(folder / "rows.jsonl")},
            {"path": str(folder / "more.jsonl"), **ANSWERED.get(name, {})},
        ],
        "output": str(folder / output),
        "max_k": 4,
        "lora_rank": 4,
        "learning_rate": 3e-3,
        "steps": STEPS,
        "batch_size": ROWS_A_STEP // processes,
        "save_every": 5,
        "validation_rows": 5,
        "device": "cpu",
        "threads": 1,
        **RECIPES[name],
    }


def environment() -> dict[str, str]:
    """One thread, and nothing but this machine."""
    interface = "lo" if sys.platform == "linux" else "lo0"
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": interface}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run_workers(folder: Path, recipes: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """Two processes over the recipes, the main one killed in the last; how each ended, and what it said."""
    logs = [folder / f"process {rank}.log" for rank in range(PROCESSES)]
    shared = {"WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, json.dumps(recipes)],
            env={**environment(), **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=log.open("wb"),
        )
        for rank, log in enumerate(logs)
    ]
    try:
        ended = [worker.wait(SECONDS) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [(code, log.read_text(errors="replace")) for code, log in zip(ended, logs, strict=True)]


def figures(folder: Path, name: str) -> dict[str, Any]:
    """Those of a run."""
    return json.loads((folder / name / "training.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, dict[str, Any]]:
    """The figures of every recipe by one process."""
    for name in RECIPES:
        train(TrainConfig.parse(options(folder, name, 1, f"{name} by 1")))
    return {name: figures(folder, f"{name} by 1") for name in RECIPES}


@pytest.fixture(scope="module")
def shared(folder: Path) -> dict[str, dict[str, Any]]:
    """The figures of every recipe by two processes; and a folder "killed" with a save at step 5."""
    together = [options(folder, name, PROCESSES, f"{name} by 2") for name in RECIPES]
    together[[*RECIPES].index("kept")]["teacher_cache"] = str(folder / "teacher")  # both read and write there
    (main, text), (other, _) = run_workers(folder, [*together, options(folder, "frozen", PROCESSES, "killed")])
    assert main == -signal.SIGKILL, text[-3000:]
    assert other != 0  # it ends by itself when it misses the main one
    return {name: figures(folder, f"{name} by 2") for name in RECIPES}


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_have_the_losses_of_one_with_the_same_global_batch(
    name: str, alone: dict[str, dict[str, Any]], shared: dict[str, dict[str, Any]]
) -> None:
    one, two = alone[name], shared[name]
    assert len(one["losses"]) == STEPS
    assert two["losses"] == pytest.approx(one["losses"], rel=0, abs=1e-5)
    assert two["tokens"] == one["tokens"]
    for entry, other in zip(one["validation"], two["validation"], strict=True):
        assert (entry["rows"], entry["tokens"]) == (other["rows"], other["tokens"]) == (5, entry["tokens"])
        for part in ("full", "none", "k=1", "k=4"):
            assert other[part] == pytest.approx(entry[part], abs=1e-4)


@pytest.mark.usefixtures("alone", "shared")
def test_two_processes_train_the_weights_that_one_does(folder: Path) -> None:
    one, two = (load_file(folder / f"kept by {processes}" / EMBEDDINGS) for processes in (1, 2))
    assert sorted(one) == ["fitted", "gist_embeddings", "observers"]
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-4)


def test_a_killed_run_of_two_processes_goes_on_under_accelerate_launch(
    folder: Path, shared: dict[str, dict[str, Any]]
) -> None:
    """Killed at step 6, in the second pass over the rows, with its last save at step 5."""
    assert not (folder / "killed" / "training.json").exists()
    recipe = folder / "killed.yaml"
    recipe.write_text(json.dumps(options(folder, "frozen", PROCESSES, "killed")))
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"]
    placed = ["--num_processes", str(PROCESSES), "--num_machines", "1", "--main_process_port", free_port()]
    done = subprocess.run(
        [*launch, *placed, "--mixed_precision", "no", "--dynamo_backend", "no", "--module", "gistlm", "train", recipe],
        env=environment(), capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("the checkpoint is in") == 1  # the main process alone reports
    assert done.stderr.count("resuming after step 5") == 1  # the main process alone shows progress
    assert done.stderr.count("validation rows are held out") == 1

    resumed, whole = figures(folder, "killed"), shared["frozen"]
    assert resumed["losses"] == whole["losses"]
    assert resumed["tokens"] == whole["tokens"]
    assert resumed["validation"] == whole["validation"]


def test_the_command_leaves_no_process_group_whose_threads_could_abort_its_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = folder / "alone.yaml"
    recipe.write_text(json.dumps(options(folder, "frozen", 1, "alone")))
    monkeypatch.setattr("gistlm.training.loop.train", lambda config, callbacks: Path(config.output))
    monkeypatch.setattr("gistlm.cli.train._report", lambda folder: None)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        train_command(recipe)
        assert not torch.distributed.is_initialized()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("shared")
def test_a_run_goes_on_with_as_many_processes_as_it_began_with(folder: Path) -> None:
    with pytest.raises(InputError, match="another recipe, number of processes, DeepSpeed stage"):
        train(TrainConfig.parse(options(folder, "frozen", PROCESSES, "frozen by 2")))


def page_configurations() -> list[str]:
    page = (Path(__file__).parents[2] / "docs" / "scale-out.md").read_text(encoding="utf-8")
    return re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def test_accelerate_reads_the_configurations_of_the_page(tmp_path: Path) -> None:
    kinds = []
    for number, text in enumerate(page_configurations()):
        (tmp_path / f"{number}.yaml").write_text(text)
        kinds.append(load_config_from_file(str(tmp_path / f"{number}.yaml")).distributed_type)
    assert kinds == ["MULTI_GPU", "DEEPSPEED", "FSDP"]


def launched(folder: Path, recipes: list[dict[str, Any]], page: int, **other: Any) -> str:
    """Runs of recipes under one of the page's configurations, with two processes on the CPU; what they said."""
    values = {**yaml.safe_load(page_configurations()[page]), **other}
    values |= {"num_processes": PROCESSES, "main_process_port": int(free_port())}
    (folder / "accelerate.yaml").write_text(yaml.safe_dump(values))
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    more = {"PYTHONPATH": str(Path(__file__).parents[1]), "DS_ACCELERATOR": "cpu"}
    command = [*launch, "--config_file", "accelerate.yaml", "--module", "runs_in_one_launch", json.dumps(recipes)]
    log = folder / "launch.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env={**environment(), **more}, stdout=output, stderr=output)
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS)
        process.terminate()  # should it hang, its workers too: it ends them
        process.wait(60)
    said = log.read_text(errors="replace")
    assert process.returncode == 0, said[-3000:]
    return said


def runs_that_go_on(folder: Path, names: list[str], by: str, page: int, **other: Any) -> None:
    """Recipes under a configuration: "NAME by BY, whole", and "NAME by BY", the same gone on from its fifth step."""
    recipes = [options(folder, name, PROCESSES, f"{name} by {by}") for name in names]
    launched(folder, recipes, page, **other)
    for name in names:
        output = folder / f"{name} by {by}"
        shutil.copytree(output, folder / f"{name} by {by}, whole")
        shutil.rmtree(output / "run" / f"checkpoint-{STEPS}")
        (output / "training.json").unlink()
    assert launched(folder, recipes, page, **other).count("resuming after step 5") == len(names)


@pytest.fixture(scope="module")
def deepspeed_runs(folder: Path) -> None:
    runs_that_go_on(folder, ["kept", "paper"], "deepspeed", 1, use_cpu=True)


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed: make test-deepspeed")
@pytest.mark.parametrize("name", ["kept", "paper"])
@pytest.mark.usefixtures("deepspeed_runs")
def test_deepspeed_has_the_losses_of_one_process_and_resumes(
    name: str, folder: Path, alone: dict[str, dict[str, Any]]
) -> None:
    for output in (folder / f"{name} by deepspeed, whole", folder / f"{name} by deepspeed"):
        found = figures(folder, output.name)
        assert found["losses"] == pytest.approx(alone[name]["losses"], rel=0, abs=1e-5)
        assert found["tokens"] == alone[name]["tokens"]
        assert (output / "run" / f"checkpoint-{STEPS}" / "latest").exists()  # an engine's save, not DDP's
        assert json.loads((output / "run" / "recipe.json").read_text())["zero_stage"] == 2
    with pytest.raises(InputError, match="another recipe, number of processes, DeepSpeed stage"):
        check_same_run(TrainConfig.parse(options(folder, name, PROCESSES, output.name)), output / "run", PROCESSES)
    for save in (output / "run").glob("checkpoint-*"):
        shard = next(save.glob("global_step*/*.pt"))
        shard.write_bytes(shard.read_bytes()[: -shard.stat().st_size // 2])
    assert last_save(output / "run") is None


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed: make test-deepspeed")
def test_deepspeed_s_third_stage_is_refused_before_a_model_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    with pytest.raises(InputError, match="zero_stage 3 leaves each process a part of the weights"):
        train(TrainConfig.parse(options(folder, "paper", 1, "never") | {"base": "missing"}))
    assert not (folder / "never").exists()


@pytest.fixture(scope="module")
def fsdp_runs(folder: Path) -> None:
    runs_that_go_on(folder, [*RECIPES], "fsdp", 2)


@pytest.mark.parametrize("recipe", ["frozen", "paper"])
def test_fsdp_takes_a_model_s_layers_one_by_one(folder: Path, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    config = TrainConfig.parse(options(folder, recipe, 1, "never by fsdp"))
    objective = Objective(create_checkpoint(config), config)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    plugin.set_auto_wrap_policy(objective)
    is_one = fsdp2_prepare_auto_wrap_policy(plugin, objective)
    layers = [module for module in objective.modules() if "DecoderLayer" in type(module).__name__]
    assert [module for module in objective.modules() if is_one(module)] == layers
    assert len(layers) == objective.checkpoint.architecture.layers * (2 if recipe == "frozen" else 1)
    trained = [id(weight) for weight in objective.writer.parameters()]
    assert recipe != "frozen" or not {id(weight) for weight in objective.checkpoint.reader.parameters()} & {*trained}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.usefixtures("fsdp_runs")
def test_fsdp_has_the_losses_of_one_process_and_resumes(
    name: str, folder: Path, alone: dict[str, dict[str, Any]]
) -> None:
    one = alone[name]
    for output in (folder / f"{name} by fsdp, whole", folder / f"{name} by fsdp"):
        found = figures(folder, output.name)
        assert found["losses"] == pytest.approx(one["losses"], rel=0, abs=1e-5)
        assert (found["tokens"], found["base_unchanged"]) == (one["tokens"], one["base_unchanged"])
        for entry, other in zip(one["validation"], found["validation"], strict=True):
            assert (entry["rows"], entry["tokens"]) == (other["rows"], other["tokens"])
            for part in ("full", "none", "k=1", "k=4"):
                assert other[part] == pytest.approx(entry[part], abs=1e-4)
        for file in (EMBEDDINGS, "model.safetensors" if name == "every weight" else ADAPTER_WEIGHTS):
            mine, theirs = load_file(output / file), load_file(folder / f"{name} by 1" / file)
            assert mine.keys() == theirs.keys()
            for key, tensor in theirs.items():
                torch.testing.assert_close(mine[key], tensor, rtol=0, atol=1e-4)
        save = output / "run" / f"checkpoint-{STEPS}"
        size = sum(path.stat().st_size for path in save.iterdir())
        assert size < 200_000 or name == "every weight"  # no weights that the run does not change
    with pytest.raises(InputError, match="or with or without FSDP"):
        check_same_run(TrainConfig.parse(options(folder, name, PROCESSES, output.name)), output / "run", PROCESSES)
    for state in (output / "run").glob("checkpoint-*/optimizer.bin"):
        state.write_bytes(state.read_bytes()[: -state.stat().st_size // 2])
    assert last_save(output / "run") is None


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("FSDP_VERSION", "1", "fsdp_version: 2 .* got 1"),
        ("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT", "fsdp_state_dict_type: FULL_STATE_DICT .* got SHARDED"),
        ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP", "fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP .* got SIZE"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "fsdp_cpu_ram_efficient_loading: false .* got true"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "fsdp_activation_checkpointing: false .* got true"),
        ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params: false .* got true"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "needs mixed_precision: no .* got bf16"),
        ("WORLD_SIZE", "1", "accelerators alone, and here is one process, or a CPU"),
    ],
)
def test_other_options_of_fsdp_are_refused_before_anything_is_written(
    name: str, value: str, complaint: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = yaml.safe_load(page_configurations()[2])["fsdp_config"]
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for option, given in values.items():
        monkeypatch.setenv(option.upper(), str(given))
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=complaint):
        train(TrainConfig.parse(options(folder, "paper", 1, "never by fsdp")))
    assert not (folder / "never by fsdp").exists()


@pytest.mark.usefixtures("alone")
def test_under_fsdp_no_checkpoint_is_written_from_another_base_than_was_trained(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when its folder has changed meanwhile: the main process reads it again."""
    config = TrainConfig.parse(options(folder, "frozen", 1, "frozen by 1"))
    objective = Objective(create_checkpoint(config), config)
    trainer = Namespace(
        model=objective, args=Namespace(should_save=True, output_dir=f"{config.output}/run", world_size=2),
        state=Namespace(global_step=STEPS, log_history=[]),
    )  # fmt: skip
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    config = objective.checkpoint.config
    objective.checkpoint.config = config.replace(bases=[config.bases[0].replace(weights="0" * 64)])
    with pytest.raises(ModelError, match="is not what it was when the run began"):
        _finish(trainer, Namespace(base_unchanged=lambda: True, history=[]), 0)  # type: ignore[arg-type]


# What makes it so


def test_a_run_s_draws_pass_over_all_rows_and_repeat_with_the_seed() -> None:
    lengths = [7 * row % 23 for row in range(21)]
    draws = list(Draws(lengths, 4, 12, seed=3))
    assert draws == list(Draws(lengths, 4, 12, seed=3)) != list(Draws(lengths, 4, 12, seed=4))
    assert draws[:24] == list(Draws(lengths, 4, 6, seed=3))
    passes = [draws[:20], draws[20:40], draws[40:]]
    for number, some in enumerate(passes):
        assert {draw // 21 for draw in some} == {number}
        assert max(Counter(draw % 21 for draw in some).values()) == 1
    assert [draw % 21 for draw in passes[0][:8]] != [draw % 21 for draw in passes[1][:8]]
    left_out = [set(range(21)) - {draw % 21 for draw in some} for some in passes]
    assert left_out[0] != left_out[1], "both passes leave out the same row"


@pytest.mark.parametrize(("rows", "most"), [(64, 1.2), (3000, 1.05)])
def test_a_step_s_rows_are_of_like_length_in_small_and_in_large_data(rows: int, most: float) -> None:
    lengths = [1 + 37 * row % 200 for row in range(rows)]
    drawn = [lengths[draw % rows] for draw in Draws(lengths, 8, rows // 8, seed=0)]
    steps = [drawn[start : start + 8] for start in range(0, len(drawn), 8)]
    assert sum(8 * max(step) for step in steps) < most * sum(drawn)
    assert [max(step) for step in steps] != sorted(max(step) for step in steps), "in any order"


def test_a_row_s_k_does_not_depend_on_its_batch_and_changes_between_passes() -> None:
    examples = object.__new__(Examples)
    examples.examples = [Example([1], [2, 3], 1)] * 16
    collator = Collator(Placement("relative", 0, 16), None, 0)

    def drawn(draws: list[int]) -> list[int]:
        k: list[int] = collator([examples[draw] for draw in draws])["k"].tolist()
        return k

    whole = drawn(list(range(16)))
    assert drawn(list(range(8))) + drawn(list(range(8, 16))) == whole
    assert drawn(list(range(16, 32))) != whole
    assert len(set(whole)) > 2


def test_every_row_falls_to_one_process() -> None:
    examples = object.__new__(Examples)
    examples.examples = [Example([row], [2, 3], 1) for row in range(5)]
    parts = [examples.of_process(process, 3) for process in range(3)]
    assert [len(part) for part in parts] == [2, 2, 1]
    assert sorted(example.prompt[0] for part in parts for example in part.examples) == list(range(5))
    assert len(examples) == 5


def test_a_mean_is_over_the_outputs_of_all_rows() -> None:
    is_output = torch.tensor([[False, True], [True, True]])
    assert output_mean(torch.tensor([1.0, 2.0, 6.0]), is_output) == pytest.approx(3.0)


def test_no_row_is_drawn_a_gist_that_would_keep_tokens_alone() -> None:
    items = [{"example": Example([9] * length, [1, 2], 1), "draw": draw} for length in (4, 7, 40) for draw in range(60)]
    drawn = Collator(Placement("relative", 2, 1, 15), None, 0)(items)["k"].view(3, 60).tolist()
    assert [sorted(set(row)) for row in drawn] == [[1], [1, 2], [1, 2, 4, 8, 16]]


def test_a_number_that_is_given_twice_is_drawn_twice_as_often() -> None:
    items = [{"example": Example([9] * 40, [1, 2], 1), "draw": draw} for draw in range(600)]
    drawn = Collator(Placement("relative", 0, 16), [1, 1, 8], 0)(items)["k"].tolist()
    assert set(drawn) == {1, 8}
    assert 350 < drawn.count(1) < 450
