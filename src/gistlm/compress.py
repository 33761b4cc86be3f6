"""Prompts in, gists out: the cached form of the gist mask, batched and differentiable.

The prompt runs through the reader, the gist tokens through the writer over the prompt's cache, and the gist
tokens' slice of that cache is the gist, with the prompt's tokens that the checkpoint keeps behind it.
`encode_prompts` and `write_gists` do so in two passes, which training needs; `compress` does both in one, which is
faster. Knows nothing of generation, files or training.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from gistlm.checkpoint import Checkpoint, Recipe
from gistlm.encoder import encode
from gistlm.errors import InputError, PromptTooLongError
from gistlm.files import sha256
from gistlm.gist import Gist, GistInfo
from gistlm.mask import Part

KeyValues = list[tuple[Tensor, Tensor]]
"""Keys and values by layer, each [batch, kv_heads, tokens, head_dim]."""


@dataclass(frozen=True)
class Encoded:
    """Left-padded prompts after their pass through the reader."""

    key_values: KeyValues
    parts: Tensor
    """[batch, N] of `Part`: PAD or PROMPT"""
    positions: Tensor
    """[batch, N]"""
    gist_start: Tensor
    """[batch]: the position of each row's first gist token"""
    tokens: Tensor
    """[batch, N] ids"""


def compress(checkpoint: Checkpoint, prompts: Sequence[str], k: int) -> list[Gist]:
    """One gist of k tokens per prompt, on the model's device; of fewer where all tokens of a prompt are kept.

    Raises `InputError` for an empty prompt or an impossible k, `PromptTooLongError` for too long a prompt.
    """
    check_k(k, checkpoint.max_k)
    ids = [checkpoint.prompts.prompt_ids(prompt) for prompt in prompts]
    limit = checkpoint.architecture.context - k - 1
    for row in ids:
        if len(row) > limit:
            raise PromptTooLongError(len(row), limit)
    if not ids:
        return []
    states: Tensor | None = None
    tokens, parts = left_pad(ids, Part.PROMPT, checkpoint.reader.device)
    with torch.inference_mode():
        if checkpoint.architecture.encodes:
            key_values, states = encode_gists(checkpoint, tokens, parts, k)
            starts = torch.zeros(len(ids), dtype=torch.long)
        elif checkpoint.adapts_columns:
            key_values, starts = one_pass(checkpoint, tokens, parts, k)
        else:
            encoded = encode_prompts(checkpoint, ids)
            key_values, starts = write_gists(checkpoint, encoded, k), encoded.gist_start
    rows = zip(*([*zip(keys, values, strict=True)] for keys, values in key_values), strict=True)  # by row, then layer
    each = [None] * len(ids) if states is None else list(states)
    sizes = checkpoint.sizes(parts, torch.full_like(parts[:, 0], k)).tolist()
    return [_gist(checkpoint, *row) for row in zip(rows, sizes, starts.tolist(), ids, each, strict=True)]


def check_k(k: int, largest: int) -> None:
    """Raise `InputError` unless k gist tokens can be made."""
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= largest:
        raise InputError(f"k is the number of gist tokens, from 1 to {largest} for this checkpoint; got {k!r}")


def prompt_starts(checkpoint: Checkpoint, lengths: Tensor) -> Tensor:
    """The position of each prompt's first token, from prompt lengths [batch].

    Relative numbering: such that the gist follows the opening, so below zero for most prompts. Absolute: zero.
    """
    if checkpoint.architecture.numbering == "absolute":
        return torch.zeros_like(lengths)
    return checkpoint.opening_tokens - lengths


def encode_prompts(checkpoint: Checkpoint, ids: Sequence[Sequence[int]]) -> Encoded:
    """Run prompts (token ids, opening included) through the reader as ordinary causal text."""
    tokens, parts = left_pad(ids, Part.PROMPT, checkpoint.reader.device)
    lengths = torch.tensor([len(row) for row in ids], device=tokens.device)
    starts = prompt_starts(checkpoint, lengths)
    positions = left_positions(parts, starts)
    cache = DynamicCache()
    reader = checkpoint.reader.get_decoder()
    with torch.no_grad() if checkpoint.config.recipe == Recipe.FROZEN else nullcontext():
        reader(tokens, attention_mask=column_mask(parts), position_ids=positions, past_key_values=cache, use_cache=True)
    return Encoded(key_values_of(cache), parts, positions, starts + lengths, tokens)


