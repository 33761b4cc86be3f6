"""Recipes that write training rows; their texts and tasks are made here."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny import save_tiny
from typer.testing import CliRunner

from gistlm.cli.app import app
from gistlm.data.rows import read_rows
from gistlm.data.sources import normalise
from gistlm.errors import DataError, InputError
from gistlm.evaluation.statistics import paired_differences
from gistlm.models.checkpoint import ADAPTER_WEIGHTS
from gistlm.models.config import EMBEDDINGS

RECIPE = Path(__file__).parents[1] / "recipes" / "programmatic.py"
KINDS = ("single", "system", "few-shot", "passage", "request")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, RECIPE.with_name(f"{name}.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Ended(NamedTuple):
    """How a script ended."""

    returncode: int
    stdout: str
    stderr: str


def script(name: str, *options: object) -> Ended:
    """Run a recipe's script as the command line does, but in this process, which has imported torch."""
    path, code, out, err = RECIPE.with_name(name), 0, StringIO(), StringIO()
    with patch.object(sys, "argv", [str(path), *map(str, options)]), redirect_stdout(out), redirect_stderr(err):
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            code = int(bool(end.code))
            print(end.code, file=err)
    return Ended(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load("programmatic")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Inputs of twelve different sentences each, and some that are no prose."""
    words = ("river", "market", "garden", "window", "engine", "letter", "winter", "bridge", "doctor", "forest")
    folder = tmp_path_factory.mktemp("recipes")
    rows = [
        " ".join(
            f"The old {words[(row + place) % 10]} number{row}x{place} stood near the {words[row % 10]} for years."
            for place in range(12)
        )
        for row in range(80)
    ]
    rows += ["- a list\n- of points", "Short.", "| a | table |" * 40]
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"instruction": "", "input": text, "output": "x"}) + "\n" for text in rows))
    return str(path)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipes") / "tasks.jsonl"
    path.write_text(json.dumps({"instruction": "Name a colour.", "instances": [{"input": "", "output": "blue"}]}))
    return str(path)


@pytest.fixture(scope="module")
def material(recipe: ModuleType, texts: str, tasks: str) -> object:
    return recipe.read_material(texts, tasks)


@pytest.fixture(scope="module")
def rows(recipe: ModuleType, material: object) -> list[tuple[str, object]]:
    return list(recipe.write_rows(material, 400, 0))


def test_one_kind_can_be_had_alone(recipe: ModuleType, material: object, rows: list) -> None:
    alone = list(recipe.write_rows(material, 20, 0, ["system"]))
    assert alone == [row for row in rows if row[0] == "system"][:20]


def test_kinds_are_mixed_evenly_and_no_prompt_comes_twice(rows: list) -> None:
    assert Counter(kind for kind, _ in rows) == dict.fromkeys(KINDS, 80)
    assert len({normalise(row.prompt) for _, row in rows}) == 400


def test_answers_have_1_to_60_words_and_no_slot_or_choice_is_left(rows: list) -> None:
    for _, row in rows:
        assert 1 <= len(row.output.split()) <= 60
        assert not re.search(r"\{\w+\}", row.prompt + row.input + row.output), row
        assert not re.search(r"\[[^\]]*\|", row.prompt + row.input), row


def test_only_the_seed_decides_and_more_rows_begin_with_the_same(
    recipe: ModuleType, material: object, rows: list
) -> None:
    assert list(recipe.write_rows(material, 100, 0)) == rows[:100]
    assert list(recipe.write_rows(material, 100, 1)) != rows[:100]


def test_a_passage_holds_its_answer(rows: list) -> None:
    assert all(row.output in row.prompt for kind, row in rows if kind == "passage")


def test_what_a_system_prompt_does_not_say_is_not_answered(rows: list) -> None:
    """Every number and code in an answer stands in the prompt or in the question."""
    for kind, row in rows:
        if kind == "system":
            known = (row.prompt + row.input).casefold()
            assert all(figure in known for figure in re.findall(r"[\w/:-]*\d[\w/:]*", row.output.casefold())), row


def test_system_prompts_are_short_and_long(rows: list) -> None:
    lengths = sorted(len(row.prompt.split()) for kind, row in rows if kind == "system")
    assert lengths[0] < 60 and lengths[-1] > 150


@pytest.mark.parametrize(
    ("phrase", "answer"),
    [
        ("upper case", "ONE THREE FIVE"),
        ("the order of the words", "five three One"),
        ("alphabetically", "five One three"),
        ("vowels", "n thr fv"),
        ("the last word of {it}", "five"),
        ("the longest word", "three"),
    ],
)
def test_an_instruction_is_answered_exactly(recipe: ModuleType, phrase: str, answer: str) -> None:
    changes = [change for text, change in recipe.TRANSFORMS.items() if phrase in text]
    assert changes[-1]("One three five") == answer


def test_a_template_decides_choices_and_leaves_what_fills_a_slot(recipe: ModuleType) -> None:
    draw = recipe.Random(0)
    assert {recipe.say(draw, "[a|b[c|d]] {x}", x="[e|f] {y}", y="z") for _ in range(50)} == {
        "a [e|f] {y}", "bc [e|f] {y}", "bd [e|f] {y}",
    }  # fmt: skip
    assert recipe.say(draw, "a {x}, A {x} and a {y}", x="old", y="new") == "an old, An old and a new"


def test_too_few_passages_are_an_error_that_says_so(
    recipe: ModuleType, texts: str, tasks: str, tmp_path: Path, material: object
) -> None:
    with pytest.raises(DataError, match="no passage of 60 to 250 words"):
        recipe.read_material(tasks, tasks)
    few = recipe.Material(material.passages[:1], material.sentences, material.tasks)  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="no new passage prompt"):
        list(recipe.write_rows(few, 100, 0))


def test_the_command_writes_rows_that_training_reads(texts: str, tasks: str, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    asked = "--texts", texts, "--tasks", tasks, "--rows", 20, "--out", out
    assert script("programmatic.py", *asked).returncode == 0
    assert len(read_rows(str(out))) == 20
    failed = script("programmatic.py", *asked, "--rows", 0)
    assert failed.returncode == 1 and "whole number of at least 1" in failed.stderr


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short runs of a tiny model, and the rows for both ends."""
    tmp_path = tmp_path_factory.mktemp("ablation")
    rows = [{"instruction": f"rule {i}: say {i}", "input": f"ask {i}", "output": f"it is {i}"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    base = {
        "base": str(save_tiny(tmp_path / "base")),
        "dtype": "bfloat16",
        "data": [{"path": str(tmp_path / "rows.jsonl")}],
        "steps": 2,
    }
    few = {"batch_size": 2, "max_k": 2, "lora_rank": 2, "validation_rows": 0, "device": "cpu"}
    runs = [{"name": "as it is"}, {"name": "rank 4", "lora_rank": 4}]
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({"base": {**base, **few}, "runs": runs}))
    return tmp_path / "plan.yaml"


def asked(plan: Path) -> tuple[object, ...]:
    data = [plan.parent / "rows.jsonl", plan.parent / "few.jsonl"]
    return plan, "--data", *data, "--out", plan.parent / "out", "--rows", 4, "--k", 1, "--threads", 1


def in_this_process(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    """In the place of `subprocess.run`: the package's command line without a new process, which would import torch."""
    assert command[:3] == [sys.executable, "-m", "gistlm"]
    assert options == {"env": {**os.environ, "HF_HUB_OFFLINE": "1"}, "stdout": sys.stderr, "check": False}
    done = CliRunner().invoke(app, command[3:], prog_name="gistlm")
    print(done.output, file=sys.stderr)
    return subprocess.CompletedProcess(command, done.exit_code)


@pytest.fixture(scope="module")
def table(plan: Path) -> str:
    """What the plan's first run prints; its runs lie beside it."""
    with patch.object(subprocess, "run", in_this_process):
        done = script("ablate.py", *asked(plan))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_ablation_trains_and_measures_every_run_and_repeats_none(plan: Path, table: str) -> None:
    figures = json.loads((plan.parent / "out" / "ablations.json").read_text())
    assert [(figure["name"], figure["changed"]) for figure in figures] == [
        ("as it is", "nothing"),
        ("rank 4", "lora_rank: 4"),
    ]
    assert all(figure["tokens"] > 0 for figure in figures)
    assert all([(found["data"], found["rows"]) for found in figure["measured"]] == [("rows", 4), ("few", 3)]
               for figure in figures)  # fmt: skip
    assert "| rows: NLL, full / none | k=1: NLL; gap closed, NLL / KL | few: NLL, full / none | k=1" in table
    assert table.count("\n| rank 4 | lora_rank: 4 |") == 1
    times = {path: path.stat().st_mtime_ns for path in (plan.parent / "out").glob("*/*.json")}
    assert {path.name for path in times} == {"rows.json", "few.json"} and len(times) == 4
    assert {json.loads(path.read_text())["model"]["dtype"] for path in times} == {"bfloat16"}
    assert script("ablate.py", *asked(plan)).stdout == table
    one = script("ablate.py", *asked(plan), "--only", "rank 4")
    assert one.returncode == 0 and "| rank 4 |" in one.stdout and "| as it is |" not in one.stdout
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_an_ablation_s_table_says_what_data_a_run_has_alone_and_goes_without() -> None:
    changed = load("ablate").changed
    one, two, three = ({"path": f"{name}.jsonl"} for name in "abc")
    run = {"name": "x", "data": [one, three]}
    assert changed(run, {"data": [one, two]}) == f"data: [{three}], without: [{two}]"
    assert changed(run, {}) == f"data: [{one}, {three}], without: []"
    assert changed({"name": "x", "k": None}, {"data": [one]}) == "k: None"


@pytest.mark.usefixtures("table")
def test_an_ablation_s_figures_are_never_shown_for_other_options(plan: Path) -> None:
    written = (plan.parent / "out" / "ablations.json").read_bytes()
    other = script("ablate.py", *asked(plan), "--only", "rank 4", "--rows", 3)
    assert other.returncode == 1 and "holds a run of other options" in other.stderr
    twice = script("ablate.py", *asked(plan), "--data", plan, plan)
    assert twice.returncode == 1 and "two files of one name" in twice.stderr
    unknown = script("ablate.py", *asked(plan), "--only", "rank 5")
    assert unknown.returncode == 1 and "has no run 'rank 5'; it has as it is, rank 4" in unknown.stderr
    assert (plan.parent / "out" / "ablations.json").read_bytes() == written


def test_an_ablation_with_an_unknown_option_is_refused_before_anything_is_trained(plan: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(plan.read_text())
    values["runs"][1]["lora_size"] = 3
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(values))
    made = script("ablate.py", tmp_path / "plan.yaml", *asked(plan)[1:], "--out", tmp_path / "out")
    assert made.returncode == 1
    assert "rank 4: no option 'lora_size'" in made.stderr
    assert not (tmp_path / "out").exists()


def test_self_generated_rows_go_on_behind_the_last_whole_chunk(tmp_path: Path) -> None:
    module, path = load("self_generated"), tmp_path / "rows.jsonl"
    assert module.resume(path, 57) == ([], 57)
    rows = [{"instruction": str(place), "chunk": 57 + place // 2} for place in range(3)]
    rows[0]["instruction"] = "one\u2028line"
    whole = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    path.write_bytes(whole.encode() + '{"instruc\u00e9'.encode()[:-1])
    assert module.resume(path, 57) == (rows[:2], 58)
    assert path.read_text() == "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows[:2])
    with pytest.raises(InputError, match="begins at chunk 57, before --first-chunk 58"):
        module.resume(path, 58)
    path.write_text("")
    assert module.resume(path, 57) == ([], 57)
    path.write_text('{"instruction": "x"}\n')
    with pytest.raises(InputError, match="a row has no chunk"):
        module.resume(path)
    assert path.read_text() == '{"instruction": "x"}\n'


def test_a_mean_of_two_checkpoints_holds_the_seconds_own_tensors_too(tmp_path: Path) -> None:
    for name, value, more in (("first", 1.0, {}), ("second", 3.0, {"fitted": torch.ones(2, 2)})):
        (tmp_path / name).mkdir()
        save_file({"gist_embeddings": torch.full((1, 4), value), **more}, tmp_path / name / EMBEDDINGS)
        save_file({"lora_A": torch.full((2, 4), value)}, tmp_path / name / ADAPTER_WEIGHTS)
        (tmp_path / name / "training.json").write_text('{"tokens": 7}')
        (tmp_path / name / "gistlm.json").write_text(json.dumps({"name": name, "kept": len(more), "anchored": True}))
        (tmp_path / name / "adapter_config.json").write_text(
            json.dumps({"r": 4, "target_modules": ["k", "q"] if more else ["q", "k"]})
        )

    def average(out: str, *more: object) -> Ended:
        return script("average.py", tmp_path / "first", tmp_path / "second", "--out", tmp_path / out, *more)

    assert average("mean", "--share", 0.25).returncode == 0
    assert torch.equal(load_file(tmp_path / "mean" / ADAPTER_WEIGHTS)["lora_A"], torch.full((2, 4), 1.5))
    embeddings = load_file(tmp_path / "mean" / EMBEDDINGS)
    assert torch.equal(embeddings["fitted"], torch.ones(2, 2))
    assert torch.equal(embeddings["gist_embeddings"], torch.full((1, 4), 1.5))
    assert "mean exists; name a new folder" in average("mean").stderr
    assert "--share must be from 0 to 1" in average("other", "--share", 2).stderr
    save_file({"lora_A": torch.ones(3, 4)}, tmp_path / "first" / ADAPTER_WEIGHTS)
    assert "differ in lora_A" in average("other").stderr
    (tmp_path / "first" / "adapter_config.json").write_text('{"r": 4, "target_modules": ["q"]}')
    assert "differ in 'target_modules' of adapter_config.json" in average("other").stderr
    (tmp_path / "first" / "adapter_config.json").write_text('{"r": 8, "target_modules": ["q", "k"]}')
    assert "differ in 'r' of adapter_config.json" in average("other").stderr
    (tmp_path / "first" / "adapter_config.json").write_text("{")
    assert "adapter_config.json cannot be read" in average("other").stderr
    assert not (tmp_path / "other").exists()


def test_system_prompts_need_no_texts(tmp_path: Path) -> None:
    made = script("programmatic.py", "--rows", 4, "--kinds", "system", "--out", tmp_path / "rows.jsonl")
    assert made.returncode == 0, made.stderr
    assert len(read_rows(str(tmp_path / "rows.jsonl"))) == 4
    refused = script("programmatic.py", "--rows", 4, "--out", tmp_path / "rows.jsonl")
    assert refused.returncode == 1 and "give both" in refused.stderr


def test_near_rows_and_what_a_result_says_of_them(tmp_path: Path) -> None:
    names = ("one", "two")
    rows = [{"instruction": f"Speak of {name} thing only", "input": "", "output": "x"} for name in names]
    for name, own in (("rows", rows), ("training", rows[:1])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    found = script("near_duplicates.py", tmp_path / "rows.jsonl", "--training", tmp_path / "training.jsonl")
    assert "1 of 2 rows" in found.stdout and "1 with the same prompt" in found.stdout
    results = RECIPE.parents[1] / "benchmarks" / "results" / "eval-system-prompts.json"
    few = script("near_duplicates.py", tmp_path / "rows.jsonl", "--training", tmp_path / "training.jsonl",
                 "--results", results)  # fmt: skip
    assert few.returncode == 1 and "has 48 rows" in few.stderr
    many = tmp_path / "many.jsonl"
    many.write_text("".join(json.dumps({**rows[0], "instruction": f"Say {n} {n} {n}"}) + "\n" for n in range(48)))
    shown = script("near_duplicates.py", many, "--training", tmp_path / "training.jsonl", "--results", results)
    assert "full\t100%\t-\t100%" in shown.stdout


def test_the_card_keeps_what_earlier_parts_say_and_results_are_of_one_checkpoint(tmp_path: Path) -> None:
    root = RECIPE.parents[1]
    run, found = tmp_path / "run", root / "benchmarks" / "results"
    shutil.copytree(root / "checkpoints" / "smollm2-135m", run)
    (run / "README.md").unlink()
    config = {
        "name": "mine", "steps": 5, "batch_size": 2, "seed": 0, "max_k": 16, "kept": 15,
        "lora_rank": 48, "lora_modules": "attention", "anchored": True, "max_tokens": 288, "probe_weight": 0.3,
    }  # fmt: skip
    figures = {"config": config, "processes": 1, "tokens": 7, "rows_left_out": 0, "base_unchanged": True}
    (run / "training.json").write_text(json.dumps(figures))
    card, out = root / "checkpoints" / "smollm2-135m" / "README.md", tmp_path / "out"
    same: tuple[object, ...] = ("--recipe", "recipes/mine.yaml", "--started-from", card, "--kept", 63)
    same += "--evaluation", found / "eval-alpaca-unseen.json"
    same += "--answers", found / "eval-alpaca-unseen-answers.json"
    other = json.loads((found / "eval-retention.json").read_text())
    other["model"]["adapter"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(other))
    refused = script("publish.py", run, out, *same, "--probe", tmp_path / "other.json")
    assert refused.returncode == 1 and "of different checkpoints" in refused.stderr
    assert not out.exists()
    probe = found / "eval-retention.json"
    made = script("publish.py", run, out, *same, "--probe", probe, "--remark", "It rained.")
    assert made.returncode == 0, made.stderr
    text = (out / "README.md").read_text()
    training = card.read_text().partition("## Training\n\n")[2].partition("\nThe loss is")[0]
    assert training in text
    assert "Recipe `recipes/mine.yaml`: 5 steps of 2 rows" in text and "It rained.\nThe loss is" in text
    assert json.loads((out / "gistlm.json").read_text())["kept"] == 63
    assert {path.name for path in out.iterdir()} == {path.name for path in card.parent.iterdir()}


@pytest.fixture(scope="module")
def publish() -> ModuleType:
    return load("publish")


def measured(name: str) -> dict[str, Any]:
    path = RECIPE.parents[1] / "benchmarks" / "results" / f"eval-{name}.json"
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def results(folder: Path, *more: dict[str, Any], **other: dict[str, Any]) -> Namespace:
    """Options of publish.py that name result files, made in the folder."""
    values = {name: measured("alpaca-unseen-answers") for name in ("evaluation", "answers")}
    values |= {"probe": measured("retention"), **other}
    values |= {f"more {place}": each for place, each in enumerate(more)}
    for name, value in values.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    paths = {name: folder / f"{name}.json" for name in ("evaluation", "answers", "probe")}
    return Namespace(**paths, more=[folder / f"more {place}.json" for place in range(len(more))])


def test_a_section_of_the_card_shows_rows_and_probes_that_a_result_has(publish: ModuleType) -> None:
    answers, probe, rounded = map(measured, ("alpaca-unseen-answers", "retention", "alpaca-unseen-bfloat16"))
    beside = publish.Measured(measured("alpaca-unseen"), answers, probe, [])
    assert publish.section(probe, beside).startswith("\n### In float32, probes, seed 0\n\nThe retention probe")
    rows = publish.section(answers, beside)
    assert rows.startswith(f"\n### In float32, {answers['data']['rows']} rows of alpaca_plus_validation_unseen")
    assert "ROUGE-L gap closed |" in rows and "paired difference" not in rows and "retention probe" not in rows
    both = publish.section({**answers, "retention": probe["retention"]}, beside)
    assert "and answers of 32 tokens and probes, seed 0\n" in both
    assert "ROUGE-L gap closed |" in both and "| rule |" in both
    with_baselines = publish.section(rounded, beside)
    run = rounded["run"]
    assert f"\n`{run['command']}` ({run['date']}, {run['machine']['cpu']}, threads: 1" in with_baselines
    assert "| KL gap closed | next tokens, and gap closed |\n" in with_baselines and "ROUGE" not in with_baselines
    for metric in ("NLL", "KL"):
        assert f"| {metric}: paired difference against | k=1, 493 rows |" in with_baselines
    assert "The same targets in bfloat16:" in with_baselines and "| KL gap closed, k=1 | 75% | " in with_baselines
    assert "targets" not in publish.section(measured("alpaca-seen-bfloat16"), beside)  # the targets are of other rows
    assert "probes, k=8 | 90% of" in publish.section(measured("retention-bfloat16"), beside)
    assert not any("targets" in each for each in (rows, both))  # the card has them in this dtype


def test_the_card_has_paired_differences_where_there_are_baselines_and_further_sections(
    publish: ModuleType, tmp_path: Path
) -> None:
    config = {
        "name": "mine", "max_k": 16, "kept": 15, "lora_rank": 48, "lora_modules": "attention", "anchored": True,
        "max_tokens": 288,
    }  # fmt: skip
    figures = {"config": config, "rows_left_out": 0, "base_unchanged": True}

    def card(options: Namespace) -> str:
        text: str = publish.card(["Recipe `x`."], figures, 15, publish.Measured.read(options))
        return text

    bare = card(results(tmp_path))
    assert "Paired differences" not in bare and "###" not in bare
    rounded = measured("retention-bfloat16")
    whole = card(results(tmp_path, rounded, evaluation=measured("alpaca-unseen")))
    assert "Paired differences, gist less baseline" in whole and "| selected |" in whole
    assert "### In bfloat16, probes, seed 0" in whole


def test_the_card_says_of_each_target_whether_it_is_met(publish: ModuleType) -> None:
    def gist(k: int, closed: float, interval: list[float] | None) -> dict[str, Any]:
        return {"name": "gist", "k": k, "metrics": {"kl": {"gap_closed": closed, "gap_closed_95": interval}}}

    conditions = [gist(1, 0.76, [0.74, 0.78]), gist(4, 0.9, [0.9, 0.91]), gist(16, 0.94, None)]
    probe = [
        {"kind": kind, "condition": condition, "n": 50, "correct": n, "score": n / 50, "score_95": [low, 1.0]}
        for kind, right in (("language", (30, 40)), ("format", (40, 36)), ("rule", (40, 35)), ("name", (40, 0)))
        for condition, n, low in zip(("full", "gist@8"), right, (0.5, 0.6), strict=True)
    ]
    found = {"rows": [], "conditions": conditions, "model": {"dtype": "float32"}}
    lines = publish.targets(found, conditions, probe).splitlines()
    assert [line for line in lines if line.startswith("| ") and "---" not in line][1:] == [
        "| KL gap closed, k=1 | 75% | 76% (74% to 78%) | point alone |",
        "| KL gap closed, k=4 | 90% | 90% (90% to 91%) | met |",
        "| KL gap closed, k=16 | 95% | 94% | missed |",
        "| right answers to language probes, k=8 | 90% of the full prompt's 30 | 40/50 (60% to 100%) | met |",
        "| right answers to format probes, k=8 | 90% of the full prompt's 40 | 36/50 (60% to 100%) | point alone |",
        "| right answers to rule probes, k=8 | 90% of the full prompt's 40 | 35/50 (60% to 100%) | missed |",
    ]
    assert publish.targets({"rows": [], "conditions": []}, [], []) == ""


def test_the_card_shows_the_least_sure_paired_difference_and_longer_prompts_by_themselves(
    publish: ModuleType,
) -> None:
    found = measured("alpaca-unseen-bfloat16")
    lines = publish.targets(found, found["conditions"], []).splitlines()
    of_baselines = {line.split(" | ")[0]: line for line in lines if "trivial baselines" in line}
    assert len(of_baselines) == 6
    for metric in ("nll", "kl"):
        for k in (1, 4, 16):
            differences = [
                each for each in paired_differences(found, metric) if each.k == k and each.baseline != "selected"
            ]
            title = f"paired difference against each of 5 trivial baselines, k={k}, {differences[0].rows} rows"
            line = of_baselines[f"| {metric.upper()} {title}"]
            met = "met" if all(each.standing == "ahead" for each in differences) else "missed"
            least = min(differences, key=lambda each: each.interval or (0.0, 0.0))
            assert line.endswith(f"against `{least.baseline}` | {met} |") and len(differences) == 5
    line = of_baselines["| NLL paired difference against each of 5 trivial baselines, k=16, 35 rows"]
    assert "against `last` | missed |" in line
    (longer,) = (line for line in lines if "NLL gap closed, k=16, the 35 rows of longer prompts" in line)
    rows = [row for row in found["rows"] if row["prompt_tokens"] - found["model"]["opening_tokens"] > 16]
    sums = {
        name: sum(row["metrics"][name]["nll"] * row["output_tokens"] for row in rows)
        for name in ("none", "full", "gist@16")
    }
    assert f"| {(sums['none'] - sums['gist@16']) / (sums['none'] - sums['full']):.0%} (" in longer
    assert not any("k=4, the" in line for line in lines)


def test_the_card_mixes_neither_checkpoints_nor_dtypes(publish: ModuleType, tmp_path: Path) -> None:
    rounded = measured("retention-bfloat16")
    with pytest.raises(InputError, match="are in bfloat16 and float32; measure them in one dtype"):
        publish.Measured.read(results(tmp_path, probe=rounded))
    with pytest.raises(InputError, match="--evaluation and --answers are of different rows"):
        publish.Measured.read(results(tmp_path, answers=measured("alpaca-seen-answers")))
    rounded["model"]["adapter"] = "0" * 64
    with pytest.raises(InputError, match="are of different checkpoints"):
        publish.Measured.read(results(tmp_path, rounded))
