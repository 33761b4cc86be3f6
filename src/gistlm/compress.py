"""Turn prompts into gists: prefill, run the gist tokens over the KV cache, keep their keys and values.

`compress` is for use; the functions below it serve training too and let gradients through the writer. The reader
encodes the prompt, and the writer runs the gist tokens over the prompt's cache. The gist is the gist tokens' slice of
the cache, followed by any kept tokens' keys and values from the prompt's slice. There are three forms:

    two passes   `encode_prompts`, then `write_gists`. Training needs it: the prompt's pass takes no gradients. Exact
                 for every decoder, so `compress` uses it for architectures not in `TESTED`.
    one pass     `one_pass`, of prompts and gist tokens side by side, with the adapter kept off the prompt's columns.
                 Layers are run once, so that compressing takes about as long as encoding (docs/experiments.md).
    encoder      `encode_gists`: prompt and gist tokens attend to each other, so the prompt cannot be encoded alone.

Counts and positions come from `Placement`. Knows nothing of generation, and of files only `Provenance`.
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
from gistlm.gist_file import Provenance
from gistlm.gisting.encoder_attention import encode
from gistlm.gisting.kept_tokens import KeepingPass
from gistlm.gisting.kv_cache import KeyValues, column_mask, key_values_of, left_pad
from gistlm.gisting.placement import READ_AGAIN, Condition, Part, Placed, after_opening, left_positions
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
    """Keys and values of the prompts' N columns."""
    tokens: Tensor
    """[batch, N] ids"""
    parts: Tensor
    """[batch, N] of `Part`: PAD or PROMPT"""
    placed: Placed
    """Where the gists that are to be written stand."""
    rest_mass: list[Tensor] | None = None
    """The rest's attention mass on the prompt, one [batch, kv_heads, N] per layer; set by training only"""


def compress(checkpoint: Checkpoint, prompts: Sequence[str], k: int) -> list[Gist]:
    """One gist of k tokens per prompt, on the model's device. With kept tokens, no gist is longer than its prompt.

    Raises `InputError` for an empty prompt, an impossible k, or keys and values that the model's dtype cannot hold,
    `PromptTooLongError` for too long a prompt.
    """
    placement = checkpoint.placement
    placement.check_k(k)
    ids = [checkpoint.prompts.prompt_ids(prompt) for prompt in prompts]
    probes = len(checkpoint.probe_embeddings) or len(checkpoint.prompts.empty_rest_ids)
    for row in ids:
        placement.check_length(len(row), k, probes, checkpoint.architecture.context)
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
    """`Placement.place` for left-padded prompts. parts: [batch, N]; k: one number for all rows, or [batch]."""
    lengths = (parts != Part.PAD).sum(dim=1)
    return checkpoint.placement.place(lengths, k if isinstance(k, Tensor) else torch.full_like(lengths, k))


def may_be_one_pass(checkpoint: Checkpoint) -> bool:
    """Whether prompts and gist tokens may go through the writer in one pass.

    They may if there is no adapter to keep off the prompt's columns, or if it can be kept off them: under `frozen`, in
    architectures whose linear layers are known to take [batch, tokens, channels]. Under `paper` the prompt must pass
    the adapter too.
    """
    known = checkpoint.architecture.name in TESTED or checkpoint.architecture.encodes
    frozen_and_known = checkpoint.config.recipe == Recipe.FROZEN and known
    return frozen_and_known or checkpoint.adapter_on_last.is_empty


def encode_prompts(checkpoint: Checkpoint, tokens: Tensor, parts: Tensor, placed: Placed) -> Encoded:
    """Run left-padded prompts through the reader as causal text.

    tokens, parts: ids and `Part`s [batch, N], opening included.
    """
    positions = left_positions(parts, placed.prompt_start)
    cache = DynamicCache()
    reader = checkpoint.reader.get_decoder()
    with torch.no_grad() if checkpoint.config.recipe == Recipe.FROZEN else nullcontext():
        reader(tokens, attention_mask=column_mask(parts), position_ids=positions, **{CACHE: cache}, use_cache=True)
    return Encoded(key_values_of(cache), tokens, parts, placed)


