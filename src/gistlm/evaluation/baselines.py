"""What could stand in a prompt's place without training: k tokens' keys and values for each prompt, as gists.

Every baseline holds the bytes of a gist of k tokens beside the visible opening, and a prompt that has fewer than
k tokens of its own is held whole. Knows nothing of metrics, rows or engines.

    truncation   the prompt's first k tokens
    tfidf        its k tokens' worth of words of highest TF-IDF, in their order (Mu et al. 2023, appendix)
    llmlingua2   its k tokens' worth of words that a token classifier would keep (Pan et al. 2024, LLMLingua-2)
    pooled       the full prompt's keys and values, averaged over k segments
    last         the full prompt's last k tokens, after the opening as attention sink (Xiao et al. 2023)
    selected     the k of the full prompt's tokens that a gist would keep if it had no learned token (see `kept_tokens`)
    untrained    a gist of k tokens before training: initial embeddings, anchors and kept tokens if it has them, no
                 adapter

Words are encoded again, as a shorter prompt; pooled, last and selected are cut from the whole prompt's pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DynamicCache

from gistlm.compress import compress
from gistlm.errors import UnsupportedModelError
from gistlm.evaluation import words
from gistlm.evaluation.rotary import frequencies, rotate
from gistlm.files import sha256
from gistlm.gist import Gist
from gistlm.gist_file import Provenance
from gistlm.gisting.encoder_attention import encode
from gistlm.gisting.kv_cache import KeyValues, column_mask, key_values_of, left_pad
from gistlm.gisting.placement import Part, left_positions
from gistlm.models.checkpoint import Checkpoint, check_kept
from gistlm.models.config import Recipe
from gistlm.models.embeddings import initial_embeddings
from gistlm.models.transformers_compat import CACHE
from gistlm.prompt import hash_ids

Maker = Callable[[Sequence[str], Sequence[int]], dict[int, list[Gist]]]
"""From prompts and ks to the gists of every k, in the prompts' order."""


@dataclass(frozen=True)
class Source:
    """What baselines are made from."""

    checkpoint: Checkpoint
    corpus: Sequence[str]
    """All prompts of the evaluation: TF-IDF counts documents in them."""
    classifier: str = words.LLMLINGUA2
    """The token classifier of llmlingua2: folder or hub id."""
    seed: int = 0
    """Of the untrained embeddings."""


def make_baseline(name: str, source: Source) -> Maker:
    """A baseline of `BASELINES`, ready to use. Raises `GistlmError` with the reason where it cannot be had."""
    return BASELINES[name](source)


def _truncation(source: Source) -> Maker:
    def make(prompts: Sequence[str], ks: Sequence[int]) -> dict[int, list[Gist]]:
        checkpoint, ids = source.checkpoint, _ids(source.checkpoint, prompts)
        if checkpoint.architecture.encodes:
            return {k: _encoded_prefix(checkpoint, prompts, ids, k, "truncation") for k in ks}
        return _nested(_encoded_prefix(checkpoint, prompts, ids, max(ks), "truncation"), ks)

    return make


def _tfidf(source: Source) -> Maker:
    rank = words.tfidf(source.corpus)
    return _keywords(source.checkpoint, rank, "tfidf")


def _llmlingua2(source: Source) -> Maker:
    rank = words.llmlingua2(source.classifier, source.checkpoint.reader.device)
    return _keywords(source.checkpoint, rank, "llmlingua2")


def _keywords(checkpoint: Checkpoint, rank: words.Rank, name: str) -> Maker:
    def make(prompts: Sequence[str], ks: Sequence[int]) -> dict[int, list[Gist]]:
        ranked = [rank(prompt) for prompt in prompts]
        hidden = len(checkpoint.prompts.opening_ids) - checkpoint.placement.opening  # these count among the k tokens
        made = {}
        for k in ks:
            chosen = [words.choose(weights, checkpoint.prompts.plain_ids, k - hidden) for weights in ranked]
            ids = [checkpoint.prompts.opening_ids + own for own in chosen]
            made[k] = _encoded_prefix(checkpoint, prompts, ids, k, name)
        return made

    return make


