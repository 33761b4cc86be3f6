"""Prompts in, gists out: the cached form of the gist mask, batched and differentiable.

The prompt runs through the reader, the gist tokens through the writer over the prompt's cache, and the gist tokens'
slice of that cache is the gist, with the kept tokens behind it. There are three forms, and each is needed:

    two passes   `encode_prompts`, then `write_gists`. Training needs it: the prompt's pass takes no gradients. Exact
                 for every decoder, so `compress` uses it where `one_pass` was not tried.
    one pass     `one_pass`, of prompts and gist tokens side by side, with the adapter kept off the prompt's columns.
                 Layers are run once, so that compressing takes about as long as encoding (docs/experiments.md).
    encoder      `encode_gists`: prompt and gist tokens read each other, so no pass of the prompt alone would do.

Counts and positions come from `Placement`. Knows nothing of generation, files or training.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from gistlm.errors import InputError
from gistlm.gist import Gist
from gistlm.gist_file import GistInfo
from gistlm.gisting.encoder_attention import encode
from gistlm.gisting.kept_tokens import KeepingPass
from gistlm.gisting.kv_cache import KeyValues, column_mask, key_values_of, left_pad
from gistlm.gisting.placement import READ_AGAIN, Condition, Part, Placed, behind, left_positions
from gistlm.models.architecture import TESTED
from gistlm.models.checkpoint import Checkpoint
from gistlm.models.config import Recipe
from gistlm.models.embeddings import anchor_ids
from gistlm.models.transformers_compat import CACHE
from gistlm.prompt import hash_ids


@dataclass(frozen=True)
class Encoded:
    """Left-padded prompts after their pass through the reader."""

    key_values: KeyValues
    tokens: Tensor
    """[batch, N] ids"""
    parts: Tensor
    """[batch, N] of `Part`: PAD or PROMPT"""
    placed: Placed
    """For the gists that are to be written."""
    mass: list[Tensor] | None = None
    """By layer, the rest's attention mass on the prompt, [batch, kv_heads, N], if it was recorded"""


def compress(checkpoint: Checkpoint, prompts: Sequence[str], k: int) -> list[Gist]:
    """One gist of k tokens per prompt, on the model's device; with kept tokens, of no more than the prompt has.

    Raises `InputError` for an empty prompt, an impossible k, or keys and values that the model's dtype cannot hold,
    `PromptTooLongError` for too long a prompt.
    """
    placement = checkpoint.placement
    placement.check_k(k)
    ids = [checkpoint.prompts.prompt_ids(prompt) for prompt in prompts]
    for row in ids:
        placement.check_length(len(row), k, len(_probe_embeddings(checkpoint)), checkpoint.architecture.context)
    if not ids:
        return []
    tokens, parts = left_pad(ids, Part.PROMPT, checkpoint.reader.device)
    placed = place(checkpoint, parts, k)
    learned = placement.learned_columns(k)
    states: Tensor | None = None
    with torch.inference_mode():
        if checkpoint.architecture.encodes:
            key_values, states = encode_gists(checkpoint, tokens, parts, k)
        elif may_be_one_pass(checkpoint):
            key_values = one_pass(checkpoint, tokens, parts, placed, learned)
        else:
            key_values, _ = write_gists(checkpoint, encode_prompts(checkpoint, tokens, parts, placed), learned)
    gists = _gists(checkpoint, ids, key_values, states, placed, learned)
    for prompt, gist in zip(prompts, gists, strict=True):
        _check_finite(gist, prompt)
    return gists


def place(checkpoint: Checkpoint, parts: Tensor, k: int | Tensor) -> Placed:
    """Where prompts, whose parts are [batch, N], and gists of at most k tokens, of all or [batch] of each, stand."""
    lengths = (parts != Part.PAD).sum(dim=1)
    return checkpoint.placement.place(lengths, k if isinstance(k, Tensor) else torch.full_like(lengths, k))


