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

from gistlm.data.rows import Row
from gistlm.errors import InputError
from gistlm.gisting.placement import Part
from gistlm.models.checkpoint import Checkpoint, CheckpointOptions
from gistlm.models.config import Recipe
from gistlm.models.embeddings import embedding_weight, initial_embeddings, random_words
from gistlm.training import objectives
from gistlm.training.batches import collate, tokenize
from gistlm.training.config import TrainConfig
from gistlm.training.decoder_passes import without_gaps
from gistlm.training.loop import create_checkpoint, train
from gistlm.training.objectives import LossWeights, divergence, frozen_loss, passes_of


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
        return frozen_loss(passes, batch, LossWeights(**weights)).item()

    kl, cross_entropy = loss(), loss(cross_entropy=1.0) - loss()
    assert kl > 0 and cross_entropy > 0
    assert loss(cross_entropy=0.5) == pytest.approx(kl + 0.5 * cross_entropy, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("numbers", [1, 40, 1 << 20])
def test_a_divergence_in_parts_and_its_gradients_are_those_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, numbers: int
) -> None:
    monkeypatch.setattr(objectives, "_NUMBERS_ON_CPU", numbers)
    torch.manual_seed(0)
    teacher, student = (torch.randn(2, 5, 13).mul(3).to(dtype).requires_grad_() for _ in range(2))
    is_output = torch.tensor([[False, False, True, True, True], [False, True, True, True, True]])
    weights = torch.linspace(0.1, 1.0, 7)

    def at_once() -> torch.Tensor:
        logs = (logits[is_output].float().log_softmax(-1) for logits in (teacher, student))
        return torch.nn.functional.kl_div(*reversed(list(logs)), log_target=True, reduction="none").sum(-1)

    found = []
    for values in (divergence(teacher, student, is_output), at_once()):
        student.grad = None
        (values * weights).sum().backward()
        assert student.grad is not None
        found.append((values.detach(), student.grad))
    rounding = 1e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=rounding, atol=rounding)
    assert (found[0][1][0, :2] == 0).all()


def test_no_tokens_have_no_divergence_and_a_teacher_may_be_of_another_dtype() -> None:
    teacher, student = torch.randn(1, 2, 7).bfloat16(), torch.randn(1, 2, 7, requires_grad=True)
    both = torch.ones(1, 2, dtype=torch.bool)
    assert divergence(teacher, student, ~both).shape == (0,)
    same = divergence(teacher.float(), student, both)
    assert torch.equal(divergence(teacher, student, both), same)
    same.sum().backward()
    assert student.grad is not None and student.grad.dtype == torch.float32


def test_a_divergence_gives_the_teacher_no_gradients() -> None:
    teacher, student = torch.randn(1, 2, 7, requires_grad=True), torch.randn(1, 2, 7, requires_grad=True)
    divergence(teacher, student, torch.ones(1, 2, dtype=torch.bool)).sum().backward()
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


@pytest.mark.parametrize("anchored", [True, False])
def test_gist_embeddings_start_with_the_vocabulary_s_spread_and_beside_anchors_small(
    anchored: bool, checkpoint: Checkpoint
) -> None:
    weight = embedding_weight(checkpoint.reader)
    start = initial_embeddings(checkpoint.reader, 6, 3, anchored=anchored)
    assert start.shape == (6, weight.shape[1])
    assert torch.equal(start, initial_embeddings(checkpoint.reader, 6, 3, anchored=anchored))
    assert not torch.equal(start, initial_embeddings(checkpoint.reader, 6, 4, anchored=anchored))
    spread = float((start - start.mean(0)).std() / weight.std(0).mean())
    assert 0.05 < spread < 0.2 if anchored else 0.6 < spread < 1.5


def test_probe_queries_start_from_words_and_more_of_them_begin_with_the_same(checkpoint: Checkpoint) -> None:
    weight = embedding_weight(checkpoint.reader)
    words = random_words(checkpoint.reader, 6, 3)
    assert all((weight == word).all(dim=1).any() for word in words)
    assert torch.equal(random_words(checkpoint.reader, 2, 3), words[:2])
    assert not torch.equal(random_words(checkpoint.reader, 6, 4), words)