def _pooled(source: Source) -> Maker:
    _refuse_encoders(source.checkpoint, "an encoder's keys have no positions to be turned to")
    checkpoint, h = source.checkpoint, source.checkpoint.placement.opening
    by_layer = frequencies(checkpoint)

    def make(prompts: Sequence[str], ks: Sequence[int]) -> dict[int, list[Gist]]:
        ids = _ids(checkpoint, prompts)
        cache = _encode(checkpoint, ids, [h - len(row) for row in ids])  # a prompt's last token at position h - 1
        made: dict[int, list[Gist]] = {k: [] for k in ks}
        for row, prompt in enumerate(prompts):
            own = _row(cache, row, len(ids[row]) - h)
            for k in ks:
                pooled = [
                    _pool(keys, values, k, h, inverse) for (keys, values), inverse in zip(own, by_layer, strict=True)
                ]
                made[k].append(_gist(checkpoint, pooled, prompt, "pooled", h))
        return made

    return make


def _pool(keys: Tensor, values: Tensor, k: int, h: int, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Means of k segments of [kv_heads, n, head_dim]; the keys first turn to their segment's position h + i."""
    n = keys.shape[1]
    segments = min(k, n)
    ends = [(n * (i + 1)) // segments for i in range(segments)]
    lengths = torch.tensor(ends).diff(prepend=torch.tensor([0]))
    segment = torch.repeat_interleave(torch.arange(segments), lengths).to(keys.device)  # [n]
    positions = torch.arange(h - n, h, device=keys.device)
    turned = rotate(keys.float(), h + segment - positions, inverse)
    sizes = lengths.to(keys.device)[:, None]
    pooled = [
        torch.zeros(side.shape[0], segments, side.shape[2], device=side.device).index_add(1, segment, side) / sizes
        for side in (turned, values.float())
    ]
    return pooled[0].to(keys.dtype), pooled[1].to(values.dtype)


def _last(source: Source) -> Maker:
    _refuse_encoders(source.checkpoint, "an encoder has no attention sinks and no causal end to keep")
    checkpoint, h = source.checkpoint, source.checkpoint.placement.opening
    absolute = checkpoint.architecture.numbering == "absolute"

    def make(prompts: Sequence[str], ks: Sequence[int]) -> dict[int, list[Gist]]:
        ids = _ids(checkpoint, prompts)
        made = {}
        for k in ks:
            kept = [min(k, len(row) - h) for row in ids]
            begin = [0 if absolute else h + keep - len(row) for row, keep in zip(ids, kept, strict=True)]
            cache = _encode(checkpoint, ids, begin)
            made[k] = [
                _gist(checkpoint, _row(cache, row, keep), prompt, "last", begin[row] + len(ids[row]) - keep)
                for row, (prompt, keep) in enumerate(zip(prompts, kept, strict=True))
            ]
        return made

    return make


def _selected(source: Source) -> Maker:
    known = source.checkpoint
    nothing = known.gist_embeddings[:0].detach()
    check_kept(known.architecture, known.reader)

    def make(prompts: Sequence[str], ks: Sequence[int]) -> dict[int, list[Gist]]:
        bare = known.config.replace(kept=max(ks), k=None, recipe=Recipe.FROZEN)
        made = known.without_adapter("selected", bare, nothing)
        return {k: compress(made, prompts, k) for k in ks}

    return make


def _untrained(source: Source) -> Maker:
    known = source.checkpoint
    anchored = known.config.anchored
    embeddings = initial_embeddings(known.reader, known.placement.learned, source.seed, anchored=anchored)
    fresh = known.without_adapter("untrained", known.config, embeddings)
    return lambda prompts, ks: of_each_k(lambda k: compress(fresh, prompts, k), ks)


def of_each_k(make: Callable[[int], list[Gist]], ks: Sequence[int]) -> dict[int, list[Gist]]:
    """``make`` at the largest k, and its gists shortened; where one of them cannot be, ``make`` at each k."""
    longest = make(max(ks))
    if all(gist.nested for gist in longest):
        return _nested(longest, ks)
    return {k: longest if k == max(ks) else make(k) for k in ks}


def _refuse_encoders(checkpoint: Checkpoint, why: str) -> None:
    if checkpoint.architecture.encodes:
        raise UnsupportedModelError(why)


BASELINES: dict[str, Callable[[Source], Maker]] = {
    "truncation": _truncation,
    "tfidf": _tfidf,
    "pooled": _pooled,
    "last": _last,
    "selected": _selected,
    "untrained": _untrained,
    "llmlingua2": _llmlingua2,
}
"""name -> what makes it ready."""


def _ids(checkpoint: Checkpoint, prompts: Sequence[str]) -> list[list[int]]:
    return [checkpoint.prompts.prompt_ids(prompt) for prompt in prompts]


def _encoded_prefix(
    checkpoint: Checkpoint, prompts: Sequence[str], ids: Sequence[list[int]], k: int, name: str
) -> list[Gist]:
    """At most k tokens after the visible opening, encoded as a prompt of their own from position 0."""
    h = checkpoint.placement.opening
    kept = [row[: h + k] for row in ids]
    if checkpoint.architecture.encodes:
        return _encoded_alone(checkpoint, prompts, kept, name)
    cache = _encode(checkpoint, kept, [0] * len(kept))
    return [
        _gist(checkpoint, _row(cache, row, len(kept[row]) - h), prompt, name, h) for row, prompt in enumerate(prompts)
    ]


def _encoded_alone(checkpoint: Checkpoint, prompts: Sequence[str], ids: Sequence[list[int]], name: str) -> list[Gist]:
    """Token ids through the encoder on their own, from position 0."""
    tokens, parts = left_pad(ids, Part.PROMPT, checkpoint.reader.device)
    positions = left_positions(parts, torch.zeros(len(ids), dtype=torch.long, device=tokens.device))
    with torch.no_grad():
        embeddings = checkpoint.reader.get_input_embeddings()(tokens)
        states, cache = encode(checkpoint.reader.get_encoder(), embeddings, parts, positions)
    return [
        replace(_gist(checkpoint, _row(cache, row, len(own)), prompt, name, 0), states=states[row, -len(own) :].clone())
        for row, (own, prompt) in enumerate(zip(ids, prompts, strict=True))
    ]


def _encode(checkpoint: Checkpoint, ids: Sequence[Sequence[int]], starts: Sequence[int]) -> KeyValues:
    """Keys and values [batch, kv_heads, N, head_dim], left-padded, of token ids numbered from ``starts``."""
    tokens, parts = left_pad(ids, Part.PROMPT, checkpoint.reader.device)
    positions = left_positions(parts, torch.tensor(starts, device=tokens.device))
    cache = DynamicCache()
    with torch.no_grad():
        checkpoint.reader.get_decoder()(
            tokens, attention_mask=column_mask(parts), position_ids=positions, **{CACHE: cache}, use_cache=True
        )
    return key_values_of(cache)


def _row(cache: KeyValues, row: int, last: int) -> KeyValues:
    """The last tokens of one row: [kv_heads, last, head_dim] by layer."""
    return [(keys[row, :, keys.shape[2] - last :], values[row, :, values.shape[2] - last :]) for keys, values in cache]


def _nested(gists: Sequence[Gist], ks: Sequence[int]) -> dict[int, list[Gist]]:
    """The first k tokens of each, which saw none of the later ones."""
    return {k: [gist.shorten(min(k, gist.k)) for gist in gists] for k in ks}


def _gist(checkpoint: Checkpoint, key_values: KeyValues, prompt: str, name: str, start: int) -> Gist:
    """A row's keys and values [kv_heads, tokens, head_dim] as what the checkpoint's reader reads."""
    ids = checkpoint.prompts.prompt_ids(prompt)
    absolute = checkpoint.architecture.numbering == "absolute"
    provenance = Provenance(
        model=checkpoint.fingerprint,
        adapter=sha256(name.encode()),
        base=checkpoint.config.name,
        prompt_sha256=hash_ids(ids),
        prompt_tokens=start if absolute else len(ids),  # absolute: a gist is read where its prompt ends
        start=start,
    )
    keys = tuple(keys.clone() for keys, _ in key_values)
    return Gist(keys, tuple(values.clone() for _, values in key_values), provenance)
