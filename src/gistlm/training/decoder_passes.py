"""A decoder-only model's passes in training; knows nothing of losses.

`full_prompt` and `rest` are the cached form of the gist mask, `one_pass` the paper's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from gistlm.compress import Encoded, encode_opening, encode_prompts, gist_inputs, place, write_gists
from gistlm.gisting.kept_tokens import ProbedPass, attention_divergence
from gistlm.gisting.kv_cache import KeyValues, join_key_values, key_values_of, repeat_key_values
from gistlm.gisting.placement import Condition, Part, Placed, behind
from gistlm.models.checkpoint import Checkpoint
from gistlm.models.transformers_compat import CACHE
from gistlm.training.batches import Batch


class DecoderPasses:
    """What the losses need of a decoder-only checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    @cached_property
    def opening(self) -> KeyValues:
        """The visible opening's, encoded at the first use: a model may be moved to its device before that."""
        return encode_opening(self.checkpoint)

    def full_prompt(self, batch: Batch, last: int, probed: bool = False) -> tuple[Tensor, Encoded]:
        """The positive control: logits [batch, last, vocabulary] of the last tokens, and the encoded prompts, with the
        rest's attention mass if it is ``probed``.
        """
        h, placed = self.checkpoint.placement.opening, self._place(batch)
        parts, positions = (whole[:, h:] for whole in self._columns(batch, placed, Condition.POSITIVE))
        tokens, parts, positions = without_gaps(parts, torch.cat([batch.prompts, batch.rests], dim=1), parts, positions)
        cache, own = DynamicCache(), behind(parts, h)
        probe = ProbedPass(parts == Part.PROMPT, own, batch.rest_parts != Part.PAD) if probed else None
        reader = self.checkpoint.reader
        with _fused_attention(reader), probe(reader.get_decoder()) if probe else nullcontext():
            logits = reader(
                tokens,
                attention_mask=self.checkpoint.architecture.masks(
                    parts, positions, parts.shape[1], reader.dtype, Condition.POSITIVE
                ),
                position_ids=positions,
                **{CACHE: cache},
                use_cache=True,
                logits_to_keep=_predictors(parts.shape[1], last, parts.device),
            ).logits
        at = _prompt_columns(batch, parts.shape[1])
        prompt = [(_of_prompts(keys, at), _of_prompts(values, at)) for keys, values in key_values_of(cache)]
        own = behind(batch.prompt_parts, h)[:, None]
        mass = [_of_prompts(each, at) * own for each in probe.mass] if probe else None
        return logits, Encoded(prompt, batch.prompts, batch.prompt_parts, placed, mass)

    def encode(self, batch: Batch) -> Encoded:
        """The encoded prompts alone."""
        with _fused_attention(self.checkpoint.reader):
            return encode_prompts(self.checkpoint, batch.prompts, batch.prompt_parts, self._place(batch))

    def write(self, encoded: Encoded, batch: Batch) -> tuple[KeyValues, Tensor | None]:
        """Keys and values of every row's gist and kept tokens, as many as the row with most has, and the probe queries'
        `attention_divergence` from the rest if its attention was recorded.
        """
        placed = self._place(batch)
        assert torch.equal(encoded.placed.gist_start, placed.gist_start), "gists of this k number prompts otherwise"
        gist, mass = write_gists(self.checkpoint, replace(encoded, placed=placed), self._learned(batch))
        if mass is None or encoded.mass is None:
            return gist, None
        return gist, attention_divergence(encoded.mass, mass)

    def rest(self, batch: Batch, gist: KeyValues | None, condition: Condition, last: int) -> Tensor:
        """The cached form, over opening and gist or the opening alone: logits [batch, last, vocabulary] as above."""
        rows, width = batch.rests.shape
        k = gist[0][0].shape[2] if gist else 0
        parts, positions = self._columns(batch, self._place(batch), condition, k)
        h, n = self.checkpoint.placement.opening, batch.prompts.shape[1]
        without_prompt = torch.arange(parts.shape[1], device=parts.device)
        without_prompt = without_prompt[(without_prompt < h) | (without_prompt >= h + n)]
        masks = self.checkpoint.architecture.masks(
            parts[:, without_prompt], positions[:, without_prompt], width, self.checkpoint.reader.dtype, condition
        )
        logits: Tensor = self.checkpoint.reader(
            batch.rests,
            attention_mask=masks,
            position_ids=positions[:, -width:],
            **{CACHE: DynamicCache(join_key_values(repeat_key_values(self.opening, rows), gist or []))},
            use_cache=True,
            logits_to_keep=_predictors(width, last, parts.device),
        ).logits
        return logits

    def one_pass(self, batch: Batch, condition: Condition, last: int) -> Tensor:
        """The paper's form, in one pass: logits [batch, last, vocabulary] that predict the last tokens."""
        k = self._learned(batch)
        embed, rows = self.checkpoint.reader.get_input_embeddings(), len(batch.rests)
        opening = torch.tensor(self.checkpoint.visible_opening_ids, dtype=torch.long, device=batch.rests.device).expand(
            rows, -1
        )
        gist = gist_inputs(self.checkpoint, batch.prompts, batch.prompt_parts, k)
        parts, positions = self._columns(batch, self._place(batch), condition, k)
        inputs = torch.cat([embed(opening), embed(batch.prompts), gist, embed(batch.rests)], dim=1)
        inputs, parts, positions = without_gaps(parts, inputs, parts, positions)
        device = parts.device.type
        mixed = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if mixed else self.checkpoint.reader.dtype
        masks = self.checkpoint.architecture.masks(parts, positions, parts.shape[1], dtype, condition)
        logits: Tensor = self.checkpoint.reader(
            inputs_embeds=inputs,
            attention_mask=masks,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=_predictors(parts.shape[1], last, parts.device),
        ).logits
        return logits

    def _learned(self, batch: Batch) -> int:
        """Columns of learned gist tokens."""
        return self.checkpoint.placement.learned_columns(int(batch.k.max()))

    def _place(self, batch: Batch) -> Placed:
        return place(self.checkpoint, batch.prompt_parts, batch.k)

    def _columns(self, batch: Batch, placed: Placed, condition: Condition, k: int = 0) -> tuple[Tensor, Tensor]:
        """Parts and positions [batch, h + N + k + R] of opening, prompt, k columns of gists, and rest."""
        learned = min(k, self._learned(batch))
        return self.checkpoint.placement.columns(
            batch.prompt_parts, batch.rest_parts, placed, condition, (learned, k - learned)
        )