def may_be_one_pass(checkpoint: Checkpoint) -> bool:
    """Whether the adapter can be kept off a prompt in the pass that writes its gist: where the prompt passes the bare
    base, in architectures whose linear layers are known to take [batch, tokens, channels]. A `paper` model reads the
    prompt with its adapter.
    """
    known = checkpoint.architecture.name in TESTED or checkpoint.architecture.encodes
    frozen_and_known = checkpoint.config.recipe == Recipe.FROZEN and known
    return frozen_and_known or not checkpoint.adapter_on_last


def encode_prompts(checkpoint: Checkpoint, tokens: Tensor, parts: Tensor, placed: Placed) -> Encoded:
    """Run left-padded prompts (ids, opening included, and `Part`s, [batch, N]) through the reader as causal text."""
    positions = left_positions(parts, placed.prompt_start)
    cache = DynamicCache()
    reader = checkpoint.reader.get_decoder()
    with torch.no_grad() if checkpoint.config.recipe == Recipe.FROZEN else nullcontext():
        reader(tokens, attention_mask=column_mask(parts), position_ids=positions, **{CACHE: cache}, use_cache=True)
    return Encoded(key_values_of(cache), tokens, parts, placed)


def write_gists(checkpoint: Checkpoint, encoded: Encoded, learned: int) -> tuple[KeyValues, list[Tensor] | None]:
    """Run ``learned`` gist tokens over encoded prompts.

    Returns keys and values [batch, kv_heads, learned + most kept, head_dim] and, if tokens are kept, the probe queries'
    attention mass by layer. Where a prompt keeps fewer tokens than another, what is behind them means nothing.
    """
    placed = encoded.placed
    inputs, parts = _behind_prompts(checkpoint, encoded.tokens, encoded.parts, learned)
    positions = left_positions(parts, placed.gist_start)
    masks = checkpoint.architecture.masks(
        torch.cat([encoded.parts, parts], dim=1),
        torch.cat([left_positions(encoded.parts, placed.prompt_start), positions], dim=1),
        queries=parts.shape[1],
        dtype=checkpoint.reader.dtype,
    )
    return _run_writer(
        checkpoint,
        encoded.parts,
        parts,
        (learned, placed.kept),
        encoded.key_values,
        inputs_embeds=inputs,
        attention_mask=masks,
        position_ids=positions,
    )


def one_pass(checkpoint: Checkpoint, tokens: Tensor, parts: Tensor, placed: Placed, learned: int) -> KeyValues:
    """What `encode_prompts` and `write_gists` give, in one pass of prompts and gist tokens side by side.

    Without a rest the gist mask is the plain causal one, so the model's own serves.
    """
    inputs, more = _behind_prompts(checkpoint, tokens, parts, learned)
    whole = torch.cat([parts, more], dim=1)
    with checkpoint.adapter_on_last(more.shape[1]):
        key_values, _ = _run_writer(
            checkpoint,
            parts,
            more,
            (learned, placed.kept),
            None,
            inputs_embeds=torch.cat([checkpoint.reader.get_input_embeddings()(tokens), inputs], dim=1),
            attention_mask=column_mask(whole),
            position_ids=left_positions(whole, placed.prompt_start),
        )
    return key_values


def gist_inputs(checkpoint: Checkpoint, tokens: Tensor, parts: Tensor, k: int) -> Tensor:
    """The input embeddings of k gist tokens behind each prompt: [batch, k, hidden].

    tokens, parts: ids and `Part`s of the prompts, opening included, [batch, N].
    """
    inputs = checkpoint.gist_embeddings[:k].expand(len(tokens), -1, -1)
    if checkpoint.config.anchored:
        anchors = anchor_ids(tokens, _own(checkpoint, parts), k)
        embed = checkpoint.reader.get_input_embeddings()
        inputs = inputs + embed(anchors.clamp_min(0)) * (anchors >= 0)[:, :, None]
    return inputs.to(checkpoint.reader.dtype)


