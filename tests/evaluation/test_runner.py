"""The runner on tiny random models: its figures are training's own, and one seed gives one result."""

import json
import math
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_engine import FAKE
from tiny import tiny_checkpoint

from gistlm.data.rows import read_rows
from gistlm.engines.base import Completion, Request, load_engine
from gistlm.engines.sampling import Sampling
from gistlm.engines.transformers import GistModel
from gistlm.errors import DataError, InputError
from gistlm.evaluation import describe, runner
from gistlm.evaluation.results import label, round_floats
from gistlm.evaluation.resume_log import ResumeLog
from gistlm.evaluation.runner import EvalConfig, Evaluation, OnProgress, evaluate
from gistlm.training.batches import Examples
from gistlm.training.validation import measure_rows

FAST = EvalConfig(ks=(1, 3), baselines=("truncation", "tfidf"), new_tokens=5, batch_size=4, resamples=200)
ROWS = 7


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Rows of several lengths, with and without an input, references of few words."""
    rows = [
        {"instruction": f"Say the number {n} in words{' and be brief' * (n % 3)}.", "input": f"{n}" * (n % 2),
         "output": f"It is {'n' * n}."}
        for n in range(ROWS)
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def model() -> GistModel:
    return GistModel(tiny_checkpoint())


@pytest.fixture(scope="module")
def evaluated(model: GistModel, data: str) -> Evaluation:
    """All rows under `FAST`."""
    return evaluate(model, data, FAST)


def by_label(evaluation: Evaluation) -> dict[str, Any]:
    return {label(each["name"], each["k"]): each for each in evaluation.results["conditions"]}


def test_likelihoods_and_divergences_are_those_that_training_measures(model: GistModel, data: str) -> None:
    found = by_label(evaluate(model, data, FAST.replace(generate=False)))
    examples = Examples(read_rows(data), model.checkpoint.prompts, 1024)
    table = measure_rows(model.checkpoint, examples, [1, 3])
    tokens = table.pop(("", "tokens")).sum()
    names = {"full": "full", "none": "none", "k=1": "gist@1", "k=3": "gist@3"}
    for (name, metric), sums in table.items():
        wanted = float(sums.sum() / tokens)
        assert found[names[name]]["metrics"][metric]["value"] == pytest.approx(wanted, abs=1e-5), (name, metric)


def test_training_measures_gists_of_kept_tokens_alone_as_evaluation_does(data: str) -> None:
    """They number prompts otherwise, and rows of one batch differ in whether they have such a gist."""
    model = GistModel(tiny_checkpoint(max_k=64, kept=63))
    found = by_label(evaluate(model, data, FAST.replace(generate=False, ks=(1, 32, 64), baselines=())))
    table = measure_rows(model.checkpoint, Examples(read_rows(data), model.checkpoint.prompts, 1024), [1, 32, 64])
    for k in (1, 32, 64):
        wanted = float(table[f"k={k}", "nll"].sum() / table["", "tokens"].sum())
        assert found[f"gist@{k}"]["metrics"]["nll"]["value"] == pytest.approx(wanted, abs=1e-5), k


def test_every_condition_has_every_metric_and_every_row_every_condition(evaluated: Evaluation) -> None:
    token = {"nll", "kl", "agreement", "answer_kl", "answer_agreement", "exact_match"}
    rouge = {f"{side}rouge{kind}" for side in ("", "answer_") for kind in "12L"}
    labels = ["full", "none", *(f"{name}@{k}" for name in ("gist", "truncation", "tfidf") for k in (1, 3))]
    found = by_label(evaluated)
    assert list(found) == labels
    assert all(set(each["metrics"]) == token | rouge for each in found.values())
    rows = evaluated.results["rows"]
    assert len(rows) == ROWS and all(list(row["metrics"]) == labels for row in rows)
    assert all(set(row["metrics"]["gist@1"]) == token | rouge for row in rows)
    assert list(evaluated.results["examples"][0]["answers"]) == labels


def test_the_controls_close_all_and_nothing_of_every_gap(evaluated: Evaluation) -> None:
    found = by_label(evaluated)
    for metric, figures in found["full"]["metrics"].items():
        if figures["gap_closed"] is not None:
            assert (figures["gap_closed"], found["none"]["metrics"][metric]["gap_closed"]) == (1, 0), metric
    full = {metric: figures["value"] for metric, figures in found["full"]["metrics"].items()}
    assert full["kl"] == full["answer_kl"] == 0
    assert full["agreement"] == full["answer_agreement"] == full["answer_rougeL"] == 1


def test_a_conditions_mean_is_that_of_its_rows(evaluated: Evaluation) -> None:
    rows = evaluated.results["rows"]
    for metric, weight in (("nll", "output_tokens"), ("answer_kl", "answer_tokens"), ("rouge1", None)):
        weights = [row[weight] if weight else 1 for row in rows]
        values = [row["metrics"]["gist@3"][metric] for row in rows]
        mean = sum(value * each for value, each in zip(values, weights, strict=True)) / sum(weights)
        assert by_label(evaluated)["gist@3"]["metrics"][metric]["value"] == pytest.approx(mean)


def test_rows_stay_in_the_files_order_whatever_their_lengths(
    model: GistModel, data: str, evaluated: Evaluation
) -> None:
    results = evaluated.results
    prompts = [row.prompt for row in read_rows(data)]
    assert [example["prompt"] for example in results["examples"]] == prompts
    assert [row["prompt_tokens"] for row in results["rows"]] == [model.count_tokens(prompt) for prompt in prompts]


def test_answers_are_those_of_the_engine_one_by_one(model: GistModel, evaluated: Evaluation) -> None:
    for row, place in zip(evaluated.rows, range(ROWS), strict=True):
        gist = model.compress(row.prompt, 3)
        assert evaluated.answers["gist@3"][place] == model.generate(row.input, gist, max_new_tokens=5)
        assert evaluated.answers["full"][place] == model.generate(row.input, prompts=row.prompt, max_new_tokens=5)
        bare = Request(row.input, sampling=Sampling(max_new_tokens=5), bare_opening=True)
        assert evaluated.answers["none"][place] == model.complete([bare])[0].text


def test_the_batch_size_and_the_table_that_fits_change_nothing(
    model: GistModel, data: str, evaluated: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = by_label(evaluated)
    monkeypatch.setattr(runner, "MAX_LOGITS", 1)
    alone = by_label(evaluate(model, data, FAST.replace(batch_size=3)))
    for name, each in whole.items():
        for metric, figures in each["metrics"].items():
            assert alone[name]["metrics"][metric]["value"] == pytest.approx(figures["value"], abs=1e-5), (name, metric)


def test_two_runs_with_one_seed_are_equal_to_the_last_digit(model: GistModel, data: str) -> None:
    config = FAST.replace(baselines=("pooled", "last", "untrained"))
    one, two = (json.dumps(round_floats(evaluate(model, data, config).results)) for _ in range(2))
    assert one == two
    assert json.dumps(round_floats(evaluate(model, data, config.replace(seed=1)).results)) != one


class Counted(GistModel):
    """Counts the rows that it scores and answers."""

    asked = 0

    def logits(self, requests: Sequence[Request], outputs: Sequence[str]) -> Iterator[torch.Tensor]:
        self.asked += len(requests)
        return super().logits(requests, outputs)

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        self.asked += len(requests)
        return super().complete(requests)


def stop_after(rows: int) -> OnProgress:
    """Ends the run, as Ctrl-C does, when that many rows are measured under the eight conditions of `FAST`."""

    def stop(done: int, total: int) -> None:
        if done >= rows * 8 * 3:
            raise KeyboardInterrupt

    return stop


def kept(
    model: GistModel, data: str, config: EvalConfig, path: Path, on_progress: OnProgress | None = None, basis: str = ""
) -> Evaluation:
    """An evaluation whose batches are kept in that file."""
    resume_log = ResumeLog(path, {"machine": basis})
    try:
        return evaluate(model, data, config, on_progress, resume_log)
    finally:
        resume_log.close()


def test_a_stopped_run_goes_on_with_the_rows_that_are_missing(data: str, evaluated: Evaluation, tmp_path: Path) -> None:
    model = Counted(tiny_checkpoint())
    with pytest.raises(KeyboardInterrupt):
        kept(model, data, FAST, tmp_path / "x", stop_after(ROWS))  # at the end of the second batch
    model.asked = 0
    calls: list[tuple[int, int]] = []
    again = kept(model, data, FAST, tmp_path / "x", lambda done, total: calls.append((done, total)))
    assert model.asked == 3 * 8 * 3  # the first batch held four of seven rows
    assert calls[-1] == (ROWS * 8 * 3, ROWS * 8 * 3)
    assert json.dumps(again.results) == json.dumps(evaluated.results)
    assert again.answers == evaluated.answers
    model.asked = 0
    assert json.dumps(kept(model, data, FAST, tmp_path / "x").results) == json.dumps(again.results)
    assert model.asked == 0


def test_the_basis_knows_the_models_configuration_and_the_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = GistModel(tiny_checkpoint())
    before = describe.basis(model)
    assert json.dumps(before) == json.dumps(describe.basis(GistModel(tiny_checkpoint())))
    model.checkpoint.reader.config.rms_norm_eps = 0.5  # no weight tells
    changed = describe.basis(model)
    assert {name for name in before if before[name] != changed[name]} == {"config"}
    (tmp_path / "other.py").write_text("")
    monkeypatch.setattr("gistlm.__file__", str(tmp_path / "__init__.py"))
    assert describe.basis(model)["code"] != before["code"]


@pytest.mark.parametrize("changed", ["config", "rows", "basis"])
def test_what_was_measured_otherwise_is_not_taken(data: str, tmp_path: Path, changed: str) -> None:
    model = Counted(tiny_checkpoint())
    config = FAST.replace(generate=False)
    kept(model, data, config, tmp_path / "x", basis="one")
    model.asked = 0
    if changed == "rows":
        lines = Path(data).read_text().splitlines()
        other = tmp_path / "rows.jsonl"
        other.write_text("\n".join([*lines[:-1], lines[-1].replace("brief", "terse").replace("Say", "Spell")]))
        kept(model, str(other), config, tmp_path / "x", basis="one")
    elif changed == "config":
        kept(model, data, config.replace(seed=1), tmp_path / "x", basis="one")
    else:
        kept(model, data, config, tmp_path / "x", basis="two")
    assert model.asked == ROWS * 8


@pytest.mark.parametrize(
    "damage",
    [
        lambda part: part["sums"].pop("gist@1"),
        lambda part: part["sums"]["gist@1"].pop("kl"),
        lambda part: [each.pop("kl") for each in part["sums"].values()],
        lambda part: part["sums"]["full"]["nll"].pop(),
        lambda part: part["held"].update(other=[1, 1, 1, 1]),
        lambda part: part["answers"].update(other=["", "", "", ""]),
        lambda part: part.pop("held"),
        lambda part: part["sums"]["full"].update(nll=["1", "1", "1", "1"]),
        lambda part: part["sums"]["full"]["nll"].__setitem__(0, float("nan")),
    ],
)
def test_kept_rows_that_do_not_fit_are_measured_again(
    data: str, evaluated: Evaluation, tmp_path: Path, damage: Callable[[dict[str, Any]], Any]
) -> None:
    model = Counted(tiny_checkpoint())
    kept(model, data, FAST, tmp_path / "x")
    database = sqlite3.connect(tmp_path / "x")
    ((value,),) = database.execute("SELECT value FROM pieces WHERE rowid = 1")
    part = json.loads(value)
    damage(part)
    with database:
        database.execute("UPDATE pieces SET value = ? WHERE rowid = 1", [json.dumps(part)])
    database.close()
    model.asked = 0
    again = kept(model, data, FAST, tmp_path / "x")
    assert model.asked == 4 * 8 * 3
    assert json.dumps(again.results) == json.dumps(evaluated.results)


def test_all_conditions_of_one_k_hold_equal_bytes(model: GistModel, data: str) -> None:
    config = FAST.replace(baselines=("truncation", "tfidf", "pooled", "last", "untrained"), generate=False)
    conditions = evaluate(model, data, config).results["conditions"]
    for k in (1, 3):
        assert {each["kv_bytes"] for each in conditions if each["k"] == k} == {
            (model.checkpoint.placement.opening + k) * model.compress("x", 1).nbytes
        }


def test_a_baseline_that_cannot_be_had_is_recorded_with_the_reason(model: GistModel, data: str, tmp_path: Path) -> None:
    config = FAST.replace(baselines=("llmlingua2",), classifier=str(tmp_path / "none"), generate=False)
    evaluation = evaluate(model, data, config)
    assert "cannot be loaded" in evaluation.results["skipped"]["llmlingua2"]
    assert not [name for name in by_label(evaluation) if name.startswith("llmlingua2")]


def test_long_references_are_not_matched_exactly(model: GistModel, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text('{"instruction": "Count.", "input": "", "output": "one two three four five six"}\n')
    assert "exact_match" not in by_label(evaluate(model, str(path), FAST))["full"]["metrics"]


def test_rows_that_are_too_long_are_counted_and_left_out(model: GistModel, tmp_path: Path) -> None:
    rows = [{"instruction": "word " * n, "input": "", "output": "Yes."} for n in (2, 60, 600)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = FAST.replace(generate=False)
    assert evaluate(model, str(path), config.replace(max_tokens=100)).results["data"]["skipped"] == 2
    assert evaluate(model, str(path), config.replace(max_tokens=9999)).results["data"]["skipped"] == 1  # the context
    with pytest.raises(DataError, match="none of the 3 rows"):
        evaluate(model, str(path), config.replace(max_tokens=5))


def test_progress_ends_when_all_is_done(model: GistModel, data: str) -> None:
    calls: list[tuple[int, int]] = []
    evaluate(model, data, FAST, lambda done, total: calls.append((done, total)))
    assert calls[0][0] == 0 and calls[-1] == (ROWS * 8 * 3, ROWS * 8 * 3)
    assert calls == sorted(calls)


def test_an_impossible_k_is_refused_before_anything_runs(model: GistModel, data: str) -> None:
    with pytest.raises(InputError, match="from 1 to 16"):
        evaluate(model, data, FAST.replace(ks=(1, 17)))


def test_an_unknown_baseline_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"no baseline 'magic'.*truncation"):
        EvalConfig(baselines=("magic",))


def test_an_engine_without_distributions_says_so(data: str) -> None:
    engine = load_engine(FAKE, "any")
    with pytest.raises(InputError, match="holds no checkpoint"):
        evaluate(engine, data, FAST)
    with pytest.raises(InputError, match="shows no logits"):
        engine.logits([], [])


def test_the_engines_logits_are_what_it_scores_with(model: GistModel) -> None:
    gist = model.compress("Be short.", 2)
    requests = [Request("Hi", gist), Request("Where is it?", prompt="Be short.")]
    outputs = ["Yes.", "In the box."]
    scores = model.score(["Hi", "Where is it?"], outputs, [gist, None], prompts=[None, "Be short."])
    for logits, output, score in zip(model.logits(requests, outputs), outputs, scores, strict=True):
        ids = torch.tensor(model.checkpoint.prompts.output_ids(output))
        assert logits.shape == (len(ids), model.checkpoint.reader.config.vocab_size)
        torch.testing.assert_close(logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0], score)


def test_an_answer_that_was_cut_is_scored_without_an_end(model: GistModel, evaluated: Evaluation) -> None:
    for row, place in zip(evaluated.results["rows"], range(ROWS), strict=True):
        text = evaluated.answers["full"][place].rstrip("\ufffd")
        ids = len(model.checkpoint.prompts.output_ids(text))
        assert row["answer_tokens"] in (ids, ids - 1)
    assert math.isfinite(by_label(evaluated)["none"]["metrics"]["answer_kl"]["value"])