def write_gists(checkpoint: Checkpoint, encoded: Encoded, k: int) -> KeyValues:
    """Run gist tokens over encoded prompts; their keys and values, and of kept tokens: [batch, kv_heads, k, head_dim].

    Where a prompt has too few tokens to keep, what is behind them means nothing (`Checkpoint.sizes`).
    """
    batch, most = encoded.parts.shape[0], k
    k = min(k, checkpoint.learned)
    positions = encoded.gist_start[:, None] + torch.arange(k, device=encoded.parts.device)
    gist_parts = torch.full((batch, k), int(Part.GIST), device=encoded.parts.device)
    masks = checkpoint.architecture.masks(
        torch.cat([encoded.parts, gist_parts], dim=1),
        torch.cat([encoded.positions, positions], dim=1),
        queries=k,
        dtype=checkpoint.reader.dtype,
    )
    cache = DynamicCache(encoded.key_values)
    checkpoint.writer_decoder(
        inputs_embeds=checkpoint.gist_inputs(encoded.tokens, encoded.parts, k),
        attention_mask=masks,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )
    return _with_kept(checkpoint, encoded.tokens, encoded.parts, key_values_of(cache), k, most)


def _with_kept(
    checkpoint: Checkpoint, tokens: Tensor, parts: Tensor, key_values: KeyValues, learned: int, most: int
) -> KeyValues:
    """The last ``learned`` columns, and behind them the prompts' kept ones up to ``most``, of a cache of prompts and
    gist tokens.
    """
    gist = [(keys[:, :, -learned:], values[:, :, -learned:]) for keys, values in key_values]
    if most <= learned:
        return gist
    columns = checkpoint.kept_columns(tokens, parts, most - learned).clamp_min(0)[:, None, :, None]

    def kept(side: Tensor) -> Tensor:
        return side.gather(2, columns.expand(-1, side.shape[1], -1, side.shape[3]))

    return join_key_values(gist, [(kept(keys), kept(values)) for keys, values in key_values])


def one_pass(checkpoint: Checkpoint, tokens: Tensor, prompt_parts: Tensor, k: int) -> tuple[KeyValues, Tensor]:
    """What `encode_prompts` and `write_gists` give, in one pass of prompts and gist tokens side by side.

    Without a rest the gist mask is the plain causal one, so the model's own serves; the adapter is kept off the
    prompt. Returns keys and values [batch, kv_heads, k, head_dim] and positions of the first gist tokens [batch].
    """
    lengths, most = (prompt_parts != Part.PAD).sum(dim=1), k
    k = min(k, checkpoint.learned)
    starts = prompt_starts(checkpoint, lengths)
    gist_parts = torch.full((len(tokens), k), int(Part.GIST), device=tokens.device)
    parts = torch.cat([prompt_parts, gist_parts], dim=1)
    gist = checkpoint.gist_inputs(tokens, prompt_parts, k)
    cache = _CacheOfLayers(checkpoint.architecture.layers)
    with checkpoint.adapter_on_last(k), suppress(_CacheIsFull):
        checkpoint.writer_decoder(
            inputs_embeds=torch.cat([checkpoint.reader.get_input_embeddings()(tokens), gist], dim=1),
            attention_mask=column_mask(parts),
            position_ids=left_positions(parts, starts),
            past_key_values=cache,
            use_cache=True,
        )
    return _with_kept(checkpoint, tokens, prompt_parts, key_values_of(cache), k, most), starts + lengths


def encode_gists(checkpoint: Checkpoint, tokens: Tensor, parts: Tensor, k: int | Tensor) -> tuple[KeyValues, Tensor]:
    """An encoder's gists: prompts and gist tokens read each other both ways, in one pass.

    tokens, parts: ids and `Part`s of left-padded prompts [batch, N]; k: gist tokens, of all rows or [batch] of each.
    Returns the gist tokens' keys and values, padded on the right to the largest k, and final states [batch, k, hidden].
    """
    width = k if isinstance(k, int) else int(k.max())
    column = torch.arange(width, device=tokens.device).expand(len(tokens), -1)
    limits = k if isinstance(k, int) else k[:, None]
    gist_parts = torch.where(column < limits, int(Part.GIST), int(Part.PAD))
    starts = -(parts != Part.PAD).sum(dim=1)
    embeddings = torch.cat(
        [checkpoint.reader.get_input_embeddings()(tokens), checkpoint.gist_inputs(tokens, parts, width)], dim=1
    )
    with checkpoint.adapter_on_last(width) if checkpoint.adapts_columns else nullcontext():
        states, written = encode(
            checkpoint.writer_encoder,
            embeddings,
            torch.cat([parts, gist_parts], dim=1),
            torch.cat([left_positions(parts, starts), column], dim=1),
        )
    gist = [(keys[:, :, -width:], values[:, :, -width:]) for keys, values in written]
    return gist, states[:, -width:]