def write_gists(checkpoint: Checkpoint, encoded: Encoded, learned: int) -> tuple[KeyValues, list[Tensor] | None]:
    """Run ``learned`` gist tokens over encoded prompts.

    Returns the gists' keys and values [batch, kv_heads, learned + largest number kept, head_dim] and, if the checkpoint
    keeps tokens, the probe queries' attention mass, one [batch, kv_heads, N] per layer, else None. In a row that keeps
    fewer tokens than another, ignore the last columns.
    """
    placed = encoded.placed
    inputs, parts = _columns_after_prompts(checkpoint, encoded.tokens, encoded.parts, learned)
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
    """The keys and values that `write_gists` returns, from one pass of prompts and gist tokens side by side.

    Without a rest the gist mask is the plain causal mask, so the model builds it itself.
    """
    inputs, parts_after = _columns_after_prompts(checkpoint, tokens, parts, learned)
    whole = torch.cat([parts, parts_after], dim=1)
    with checkpoint.adapter_on_last(parts_after.shape[1]):
        key_values, _ = _run_writer(
            checkpoint,
            parts,
            parts_after,
            (learned, placed.kept),
            None,
            inputs_embeds=torch.cat([checkpoint.reader.get_input_embeddings()(tokens), inputs], dim=1),
            attention_mask=column_mask(whole),
            position_ids=left_positions(whole, placed.prompt_start),
        )
    return key_values


def gist_inputs(checkpoint: Checkpoint, tokens: Tensor, parts: Tensor, k: int) -> Tensor:
    """Input embeddings [batch, k, hidden] of the k gist tokens that run after each prompt.

    tokens, parts: ids and `Part`s of the prompts, opening included, [batch, N].
    """
    inputs = checkpoint.gist_embeddings[:k].expand(len(tokens), -1, -1)
    if checkpoint.config.anchored:
        anchors = anchor_ids(tokens, _after_template_opening(checkpoint, parts), k)
        embed = checkpoint.reader.get_input_embeddings()
        inputs = inputs + embed(anchors.clamp_min(0)) * (anchors >= 0)[:, :, None]
    return inputs.to(checkpoint.reader.dtype)


def _after_template_opening(checkpoint: Checkpoint, parts: Tensor) -> Tensor:
    """bool [batch, N]: which columns hold prompt tokens after the template's opening, whether that is visible or not.

    Anchors and repeated tokens come from these, because the opening says nothing of the prompt. The tokens that a gist
    replaces (`_compressed`) are others: if the opening is not visible, the gist replaces it too.
    """
    return after_opening(parts, len(checkpoint.prompts.opening_ids))


def _compressed(checkpoint: Checkpoint, parts: Tensor) -> Tensor:
    """bool [batch, N]: which columns hold prompt tokens after the visible opening, that is, those a gist replaces."""
    return after_opening(parts, checkpoint.placement.opening)


def _probe_embeddings(checkpoint: Checkpoint) -> Any:
    """Input embeddings [probes, hidden] of the probe queries that are the same for every prompt.

    They are the checkpoint's trained ones or, if it has none, the tokens of a rest with an empty input.
    """
    if len(checkpoint.probe_embeddings):
        return checkpoint.probe_embeddings.to(checkpoint.reader.dtype)
    ids = torch.tensor(checkpoint.prompts.empty_rest_ids, dtype=torch.long, device=checkpoint.reader.device)
    return checkpoint.reader.get_input_embeddings()(ids)