def test_training_with_kept_tokens_goes_on_from_learned_ones(base: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"say {word} {place}", "input": "hm", "output": word} for place, word in enumerate("abcdefgh")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {
        "base": base, "data": [{"path": str(tmp_path / "rows.jsonl")}], "steps": 2, "batch_size": 4, "lora_rank": 4,
        "validation_rows": 2, "device": "cpu", "learning_rate": 1e-2,
    }  # fmt: skip
    first = train(TrainConfig.parse({**shared, "max_k": 4, "output": str(tmp_path / "first")}))
    learned = Checkpoint.load(first, device="cpu").gist_embeddings
    second = {**shared, "start": str(first), "output": str(tmp_path / "second"), "max_k": 9, "kept": 7}
    assert torch.equal(create_checkpoint(TrainConfig.parse(second)).gist_embeddings, learned[:2])
    made = Checkpoint.load(train(TrainConfig.parse(second)), device="cpu")
    assert (made.placement.max_k, made.placement.learned, made.config.kept) == (9, 2, 7)
    assert not torch.equal(made.gist_embeddings, learned[:2])
    with pytest.raises(InputError, match="4 learned gist tokens, the recipe 5"):
        create_checkpoint(TrainConfig.parse({**second, "max_k": 12}))


def test_learned_probe_queries_come_to_attend_as_the_rest_does(base: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"say {word} and {place}", "input": "hm", "output": word} for place, word in enumerate("abcdef")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {
        "base": base, "data": [{"path": str(tmp_path / "rows.jsonl")}], "steps": 25, "batch_size": 6, "lora_rank": 4,
        "validation_rows": 0, "device": "cpu", "max_k": 4, "kept": 3, "learning_rate": 1e-2, "k": [2],
        "probe_weight": 100.0, "output": str(tmp_path / "out"), "save_every": 25,
    }  # fmt: skip
    untrained = create_checkpoint(TrainConfig.parse({**options, "probes": 3}))
    made = Checkpoint.load(train(TrainConfig.parse({**options, "probes": 3})), device="cpu")
    assert made.probe_embeddings.shape == untrained.probe_embeddings.shape == (3, made.gist_embeddings.shape[1])
    assert not torch.equal(made.probe_embeddings, untrained.probe_embeddings.to(made.probe_embeddings.dtype))
    figures = json.loads((tmp_path / "out" / "training.json").read_text())
    assert figures["losses"][-1] < 0.8 * figures["losses"][0]
    more = {**options, "start": str(tmp_path / "out"), "probes": 4, "output": str(tmp_path / "more")}
    going_on = create_checkpoint(TrainConfig.parse(more)).probe_embeddings
    assert len(going_on) == 4 and torch.equal(going_on[:3], made.probe_embeddings)
    with pytest.raises(InputError, match="3 learned probe queries, the recipe 0; give probes: 3 or more"):
        create_checkpoint(TrainConfig.parse({**more, "probes": 0, "probe_weight": 0.0}))


def test_a_source_s_own_weight_counts_the_cross_entropy_of_its_rows_alone(checkpoint: Checkpoint) -> None:
    batch, passes = batch_of(checkpoint, ["it is red", "say only green"]), passes_of(checkpoint)

    def loss(*own: float) -> float:
        batch.cross_entropy = torch.tensor(own)
        return frozen_loss(passes, batch, LossWeights()).item()

    kl = loss(0.0, 0.0)
    assert loss(0.5, 0.0) + loss(0.0, 1.0) == pytest.approx(loss(0.5, 1.0) + kl, rel=1e-5)
    batch.cross_entropy = torch.zeros(2)
    everywhere = frozen_loss(passes, batch, LossWeights(cross_entropy=2.0)).item()
    assert loss(2.0, 2.0) == pytest.approx(everywhere, rel=1e-5)


def test_the_opening_is_visible_under_frozen_and_hidden_under_paper(base: str) -> None:
    options = {"base": base, "output": "out", "data": [{"path": "rows"}], "device": "cpu", "max_k": 2, "lora_rank": 4}
    assert create_checkpoint(TrainConfig.parse(options)).placement.opening > 0
    assert create_checkpoint(TrainConfig.parse({**options, "recipe": "paper"})).placement.opening == 0
