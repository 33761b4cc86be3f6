"""What the frozen recipe's loss is a sum of, and what a run can start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import save_tiny

from gistlm.checkpoint import Checkpoint, CheckpointOptions
from gistlm.checkpoint_config import Recipe
from gistlm.errors import InputError
from gistlm.initial import Initial, embedding_weight, initial_embeddings
from gistlm.mask import Part
from gistlm.training import objectives
from gistlm.training.batches import collate, tokenize
from gistlm.training.config import parse_config
from gistlm.training.decoder_passes import without_gaps
from gistlm.training.loop import create_checkpoint, train
from gistlm.training.objectives import REPEAT, Weights, divergence, frozen_loss, passes_of, repeat_prompts
from gistlm.training.rows import Row


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("objectives") / "base", "llama"))


@pytest.fixture(scope="module")
def checkpoint(base: str) -> Checkpoint:
    return Checkpoint.create(base, CheckpointOptions(Recipe.FROZEN, max_k=4, lora_rank=4), device="cpu")


def batch_of(checkpoint: Checkpoint, prompts: list[str]) -> Any:
    made = (Row(prompt, "what?", f"it is {place}") for place, prompt in enumerate(prompts))
    rows = [tokenize(row, checkpoint.prompts) for row in made]
    return collate(rows, [4] * len(rows), torch.device("cpu"))


def test_the_parts_of_the_loss_add_up_by_their_weights(checkpoint: Checkpoint) -> None:
    batch = batch_of(checkpoint, ["it is red", "say only green and nothing else"])
    passes = passes_of(checkpoint)

    def loss(**weights: float) -> float:
        return frozen_loss(passes, batch, Weights(**{"distillation": 0.0, **weights})).item()

    assert loss() == 0
    alone = {name: loss(**{name: 1.0}) for name in ("distillation", "cross_entropy", "reconstruction")}
    assert all(value > 0 for value in alone.values())
    whole = loss(distillation=1.0, cross_entropy=0.5, reconstruction=0.25)
    expected = alone["distillation"] + 0.5 * alone["cross_entropy"] + 0.25 * alone["reconstruction"]
    assert whole == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("numbers", [1, 40, 1 << 20])
def test_a_divergence_in_parts_and_its_gradients_are_those_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, numbers: int
) -> None:
    monkeypatch.setattr(objectives, "_NUMBERS_ON_CPU", numbers)
    torch.manual_seed(0)
    teacher, student = (torch.randn(2, 5, 13).mul(3).to(dtype).requires_grad_() for _ in range(2))
    weights = torch.tensor([[0.0, 0.0, 1.0, 0.25, 1.0], [0.0, 1.0, 1.0, 1.0, 1.0]])

    def at_once() -> torch.Tensor:
        logs = (logits[weights > 0].float().log_softmax(-1) for logits in (teacher, student))
        return torch.nn.functional.kl_div(*reversed(list(logs)), log_target=True, reduction="none").sum(-1)

    found = []
    for values in (divergence(teacher, student, weights), at_once()):
        student.grad = None
        (values * weights[weights > 0]).sum().backward()
        assert student.grad is not None
        found.append((values.detach(), student.grad))
    rounding = 1e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=rounding, atol=rounding)
    assert (found[0][1][0, :2] == 0).all()


def test_no_tokens_have_no_divergence_and_a_teacher_may_be_of_another_dtype() -> None:
    teacher, student = torch.randn(1, 2, 7).bfloat16(), torch.randn(1, 2, 7, requires_grad=True)
    assert divergence(teacher, student, torch.zeros(1, 2)).shape == (0,)
    same = divergence(teacher.float(), student, torch.ones(1, 2))
    assert torch.equal(divergence(teacher, student, torch.ones(1, 2)), same)
    same.sum().backward()
    assert student.grad is not None and student.grad.dtype == torch.float32


def test_a_divergence_gives_the_teacher_no_gradients() -> None:
    teacher, student = torch.randn(1, 2, 7, requires_grad=True), torch.randn(1, 2, 7, requires_grad=True)
    divergence(teacher, student, torch.ones(1, 2)).sum().backward()
    assert teacher.grad is None


@given(st.lists(st.lists(st.sampled_from([Part.PAD, Part.PROMPT, Part.GIST]), min_size=5, max_size=5), min_size=1))
def test_without_gaps_padding_is_on_the_left_and_the_longest_row_has_none(rows: list[list[Part]]) -> None:
    parts = torch.tensor([[int(part) for part in row] for row in rows])
    numbers = torch.arange(parts.numel()).view_as(parts)
    packed, columns = without_gaps(parts, parts, numbers)
    longest = max(sum(part != Part.PAD for part in row) for row in rows)
    assert packed.shape == columns.shape == (len(rows), longest)
    for place in range(len(rows)):
        own = parts[place] != Part.PAD
        count = int(own.sum())
        assert columns[place, longest - count :].tolist() == numbers[place][own].tolist()
        assert packed[place, longest - count :].tolist() == parts[place][own].tolist()
        assert (packed[place, : longest - count] == int(Part.PAD)).all()


def test_a_weight_on_inputs_leaves_the_cross_entropy_to_outputs(checkpoint: Checkpoint) -> None:
    batch, passes = batch_of(checkpoint, ["it is red", "say only green"]), passes_of(checkpoint)
    alone, with_inputs = (
        frozen_loss(passes, batch, Weights(distillation=0.0, input=weight, cross_entropy=1.0)).item()
        for weight in (0.0, 2.0)
    )
    assert alone == pytest.approx(with_inputs, rel=1e-5)


def test_a_prompt_to_reconstruct_follows_the_request_to_repeat_it(checkpoint: Checkpoint) -> None:
    ids = checkpoint.prompts
    prompts = ["it is red", "word " * 100]
    batch = repeat_prompts(checkpoint, batch_of(checkpoint, prompts))
    request = ids.rest_ids(REPEAT)
    own = [ids.prompt_ids(prompt)[len(ids.opening_ids) :] for prompt in prompts]
    outputs = [own[0] + ids.output_end_ids, own[1][:64]]
    for row, output in enumerate(outputs):
        assert batch.rests[row][batch.rest_parts[row] != Part.PAD].tolist() == request + output
        assert int(batch.output_lengths[row]) == len(output)


def test_reconstruction_teaches_a_gist_to_repeat_its_prompt(base: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"{word} {word}", "input": "hm", "output": "hm"} for word in ("the", "and", "in", "on")] * 4
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {
        "base": base, "data": [{"path": str(tmp_path / "rows.jsonl")}], "output": str(tmp_path / "out"), "steps": 40,
        "batch_size": 4, "max_k": 2, "lora_rank": 4, "validation_rows": 0, "device": "cpu", "learning_rate": 1e-2,
        "distillation_weight": 0.0, "reconstruction_weight": 1.0, "save_every": 100,
    }  # fmt: skip
    losses = json.loads((train(parse_config(shared)) / "training.json").read_text())["losses"]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize("kind", list(Initial))
def test_gist_embeddings_start_as_they_are_said_to(kind: Initial, checkpoint: Checkpoint) -> None:
    weight = embedding_weight(checkpoint.reader)
    start = initial_embeddings(checkpoint.reader, 6, seed=3, kind=kind)
    assert start.shape == (6, weight.shape[1])
    assert torch.equal(start, initial_embeddings(checkpoint.reader, 6, seed=3, kind=kind))
    assert not torch.equal(start, initial_embeddings(checkpoint.reader, 6, seed=4, kind=kind))
    is_a_word = [bool((weight == row).all(dim=1).any()) for row in start]
    assert all(is_a_word) if kind == Initial.WORDS else not any(is_a_word)
    spread = float((start - start.mean(0)).std() / weight.std(0).mean())
    low, high = {"spread": (0.6, 1.5), "words": (0.6, 1.5), "small": (0.05, 0.2), "mean": (0.0, 0.02)}[kind.value]
    assert low < spread < high


def test_training_with_kept_tokens_goes_on_from_learned_ones(base: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"say {word} {place}", "input": "hm", "output": word} for place, word in enumerate("abcdefgh")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {
        "base": base, "data": [{"path": str(tmp_path / "rows.jsonl")}], "steps": 2, "batch_size": 4, "lora_rank": 4,
        "validation_rows": 2, "device": "cpu", "learning_rate": 1e-2,
    }  # fmt: skip
    first = train(parse_config({**shared, "max_k": 4, "output": str(tmp_path / "first")}))
    learned = Checkpoint.load(first, device="cpu").gist_embeddings
    second = {**shared, "start": str(first), "output": str(tmp_path / "second"), "max_k": 9, "kept": 7}
    assert torch.equal(create_checkpoint(parse_config(second)).gist_embeddings, learned[:2])
    made = Checkpoint.load(train(parse_config(second)), device="cpu")
    assert (made.max_k, made.learned, made.config.kept) == (9, 2, 7)
    assert not torch.equal(made.gist_embeddings, learned[:2])
    with pytest.raises(InputError, match="4 learned gist tokens, the recipe 5"):
        create_checkpoint(parse_config({**second, "max_k": 12}))


def test_learned_observers_come_to_look_where_the_rest_does(base: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"say {word} and {place}", "input": "hm", "output": word} for place, word in enumerate("abcdef")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {
        "base": base, "data": [{"path": str(tmp_path / "rows.jsonl")}], "steps": 25, "batch_size": 6, "lora_rank": 4,
        "validation_rows": 0, "device": "cpu", "max_k": 4, "kept": 3, "learning_rate": 1e-2, "k": [2],
        "distillation_weight": 0.0, "observation_weight": 1.0, "output": str(tmp_path / "out"), "save_every": 25,
    }  # fmt: skip
    untrained = create_checkpoint(parse_config({**options, "observers": 3}))
    made = Checkpoint.load(train(parse_config({**options, "observers": 3})), device="cpu")
    assert made.observers.shape == untrained.observers.shape == (3, made.gist_embeddings.shape[1])
    assert not torch.equal(made.observers, untrained.observers.to(made.observers.dtype))
    figures = json.loads((tmp_path / "out" / "training.json").read_text())
    assert figures["losses"][-1] < 0.8 * figures["losses"][0]
    more = {**options, "start": str(tmp_path / "out"), "observers": 4, "output": str(tmp_path / "more")}
    going_on = create_checkpoint(parse_config(more)).observers
    assert len(going_on) == 4 and torch.equal(going_on[:3], made.observers)
    with pytest.raises(InputError, match="3 learned observers, the recipe 0; give observers: 3 or more"):
        create_checkpoint(parse_config({**more, "observers": 0, "observation_weight": 0.0, "distillation_weight": 1.0}))


def test_a_source_s_own_weight_counts_the_cross_entropy_of_its_rows_alone(checkpoint: Checkpoint) -> None:
    batch, passes = batch_of(checkpoint, ["it is red", "say only green"]), passes_of(checkpoint)

    def loss(*own: float) -> float:
        batch.cross_entropy = torch.tensor(own)
        return frozen_loss(passes, batch, Weights(distillation=0.0)).item()

    assert loss(0.0, 0.0) == 0
    assert loss(0.5, 0.0) + loss(0.0, 1.0) == pytest.approx(loss(0.5, 1.0), rel=1e-5)
    batch.cross_entropy = torch.zeros(2)
    everywhere = frozen_loss(passes, batch, Weights(distillation=0.0, cross_entropy=2.0)).item()
    assert loss(2.0, 2.0) == pytest.approx(everywhere, rel=1e-5)


def test_a_recipe_chooses_start_and_opening(base: str) -> None:
    options = {"base": base, "output": "out", "data": [{"path": "rows"}], "device": "cpu", "max_k": 2, "lora_rank": 4}
    default = create_checkpoint(parse_config(options))
    hidden = create_checkpoint(parse_config({**options, "opening_visible": False, "initial": "words"}))
    assert default.opening_tokens > 0 and hidden.opening_tokens == 0
    assert not torch.equal(default.gist_embeddings, hidden.gist_embeddings)
    shown = create_checkpoint(parse_config({**options, "recipe": "paper", "opening_visible": True}))
    assert shown.opening_tokens == default.opening_tokens