def _columns_after_prompts(
    checkpoint: Checkpoint, tokens: Tensor, parts: Tensor, learned: int
) -> tuple[Tensor, Tensor]:
    """Input embeddings [batch, columns, hidden] and parts [batch, columns] of what the writer runs after the prompts.

    That is the gist tokens and, if the checkpoint keeps tokens, probe queries. Probe queries are of two kinds: the
    prompt's last tokens once more, and embeddings shared by all prompts. Both are marked GIST because they may attend
    to what a gist token may.
    """
    rows = len(tokens)
    inputs = gist_inputs(checkpoint, tokens, parts, learned)
    gist_parts = torch.full((rows, learned), int(Part.GIST), device=tokens.device)
    if not checkpoint.placement.kept:
        return inputs, gist_parts
    is_text = _after_template_opening(checkpoint, parts)
    again = checkpoint.reader.get_input_embeddings()(tokens[:, -READ_AGAIN:])
    again_parts = torch.where(is_text[:, -READ_AGAIN:], int(Part.GIST), int(Part.PAD))
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
    """Run the writer; return the gists' keys and values, learned then kept, and the probe queries' attention mass or
    None.

    prompt_parts, parts: `Part`s of the prompts' columns and of those after them. counts: number of learned gist tokens'
    columns, and number of tokens to keep of each prompt, [batch]. before: the prompts' keys and values if they are
    encoded already. inputs: what the decoder is called with.
    """
    (learned, kept), decoder, width = counts, checkpoint.writer_decoder, prompt_parts.shape[1]
    cache = DynamicCache(before)
    if not checkpoint.placement.kept:
        decoder(**inputs, **{CACHE: cache}, use_cache=True)
        return [(keys[:, :, width:], values[:, :, width:]) for keys, values in key_values_of(cache)], None
    compressed = _compressed(checkpoint, prompt_parts)
    probes = parts[:, learned:] != Part.PAD
    keeping = KeepingPass(prompt_parts != Part.PAD, compressed, probes, learned, kept, checkpoint.fit_strengths)
    with keeping(decoder):
        decoder(**inputs, **{CACHE: cache}, use_cache=True)
    return keeping.gists, keeping.mass


def encode_gists(checkpoint: Checkpoint, tokens: Tensor, parts: Tensor, k: int | Tensor) -> tuple[KeyValues, Tensor]:
    """Gists of an encoder: prompts and gist tokens attend to each other, in one pass.

    tokens, parts: ids and `Part`s of left-padded prompts [batch, N]. k: number of gist tokens, one for all rows or
    [batch]. Returns the gist tokens' keys and values and final states [batch, k, hidden], padded on the right to the
    largest k.
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
    """Keys and values [1, kv_heads, h, head_dim] of the visible opening; an empty list if there is none."""
    if not checkpoint.placement.opening:
        return []
    cache = DynamicCache()
    ids = torch.tensor([checkpoint.visible_opening_ids], device=checkpoint.reader.device)
    with torch.no_grad():
        checkpoint.reader.get_decoder()(ids, **{CACHE: cache}, use_cache=True)
    return key_values_of(cache)


def gist_layers(checkpoint: Checkpoint) -> list[tuple[int, int, int]]:
    """(kv_heads, key dim, value dim) of a gist in every layer, found by a pass of one token."""
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
    """Cut a batch into one `Gist` per prompt.

    ids: the prompts' token ids. key_values: [batch, kv_heads, columns + largest number kept, head_dim] per layer.
    states: the gist tokens' final states [batch, k, hidden], for an encoder. columns: number of columns for learned
    tokens.
    """
    numbers = zip(placed.learned.tolist(), placed.kept.tolist(), placed.gist_start.tolist(), strict=True)
    made = []
    for row, (prompt_ids, (learned, kept, start)) in enumerate(zip(ids, numbers, strict=True)):
        # `Placement.place` keeps tokens beside learned ones only if learned == columns, so the two are adjacent; a gist
        # of kept tokens alone has none of the learned columns
        own = slice(learned + kept) if learned else slice(columns, columns + kept)
        # .clone(): a gist must not keep its batch's memory alive, and outside inference mode it can be trained
        keys, values = (tuple(layer[side][row, :, own].clone() for layer in key_values) for side in (0, 1))
        info = Provenance(
            model=checkpoint.fingerprint,
            adapter=checkpoint.adapter_fingerprint,
            base=checkpoint.config.name,
            prompt_sha256=hash_ids(prompt_ids),
            prompt_tokens=len(prompt_ids),
            start=start,
            kept=kept,
        )
        made.append(Gist(keys, values, info, None if states is None else states[row].clone()))
    return made


def _check_finite(gist: Gist, prompt: str) -> None:
    """Raise `InputError` if the gist holds numbers that overflowed the model's dtype."""
    if not gist.is_finite():
        dtype = str(gist.dtype).removeprefix("torch.")
        remedy = "check the base model's weights" if dtype == "float32" else "load the model with dtype float32"
        raise InputError(
            f"in {dtype} the model makes keys or values that are not finite of the prompt {prompt[:40]!r}; {remedy}"
            + (" or bfloat16" if dtype == "float16" else "")
        )