def _own(checkpoint: Checkpoint, parts: Tensor) -> Tensor:
    """bool [batch, N]: which columns hold the prompt's own tokens, not padding and not the template's opening."""
    return behind(parts, len(checkpoint.prompts.opening_ids))


def _probe_embeddings(checkpoint: Checkpoint) -> Any:
    """Input embeddings [probes, hidden] of the probe queries that are the same for every prompt: learned ones, or those
    of an empty rest.
    """
    if len(checkpoint.probe_embeddings):
        return checkpoint.probe_embeddings.to(checkpoint.reader.dtype)
    ids = torch.tensor(checkpoint.prompts.empty_rest_ids, dtype=torch.long, device=checkpoint.reader.device)
    return checkpoint.reader.get_input_embeddings()(ids)


def _behind_prompts(checkpoint: Checkpoint, tokens: Tensor, parts: Tensor, learned: int) -> tuple[Tensor, Tensor]:
    """What the writer reads behind prompts: gist tokens and, if tokens are kept, probe queries, which see what a gist
    token sees. They are the prompt's last tokens again, and the same for all prompts. Input embeddings
    [batch, columns, hidden] and parts [batch, columns].
    """
    rows = len(tokens)
    inputs = gist_inputs(checkpoint, tokens, parts, learned)
    gist_parts = torch.full((rows, learned), int(Part.GIST), device=tokens.device)
    if not checkpoint.placement.kept:
        return inputs, gist_parts
    again = checkpoint.reader.get_input_embeddings()(tokens[:, -READ_AGAIN:])
    again_parts = torch.where(_own(checkpoint, parts)[:, -READ_AGAIN:], int(Part.GIST), int(Part.PAD))
    probes = _probe_embeddings(checkpoint).expand(rows, -1, -1)
    probe_parts = torch.full((rows, probes.shape[1]), int(Part.GIST), device=tokens.device)
    return torch.cat([inputs, again, probes], dim=1), torch.cat([gist_parts, again_parts, probe_parts], dim=1)


def _run_writer(
    checkpoint: Checkpoint,
    prompt_parts: Tensor,
    parts: Tensor,
    counts: tuple[int, Tensor],
    before: KeyValues | None,
    **inputs: Any,
) -> tuple[KeyValues, list[Tensor] | None]:
    """The writer's pass: the learned tokens' columns, and behind them the kept ones of prompts.

    parts: of the columns behind the prompts; counts: columns of learned gist tokens, and tokens to keep of each prompt,
    [batch]; before: what is cached.
    """
    (learned, kept), decoder, width = counts, checkpoint.writer_decoder, prompt_parts.shape[1]
    cache = DynamicCache(before)
    if not checkpoint.placement.kept:
        decoder(**inputs, **{CACHE: cache}, use_cache=True)
        return [(keys[:, :, width:], values[:, :, width:]) for keys, values in key_values_of(cache)], None
    own = behind(prompt_parts, checkpoint.placement.opening)
    probes = parts[:, learned:] != Part.PAD
    keeping = KeepingPass(prompt_parts != Part.PAD, own, probes, learned, kept, checkpoint.fit_weights)
    with keeping(decoder):
        decoder(**inputs, **{CACHE: cache}, use_cache=True)
    return keeping.gists, keeping.mass


