"""Lays out requests with gists, prompts and neither as one batch for a stock model; knows nothing of generation.

columns      0 ........ C-1 | C ............ C+T-1
a gist       pad opening gist | pad rest
no gist      pad ............ | pad all of the request
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from gistlm.compress import encode_opening, gist_layers, layer_shapes
from gistlm.engines.base import Request
from gistlm.errors import PromptTooLongError
from gistlm.gist import Gist
from gistlm.gisting.kv_cache import KeyValues, left_pad
from gistlm.gisting.placement import Part, left_positions
from gistlm.models.checkpoint import Checkpoint
from gistlm.models.transformers_compat import CACHE


@dataclass(frozen=True)
class Row:
    """A request as token ids."""

    request: Request
    fresh: list[int]
    """Ids that are not cached and must be encoded; for a decoder-only model they end with the output's."""
    output: list[int]
    """Ids to score; empty if an answer is to be generated."""
    widths: tuple[int, ...]
    """Number of tokens in each part of the row that is padded, as `batches.batches` takes them."""


@dataclass(frozen=True)
class Prepared:
    """A batch of requests as tensors."""

    tokens: Tensor
    """[batch, T] fresh token ids, left-padded"""
    cached: KeyValues
    """keys and values [batch, kv_heads, C, head_dim] per layer, left-padded; an empty list if C is 0"""
    parts: Tensor
    """[batch, C + T] of `Part`"""
    positions: Tensor
    """[batch, C + T]"""
    states: Tensor | None = None
    """[batch, C, hidden]: final states of the cached columns; for encoder-decoder models only"""
    outputs: list[list[int]] = field(default_factory=list)
    """token ids that the decoder of an encoder-decoder model scores"""

    @property
    def cached_lengths(self) -> Tensor:
        """[batch]: number of tokens in the cache, without padding."""
        return (self.parts[:, : -self.tokens.shape[1]] != Part.PAD).sum(dim=1)

    @property
    def fresh_lengths(self) -> Tensor:
        """[batch]: number of tokens to encode, without padding."""
        return (self.parts[:, -self.tokens.shape[1] :] != Part.PAD).sum(dim=1)


class Layout:
    """Builds inputs for a decoder-only checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.opening = encode_opening(checkpoint)
        """keys and values [1, kv_heads, h, head_dim] of the visible opening, per layer"""
        self._layers = layer_shapes(self.opening) if self.opening else gist_layers(checkpoint)

    def check(self, gist: Gist) -> None:
        """Raise `GistMismatchError` unless the gist has the shape and position that the reader needs."""
        start = self.checkpoint.placement.gist_start(gist.provenance.prompt_tokens, gist.learned)
        gist.check_shape(self._layers, start)

    def row(self, request: Request, output: list[int], room: int) -> Row:
        """A request as token ids. output: ids to score, or none. room: maximum number of tokens to be generated.

        Raises `PromptTooLongError` if all of it does not fit into the model's context, and `InputError` for an empty
        prompt.
        """
        fresh, gist = fresh_ids(self.checkpoint, request) + output, request.gist
        end, limit = (0 if gist is None else gist.end) + len(fresh) + room, self.checkpoint.architecture.context
        if end > limit:
            raise PromptTooLongError(end, limit, "request with room for its answer")
        cached = 0 if gist is None else self.checkpoint.placement.opening + gist.k
        return Row(request, fresh, output, (cached, len(fresh) + room))

    def prepare(self, rows: Sequence[Row]) -> Prepared:
        """Build one batch of rows."""
        checkpoint, device = self.checkpoint, self.checkpoint.reader.device
        tokens, fresh_parts = left_pad([row.fresh for row in rows], Part.REST, device)
        gists = [_moved(row.request.gist, device) for row in rows]
        held = [(gist.provenance.start, gist.learned, gist.provenance.kept) if gist else None for gist in gists]
        parts, positions, starts = checkpoint.placement.cached_columns(held, device)
        positions = torch.cat([positions, left_positions(fresh_parts, starts)], dim=1)
        width = parts.shape[1]
        layers = range(checkpoint.architecture.layers if width else 0)
        cached = [
            (
                _cached_layer(self.opening, gists, layer, 0, width),
                _cached_layer(self.opening, gists, layer, 1, width),
            )
            for layer in layers
        ]
        return Prepared(tokens, cached, torch.cat([parts, fresh_parts], dim=1), positions)

    def generation_inputs(self, prepared: Prepared) -> dict[str, Any]:
        """Arguments of transformers' `generate`."""
        return {
            "inputs": prepared.tokens,
            "attention_mask": (prepared.parts != Part.PAD).long(),
            "position_ids": prepared.positions,
            CACHE: DynamicCache(prepared.cached) if prepared.cached else None,
        }

    def output_logits(self, prepared: Prepared, last: int) -> Tensor:
        """Logits [batch, last, vocabulary] that predict the last tokens."""
        reader, width = self.checkpoint.reader, prepared.tokens.shape[1]
        masks = self.checkpoint.architecture.masks(prepared.parts, prepared.positions, width, reader.dtype)
        with torch.no_grad():
            logits: Tensor = reader(
                prepared.tokens,
                attention_mask=masks,
                position_ids=prepared.positions[:, -width:],
                **{CACHE: DynamicCache(prepared.cached)},
                logits_to_keep=torch.arange(width - last - 1, width - 1, device=reader.device),
            ).logits
        return logits


def fresh_ids(checkpoint: Checkpoint, request: Request) -> list[int]:
    """Ids to encode for a request, up to its output. Raises `InputError` as `PromptTokenizer.request_ids` does."""
    prompts = checkpoint.prompts
    if request.gist is not None:
        return prompts.rest_ids(request.input)
    if request.bare_opening:
        return checkpoint.visible_opening_ids + prompts.rest_ids(request.input)
    # a model with a gist token in its vocabulary was trained with that token after full prompts too
    return prompts.request_ids(request.prompt, request.input, checkpoint.gist_token_ids)


def _moved(gist: Gist | None, device: torch.device) -> Gist | None:
    return gist if gist is None or gist.keys[0].device == device else gist.to(device)


def _cached_layer(opening: KeyValues, gists: Sequence[Gist | None], layer: int, side: int, width: int) -> Tensor:
    """One layer's keys (side 0) or values (side 1) of openings and gists, left-padded with zeros.

    Returns [batch, kv_heads, width, head_dim].
    """
    rows = [None if gist is None else (gist.keys, gist.values)[side][layer] for gist in gists]
    held = [row for row in rows if row is not None]
    before = opening[layer][side][0] if opening else held[0][:, :0]
    if len(held) == len(rows) and all(before.shape[1] + row.shape[1] == width for row in held):  # nothing to pad
        return torch.cat([before.expand(len(held), -1, -1, -1), torch.stack(held)], dim=2)
    empty = held[0][:, :0]
    whole = [empty if row is None else torch.cat([before, row], dim=1) for row in rows]
    return torch.stack([F.pad(row, (0, 0, width - row.shape[1], 0)) for row in whole])
