"""The cost and speed benchmarks: their tools, and the whole scripts on a tiny model."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import runpy
import signal
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from process_id import process_id
from tiny import save_tiny, save_tiny_checkpoint, tiny_checkpoint

from gistlm.data.rows import read_rows
from gistlm.errors import GistlmError, InputError, MissingDependencyError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
WAYS = {"full_prompt", "cached_prompt", "gist", "same_tokens"}
BYTES_PER_TOKEN = 2 * 2 * 2 * 8 * 4
"""Of the tiny model: keys and values, layers, KV heads, head size, float32."""


@pytest.fixture
def conditions(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield _import("conditions", monkeypatch)


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield _import("measure", monkeypatch)


def _import(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return __import__(name)


def run_script(name: str, *arguments: str) -> str:
    """Run a script as if from the shell; returns what it printed."""
    printed = io.StringIO()
    script = str(BENCHMARKS / name)
    with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(printed):
        monkeypatch.setattr(sys, "argv", [script, *arguments, "--threads", "1"])
        monkeypatch.syspath_prepend(str(BENCHMARKS))  # as Python does for a script
        runpy.run_path(script, run_name="__main__")
    return printed.getvalue()


def run_cost(*arguments: str) -> str:
    return run_script("cost.py", *arguments)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """The figures, the printed tables and the plot of a run on a tiny model."""
    folder = tmp_path_factory.mktemp("cost")
    base = save_tiny(folder / "base")
    sizes = ("--prompts", "48,96", "--batches", "1,3", "--new-tokens", "3", "--repeats", "2", "--k", "2")
    outputs = ("--json", str(folder / "cost.json"), "--plot", str(folder / "cost.png"))
    printed = run_cost("--untrained", str(base), *sizes, *outputs)
    return json.loads((folder / "cost.json").read_text()), printed, folder / "cost.png"


def test_every_prompt_length_batch_and_condition_has_its_row(run: Any) -> None:
    figures = run[0]
    cells = [(prompt, batch) for prompt in (48, 96) for batch in (1, 3)]
    found = [(row["prompt_tokens"], row["batch"], row["condition"]) for row in figures["generation"]]
    assert sorted(found) == sorted((*cell, way) for cell in cells for way in WAYS)
    for part in ("compression", "comparison"):
        assert [(row["prompt_tokens"], row["batch"]) for row in figures[part]] == cells


def test_cache_bytes_are_those_of_the_tokens_that_are_kept(run: Any) -> None:
    for row in run[0]["generation"]:
        opening = row["cache_bytes"] // BYTES_PER_TOKEN - 2
        expected = {"full_prompt": 0, "cached_prompt": row["prompt_tokens"], "gist": 2}
        if row["condition"] == "same_tokens":
            assert opening > 0
        else:
            assert row["cache_bytes"] == expected[row["condition"]] * BYTES_PER_TOKEN


def test_a_gist_takes_the_flops_of_plain_generation_over_as_many_tokens_and_fewer_than_the_full_prompt(
    run: Any,
) -> None:
    for prompt, batch in ((48, 1), (96, 3)):
        rows = [row for row in run[0]["generation"] if (row["prompt_tokens"], row["batch"]) == (prompt, batch)]
        flops = {row["condition"]: row["flops"] for row in rows}
        assert flops["gist"] == flops["same_tokens"] < flops["cached_prompt"] < flops["full_prompt"]


def test_figures_name_the_machine_the_seed_and_the_command(run: Any) -> None:
    figures = run[0]
    assert figures["settings"]["seed"] == 0 and "cost.py" in figures["command"] and not figures["trained"]
    assert figures["machine"]["torch"] == torch.__version__ and figures["machine"]["threads"] == 1


def test_the_tables_are_markdown_with_a_line_for_every_row_and_the_plot_is_a_picture(run: Any) -> None:
    figures, printed, plot = run
    rows = sum(len(figures[part]) for part in ("generation", "compression", "comparison"))
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(lines) == rows + 3 * 2  # each of three tables has a heading and a rule
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_an_impossible_setting_is_one_sentence(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    with pytest.raises(SystemExit, match=r"^cost\.py: prompts must have \d+ tokens or more"):
        run_cost("--untrained", str(base), "--prompts", "4")


def test_a_missing_matplotlib_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    plots = _import("plots", monkeypatch)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"gistlm\[bench\]"):
        plots.require_matplotlib()


def test_every_way_of_answering_makes_exactly_the_tokens_that_were_asked_for(conditions: ModuleType) -> None:
    checkpoint = tiny_checkpoint()
    model = conditions.FullLengthModel(checkpoint)
    head = checkpoint.reader.get_output_embeddings()
    head.weight.data[checkpoint.prompts.output_end_ids[0]] = 0
    head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]))
    head.bias.data[checkpoint.prompts.output_end_ids[0]] = 1e4  # a model that would end at once
    seen: list[int] = []
    generate = checkpoint.reader.generate

    def counted(inputs: torch.Tensor, **options: Any) -> torch.Tensor:
        output = generate(inputs, **options)
        seen.append(output.shape[1] - inputs.shape[1])
        return output

    checkpoint.reader.generate = counted
    workload = conditions.make_workload(checkpoint, (40, 32), 2, seed=0)
    for way in conditions.all_ways(model, workload, k=2).values():
        assert len(way.answer(5)) == 2
    assert seen == [5] * len(WAYS)


def test_prompts_and_inputs_have_the_lengths_that_were_asked_for_and_differ(conditions: ModuleType) -> None:
    checkpoint = tiny_checkpoint()
    workload = conditions.make_workload(checkpoint, (50, 40), 3, seed=0)
    assert [len(checkpoint.prompts.prompt_ids(text)) for text in workload.prompts] == [50] * 3
    assert [len(checkpoint.prompts.rest_ids(text)) for text in workload.inputs] == [40] * 3
    assert len(set(workload.prompts)) == 3


def test_a_length_shorter_than_the_template_is_refused(conditions: ModuleType) -> None:
    with pytest.raises(InputError, match="no text has 3 tokens"):
        conditions.fit_text(random.Random(0), 3, lambda text: 10 + len(text))


def test_attention_counts_among_the_flops(measure: ModuleType) -> None:
    query = torch.randn(1, 4, 16, 8)
    counted = measure.count_flops(lambda: F.scaled_dot_product_attention(query, query, query, is_causal=True))
    assert counted == 2 * (2 * 4 * 16 * 16 * 8)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's high-water mark is Linux's")
def test_peak_memory_is_the_call_s_highest_even_when_all_is_freed_before_it_ends(measure: ModuleType) -> None:
    size = 64 << 20

    def take_and_free() -> None:
        bytearray(b"x" * size)

    assert measure.peak_memory(take_and_free) > 0.9 * size
    assert measure.peak_memory(lambda: None) < 0.5 * size


def test_calls_take_turns_and_the_first_round_is_not_counted(measure: ModuleType) -> None:
    order: list[str] = []
    seconds = measure.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert [len(times) for times in seconds.values()] == [2, 2]


@pytest.mark.parametrize(("cost", "saving", "expected"), [(1.0, 0.4, 3), (1.0, 1.0, 1), (1.0, 0.0, None)])
def test_compressing_pays_once_the_savings_reach_its_cost(
    measure: ModuleType, cost: float, saving: float, expected: int | None
) -> None:
    assert measure.requests_to_pay(cost, saving) == expected


# Training speed


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("speed") / "rows.jsonl"
    made = [{"prompt": f"{i}: it is red", "input": "what?", "output": "red " * (1 + i % 4)} for i in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def test_training_speed_compares_both_recipes_with_plain_fine_tuning(rows: Path, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    sizes = ("--batch-size", "4", "--steps", "2", "--max-k", "4", "--lora-rank", "2")
    output = tmp_path / "speed.json"
    of_frozen = ["frozen", "frozen_kept", "frozen_observed"]
    names = [*of_frozen, *(f"{name}_again" for name in of_frozen), "paper", "paper_lora", "plain", "plain_lora"]
    options = ["--data", str(rows), "--base", str(base), *sizes, "--conditions", ",".join(names)]
    printed = run_script("training_speed.py", *options, "--json", str(output))
    figures = json.loads(output.read_text())

    trained = {row["condition"]: row["trained_parameters"] for row in figures["conditions"]}
    assert set(trained) == set(names)
    assert trained["frozen_kept"] < trained["frozen"] == trained["paper_lora"] < trained["paper"] == trained["plain"]
    assert all(row["tokens_per_s"]["min"] > 0 for row in figures["conditions"])
    targets = {(row["condition"], row["against"]): row["target"] for row in figures["ratios"]}
    assert all(targets[(name, "plain")] == targets[(f"{name}_again", "plain")] == 2 for name in of_frozen)
    assert targets[("paper", "plain")] == 1
    assert trained["frozen_observed"] > trained["frozen_kept"]
    assert figures["tokens"] / 8 > figures["prompt_tokens_per_row"] > 0
    assert figures["settings"]["data"] == "rows.jsonl"
    assert "frozen / plain" in printed


def test_training_speed_makes_rows_of_random_words_of_given_lengths(tmp_path: Path) -> None:
    base, output = save_tiny(tmp_path / "base"), tmp_path / "speed.json"
    sizes = ["--base", str(base), "--batch-size", "2", "--steps", "1", "--max-k", "1", "--lora-rank", "2"]
    sizes += ["--json", str(output)]
    run_script("training_speed.py", "--lengths", "40", "30", "9", *sizes)
    figures = json.loads(output.read_text())
    assert figures["prompt_tokens_per_row"] == 40
    assert figures["tokens"] == 2 * (40 + 30 + 9)
    assert figures["settings"]["data"] is None
    assert {row["condition"] for row in figures["conditions"]} == {"frozen", "paper", "plain"}
    sizes += ["--conditions", "plain"]  # a process each
    with pytest.raises(SystemExit, match=r"^training_speed\.py: give either --data FILE or --lengths"):
        run_script("training_speed.py", *sizes)
    with pytest.raises(SystemExit, match=r"rows of 79 tokens are longer than --max-tokens 78; raise it"):
        run_script("training_speed.py", "--lengths", "40", "30", "9", *sizes, "--max-tokens", "78")
    with pytest.raises(SystemExit, match=r"^training_speed\.py: --max-rest-tokens 38 is too low for --lengths"):
        run_script("training_speed.py", "--lengths", "40", "30", "9", *sizes, "--max-rest-tokens", "38")
    with pytest.raises(SystemExit, match=r"^training_speed\.py: no text has 1 tokens in this format"):
        run_script("training_speed.py", "--lengths", "1", "30", "9", *sizes)


def test_training_speed_measures_some_conditions_alone(rows: Path, tmp_path: Path) -> None:
    base, output = save_tiny(tmp_path / "base"), tmp_path / "speed.json"
    sizes = ["--data", str(rows), "--base", str(base), "--batch-size", "4", "--steps", "1", "--max-k", "4"]
    run_script("training_speed.py", *sizes, "--conditions", "plain,frozen_kept_again", "--json", str(output))
    figures = json.loads(output.read_text())
    assert {row["condition"] for row in figures["conditions"]} == {"plain", "frozen_kept_again"}
    assert [(row["condition"], row["against"]) for row in figures["ratios"]] == [("frozen_kept_again", "plain")]
    with pytest.raises(
        SystemExit, match=r"^training_speed\.py: there is no condition 'plane'; --conditions takes some"
    ):
        run_script("training_speed.py", *sizes, "--conditions", "plane,paper")


def test_a_condition_has_a_process_of_its_own_whose_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _import("worker", monkeypatch)
    killed, failing, waiting = (module.Worker(name, process_id) for name in ("killed", "failing", "waiting"))
    ids = [each.facts() for each in (killed, failing, waiting)]
    assert len({*ids, os.getpid()}) == 4
    for each in (killed, failing, waiting):
        each()
    os.kill(ids[0], signal.SIGKILL)
    with pytest.raises(GistlmError, match="the process of killed ended"):
        killed()
    with pytest.raises(GistlmError, match="only one call"):
        failing()
    for each in (killed, failing, waiting):
        each.end()
    assert {process.pid for process in multiprocessing.active_children()}.isdisjoint(ids)


def test_training_speed_refuses_data_that_fills_no_batch(rows: Path, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    options = ["--data", str(rows), "--base", str(base), "--conditions", "plain"]
    with pytest.raises(SystemExit, match=r"^training_speed\.py: only 9 of 9 rows are of these lengths, .*has 16"):
        run_script("training_speed.py", *options)
    with pytest.raises(SystemExit, match=r"only 0 of 9 rows are of these lengths"):
        run_script("training_speed.py", *options, "--min-prompt-tokens", "500")


def test_a_training_step_changes_the_weights_and_plain_fine_tuning_sees_no_gist_tokens(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = _import("training_conditions", monkeypatch)
    base = str(save_tiny(tmp_path / "base"))
    config = training.Settings(str(rows), base, 4, 512, None, 0, 4, 2, 1, 0).config(None)
    for name in ("frozen", "plain"):
        objective = training.create(config, training.CONDITIONS[name])
        batches = training.make_batches(config, read_rows(str(rows)), objective)
        before = {part: tensor.clone() for part, tensor in objective.trainable().items()}
        seen: list[int] = []
        objective.register_forward_pre_hook(
            lambda module, args, fields, seen=seen: seen.append(int(fields["k"].max())), with_kwargs=True
        )
        training.stepper(objective, batches)()
        changed = {part for part, tensor in objective.trainable().items() if not torch.equal(tensor, before[part])}
        assert changed and (seen[0] == 0) == (name == "plain")
        assert ("gist_embeddings" in changed) == (name == "frozen")


def test_an_encoder_decoder_models_gist_is_measured_against_its_full_prompt_encoded_anew(tmp_path: Path) -> None:
    base, out = save_tiny(tmp_path / "base", "t5"), tmp_path / "cost.json"
    sizes = ["--prompts", "64,128", "--batches", "1,2", "--repeats", "1", "--new-tokens", "3", "--k", "2"]
    printed = run_script("cost_encoder_decoder.py", "--base", str(base), *sizes, "--json", str(out))
    cells = json.loads(out.read_text())["cells"]
    assert [(cell["prompt_tokens"], cell["batch"]) for cell in cells] == [(64, 1), (64, 2), (128, 1), (128, 2)]
    assert all(cell["flops_ratio"] < 0.5 for cell in cells)
    per_token = 2 * 3 * 4 * 8 * 4 + 32 * 4  # keys and values, layers, heads, head size, float32; and states
    assert all(cell["gist_bytes"] == 2 * per_token for cell in cells)
    assert all(cell["prompt_bytes"] == cell["prompt_tokens"] * per_token for cell in cells)
    assert printed.count("\n| ") >= len(cells)


# Start


def test_start_times_commands_as_processes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny, output = save_tiny_checkpoint(tmp_path / "tiny"), tmp_path / "start.json"
    start = _import("start", monkeypatch)
    own = start.commands
    quick = ("help", "inspect", "mistake: prompt too long", "mistake: damaged gist")
    monkeypatch.setattr(start, "commands", lambda model: {what: own(model)[what] for what in quick})
    monkeypatch.setattr(sys, "argv", ["start.py", "--model", str(tiny), "--rounds", "1", "--json", str(output)])
    start.main()
    figures, printed = json.loads(output.read_text()), capsys.readouterr().out
    assert tuple(figures["seconds"]) == quick
    for what, taken in figures["seconds"].items():
        assert 0 < taken["min"] <= taken["median"] <= taken["max"]
        assert what in printed
    assert str(tmp_path) not in figures["command"]


def test_start_measures_no_command_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = _import("start", monkeypatch)
    with pytest.raises(SystemExit, match=r"^start\.py: gistlm --no-such-option ended with 2"):
        start.run(["--no-such-option"], tmp_path)
