"""Where tensors lie when the model is on a GPU: nothing is made on the wrong device (see `pretend_card`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pretend_card import OnCard, move_module, pretend_card
from tiny import tiny_checkpoint
from torch import nn

from gistlm.data.rows import Row
from gistlm.engines.base import Request, with_sampling
from gistlm.engines.sampling import Sampling
from gistlm.engines.transformers import GistModel
from gistlm.gist import Gist
from gistlm.gisting.placement import Condition
from gistlm.models.checkpoint import Checkpoint
from gistlm.training.batches import Examples, collate
from gistlm.training.objectives import LossWeights, frozen_loss, paper_loss, passes_of
from gistlm.training.validation import hash_weights, measure

CASES = [
    ("llama", {}),
    ("llama", {"kept": 6}),
    ("llama", {"anchored": True, "opening_visible": False}),
    ("llama", {"recipe": "paper"}),
    ("gemma3_text", {}),
    ("gpt2", {}),
    ("t5", {}),
]
PROMPTS = ["be brief and kind to all of the people who ask you things today", "answer in rhyme"]
SAMPLING = Sampling(max_new_tokens=5)


@pytest.fixture(autouse=True)
def card() -> Iterator[None]:
    with pretend_card():
        yield


def on_card(kind: str, options: dict[str, Any], probes: int = 0) -> Checkpoint:
    """A checkpoint whose every tensor is on the GPU."""
    made = tiny_checkpoint(kind, **options)
    if probes:
        made.probe_embeddings = nn.Parameter(torch.randn(probes, made.gist_embeddings.shape[1]))
    for model in (made.reader, made.writer):
        move_module(model)
    for name in ("gist_embeddings", "fit_strengths", "probe_embeddings"):
        setattr(made, name, nn.Parameter(OnCard(getattr(made, name).detach()), requires_grad=False))
    return made


def requests(model: GistModel) -> list[Request]:
    """A gist, a full prompt and neither, in one batch."""
    gist = model.compress(PROMPTS, 3)[0]
    assert gist.keys[0].device == model.device
    return [Request("hi", gist), Request("and you?", prompt=PROMPTS[1]), Request("oh")]


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_answers_scores_and_streams_are_those_of_the_cpu(kind: str, options: dict[str, Any]) -> None:
    there, here = GistModel(on_card(kind, options)), GistModel(tiny_checkpoint(kind, **options))
    outputs = ["an answer", "b", "c d"]
    pairs = zip(there.logits(requests(there), outputs), here.logits(requests(here), outputs), strict=True)
    assert all(torch.allclose(one.cpu(), other, atol=1e-4) for one, other in pairs)
    answers = [answer.text for answer in there.complete(with_sampling(requests(there), SAMPLING))]
    assert answers == [answer.text for answer in here.complete(with_sampling(requests(here), SAMPLING))]
    gist = there.compress(PROMPTS[0], 3)
    assert "".join(there.stream("hi", gist, max_new_tokens=5)) == answers[0]
    assert not isinstance(there.score("hi", "abc", gist), OnCard)


@pytest.mark.parametrize(("kind", "options"), [("llama", {"kept": 6}), ("t5", {})])
def test_a_gist_goes_to_its_file_and_back(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = GistModel(on_card(kind, options))
    gist = model.compress(PROMPTS[0], 3)
    read = Gist.load(gist.save(tmp_path / "x.gist"))
    assert not isinstance(read.keys[0], OnCard)
    assert model.complete(with_sampling([Request("hi", read)], SAMPLING)) == model.complete(
        with_sampling([Request("hi", gist)], SAMPLING)
    )


# GPT-2's layers split a tensor, and torch's backward of that makes zeros where torch takes the pretended card to be
@pytest.mark.parametrize(("kind", "options"), [case for case in CASES if case[0] != "gpt2"])
def test_a_training_step_has_the_loss_and_gradients_of_the_cpu(kind: str, options: dict[str, Any]) -> None:
    options = {"lora_rank": 4, **options}
    probes = 2 if options.get("kept") else 0
    found = []
    for device in ("cuda", "cpu"):
        torch.manual_seed(0)
        made = on_card(kind, options, probes) if device == "cuda" else cpu_checkpoint(kind, options, probes)
        trained = [made.gist_embeddings, *([made.probe_embeddings] if probes else [])]
        for tensor in trained:
            tensor.requires_grad_(True)
        loss = one_step(made, device, options.get("recipe") == "paper")
        loss.backward()
        found.append([loss.detach().cpu(), *(tensor.grad.cpu() for tensor in trained if tensor.grad is not None)])
    assert len(found[0]) == 1 + len(trained)
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def cpu_checkpoint(kind: str, options: dict[str, Any], probes: int) -> Checkpoint:
    made = tiny_checkpoint(kind, **options)
    if probes:
        made.probe_embeddings = nn.Parameter(torch.randn(probes, made.gist_embeddings.shape[1]))
    return made


def one_step(checkpoint: Checkpoint, device: str, paper: bool) -> torch.Tensor:
    """The loss of a batch of two rows."""
    examples = rows(checkpoint)
    batch, passes = collate(examples.examples, [2, 5], device), passes_of(checkpoint)
    if paper:
        return paper_loss(passes, batch, Condition.GIST)
    share = LossWeights(cross_entropy=0.5, probe=0.3 if checkpoint.config.kept else 0.0)
    return frozen_loss(passes, batch, share)


def rows(checkpoint: Checkpoint) -> Examples:
    texts = [Row(PROMPTS[0], "what?", "an answer"), Row(PROMPTS[1], "and now?", "another one")]
    return Examples(texts, checkpoint.prompts, 500)


@pytest.mark.parametrize(("kind", "options"), [("llama", {"kept": 6}), ("t5", {})])
def test_validation_and_the_hash_of_the_base_are_those_of_the_cpu(kind: str, options: dict[str, Any]) -> None:
    there, here = on_card(kind, options), tiny_checkpoint(kind, **options)
    found, wanted = (measure(each, rows(each), [1, 4]) for each in (there, here))
    assert found["k=4"]["kl"] == pytest.approx(wanted["k=4"]["kl"], rel=1e-4)
    assert hash_weights(there) == hash_weights(here)


def test_the_pretended_card_refuses_what_a_card_refuses() -> None:
    there, here = torch.ones(3, device="cuda"), torch.ones(3)
    assert there.device.type == "cuda"
    assert (there + there).cpu().tolist() == [2, 2, 2]
    assert (there * torch.tensor(2.0)).tolist() == [2, 2, 2]
    with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
        there + here
    with pytest.raises(TypeError, match=r"use Tensor\.cpu\(\) first"):
        there.numpy()
    there[torch.tensor([0, 2])] = torch.tensor(5.0)
    assert there.tolist() == [5, 1, 5]
    with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
        there[torch.tensor([0, 2])] = torch.ones(2)
    for draw in (lambda **given: there.normal_(**given), lambda **given: torch.rand(3, device="cuda", **given)):
        draw()
        with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator but found 'cpu'"):
            draw(generator=torch.Generator())
