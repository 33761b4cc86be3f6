"""Pads token ids, and joins and repeats keys and values; knows nothing of models or gists."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from gistlm.gisting.placement import Part

KeyValues = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, [batch, kv_heads, tokens, head_dim]."""


def repeat_key_values(key_values: KeyValues, rows: int) -> KeyValues:
    """Expand a batch of one row to ``rows`` equal rows, without copying."""
    return [(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values in key_values]


def join_key_values(first: KeyValues, second: KeyValues) -> KeyValues:
    """Keys and values of ``first``'s tokens, then of ``second``'s; either may be an empty list."""
    if not first or not second:
        return first or second
    return [
        (torch.cat([keys, more_keys], dim=2), torch.cat([values, more_values], dim=2))
        for (keys, values), (more_keys, more_values) in zip(first, second, strict=True)
    ]


def left_pad(rows: Sequence[Sequence[int]], part: Part, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and parts, both [batch, longest], padded on the left with 0 and `Part.PAD`. part: of all tokens."""
    lengths = list(map(len, rows))
    width = max(lengths)
    tokens = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    padding = width - torch.tensor(lengths, device=device)[:, None]
    is_padding = torch.arange(width, device=device) < padding
    return tokens, torch.where(is_padding, int(Part.PAD), int(part))


def column_mask(parts: Tensor) -> Tensor | None:
    """transformers' padding mask [batch, S] for causal attention: 0 for padding, else 1; None if nothing is padded."""
    return None if bool((parts != Part.PAD).all()) else (parts != Part.PAD).long()


def key_values_of(cache: DynamicCache) -> KeyValues:
    """Keys and values of each of a cache's layers."""
    return [(keys, values) for keys, values, _ in cache]
