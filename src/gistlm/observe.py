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

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gistlm.errors import UnsupportedModelError

READ_AGAIN = 8
"""Most of a prompt's tokens that are read once more as observers; the rest's template without an input follows them."""
_RIDGE = 0.05
"""Of the fitted key, beside the mean square of the observers' queries."""
_NAME = "gistlm_observed"


class PassIsOver(Exception):
    """Ends a pass of which no more is needed."""


@dataclass(frozen=True)
class Seen:
    """One layer, as its key/value heads' observers see it; w: an observer's weight, its attention to the prompt's own
    tokens, q: its query times the attention's scaling.
    """

    shares: Tensor
    """[batch, kv_heads, N]: the observers' attention to each token, as shares among the prompt's"""
    gram: Tensor
    """[batch, kv_heads, head_dim, head_dim]: mean of w q q'"""
    aim: Tensor
    """[batch, kv_heads, head_dim]: mean of w q m, m the log of the sum of the own tokens' exponential scores"""
    output: Tensor
    """[batch, kv_heads, value_dim]: mean of w times what attention to the own tokens gives"""

    def fit(self, key: Tensor, value: Tensor, fitted: Tensor) -> tuple[Tensor, Tensor]:
        """One token's key and value [batch, kv_heads, 1, dim], moved by the shares ``fitted`` [2] towards those that
        stand for the prompt: whose score is m (ridge regression that starts from ``key``), whose value the mean output.
        """
        was = key.squeeze(2).float()
        ridge = _RIDGE * self.gram.diagonal(dim1=2, dim2=3).sum(-1, keepdim=True).clamp_min(1e-6)
        miss = self.aim - (self.gram @ was[..., None]).squeeze(-1)
        step = torch.linalg.solve(self.gram + torch.diag_embed(ridge.expand_as(miss)), miss)
        moved = value.float() + fitted[1] * (self.output[:, :, None] - value.float())
        return (was + fitted[0] * step)[:, :, None].to(key.dtype), moved.to(value.dtype)


class Observation:
    """Watches one pass over prompts, gist tokens and observers, in this order; ends it at the last layer."""

    def __init__(self, prompt: Tensor, own: Tensor, observers: Tensor, layers: int) -> None:
        self.prompt = prompt
        """bool [batch, N]: the first columns' tokens, false for padding"""
        self.own = own
        """bool [batch, N]: those that a gist stands for"""
        self.observers = observers
        """bool [batch, w]: the last columns', as above"""
        self.layers = layers
        self.seen: list[Seen] = []
        """By layer."""

    @contextmanager
    def __call__(self, decoder: Any) -> Iterator[None]:
        """Meanwhile ``decoder``, a stock model, is watched. Raises `UnsupportedModelError` if it cannot be."""
        check_observable(decoder)
        config = decoder.config
        before = config._attn_implementation
        token = _watching.set(self)
        config._attn_implementation = _NAME
        try:
            yield
        except PassIsOver:
            pass
        finally:
            config._attn_implementation = before
            _watching.reset(token)

    @torch.no_grad()
    def see(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> None:
        """One layer: query [batch, heads, tokens, head_dim], key and value [batch, kv_heads, columns, dim]."""
        batch, kv_heads, _, size = key.shape
        width, n = self.observers.shape[1], self.prompt.shape[1]
        queries = query[:, :, query.shape[2] - width :].reshape(batch, kv_heads, -1, size).float()
        queries = queries * (size**-0.5 if scaling is None else scaling)
        scores = queries @ key[:, :, :n].float().transpose(2, 3)
        lowest = torch.finfo(scores.dtype).min
        shares = scores.masked_fill(~self.prompt[:, None, None], lowest).softmax(dim=-1)
        is_observer = self.observers.repeat(1, queries.shape[2] // width)[:, None, :, None]
        weights = (shares * self.own[:, None, None]).sum(dim=-1, keepdim=True) * is_observer
        weights = weights / weights.sum(dim=2, keepdim=True).clamp_min(1e-9)
        own = scores.masked_fill(~self.own[:, None, None], lowest)
        weighted = queries * weights
        self.seen.append(
            Seen(
                (shares * is_observer).sum(dim=2),
                weighted.transpose(2, 3) @ queries,
                (weighted * own.logsumexp(dim=-1, keepdim=True)).sum(dim=2),
                ((weights * own.softmax(dim=-1)).sum(dim=2, keepdim=True) @ value[:, :, :n].float()).squeeze(2),
            )
        )
        if len(self.seen) == self.layers:
            raise PassIsOver

    def gists(
        self, key_values: Sequence[tuple[Tensor, Tensor]], learned: int, kept: int, fitted: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Of the pass's cache by layer, each [batch, kv_heads, columns, dim]: the learned tokens' columns, the first of
        them ``fitted`` [layers, 2], and behind them the prompt's own ``kept`` tokens that are most looked at.

        Where a prompt has fewer, what is behind them means nothing.
        """
        made = []
        for (keys, values), seen, shares in zip(key_values, self.seen, fitted, strict=True):
            ranked = seen.shares.masked_fill(~self.own[:, None], -1).sort(dim=-1, descending=True, stable=True).indices
            columns = [side[:, :, self.prompt.shape[1] :][:, :, :learned] for side in (keys, values)]
            if learned:
                first = seen.fit(columns[0][:, :, :1], columns[1][:, :, :1], shares)
                columns = [torch.cat([one, side[:, :, 1:]], dim=2) for one, side in zip(first, columns, strict=True)]
            own = [_at(ranked[..., :kept], side) for side in (keys, values)]
            made.append((torch.cat([columns[0], own[0]], dim=2), torch.cat([columns[1], own[1]], dim=2)))
        return made


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


_watching: ContextVar[Observation] = ContextVar("watching")


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    _watching.get().see(query, key, value, options.get("scaling"))
    with sdpa_kernel(SDPBackend.MATH) if query.requires_grad else nullcontext():  # the fused one's gradient is slow
        attended: tuple[Tensor, Tensor | None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, attention_mask, **options
        )
    return attended


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