def without_gaps(parts: Tensor, *columns: Tensor) -> list[Tensor]:
    """Tensors of columns [batch, S, ...] with each row's padding all on its left, and cut to the longest row's width.

    parts: [batch, S] of `Part`.
    """
    shown = parts != Part.PAD
    order = shown.int().argsort(dim=1, stable=True)[:, shown.shape[1] - int(shown.sum(dim=1).max()) :]
    rows = torch.arange(len(parts), device=parts.device)[:, None]
    return [each[rows, order] for each in columns]


@contextmanager
def _fused_attention(model: Any) -> Iterator[None]:
    """Meanwhile, where no gradients are taken on a CPU, torch's own attention in place of plain products, which are
    faster backward only (`start._use_plain_attention`). A cap on the scores is known to plain products alone.
    """
    config = model.get_decoder().config
    own = config._attn_implementation
    slow = own == "eager" and model.device.type == "cpu" and not torch.is_grad_enabled()
    if slow and model._supports_sdpa and not getattr(config, "attn_logit_softcapping", None):
        config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = own


def _prompt_columns(batch: Batch, width: int) -> Tensor:
    """[batch, N]: where the columns of left-padded prompts stand in full rows of ``width`` columns `without_gaps`.

    Padding has any column.
    """
    ends = width - (batch.rest_parts != Part.PAD).sum(dim=1, keepdim=True)
    return (ends + torch.arange(-batch.prompts.shape[1], 0, device=ends.device)).clamp_min(0)


def _of_prompts(columns: Tensor, at: Tensor) -> Tensor:
    """[batch, kv_heads, N, ...] of the columns [batch, kv_heads, S, ...] whose indices are ``at``, [batch, N]."""
    rows = torch.arange(len(at), device=at.device)[:, None]
    return columns[rows, :, at].transpose(1, 2)


def _predictors(width: int, last: int, device: torch.device) -> Tensor:
    """The columns that predict the last tokens. (Given as indices, the head's input is contiguous: one product.)"""
    return torch.arange(width - last - 1, width - 1, device=device)
