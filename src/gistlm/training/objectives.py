"""The two recipes' losses on one batch; knows nothing of optimisers, data files or progress.

paper   Mu et al. 2023, section 3: one pass under the gist mask, cross-entropy on the output.
frozen  the same model with the full prompt teaches the model with the gist: KL divergence on the output's tokens
        (prompt tuning by context distillation, Wingate et al. 2022, trained once for all prompts rather than per
        prompt). The teacher's pass also encodes the prompt that the gist tokens read, and takes no gradients.
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
    """The forward passes that the losses need. Logits are [batch, last, vocabulary] and predict the ``last`` tokens."""

    checkpoint: Checkpoint

    def full_prompt(self, batch: Batch, last: int, probed: bool = False) -> tuple[Tensor, Any]:
        """Run full prompt and rest; return logits and the encoded prompts.

        probed: record the rest's attention mass on the prompt too, as part of the encoded prompts.
        """

    def encode(self, batch: Batch) -> Any:
        """Encode the prompts only."""

    def write(self, encoded: Any, batch: Batch) -> tuple[Any, Tensor | None]:
        """Make gists from encoded prompts. The second value is the probe queries' `attention_divergence` from the rest,
        or None if the rest was not probed.
        """

    def run_rest(self, batch: Batch, gist: Any, condition: Condition, last: int) -> Tensor:
        """Run the rest over gists, or without any if ``gist`` is None; return logits."""

    def masked_pass(self, batch: Batch, condition: Condition, last: int) -> Tensor:
        """Run all of prompt, gist and rest in one forward pass under the gist mask, as in the paper; return logits."""


TeacherPass = Callable[[Batch, Tensor, bool], tuple[Tensor, Any]]
"""A function in place of `Passes.full_prompt`: (batch, is_output, probed) -> (logits, encoded prompts). is_output: bool
[batch, last], which targets are output tokens; other logits are not used."""


def passes_of(checkpoint: Checkpoint) -> Passes:
    """`EncoderPasses` for an encoder-decoder checkpoint, else `DecoderPasses`."""
    return EncoderPasses(checkpoint) if checkpoint.architecture.encodes else DecoderPasses(checkpoint)


def paper_loss(passes: Passes, batch: Batch, condition: Condition) -> Tensor:
    """Mean cross-entropy of the outputs in one pass under the gist mask, or under a control's."""
    targets, is_output = batch.targets()
    logits = passes.masked_pass(batch, condition, targets.shape[1])
    return output_mean(cross_entropy(logits, targets, is_output), is_output)


@dataclass(frozen=True)
class LossWeights:
    """Weights of the extra terms of the frozen loss."""

    cross_entropy: float = 0.0
    """Weight of the outputs' cross-entropy."""
    probe: float = 0.0
    """Weight of the probe queries' `attention_divergence` from the rest; only if the checkpoint keeps tokens."""


def frozen_loss(passes: Passes, batch: Batch, weights: LossWeights, teacher: TeacherPass | None = None) -> Tensor:
    """KL(model with the full prompt || model with the gist), plus the terms that ``weights`` gives a weight.

    teacher: replaces `Passes.full_prompt` (see `teacher.Teacher`).
    """
    targets, is_output = batch.targets()
    last = targets.shape[1]
    with torch.no_grad():
        probed = weights.probe > 0
        taught, encoded = teacher(batch, is_output, probed) if teacher else passes.full_prompt(batch, last, probed)
    gist, attention_loss = passes.write(encoded, batch)
    student = passes.run_rest(batch, gist, Condition.GIST, last)
    loss = output_mean(divergence(taught, student, is_output), is_output)
    if attention_loss is not None:
        loss = weights.probe * attention_loss + loss
    ce_weight = (weights.cross_entropy + batch.cross_entropy)[:, None].expand_as(is_output)[is_output]
    ce_loss = ce_weight * cross_entropy(student, targets, is_output) if ce_weight.any() else ce_weight
    # always call it: `output_mean` is a collective, so every process must take part even if its rows have no
    # cross-entropy weight
    return loss + output_mean(ce_loss, is_output)


def divergence(teacher: Tensor, student: Tensor, is_output: Tensor) -> Tensor:
    """KL(teacher || student) in nats, [n], for the n output tokens.

    teacher, student: logits [batch, M, vocabulary]; is_output: bool [batch, M].
    """
    divergences: Tensor = _Divergence.apply(teacher[is_output], student[is_output])  # type: ignore[no-untyped-call]
    return divergences


class _Divergence(torch.autograd.Function):
    """KL of logits [n, vocabulary] in float32, computed for chunks of tokens.

    A chunk's intermediate tensors fit into a CPU's cache; those of all n tokens would not. Only the student's logits
    get gradients.
    """

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor) -> Tensor:
        ctx.save_for_backward(teacher, student)
        return torch.cat([_chunk_divergence(*chunk) for chunk in _chunks(teacher, student)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        teacher, student = ctx.saved_tensors
        student_grad = torch.empty_like(student)
        for teacher_chunk, student_chunk, grad_chunk, out in _chunks(teacher, student, grad, student_grad):
            out.copy_(_softmax(student_chunk).sub_(_softmax(teacher_chunk)).mul_(grad_chunk[:, None]))
        return None, student_grad


_NUMBERS_ON_CPU = 1 << 20
"""Number of logits in a chunk on a CPU: 4 MiB in float32, which stay in its cache."""
_NUMBERS_ON_GPU = 1 << 28
"""Number of logits in a chunk on an accelerator: 1 GiB in float32, so there are few chunks."""


def _chunks(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split tensors [n, ...] into the same chunks of tokens. The first, [n, vocabulary], decides the chunks' size."""
    numbers = _NUMBERS_ON_CPU if logits.device.type == "cpu" else _NUMBERS_ON_GPU
    tokens = max(1, numbers // logits.shape[1])
    return zip(*(torch.split(each, tokens) for each in (logits, *others)), strict=True)


def _softmax(logits: Tensor) -> Tensor:
    return F.softmax(logits, dim=-1, dtype=torch.float32)


def _chunk_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) [n] of logits [n, vocabulary]."""
    teacher, student = (F.log_softmax(logits, dim=-1, dtype=torch.float32) for logits in (teacher, student))
    return teacher.exp().mul_(teacher.sub_(student)).sum(-1)


def cross_entropy(logits: Tensor, targets: Tensor, is_output: Tensor) -> Tensor:
    """Negative log-likelihood in nats, [n], of the n targets that are output tokens.

    logits [batch, M, vocabulary], targets [batch, M], is_output: bool [batch, M].
    """
    return F.cross_entropy(logits[is_output].float(), targets[is_output], reduction="none")


def output_mean(values: Tensor, is_output: Tensor) -> Tensor:
    """Mean of ``values`` [n], one per output token. is_output: bool [batch, M], n of them true.

    If several processes share a step, the result is scaled so that averaging over processes gives the mean over all
    output tokens of all processes, although they hold different numbers of them. All processes must call.
    """
    processes = torch.distributed.get_world_size() if _in_several_processes() else 1
    return values.sum() / (sum_over_processes(is_output.sum()) / processes)


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of all processes' ``value``, without gradients. All processes must call."""
    if not _in_several_processes():
        return value
    total = value.detach().clone()
    torch.distributed.all_reduce(total)
    return total


def _in_several_processes() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
