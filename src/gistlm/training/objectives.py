"""The two recipes' losses on one batch; knows nothing of optimisers, data files or progress.

paper   Mu et al. 2023, section 3: one pass under the gist mask, cross-entropy on the output.
frozen  the same model with the full prompt teaches the model with the gist: KL divergence on the rest's
        tokens (prompt tuning by context distillation, Wingate et al. 2022, made amortised). The teacher's
        pass also encodes the prompt that the gist tokens read, and takes no gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from gistlm.gisting.placement import Condition
from gistlm.models.checkpoint import Checkpoint
from gistlm.training.batches import Batch
from gistlm.training.decoder_passes import DecoderPasses
from gistlm.training.encoder_passes import EncoderPasses


class Passes(Protocol):
    """What the losses need of a checkpoint; logits are [batch, last, vocabulary], of the last tokens."""

    checkpoint: Checkpoint

    def full_prompt(self, batch: Batch, last: int, probed: bool = False) -> tuple[Tensor, Any]:
        """Under the full prompt, and the encoded prompts, with the rest's attention mass if it is ``probed``."""

    def encode(self, batch: Batch) -> Any:
        """The encoded prompts alone."""

    def write(self, encoded: Any, batch: Batch) -> tuple[Any, Tensor | None]:
        """Gists from encoded prompts, and the probe queries' `attention_divergence` if the rest was probed."""

    def rest(self, batch: Batch, gist: Any, condition: Condition, last: int) -> Tensor:
        """Over gists, or over nothing where ``gist`` is None."""

    def one_pass(self, batch: Batch, condition: Condition, last: int) -> Tensor:
        """The paper's form, in one pass."""


FullPrompt = Callable[[Batch, Tensor, bool], tuple[Tensor, Any]]
"""As `Passes.full_prompt`, given which targets are outputs, bool [batch, last]."""


def passes_of(checkpoint: Checkpoint) -> Passes:
    """Those of the checkpoint's kind."""
    return EncoderPasses(checkpoint) if checkpoint.architecture.encodes else DecoderPasses(checkpoint)


def paper_loss(passes: Passes, batch: Batch, condition: Condition) -> Tensor:
    """Mean cross-entropy of the outputs in one pass under the mask; a control when ``condition`` says so."""
    targets, is_output = batch.targets()
    logits = passes.one_pass(batch, condition, targets.shape[1])
    return output_mean(cross_entropy(logits, targets, is_output), is_output)


@dataclass(frozen=True)
class Weights:
    """Of what the frozen recipe's loss adds to the KL to the full-prompt model."""

    cross_entropy: float = 0.0
    """Of the outputs' cross-entropy."""
    probe: float = 0.0
    """Of the probe queries' `attention_divergence` from the rest, where tokens are kept."""


def frozen_loss(passes: Passes, batch: Batch, weights: Weights, teacher: FullPrompt | None = None) -> Tensor:
    """KL of the gist's student to the full-prompt teacher, and what else ``weights`` asks for.

    teacher: in place of the pass under the full prompt (see `teacher.Teacher`).
    """
    targets, is_output = batch.targets()
    last = targets.shape[1]
    with torch.no_grad():
        probed = weights.probe > 0
        taught, encoded = teacher(batch, is_output, probed) if teacher else passes.full_prompt(batch, last, probed)
    gist, attention = passes.write(encoded, batch)
    student = passes.rest(batch, gist, Condition.GIST, last)
    loss = output_mean(divergence(taught, student, is_output), is_output)
    if attention is not None:
        loss = weights.probe * attention + loss
    own = (weights.cross_entropy + batch.cross_entropy)[:, None].expand_as(is_output)[is_output]
    if own.any():
        own = own * cross_entropy(student, targets, is_output)
    return loss + output_mean(own, is_output)  # always: processes whose rows have no such weight take part in the mean


def divergence(teacher: Tensor, student: Tensor, is_output: Tensor) -> Tensor:
    """KL(teacher || student) in nats, [n], of the n tokens that are outputs.

    teacher, student: logits [batch, M, vocabulary]; is_output: bool [batch, M].
    """
    divergences: Tensor = _Divergence.apply(teacher[is_output], student[is_output])  # type: ignore[no-untyped-call]
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


def cross_entropy(logits: Tensor, targets: Tensor, is_output: Tensor) -> Tensor:
    """Negative log-likelihood in nats, [n], of the n targets that are outputs; shapes as in `divergence`."""
    return F.cross_entropy(logits[is_output].float(), targets[is_output], reduction="none")


def output_mean(values: Tensor, is_output: Tensor) -> Tensor:
    """Mean of [n] values, one for each output token; is_output: bool [batch, M], n of them true.

    Where several processes share a step, it is scaled so that the mean of all their results, which data-parallel
    training takes of gradients and losses, is the mean over the rows of all: the rows' outputs differ in length.
    """
    processes = torch.distributed.get_world_size() if _in_several_processes() else 1
    return values.sum() / (sum_over_processes(is_output.sum()) / processes)


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of every process's ``value``, on each of them; all must call. Takes no gradients."""
    if not _in_several_processes():
        return value
    total = value.detach().clone()
    torch.distributed.all_reduce(total)
    return total


def _in_several_processes() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