class _CacheIsFull(Exception):
    """Ends a pass."""


class _CacheOfLayers(DynamicCache):
    """Ends the pass once the last layer's keys and values are in: its attention and what follows serve no gist."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self._last_layer = layers - 1

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        updated = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx == self._last_layer:
            raise _CacheIsFull
        return updated


def encode_opening(checkpoint: Checkpoint) -> KeyValues:
    """Keys and values [1, kv_heads, h, head_dim] of the visible opening; an empty list when there is none."""
    if not checkpoint.opening_tokens:
        return []
    cache = DynamicCache()
    ids = torch.tensor([checkpoint.visible_opening_ids], device=checkpoint.reader.device)
    with torch.no_grad():
        checkpoint.reader.get_decoder()(ids, past_key_values=cache, use_cache=True)
    return key_values_of(cache)


def gist_layers(checkpoint: Checkpoint) -> list[tuple[int, int, int]]:
    """(kv_heads, key dim, value dim) of every layer's gist, from a pass of one token."""
    with torch.no_grad():
        if checkpoint.architecture.encodes:
            layers, _ = encode_gists(checkpoint, *left_pad([[0]], Part.PROMPT, checkpoint.reader.device), 1)
        else:
            layers = encode_prompts(checkpoint, [[0]]).key_values
    return [(int(keys.shape[1]), int(keys.shape[3]), int(values.shape[3])) for keys, values in layers]


def gist_start(checkpoint: Checkpoint, gist: Gist) -> int:
    """The position at which the model reads a gist: after the opening, or with absolute numbering after its prompt."""
    if checkpoint.architecture.numbering == "absolute":
        return gist.provenance.prompt_tokens
    return checkpoint.opening_tokens


def repeat_key_values(key_values: KeyValues, rows: int) -> KeyValues:
    """A batch of one, seen as a batch of ``rows``."""
    return [(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values in key_values]


def join_key_values(first: KeyValues, second: KeyValues) -> KeyValues:
    """The tokens of two caches one after the other; either may be empty."""
    if not first or not second:
        return first or second
    return [
        (torch.cat([keys, more_keys], dim=2), torch.cat([values, more_values], dim=2))
        for (keys, values), (more_keys, more_values) in zip(first, second, strict=True)
    ]


def left_pad(rows: Sequence[Sequence[int]], part: Part, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and parts, both [batch, longest], padded on the left with zeros."""
    width = max(map(len, rows))
    tokens = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    parts = torch.tensor([[int(Part.PAD)] * (width - len(row)) + [int(part)] * len(row) for row in rows], device=device)
    return tokens, parts


def left_positions(parts: Tensor, starts: Tensor) -> Tensor:
    """[batch, S] positions that count from ``starts`` [batch] at each row's first token; padding repeats the start."""
    return starts[:, None] + ((parts != Part.PAD).cumsum(dim=1) - 1).clamp_min(0)


def column_mask(parts: Tensor) -> Tensor | None:
    """The 2D mask of plain causal rows [batch, S], or None when nothing is padded."""
    return None if bool((parts != Part.PAD).all()) else (parts != Part.PAD).long()


def key_values_of(cache: DynamicCache) -> KeyValues:
    """A cache's tensors by layer."""
    return [(keys, values) for keys, values, _ in cache]


def _gist(checkpoint: Checkpoint, layers: KeyValues, k: int, start: int, ids: list[int], states: Tensor | None) -> Gist:
    """A gist of the first k columns of its keys and values by layer, each [kv_heads, k or more, head_dim], its prompt's
    token ids, and an encoder's states [k, hidden].
    """
    provenance = GistInfo(
        model=checkpoint.fingerprint,
        adapter=checkpoint.adapter_fingerprint,
        base=checkpoint.config.name,
        prompt_sha256=sha256(*(index.to_bytes(4, "little") for index in ids)),
        prompt_tokens=len(ids),
        start=start,
        kept=max(0, k - checkpoint.learned),
    )
    # .clone() detaches the row from the batch's memory, so that a kept gist does not keep its neighbours alive, and
    # from inference mode, so that a gist can be trained on
    keys = tuple(key[:, :k].clone() for key, _ in layers)
    values = tuple(value[:, :k].clone() for _, value in layers)
    return Gist(keys, values, provenance, None if states is None else states.clone())
