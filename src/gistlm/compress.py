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

from gistlm.errors import InputError, PromptTooLongError
from gistlm.files import sha256
from gistlm.gist import Gist
from gistlm.gist_file import GistInfo
from gistlm.gisting.encoder_attention import encode
from gistlm.gisting.kept_tokens import Observation, PassIsOver
from gistlm.gisting.kv_cache import CacheOfLayers, KeyValues, column_mask, key_values_of, left_pad, left_positions
from gistlm.gisting.mask import Part
from gistlm.gisting.placement import READ_AGAIN, check_k, longest_prompt
from gistlm.models.checkpoint import Checkpoint
from gistlm.models.config import Recipe
from gistlm.models.transformers_compat import CACHE


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
    looks: list[Tensor] | None = None
    """By layer, where in the prompt the rest looked, [batch, kv_heads, N], if that was watched"""


def compress(checkpoint: Checkpoint, prompts: Sequence[str], k: int) -> list[Gist]:
    """One gist of k tokens per prompt, on the model's device; with kept tokens, of no more than the prompt has.

    Raises `InputError` for an empty prompt, an impossible k, or keys and values that the model's dtype cannot hold,
    `PromptTooLongError` for too long a prompt.
    """
    check_k(k, checkpoint.max_k)
    ids = [checkpoint.prompts.prompt_ids(prompt) for prompt in prompts]
    probes = len(checkpoint.observers) or len(checkpoint.prompts.empty_rest_ids)
    context, kept_most = checkpoint.architecture.context, checkpoint.config.kept
    limit = longest_prompt(context, k, checkpoint.learned, kept_most, probes)
    for row in ids:
        if len(row) > limit:
            raise PromptTooLongError(len(row), limit)
    if not ids:
        return []
    states: Tensor | None = None
    tokens, parts = left_pad(ids, Part.PROMPT, checkpoint.reader.device)
    learned, kept = checkpoint.held(parts, torch.full_like(parts[:, 0], k))
    most = checkpoint.learned_columns(k)
    with torch.inference_mode():
        if checkpoint.architecture.encodes:
            key_values, states = encode_gists(checkpoint, tokens, parts, k)
            starts = torch.zeros(len(ids), dtype=torch.long)
        elif checkpoint.adapts_columns:
            key_values, starts = one_pass(checkpoint, tokens, parts, most, kept, learned == 0)
        else:
            encoded = encode_prompts(checkpoint, tokens, parts, learned == 0)
            key_values, starts = write_gists(checkpoint, encoded, most, kept)[0], encoded.gist_start
    rows = zip(*([*zip(keys, values, strict=True)] for keys, values in key_values), strict=True)  # by row, then layer
    each = [None] * len(ids) if states is None else list(states)
    gists = [
        _gist(checkpoint, _held(layers, most, *held), held[1], *row)
        for layers, held, *row in zip(
            rows, zip(learned.tolist(), kept.tolist(), strict=True), starts.tolist(), ids, each, strict=True
        )
    ]
    for prompt, gist in zip(prompts, gists, strict=True):
        _check_finite(gist, prompt)
    return gists


def _check_finite(gist: Gist, prompt: str) -> None:
    """Raise `InputError` where the model's dtype could not hold the gist's numbers."""
    if not gist.is_finite():
        dtype = str(gist.dtype).removeprefix("torch.")
        remedy = "check the base model's weights" if dtype == "float32" else "load the model with dtype float32"
        raise InputError(
            f"in {dtype} the model makes keys or values that are not finite of the prompt {prompt[:40]!r}; {remedy}"
            + (" or bfloat16" if dtype == "float16" else "")
        )


def prompt_starts(checkpoint: Checkpoint, lengths: Tensor, all_kept: Tensor) -> Tensor:
    """The position of each prompt's first token, from prompt lengths [batch] and whether none is learned, bool [batch].

    Relative numbering: such that the gist follows the opening, so below zero for most prompts. Absolute, and where a
    gist is ``all_kept``, as in the full prompt: zero.
    """
    if checkpoint.architecture.numbering == "absolute":
        return torch.zeros_like(lengths)
    return torch.where(all_kept, 0, checkpoint.opening_tokens - lengths)


