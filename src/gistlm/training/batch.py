"""One training step's rows as tensors; knows nothing of models or losses.

A batch is left-padded on both sides of the gist, so outputs end at the last column.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gistlm.mask import Part


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
    cross_entropy: Tensor
    """[batch]: weight of the output's cross-entropy, beside what the recipe gives all rows"""

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