def encode_gists(checkpoint: Checkpoint, tokens: Tensor, parts: Tensor, k: int | Tensor) -> tuple[KeyValues, Tensor]:
    """An encoder's gists: prompts and gist tokens read each other both ways, in one pass.

    tokens, parts: ids and `Part`s of left-padded prompts [batch, N]; k: gist tokens, of all rows or [batch] of each.
    Returns the gist tokens' keys and values, padded on the right to the largest k, and final states [batch, k, hidden].
    """
    placed = place(checkpoint, parts, k)
    width = k if isinstance(k, int) else int(k.max())
    columns = checkpoint.placement.columns(parts, parts[:, :0], placed, Condition.GIST, (width, 0))
    inputs = gist_inputs(checkpoint, tokens, parts, width)
    embeddings = torch.cat([checkpoint.reader.get_input_embeddings()(tokens), inputs], dim=1)
    with checkpoint.adapter_on_last(width) if may_be_one_pass(checkpoint) else nullcontext():
        states, written = encode(checkpoint.writer_encoder, embeddings, *columns)
    gist = [(keys[:, :, -width:], values[:, :, -width:]) for keys, values in written]
    return gist, states[:, -width:]


def encode_opening(checkpoint: Checkpoint) -> KeyValues:
    """Keys and values [1, kv_heads, h, head_dim] of the visible opening; an empty list when there is none."""
    if not checkpoint.placement.opening:
        return []
    cache = DynamicCache()
    ids = torch.tensor([checkpoint.visible_opening_ids], device=checkpoint.reader.device)
    with torch.no_grad():
        checkpoint.reader.get_decoder()(ids, **{CACHE: cache}, use_cache=True)
    return key_values_of(cache)


def gist_layers(checkpoint: Checkpoint) -> list[tuple[int, int, int]]:
    """(kv_heads, key dim, value dim) of every layer's gist, from a pass of one token."""
    tokens, parts = left_pad([[0]], Part.PROMPT, checkpoint.reader.device)
    with torch.no_grad():
        if checkpoint.architecture.encodes:
            layers, _ = encode_gists(checkpoint, tokens, parts, 1)
        else:
            layers = encode_prompts(checkpoint, tokens, parts, place(checkpoint, parts, 1)).key_values
    return layer_shapes(layers)


def layer_shapes(layers: KeyValues) -> list[tuple[int, int, int]]:
    """(kv_heads, key dim, value dim) of every layer's keys and values."""
    return [(int(keys.shape[1]), int(keys.shape[3]), int(values.shape[3])) for keys, values in layers]


def _gists(
    checkpoint: Checkpoint,
    ids: Sequence[list[int]],
    key_values: KeyValues,
    states: Tensor | None,
    placed: Placed,
    columns: int,
) -> list[Gist]:
    """A gist for each row of prompts' token ids.

    key_values: [batch, kv_heads, columns + most kept, head_dim] by layer; states: of an encoder [batch, k, hidden].
    """
    numbers = zip(placed.learned.tolist(), placed.kept.tolist(), placed.gist_start.tolist(), strict=True)
    made = []
    for row, (prompt, (learned, kept, start)) in enumerate(zip(ids, numbers, strict=True)):
        # a gist of kept tokens alone has none of the learned columns
        own = slice(learned + kept) if learned else slice(columns, columns + kept)
        # .clone(): the row keeps none of its batch's memory alive, and is outside inference mode: it can be trained
        keys, values = (tuple(layer[side][row, :, own].clone() for layer in key_values) for side in (0, 1))
        info = GistInfo(
            model=checkpoint.fingerprint,
            adapter=checkpoint.adapter_fingerprint,
            base=checkpoint.config.name,
            prompt_sha256=hash_ids(prompt),
            prompt_tokens=len(prompt),
            start=start,
            kept=kept,
        )
        made.append(Gist(keys, values, info, None if states is None else states[row].clone()))
    return made


def _check_finite(gist: Gist, prompt: str) -> None:
    """Raise `InputError` where the model's dtype could not hold the gist's numbers."""
    if not gist.is_finite():
        dtype = str(gist.dtype).removeprefix("torch.")
        remedy = "check the base model's weights" if dtype == "float32" else "load the model with dtype float32"
        raise InputError(
            f"in {dtype} the model makes keys or values that are not finite of the prompt {prompt[:40]!r}; {remedy}"
            + (" or bfloat16" if dtype == "float16" else "")
        )
