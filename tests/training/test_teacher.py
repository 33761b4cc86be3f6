"""What a full prompt teaches, kept on disk: the losses and gradients are those of asking it again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import CONTEXT, random_text, save_tiny, tiny_checkpoint
from torch import Tensor
from transformers import TrainerCallback

from gistlm.data.rows import Row
from gistlm.errors import InputError, UnsupportedModelError
from gistlm.models.checkpoint import Checkpoint
from gistlm.training.batches import Batch, Example, collate, tokenize
from gistlm.training.config import TrainConfig
from gistlm.training.decoder_passes import DecoderPasses
from gistlm.training.loop import train
from gistlm.training.objectives import LossWeights, frozen_loss, passes_of
from gistlm.training.teacher import Teacher, _digest

CASES = [("llama", 0), ("llama", 3), ("gemma3_text", 0), ("gpt2", 0), ("gpt2", 3), ("t5", 0)]
"""Architectures, and how many of a gist's four tokens are kept."""


def examples_of(checkpoint: Checkpoint, lengths: list[tuple[int, int, int]]) -> list[Example]:
    """Rows of random text, by the characters of their prompt, input and output."""
    generator = torch.Generator().manual_seed(7)
    return [tokenize(Row(*(random_text(generator, size) for size in row)), checkpoint.prompts) for row in lengths]


def loss_and_gradients(
    checkpoint: Checkpoint, batch: Batch, weights: LossWeights, teacher: Teacher | None
) -> tuple[float, list[Tensor]]:
    trained = [each for each in checkpoint.writer.parameters() if each.requires_grad] + [checkpoint.gist_embeddings]
    checkpoint.gist_embeddings.requires_grad_(True)
    loss = frozen_loss(passes_of(checkpoint), batch, weights, teacher)
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    return loss.item(), [each for each in gradients if each is not None]


