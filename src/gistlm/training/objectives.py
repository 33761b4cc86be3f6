"""The two recipes' losses on one batch; knows nothing of optimisers, data files or progress.

paper   Mu et al. 2023, section 3: one pass under the gist mask, cross-entropy on the output.
frozen  the same model with the full prompt teaches the model with the gist: KL divergence on the rest's
        tokens (prompt tuning by context distillation, Wingate et al. 2022, made amortised). The teacher's
        pass also encodes the prompt that the gist tokens read, and takes no gradients.

A batch is left-padded on both sides of the gist, so outputs end at the last column.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from gistlm.checkpoint import Checkpoint
from gistlm.compress import (
    Encoded,
    KeyValues,
    join_key_values,
    key_values_of,
    left_pad,
    left_positions,
    prompt_starts,
    repeat_key_values,
    write_gists,
)
from gistlm.mask import Condition, Part


@dataclass
class Batch:
    """Rows of one training step; every tensor on the model's device."""

    prompts: Tensor
    """[batch, N] token ids, left-padded"""
    prompt_parts: Tensor
    """[batch, N] of `Part`"""
    rests: Tensor
    """[batch, R] token ids, output included, left-padded"""
    rest_parts: Tensor
    """[batch, R] of `Part`"""
    output_lengths: Tensor
    """[batch]"""
    k: Tensor
    """[batch]: gist tokens that the row's rest may see"""

    @property
    def tokens(self) -> int:
        """Tokens of prompts, inputs and outputs, padding left out."""
        return int((self.prompt_parts != Part.PAD).sum() + (self.rest_parts != Part.PAD).sum())

    def targets(self, input_weight: float) -> tuple[Tensor, Tensor]:
        """The next token of every column but the last, and its weight in the loss: both [batch, M].

        M covers the outputs, or the whole rest when ``input_weight`` is not zero.
        """
        width = self.rests.shape[1]
        keep = width - 1 if input_weight else min(width - 1, int(self.output_lengths.max()))
        from_end = torch.arange(keep, 0, -1, device=self.rests.device)
        is_output = from_end <= self.output_lengths[:, None]
        is_rest = (self.rest_parts[:, -keep - 1 : -1] != Part.PAD) & ~is_output
        return self.rests[:, -keep:], is_output + input_weight * is_rest


def paper_loss(checkpoint: Checkpoint, batch: Batch, condition: Condition) -> Tensor:
    """Mean cross-entropy of the outputs in one pass under the mask; a control when ``condition`` says so."""
    targets, weights = batch.targets(0.0)
    logits = one_pass_logits(checkpoint, batch, condition, targets.shape[1])
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

    @property
    def train_something(self) -> bool:
        """Whether there is a loss at all."""
        return any((self.distillation, self.cross_entropy, self.reconstruction))


def frozen_loss(checkpoint: Checkpoint, batch: Batch, opening: KeyValues, share: Weights) -> Tensor:
    """KL of the gist's student to the full-prompt teacher, and what else ``share`` asks for."""
    targets, weights = batch.targets(share.input)
    last = targets.shape[1]
    with torch.no_grad():
        teacher, encoded = full_prompt_logits(checkpoint, batch, last)
    gist = write_gists(checkpoint, encoded, int(batch.k.max()))
    student = rest_logits(checkpoint, batch, opening, gist, Condition.GIST, last)
    loss = torch.zeros((), device=student.device)
    if share.distillation:
        loss = share.distillation * weighted_mean(divergence(teacher, student, weights), weights)
    if share.cross_entropy:
        outputs = (weights >= 1).float()
        loss = loss + share.cross_entropy * weighted_mean(cross_entropy(student, targets, outputs), outputs)
    if share.reconstruction:
        repeated = repeat_prompts(checkpoint, batch)
        targets, weights = repeated.targets(0.0)
        logits = rest_logits(checkpoint, repeated, opening, gist, Condition.GIST, targets.shape[1])
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


def full_prompt_logits(checkpoint: Checkpoint, batch: Batch, last: int) -> tuple[Tensor, Encoded]:
    """The positive control: logits [batch, last, vocabulary] that predict the last tokens, and the encoded prompts."""
    h, n = checkpoint.opening_tokens, batch.prompts.shape[1]
    parts, positions = (whole[:, h:] for whole in _layout(checkpoint, batch, 0, Condition.POSITIVE))
    cache = DynamicCache()
    logits = checkpoint.reader(
        torch.cat([batch.prompts, batch.rests], dim=1),
        attention_mask=checkpoint.architecture.masks(
            parts, positions, parts.shape[1], checkpoint.reader.dtype, Condition.POSITIVE
        ),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=_predictors(parts.shape[1], last, parts.device),
    ).logits
    prompt = [(keys[:, :, :n], values[:, :, :n]) for keys, values in key_values_of(cache)]
    return logits, Encoded(prompt, batch.prompt_parts, positions[:, :n], positions[:, n - 1] + 1, batch.prompts)


