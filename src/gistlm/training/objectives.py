"""The two recipes' losses on one batch; knows nothing of optimisers, data files or progress.

paper   Mu et al. 2023, section 3: one pass under the gist mask, cross-entropy on the output.
frozen  the same model with the full prompt teaches the model with the gist: KL divergence on the rest's
        tokens (prompt tuning by context distillation, Wingate et al. 2022, made amortised). The teacher's
        pass also encodes the prompt that the gist tokens read, and takes no gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from gistlm.checkpoint import Checkpoint
from gistlm.columns import left_pad
from gistlm.mask import Condition, Part
from gistlm.training.batch import Batch
from gistlm.training.decoder_passes import DecoderPasses
from gistlm.training.encoder_passes import EncoderPasses


class Passes(Protocol):
    """What the losses need of a checkpoint; logits are [batch, last, vocabulary], of the last tokens."""

    checkpoint: Checkpoint

    def full_prompt(self, batch: Batch, last: int, watched: bool = False) -> tuple[Tensor, Any]:
        """Under the full prompt, and the encoded prompts, with where the rest looked if it is ``watched``."""

    def encode(self, batch: Batch) -> Any:
        """The encoded prompts alone."""

    def write(self, encoded: Any, batch: Batch) -> tuple[Any, Tensor | None]:
        """Gists from encoded prompts, and what their observers missed if the rest was watched."""

    def rest(self, batch: Batch, gist: Any, condition: Condition, last: int) -> Tensor:
        """Over gists, or over nothing where ``gist`` is None."""

    def one_pass(self, batch: Batch, condition: Condition, last: int) -> Tensor:
        """The paper's form, in one pass."""


FullPrompt = Callable[[Batch, Tensor, bool], tuple[Tensor, Any]]
"""As `Passes.full_prompt`, given the targets' weights [batch, last]."""


def passes_of(checkpoint: Checkpoint) -> Passes:
    """Those of the checkpoint's kind."""
    return EncoderPasses(checkpoint) if checkpoint.architecture.encodes else DecoderPasses(checkpoint)


def paper_loss(passes: Passes, batch: Batch, condition: Condition) -> Tensor:
    """Mean cross-entropy of the outputs in one pass under the mask; a control when ``condition`` says so."""
    targets, weights = batch.targets(0.0)
    logits = passes.one_pass(batch, condition, targets.shape[1])
    return weighted_mean(cross_entropy(logits, targets, weights), weights)


@dataclass(frozen=True)
class Weights:
    """What the frozen recipe's loss is the sum of."""

    distillation: float = 1.0
    """Of the KL to the full-prompt model."""
    input: float = 0.0
    """Of an input token's KL beside an output token's 1."""
    cross_entropy: float = 0.0
    """Of the outputs' cross-entropy."""
    reconstruction: float = 0.0
    """Of the cross-entropy of the prompt itself, read out of the gist."""

    observation: float = 0.0
    """Of what the observers of kept tokens miss (see `observe.missed`)."""

    @property
    def train_something(self) -> bool:
        """Whether there is a loss at all."""
        return any((self.distillation, self.cross_entropy, self.reconstruction, self.observation))


def frozen_loss(passes: Passes, batch: Batch, share: Weights, teacher: FullPrompt | None = None) -> Tensor:
    """KL of the gist's student to the full-prompt teacher, and what else ``share`` asks for.

    teacher: in place of the pass under the full prompt (see `teacher.Teacher`).
    """
    targets, weights = batch.targets(share.input)
    last = targets.shape[1]
    with torch.no_grad():
        watched = share.observation > 0
        taught, encoded = teacher(batch, weights, watched) if teacher else passes.full_prompt(batch, last, watched)
    gist, missed = passes.write(encoded, batch)
    student = passes.rest(batch, gist, Condition.GIST, last)
    loss = torch.zeros((), device=student.device) if missed is None else share.observation * missed
    if share.distillation:
        loss = loss + share.distillation * weighted_mean(divergence(taught, student, weights), weights)
    targets, outputs = batch.targets(0.0)
    own = (share.cross_entropy + batch.cross_entropy)[:, None].expand_as(outputs)[outputs > 0]
    if own.any():
        own = own * cross_entropy(student[:, -targets.shape[1] :], targets, outputs)
    loss = loss + weighted_mean(own, outputs)  # always: processes whose rows have no such weight take part in the mean
    if share.reconstruction:
        repeated = repeat_prompts(passes.checkpoint, batch)
        targets, weights = repeated.targets(0.0)
        logits = passes.rest(repeated, gist, Condition.GIST, targets.shape[1])
        loss = loss + share.reconstruction * weighted_mean(cross_entropy(logits, targets, weights), weights)
    return loss