def counted(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each pass under the full prompt has from now on."""
    rows: list[int] = []
    ask = teacher.passes.full_prompt

    def full_prompt(batch: Batch, *options: Any) -> Any:
        rows.append(len(batch.k))
        return ask(batch, *options)

    monkeypatch.setattr(teacher.passes, "full_prompt", full_prompt)
    return rows


@pytest.mark.parametrize(("kind", "kept"), CASES)
def test_losses_and_gradients_are_those_of_asking_again(
    kind: str, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rows that are all new, all known, and of both kinds; of other numbers of gist tokens too."""
    checkpoint = tiny_checkpoint(kind, max_k=4, kept=kept)
    examples = examples_of(checkpoint, [(30, 5, 9), (80, 0, 20), (3, 40, 2), (55, 12, 31)])
    weights = LossWeights(probe=0.5 if kept else 0.0)
    teacher = Teacher(passes_of(checkpoint), tmp_path)
    asked = counted(teacher, monkeypatch)
    steps: list[tuple[list[int], list[int], int]] = [
        ([1, 0], [4, 2], 2), ([0, 1], [2, 4], 0), ([2, 0, 3, 1], [1, 4, 4, 2], 4), ([3, 2, 1, 0], [4, 4, 1, 3], 0),
    ]  # fmt: skip
    for rows, k, new in steps:
        batch = collate([examples[row] for row in rows], k)
        loss, gradients = loss_and_gradients(checkpoint, batch, weights, None)
        before = sum(asked)
        kept_loss, kept_gradients = loss_and_gradients(checkpoint, batch, weights, teacher)
        assert sum(asked) - before == new
        assert kept_loss == pytest.approx(loss, rel=1e-4)
        for mine, theirs in zip(kept_gradients, gradients, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-3)


@settings(max_examples=15)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 20), st.integers(1, 200)), min_size=1, max_size=5),
    st.sets(st.integers(0, 4)),
)
def test_whatever_is_known_already_the_loss_is_the_same(lengths: list[tuple[int, int, int]], known: set[int]) -> None:
    checkpoint = tiny_checkpoint("llama", max_k=4, kept=3)
    examples, weights = examples_of(checkpoint, lengths), LossWeights(probe=0.2)
    with TemporaryDirectory() as folder:
        teacher = Teacher(passes_of(checkpoint), folder)
        for row in known & set(range(len(examples))):
            frozen_loss(teacher.passes, collate([examples[row]], [2]), weights, teacher)
        batch = collate(examples, [4] * len(examples))
        loss = frozen_loss(teacher.passes, batch, weights, teacher)
    torch.testing.assert_close(loss, frozen_loss(teacher.passes, batch, weights), atol=1e-5, rtol=1e-4)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def change(of: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    """A whole file with the digest of what is in it, as one that was written for something else."""

    def changed(path: Path) -> None:
        tensors = {name: of(tensor).contiguous() for name, tensor in load_file(path).items()}
        save_file(tensors, path, {"sha256": _digest(tensors)})

    return changed


DAMAGE: dict[str, Callable[[Path], None]] = {
    "cut short": shorten,
    "empty": lambda path: path.write_bytes(b""),
    "another file": lambda path: path.write_bytes(b"\x80\x04\x95" + bytes(100)),
    "a head that claims too much": lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
    "fewer targets": change(lambda tensor: tensor[1:]),
    "wider states": change(lambda tensor: torch.cat([tensor, tensor], dim=1)),
    "changed data": lambda path: path.write_bytes(path.read_bytes()[:-50] + bytes(50)),
    "another dtype": change(lambda tensor: tensor.half()),
    "other names": lambda path: save_file({"x": torch.zeros(3)}, path),
    "a link to nowhere": lambda path: path.unlink() or path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_a_file_that_is_not_the_row_s_is_made_anew(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny_checkpoint("llama", max_k=4, kept=3)
    weights, batch = LossWeights(probe=0.5), collate(examples_of(checkpoint, [(30, 5, 9), (20, 5, 9)]), [4, 4])
    teacher = Teacher(passes_of(checkpoint), tmp_path)
    loss = frozen_loss(teacher.passes, batch, weights, teacher)
    first, second = sorted(tmp_path.glob("*/*.safetensors"))
    DAMAGE[damage](first)
    asked = counted(teacher, monkeypatch)
    for rows in ([2], []):
        torch.testing.assert_close(frozen_loss(teacher.passes, batch, weights, teacher), loss, atol=1e-5, rtol=1e-4)
        assert asked == rows
        asked.clear()
    assert sorted(tmp_path.glob("*/*")) == [first, second], "nothing else is left in the folder"


def test_runs_of_other_weights_ask_once_each_and_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny_checkpoint("llama", max_k=4, kept=3)
    batch = collate(examples_of(checkpoint, [(30, 5, 9)]), [4])
    teacher = Teacher(passes_of(checkpoint), tmp_path)
    asked = counted(teacher, monkeypatch)
    plain, watched, answered = LossWeights(), LossWeights(probe=1.0), LossWeights(cross_entropy=0.5)
    for weights, rows in ((plain, 1), (watched, 2), (answered, 2), (plain, 2), (watched, 2)):
        frozen_loss(teacher.passes, batch, weights, teacher)
        assert len(asked) == rows


def test_another_base_dtype_or_row_is_not_taken_for_this_one(tmp_path: Path) -> None:
    weights, lengths = LossWeights(), [(30, 5, 9)]
    made = [tiny_checkpoint("llama", max_k=4, opening_visible=place != 4) for place in range(5)]
    base = made[1].config.bases[0]
    made[1].config = made[1].config.replace(bases=[base.replace(weights="another")])
    made[2].reader.bfloat16()
    made[3].reader.config.rope_parameters["rope_theta"] = 5000.0
    for files, checkpoint in enumerate(made, 1):
        teacher = Teacher(passes_of(checkpoint), tmp_path)
        for _ in range(2):
            frozen_loss(teacher.passes, collate(examples_of(checkpoint, lengths), [4]), weights, teacher)
        assert len([*tmp_path.glob("*/*")]) == files
    example = examples_of(made[0], lengths)[0]
    of_another_end = Example(example.prompt, example.rest, example.output_length - 1)
    teacher = Teacher(passes_of(made[0]), tmp_path)
    frozen_loss(teacher.passes, collate([of_another_end], [4]), weights, teacher)
    assert len([*tmp_path.glob("*/*")]) == 6


def test_a_much_shorter_new_row_beside_a_known_one(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("llama", max_k=4, kept=3)
    known, new = examples_of(checkpoint, [(30, 5, 300), (9, 1, 1)])
    for weights in (LossWeights(), LossWeights(probe=0.5)):
        teacher = Teacher(passes_of(checkpoint), tmp_path)
        frozen_loss(teacher.passes, collate([known], [4]), weights, teacher)
        batch = collate([new, known], [4, 4])
        expected = frozen_loss(teacher.passes, batch, weights)
        for _ in range(2):
            torch.testing.assert_close(
                frozen_loss(teacher.passes, batch, weights, teacher), expected, atol=1e-5, rtol=1e-4
            )


def test_a_base_in_bfloat16_learns_the_same_but_for_rounding(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("llama", max_k=4)
    checkpoint.reader.bfloat16()
    teacher = Teacher(passes_of(checkpoint), tmp_path)
    batch = collate(examples_of(checkpoint, [(30, 5, 9)] * 2), [4, 2])
    first, second = (frozen_loss(teacher.passes, batch, LossWeights(), teacher) for _ in range(2))
    torch.testing.assert_close(first, second, atol=0, rtol=0.05)


@pytest.mark.parametrize("kind", ["cohere2", "gemma3_text"])
def test_a_model_that_changes_its_logits_behind_the_head_is_refused(kind: str, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(kind, max_k=4)  # Cohere's has a scale
    checkpoint.reader.config.final_logit_softcapping = 5.0  # read by Gemma
    teacher = Teacher(passes_of(checkpoint), tmp_path)
    batch = collate(examples_of(checkpoint, [(30, 5, 9)]), [4])
    with pytest.raises(UnsupportedModelError, match=r"ForCausalLM changes its logits .* set teacher_cache to"):
        frozen_loss(teacher.passes, batch, LossWeights(), teacher)
    assert not [*tmp_path.glob("*/*")]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("teacher")
    rows = [{"prompt": f"say {word} and {place}", "input": "hm", "output": word} for place, word in enumerate("abcdef")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "base": str(save_tiny(folder / "base")), "data": [{"path": str(folder / "rows.jsonl")}], "steps": 9,
        "batch_size": 2, "lora_rank": 4, "validation_rows": 0, "device": "cpu", "max_k": 4, "kept": 3, "probes": 2,
        "probe_weight": 0.3, "learning_rate": 1e-2, "save_every": 4, "max_tokens": CONTEXT,
    }  # fmt: skip


def test_a_run_of_several_passes_asks_once_for_each_row_and_another_run_never(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losses(name: str, **options: Any) -> list[float]:
        folder = train(TrainConfig.parse({**recipe, "output": str(tmp_path / name), **options}))
        found: list[float] = json.loads((folder / "training.json").read_text())["losses"]
        return found

    asked: list[int] = []
    ask = DecoderPasses.full_prompt

    def full_prompt(passes: DecoderPasses, batch: Batch, *options: Any) -> Any:
        asked.append(len(batch.k))
        return ask(passes, batch, *options)

    monkeypatch.setattr(DecoderPasses, "full_prompt", full_prompt)
    plain = losses("plain")
    asked.clear()
    kept = losses("kept", teacher_cache=str(tmp_path / "cache"))
    assert len(plain) == 9 and kept == pytest.approx(plain, rel=1e-3)
    assert sum(asked) == 6
    losses("other", teacher_cache=str(tmp_path / "cache"), seed=1, batch_size=3, k=[1, 2])
    assert sum(asked) == 6, "whatever is drawn"
    again = losses("again", teacher_cache=str(tmp_path / "cache"))
    assert again == pytest.approx(plain, rel=1e-3) and sum(asked) == 6


def test_a_run_may_go_on_with_a_cache_that_it_began_without(recipe: dict[str, Any], tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_save = control.should_training_stop = state.global_step == 4

    options = {**recipe, "output": str(tmp_path / "run")}
    train(TrainConfig.parse(options), [Stop()])
    train(TrainConfig.parse({**options, "teacher_cache": str(tmp_path / "cache")}))
    assert len(json.loads((tmp_path / "run" / "training.json").read_text())["losses"]) == 9
    assert len([*(tmp_path / "cache").glob("*/*.safetensors")]) == 6


def test_a_folder_that_cannot_be_written_is_said_before_training_and_during_it(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    for folder in (str(taken), str(taken / "inside"), "a\0b"):
        with pytest.raises(InputError, match=r"cannot write to teacher_cache .*; name another folder"):
            train(TrainConfig.parse({**recipe, "output": str(tmp_path / "out"), "teacher_cache": folder}))
    checkpoint = tiny_checkpoint("llama", max_k=4)
    teacher = Teacher(passes_of(checkpoint), tmp_path / "cache")
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_text("")
    with pytest.raises(InputError, match="cannot write to teacher_cache"):
        frozen_loss(teacher.passes, collate(examples_of(checkpoint, [(9, 9, 9)]), [4]), LossWeights(), teacher)


def test_where_it_does_not_apply_it_is_refused(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    of_paper = {"recipe": "paper", "kept": 0, "probes": 0, "probe_weight": 0.0, "output": "out"}
    with pytest.raises(InputError, match="teacher_cache is for the frozen recipe"):
        TrainConfig.parse({**recipe, **of_paper, "teacher_cache": "cache"})
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match=r"with FSDP .* leave teacher_cache out"):
        Teacher(passes_of(tiny_checkpoint("llama")), "cache")
