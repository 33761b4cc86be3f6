"""What a prompt is asked for, by observers: tokens behind it that stand in for the rest which is not known yet.

They come behind the learned gist tokens in the writer's pass. In every layer and for each key/value head, their
attention to the prompt says which tokens are worth keeping, since attention is sparse and heads need different tokens,
and what a single token would have to be that answers them as the whole prompt does.
Knows attention functions only; nothing of checkpoints or gists.

(That a prompt read again shows what must be kept of it: Kim et al. 2025, "KVzip". That a few queries choose for each
head: Li et al. 2024, "SnapKV". That keys and values can be fitted to attention in closed form: Zweiger et al. 2026,
"Fast KV Compaction via Attention Matching".)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gistlm.errors import UnsupportedModelError

FEW = 4
"""At most so many tokens are few to leave out,"""
FEW_PART = 4
"""and at most one beside so many that are kept."""
_RIDGE = 0.05
"""Of the fitted key, beside the mean square of the observers' queries."""
_NAME = "gistlm_observed"
_LOWEST = torch.finfo(torch.float32).min
"""The score of what is not there."""


def leaves_few(tokens: Any, k: Any) -> Any:
    """Whether k kept tokens, of a prompt of so many, leave so few out that a learned one would not be worth its place.

    Both are ints, or integer tensors of one shape.
    """
    left = tokens - k
    return (left <= FEW) & (left * FEW_PART <= k)


class PassIsOver(Exception):
    """Ends a pass of which no more is needed."""


class Look(NamedTuple):
    """What one layer's observers ask of a prompt; Q: all queries of a key/value head's group."""

    queries: Tensor
    """[batch, kv_heads, Q, head_dim], times the attention's scaling"""
    scores: Tensor
    """[batch, kv_heads, Q, N]: of the prompt's tokens, before softmax; of padding the lowest"""
    shares: Tensor
    """[batch, kv_heads, Q, N]: attention to the prompt's tokens"""
    observing: Tensor
    """[batch, 1, Q, 1]: 1, or 0 for padding"""
    seen: Tensor
    """[batch, kv_heads, N]: the sum of shares over all observers"""

    @classmethod
    def at(cls, queries: Tensor, keys: Tensor, prompt: Tensor, observing: Tensor) -> Look:
        """From queries as above, keys [batch, kv_heads, N, head_dim], which take no gradients as a prompt's pass has
        none, and which of the prompt and of the queries are no padding, bool [batch, N] and [batch, Q].
        """
        scores = (queries @ keys.detach().transpose(2, 3)).masked_fill(~prompt[:, None, None], _LOWEST)
        shares, shown = scores.softmax(dim=-1), observing[:, None, :, None].to(queries.dtype)
        return cls(queries, scores, shares, shown, (shown.transpose(2, 3) @ shares)[:, :, 0])