def encode_prompts(checkpoint: Checkpoint, tokens: Tensor, parts: Tensor, all_kept: Tensor) -> Encoded:
    """Run left-padded prompts (ids, opening included, and `Part`s, [batch, N]) through the reader as ordinary causal
    text, to the last layer's keys and values.

    all_kept: as in `prompt_starts`.
    """
    lengths = (parts != Part.PAD).sum(dim=1)
    starts = prompt_starts(checkpoint, lengths, all_kept)
    positions = left_positions(parts, starts)
    cache = CacheOfLayers(checkpoint.architecture.layers)
    reader = checkpoint.reader.get_decoder()
    with torch.no_grad() if checkpoint.config.recipe == Recipe.FROZEN else nullcontext(), suppress(PassIsOver):
        reader(tokens, attention_mask=column_mask(parts), position_ids=positions, **{CACHE: cache}, use_cache=True)
    return Encoded(key_values_of(cache), parts, positions, starts + lengths, tokens)


def write_gists(
    checkpoint: Checkpoint, encoded: Encoded, learned: int, kept: Tensor
) -> tuple[KeyValues, Observation | None]:
    """Run gist tokens over encoded prompts: keys and values [batch, kv_heads, learned + most kept, head_dim], and what
    the observers saw if tokens are kept, so many of each prompt: ``kept`` [batch].

    Where a prompt keeps fewer than another, what is behind them means nothing.
    """
    inputs, parts = _behind(checkpoint, encoded.tokens, encoded.parts, learned)
    positions = left_positions(parts, encoded.gist_start)
    masks = checkpoint.architecture.masks(
        torch.cat([encoded.parts, parts], dim=1),
        torch.cat([encoded.positions, positions], dim=1),
        queries=parts.shape[1],
        dtype=checkpoint.reader.dtype,
    )
    return _written(
        checkpoint,
        encoded.parts,
        parts,
        (learned, kept),
        encoded.key_values,
        inputs_embeds=inputs,
        attention_mask=masks,
        position_ids=positions,
    )


def one_pass(
    checkpoint: Checkpoint, tokens: Tensor, prompt_parts: Tensor, learned: int, kept: Tensor, all_kept: Tensor
) -> tuple[KeyValues, Tensor]:
    """What `encode_prompts` and `write_gists` give, in one pass of prompts and gist tokens side by side.

    Without a rest the gist mask is the plain causal one, so the model's own serves; the adapter is kept off the
    prompt. Returns keys and values as `write_gists` and the positions of the first gist tokens [batch].
    """
    lengths = (prompt_parts != Part.PAD).sum(dim=1)
    starts = prompt_starts(checkpoint, lengths, all_kept)
    inputs, behind = _behind(checkpoint, tokens, prompt_parts, learned)
    parts = torch.cat([prompt_parts, behind], dim=1)
    with checkpoint.adapter_on_last(behind.shape[1]):
        key_values, _ = _written(
            checkpoint,
            prompt_parts,
            behind,
            (learned, kept),
            None,
            inputs_embeds=torch.cat([checkpoint.reader.get_input_embeddings()(tokens), inputs], dim=1),
            attention_mask=column_mask(parts),
            position_ids=left_positions(parts, starts),
        )
    return key_values, starts + lengths


def _behind(checkpoint: Checkpoint, tokens: Tensor, prompt_parts: Tensor, learned: int) -> tuple[Tensor, Tensor]:
    """What the writer reads behind prompts: gist tokens and, if tokens are to be kept, observers, which see what a
    gist token sees. Input embeddings [batch, columns, hidden] and parts [batch, columns].
    """
    inputs = checkpoint.gist_inputs(tokens, prompt_parts, learned)
    parts = torch.full((len(tokens), learned), int(Part.GIST), device=tokens.device)
    if not checkpoint.config.kept:
        return inputs, parts
    embed = checkpoint.reader.get_input_embeddings()
    standing = checkpoint.observers.to(inputs.dtype)
    if not len(standing):
        standing = embed(torch.tensor(checkpoint.prompts.empty_rest_ids, dtype=torch.long, device=tokens.device))
    again = torch.where(checkpoint.is_own(prompt_parts)[:, -READ_AGAIN:], int(Part.GIST), int(Part.PAD))
    shown = torch.full((len(tokens), len(standing)), int(Part.GIST), device=tokens.device)
    return (
        torch.cat([inputs, embed(tokens[:, -READ_AGAIN:]), standing.expand(len(tokens), -1, -1)], dim=1),
        torch.cat([parts, again, shown], dim=1),
    )