def one_pass_logits(checkpoint: Checkpoint, batch: Batch, condition: Condition, last: int) -> Tensor:
    """The paper's form, in one pass: logits [batch, last, vocabulary] that predict the last tokens."""
    k = int(batch.k.max())
    embed, rows = checkpoint.reader.get_input_embeddings(), len(batch.rests)
    opening = torch.tensor(checkpoint.visible_opening_ids, dtype=torch.long, device=batch.rests.device).expand(rows, -1)
    gist = checkpoint.gist_inputs(batch.prompts, batch.prompt_parts, k)
    parts, positions = _layout(checkpoint, batch, k, condition)
    device = parts.device.type
    mixed = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if mixed else checkpoint.reader.dtype
    masks = checkpoint.architecture.masks(parts, positions, parts.shape[1], dtype, condition)
    logits: Tensor = checkpoint.reader(
        inputs_embeds=torch.cat([embed(opening), embed(batch.prompts), gist, embed(batch.rests)], dim=1),
        attention_mask=masks,
        position_ids=positions,
        use_cache=False,
        logits_to_keep=_predictors(parts.shape[1], last, parts.device),
    ).logits
    return logits


def rest_logits(
    checkpoint: Checkpoint, batch: Batch, opening: KeyValues, gist: KeyValues | None, condition: Condition, last: int
) -> Tensor:
    """The cached form, over opening and gist or the opening alone: logits [batch, last, vocabulary] as above.

    opening: keys and values of a batch of one; gist: of the whole batch.
    """
    rows, width = batch.rests.shape
    k = gist[0][0].shape[2] if gist else 0
    parts, positions = _layout(checkpoint, batch, k, condition)
    h, n = checkpoint.opening_tokens, batch.prompts.shape[1]
    without_prompt = torch.arange(parts.shape[1], device=parts.device)
    without_prompt = without_prompt[(without_prompt < h) | (without_prompt >= h + n)]
    masks = checkpoint.architecture.masks(
        parts[:, without_prompt], positions[:, without_prompt], width, checkpoint.reader.dtype, condition
    )
    logits: Tensor = checkpoint.reader(
        batch.rests,
        attention_mask=masks,
        position_ids=positions[:, -width:],
        past_key_values=DynamicCache(join_key_values(repeat_key_values(opening, rows), gist or [])),
        use_cache=True,
        logits_to_keep=_predictors(width, last, parts.device),
    ).logits
    return logits


def _predictors(width: int, last: int, device: torch.device) -> Tensor:
    """The columns that predict the last tokens. (Given as indices, the head's input is contiguous: one product.)"""
    return torch.arange(width - last - 1, width - 1, device=device)


def _layout(checkpoint: Checkpoint, batch: Batch, k: int, condition: Condition) -> tuple[Tensor, Tensor]:
    """Parts and positions [batch, h + N + k + R] of opening, prompt, gist and rest.

    In the positive control the rest follows the prompt, in the negative control the opening.
    """
    rows, device = len(batch.rests), batch.rests.device
    h = checkpoint.opening_tokens
    lengths = (batch.prompt_parts != Part.PAD).sum(dim=1)
    starts = prompt_starts(checkpoint, lengths)
    gist_start = starts + lengths
    rest_start = {
        Condition.GIST: gist_start + batch.k,
        Condition.POSITIVE: gist_start,
        Condition.NEGATIVE: torch.full_like(gist_start, h),
    }[condition]
    column = torch.arange(k, device=device)
    gist_parts = torch.where(column < batch.k[:, None], int(Part.GIST), int(Part.PAD))
    opening_parts = torch.full((rows, h), int(Part.OPENING), device=device)
    parts = torch.cat([opening_parts, batch.prompt_parts, gist_parts, batch.rest_parts], dim=1)
    positions = torch.cat(
        [
            torch.arange(h, device=device).expand(rows, -1),
            left_positions(batch.prompt_parts, starts),
            gist_start[:, None] + column,
            left_positions(batch.rest_parts, rest_start),
        ],
        dim=1,
    )
    return parts, positions


def divergence(teacher: Tensor, student: Tensor, weights: Tensor) -> Tensor:
    """KL(teacher || student) in nats, [n], of the n tokens whose weight is not zero.

    teacher, student: logits [batch, M, vocabulary]; weights [batch, M].
    """
    teacher, student = (F.log_softmax(logits[weights > 0].float(), dim=-1) for logits in (teacher, student))
    return F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1)


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
