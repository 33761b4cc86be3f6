"""A decoder-only model's passes in training; knows nothing of losses.

`full_prompt`, `write` and `run_rest` are three passes over a cache; `masked_pass` is one pass under the gist mask. Both
ways give the same logits.
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
from gistlm.gisting.placement import Condition, Part, Placed, after_opening
from gistlm.models.checkpoint import Checkpoint
from gistlm.models.transformers_compat import CACHE
from gistlm.training.batches import Batch


class DecoderPasses:
    """`objectives.Passes` of a decoder-only checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    @cached_property
    def opening(self) -> KeyValues:
        """Keys and values of the visible opening; encoded at the first use, when the model is on its final device."""
        return encode_opening(self.checkpoint)

    def full_prompt(self, batch: Batch, last: int, probed: bool = False) -> tuple[Tensor, Encoded]:
        """The positive control: logits [batch, last, vocabulary] of the last tokens, and the encoded prompts.

        probed: record the rest's attention mass too, as `Encoded.rest_mass`.
        """
        h, placed = self.checkpoint.placement.opening, self._place(batch)
        parts, positions = (whole[:, h:] for whole in self._columns(batch, placed, Condition.POSITIVE))
        tokens, parts, positions = without_gaps(parts, torch.cat([batch.prompts, batch.rests], dim=1), parts, positions)
        cache, compressed = DynamicCache(), after_opening(parts, h)
        probe = ProbedPass(parts == Part.PROMPT, compressed, batch.rest_parts != Part.PAD) if probed else None
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
        indices = _prompt_columns(batch, parts.shape[1])
        prompt = [(_of_prompts(keys, indices), _of_prompts(values, indices)) for keys, values in key_values_of(cache)]
        compressed = after_opening(batch.prompt_parts, h)[:, None]
        rest_mass = [_of_prompts(mass, indices) * compressed for mass in probe.mass] if probe else None
        return logits, Encoded(prompt, batch.prompts, batch.prompt_parts, placed, rest_mass)

    def encode(self, batch: Batch) -> Encoded:
        """Encode the prompts only."""
        with _fused_attention(self.checkpoint.reader):
            return encode_prompts(self.checkpoint, batch.prompts, batch.prompt_parts, self._place(batch))

    def write(self, encoded: Encoded, batch: Batch) -> tuple[KeyValues, Tensor | None]:
        """Make gists: their keys and values, padded to the batch's longest as in `write_gists`. The second value is the
        probe queries' `attention_divergence` from the rest, or None if the rest's attention was not recorded.
        """
        placed = self._place(batch)
        assert torch.equal(encoded.placed.gist_start, placed.gist_start), "gists of this k number prompts otherwise"
        gist, mass = write_gists(self.checkpoint, replace(encoded, placed=placed), self._learned(batch))
        if mass is None or encoded.rest_mass is None:
            return gist, None
        return gist, attention_divergence(encoded.rest_mass, mass)

    def run_rest(self, batch: Batch, gist: KeyValues | None, condition: Condition, last: int) -> Tensor:
        """Run the rest over the cached opening and gists: logits [batch, last, vocabulary] of the last tokens.

        If ``gist`` is None, the cache holds the opening only.
        """
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

    def masked_pass(self, batch: Batch, condition: Condition, last: int) -> Tensor:
        """Run opening, prompt, gist and rest in one pass under the gist mask, as in the paper.

        Returns logits [batch, last, vocabulary] that predict the last tokens.
        """
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
        """Number of columns for learned gist tokens."""
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
    """Move each row's padding to its left and cut all rows to the longest row's width.

    parts: [batch, S] of `Part`. columns: tensors [batch, S, ...], which are returned rearranged.
    """
    shown = parts != Part.PAD
    order = shown.int().argsort(dim=1, stable=True)[:, shown.shape[1] - int(shown.sum(dim=1).max()) :]
    rows = torch.arange(len(parts), device=parts.device)[:, None]
    return [each[rows, order] for each in columns]


@contextmanager
def _fused_attention(model: Any) -> Iterator[None]:
    """Within the `with` block, use SDPA in place of eager attention, for passes on a CPU that take no gradients.

    Training on a CPU uses eager attention because its backward is faster (`start._use_plain_attention`); its forward is
    slower. Models that cap attention scores keep eager attention, because SDPA has no cap.
    """
    config = model.get_decoder().config
    before = config._attn_implementation
    slow = before == "eager" and model.device.type == "cpu" and not torch.is_grad_enabled()
    if slow and model._supports_sdpa and not getattr(config, "attn_logit_softcapping", None):
        config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = before


def _prompt_columns(batch: Batch, width: int) -> Tensor:
    """Indices [batch, N] of the prompts' columns in rows of prompt and rest, ``width`` wide, that `without_gaps` made.

    The indices of padding mean nothing.
    """
    ends = width - (batch.rest_parts != Part.PAD).sum(dim=1, keepdim=True)
    return (ends + torch.arange(-batch.prompts.shape[1], 0, device=ends.device)).clamp_min(0)


def _of_prompts(columns: Tensor, indices: Tensor) -> Tensor:
    """Select columns: from [batch, kv_heads, S, ...] by indices [batch, N], returns [batch, kv_heads, N, ...]."""
    rows = torch.arange(len(indices), device=indices.device)[:, None]
    return columns[rows, :, indices].transpose(1, 2)


def _predictors(width: int, last: int, device: torch.device) -> Tensor:
    """Indices of the columns that predict the last tokens. Given as indices and not as a number, transformers passes
    the head a contiguous tensor, which needs only one matrix product.
    """
    return torch.arange(width - last - 1, width - 1, device=device)