def _written(
    checkpoint: Checkpoint,
    prompt_parts: Tensor,
    behind: Tensor,
    held: tuple[int, Tensor],
    before: KeyValues | None,
    **inputs: Any,
) -> tuple[KeyValues, Observation | None]:
    """Run the writer until its gists are there: the learned tokens' columns, and behind them the kept ones of prompts.

    held: columns of learned gist tokens, and how many tokens are kept of each prompt, [batch]; before: what is cached.
    """
    learned, kept = held
    decoder, width = checkpoint.writer_decoder, prompt_parts.shape[1]
    if not checkpoint.config.kept:
        cache = CacheOfLayers(checkpoint.architecture.layers, before)
        with suppress(PassIsOver):
            decoder(**inputs, **{CACHE: cache}, use_cache=True)
        return [(keys[:, :, width:], values[:, :, width:]) for keys, values in key_values_of(cache)], None
    own, observers = checkpoint.may_be_kept(prompt_parts), behind[:, learned:] != Part.PAD
    watch = Observation(prompt_parts != Part.PAD, own, observers, learned, kept, checkpoint.fitted)
    with watch(decoder):
        decoder(**inputs, **{CACHE: DynamicCache(before)}, use_cache=True)
    return watch.gists, watch


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


def encode_opening(checkpoint: Checkpoint) -> KeyValues:
    """Keys and values [1, kv_heads, h, head_dim] of the visible opening; an empty list when there is none."""
    if not checkpoint.opening_tokens:
        return []
    cache = DynamicCache()
    ids = torch.tensor([checkpoint.visible_opening_ids], device=checkpoint.reader.device)
    with torch.no_grad():
        checkpoint.reader.get_decoder()(ids, **{CACHE: cache}, use_cache=True)
    return key_values_of(cache)


def gist_layers(checkpoint: Checkpoint) -> list[tuple[int, int, int]]:
    """(kv_heads, key dim, value dim) of every layer's gist, from a pass of one token."""
    prompt = left_pad([[0]], Part.PROMPT, checkpoint.reader.device)
    with torch.no_grad():
        if checkpoint.architecture.encodes:
            layers, _ = encode_gists(checkpoint, *prompt, 1)
        else:
            layers = encode_prompts(checkpoint, *prompt, torch.tensor([False], device=prompt[0].device)).key_values
    return layer_shapes(layers)


def layer_shapes(layers: KeyValues) -> list[tuple[int, int, int]]:
    """(kv_heads, key dim, value dim) of every layer's keys and values."""
    return [(int(keys.shape[1]), int(keys.shape[3]), int(values.shape[3])) for keys, values in layers]


def gist_start(checkpoint: Checkpoint, gist: Gist) -> int:
    """The position at which the model reads a gist: after the opening, or with absolute numbering after its prompt, as
    it reads one of kept tokens alone.
    """
    if checkpoint.architecture.numbering == "absolute" or not gist.learned:
        return gist.provenance.prompt_tokens
    return checkpoint.opening_tokens


def _held(layers: KeyValues, width: int, learned: int, kept: int) -> KeyValues:
    """A row's own columns of [kv_heads, width + most kept, head_dim]: a gist of kept tokens alone has none learned."""
    columns = slice(learned + kept) if learned else slice(width, width + kept)
    # .clone(): the row keeps none of its batch's memory alive, and is outside inference mode, so that it can be trained
    return [(keys[:, columns].clone(), values[:, columns].clone()) for keys, values in layers]


def _gist(
    checkpoint: Checkpoint, layers: KeyValues, kept: int, start: int, ids: list[int], states: Tensor | None
) -> Gist:
    """A gist from its keys and values by layer, each [kv_heads, k, head_dim], so many of them kept, its prompt's token
    ids, and an encoder's states [k, hidden].
    """
    provenance = GistInfo(
        model=checkpoint.fingerprint,
        adapter=checkpoint.adapter_fingerprint,
        base=checkpoint.config.name,
        prompt_sha256=sha256(*(index.to_bytes(4, "little") for index in ids)),
        prompt_tokens=len(ids),
        start=start,
        kept=kept,
    )
    keys, values = zip(*layers, strict=True)
    return Gist(keys, values, provenance, None if states is None else states.clone())