class Watch:
    """Watches one pass of a stock model: where in a prompt the pass's last columns, the observers, look."""

    def __init__(self, prompt: Tensor, own: Tensor, observers: Tensor) -> None:
        self.prompt = prompt
        """bool [batch, N]: which of the first columns are the prompt's tokens"""
        self.own = own
        """bool [batch, N]: those that a gist stands for"""
        self.observers = observers
        """bool [batch, w]: the last columns', as above"""
        self.looks: list[Tensor] = []
        """By layer, [batch, kv_heads, N]: the observers' summed attention to each of the prompt's own tokens, as shares
        among the whole prompt"""
        self.eager = False
        """Whether the model attends by its own plain products, as set for training; else by torch's."""

    @contextmanager
    def __call__(self, decoder: Any) -> Iterator[None]:
        """Meanwhile ``decoder``, a stock model, is watched. Raises `UnsupportedModelError` if it cannot be."""
        check_observable(decoder)
        config = decoder.config
        before = config._attn_implementation
        self.eager = before == "eager"
        token = _watching.set(self)
        config._attn_implementation = _NAME
        try:
            yield
        except PassIsOver:
            pass
        finally:
            config._attn_implementation = before
            _watching.reset(token)

    def see(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> None:
        """One layer: query [batch, heads, tokens, head_dim], key and value [batch, kv_heads, columns, dim]."""
        self._look(query, key, scaling)

    def _look(self, query: Tensor, key: Tensor, scaling: float | None) -> Look:
        batch, kv_heads, _, size = key.shape
        width, n = self.observers.shape[1], self.prompt.shape[1]
        # [batch, heads, width, head_dim] -> [batch, kv_heads, group * width, head_dim]: one query head after the other
        queries = query[:, :, query.shape[2] - width :].reshape(batch, kv_heads, -1, size).float()
        queries = queries * (size**-0.5 if scaling is None else scaling)
        look = Look.at(queries, key[:, :, :n].float(), self.prompt, self.observers.repeat(1, queries.shape[2] // width))
        self.looks.append(look.seen * self.own[:, None])
        return look


class Observation(Watch):
    """Watches a pass over prompts, gist tokens and observers, in this order; makes the gists, and ends it with them."""

    def __init__(
        self, prompt: Tensor, own: Tensor, observers: Tensor, learned: int, kept: Tensor, fitted: Tensor
    ) -> None:
        super().__init__(prompt, own, observers)
        self.learned = learned
        """Columns of learned gist tokens."""
        self.kept = kept
        """[batch]: the prompt's own tokens that each gist keeps"""
        self.most_kept = int(kept.max())
        self.fitted = fitted
        """[layers, 2]: see `fit`"""
        self.gists: list[tuple[Tensor, Tensor]] = []
        """By layer, keys and values [batch, kv_heads, learned + most kept, dim]: the learned tokens, the first of them
        fitted, and behind them the tokens that are most looked at. Where a prompt keeps fewer, the last mean
        nothing."""

    def see(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> None:
        """As above; the pass is over at the last layer."""
        look = self._look(query, key, scaling)
        ranked = self.looks[-1].masked_fill(~self.own[:, None], -1).sort(dim=-1, descending=True, stable=True).indices
        ranked = ranked[..., : self.most_kept]
        n = self.prompt.shape[1]
        columns = [side[:, :, n : n + self.learned] for side in (key, value)]
        if self.learned:
            left = self._left(ranked)
            made = [side[:, :, :1] for side in columns]
            first = fit((made[0], made[1]), self.fitted[len(self.gists)], look, value[:, :, :n], left)
            columns = [torch.cat([one, side[:, :, 1:]], dim=2) for one, side in zip(first, columns, strict=True)]
        keys, values = (
            torch.cat([made, _at(ranked, side)], dim=2) for made, side in zip(columns, (key, value), strict=True)
        )
        self.gists.append((keys, values))
        if len(self.gists) == len(self.fitted):
            raise PassIsOver

    def _left(self, ranked: Tensor) -> Tensor:
        """bool [batch, kv_heads, N]: the prompt's own tokens that its gist does not keep; all where it keeps all."""
        own = self.own[:, None].expand(-1, ranked.shape[1], -1)
        place = torch.arange(ranked.shape[2], device=ranked.device)
        is_kept = torch.zeros_like(own).scatter(2, ranked, (place < self.kept[:, None, None]).expand_as(ranked))
        left = own & ~is_kept
        return torch.where(left.any(dim=-1, keepdim=True), left, own)


def fit(
    column: tuple[Tensor, Tensor], fitted: Tensor, look: Look, values: Tensor, left: Tensor
) -> tuple[Tensor, Tensor]:
    """One token's key and value [batch, kv_heads, 1, dim], moved by the shares ``fitted`` [2] towards those that stand
    for the tokens ``left``, bool [batch, kv_heads, N]: whose score is for every query the log of the sum of theirs
    (ridge regression that starts from the key), and whose value is what attention to them gives (the mean).

    values: of the prompt [batch, kv_heads, N, value_dim], without gradients. Queries weigh as much as they attend to
    these tokens.
    """
    key, value = column
    mass = look.shares @ left[..., None].float() * look.observing
    total = mass.sum(dim=2, keepdim=True).clamp_min(1e-9)
    weights = mass / total
    output = (look.seen * left)[:, :, None] / total @ values.detach().float()
    sums = look.scores.logsumexp(dim=-1, keepdim=True) + mass.clamp_min(1e-9).log()
    weighted = look.queries * weights
    gram = weighted.transpose(2, 3) @ look.queries
    was = key.float().transpose(2, 3)
    miss = weighted.transpose(2, 3) @ sums - gram @ was
    ridge = _RIDGE * gram.diagonal(dim1=2, dim2=3).sum(dim=-1, keepdim=True).clamp_min(1e-6)
    # solve_ex does not make the host wait for a check; the ridge keeps the matrix regular
    step = torch.linalg.solve_ex(gram + torch.diag_embed(ridge.expand(-1, -1, gram.shape[-1])), miss).result
    moved = value.float() + fitted[1] * (output - value.float())
    return (was + fitted[0] * step).transpose(2, 3).to(key.dtype), moved.to(value.dtype)


def missed(observers: list[Tensor], rest: list[Tensor]) -> Tensor:
    """How far the observers are from where a rest looks: KL in nats between their attention to the prompt's own tokens,
    the mean over layers, heads and rows. Trains the observers.

    Both are looks [batch, kv_heads, N] by layer, as those of `Watch`.
    """
    mine, theirs = (
        torch.cat(looks, dim=1) for looks in (observers, rest)
    )  # at once: an accelerator waits for launches
    mine, theirs = (looks / looks.sum(dim=-1, keepdim=True).clamp_min(1e-9) for looks in (mine, theirs))
    return (theirs * (theirs.clamp_min(1e-9).log() - mine.clamp_min(1e-9).log())).sum(dim=-1).mean()


def check_observable(decoder: Any) -> None:
    """Raise `UnsupportedModelError` unless the stock model can be watched."""
    if not decoder._supports_sdpa:
        raise UnsupportedModelError(
            "the prompt's tokens to be kept are chosen by watching torch's scaled dot-product attention, which "
            f"{type(decoder).__name__} does not use; set kept to 0"
        )


def _at(columns: Tensor, tensor: Tensor) -> Tensor:
    """Columns [batch, kv_heads, kept] of [batch, kv_heads, N, dim]."""
    return tensor.gather(2, columns[..., None].expand(-1, -1, -1, tensor.shape[3]))


_watching: ContextVar[Watch] = ContextVar("watching")


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    watch = _watching.get()
    watch.see(query, key, value, options.get("scaling"))
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if watch.eager and attention_mask is not None and attention_mask.is_floating_point():
        # plain products add the mask, so that it has to be one of floats; transformers gives every model's this name
        attend = getattr(sys.modules[type(module).__module__], "eager_attention_forward", attend)
    attended: tuple[Tensor, Tensor | None] = attend(module, query, key, value, attention_mask, **options)
    return attended


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