REPEAT = "Repeat the instructions above word for word."
"""The input behind which a prompt is reconstructed."""
_MOST_REPEATED = 64
"""Tokens of a prompt that are reconstructed."""


def repeat_prompts(checkpoint: Checkpoint, batch: Batch) -> Batch:
    """The batch with other rests: the request to repeat the prompt, and its first tokens as the output.

    (An autoencoding loss, as Ge et al. 2023, "In-context Autoencoder", pretrain with.)
    """
    prompts = checkpoint.prompts
    request, opening = prompts.rest_ids(REPEAT), len(prompts.opening_ids)
    own = [
        tokens[parts != Part.PAD][opening:][:_MOST_REPEATED].tolist()
        for tokens, parts in zip(batch.prompts, batch.prompt_parts, strict=True)
    ]
    outputs = [ids + prompts.output_end_ids if len(ids) < _MOST_REPEATED else ids for ids in own]
    rests, parts = left_pad([request + ids for ids in outputs], Part.REST, batch.rests.device)
    lengths = torch.tensor([len(ids) for ids in outputs], device=rests.device)
    return replace(batch, rests=rests, rest_parts=parts, output_lengths=lengths)


def divergence(teacher: Tensor, student: Tensor, weights: Tensor) -> Tensor:
    """KL(teacher || student) in nats, [n], of the n tokens whose weight is not zero.

    teacher, student: logits [batch, M, vocabulary]; weights [batch, M].
    """
    divergences: Tensor = _Divergence.apply(teacher[weights > 0], student[weights > 0])  # type: ignore[no-untyped-call]
    return divergences


class _Divergence(torch.autograd.Function):
    """KL of [n, vocabulary] logits in float32, some tokens at a time: over all at once, each of some ten steps would
    fill a tensor of n x vocabulary that no cache holds. Gradients are for the student's logits alone.
    """

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor) -> Tensor:
        ctx.save_for_backward(teacher, student)
        return torch.cat([_of_part(*some) for some in _in_parts(teacher, student)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        teacher, student = ctx.saved_tensors
        into = torch.empty_like(student)
        for said, saying, weight, part in _in_parts(teacher, student, grad, into):
            part.copy_(_softmax(saying).sub_(_softmax(said)).mul_(weight[:, None]))
        return None, into


_NUMBERS_ON_CPU = 1 << 20
"""Of logits, in one part of a divergence: 4 MiB in float32 stay in a CPU's cache."""
_NUMBERS_ON_GPU = 1 << 28
"""1 GiB in float32: few and large parts."""


def _in_parts(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of n tokens, cut alike; the first has logits [n, vocabulary]."""
    numbers = _NUMBERS_ON_CPU if logits.device.type == "cpu" else _NUMBERS_ON_GPU
    tokens = max(1, numbers // logits.shape[1])
    return zip(*(torch.split(each, tokens) for each in (logits, *others)), strict=True)


def _softmax(logits: Tensor) -> Tensor:
    return F.softmax(logits, dim=-1, dtype=torch.float32)


def _of_part(teacher: Tensor, student: Tensor) -> Tensor:
    teacher, student = (F.log_softmax(logits, dim=-1, dtype=torch.float32) for logits in (teacher, student))
    return teacher.exp().mul_(teacher.sub_(student)).sum(-1)


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Negative log-likelihood in nats, [n], of the n targets whose weight is not zero; shapes as in `divergence`."""
    return F.cross_entropy(logits[weights > 0].float(), targets[weights > 0], reduction="none")


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of [n] values under the weights [batch, M] that are not zero.

    Where several processes share a step, it is scaled so that the mean of all their results, which data-parallel
    training takes of gradients and losses, is the mean over the rows of all: the rows' outputs differ in length.
    """
    processes = torch.distributed.get_world_size() if _shared() else 1
    return (values * weights[weights > 0]).sum() / (sum_over_processes(weights.sum()) / processes)


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of every process's ``value``, on each of them; all must call. Takes no gradients."""
    if not _shared():
        return value
    total = value.detach().clone()
    torch.distributed.all_reduce(total)
    return total


def _shared() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
