"""Which tokens of a prompt its gist keeps: those that the prompt's last tokens, read once more, look at.

These observers stand behind the learned gist tokens in the writer's pass. In every layer, each key/value head ranks the
prompt's tokens by the observers' attention to them, for itself: attention is sparse, and heads need different tokens.
Knows attention functions only; nothing of checkpoints or gists.

(That a prompt read again shows what must be kept of it: Kim et al. 2025, "KVzip". That a few queries choose for each
head: Li et al. 2024, "SnapKV".)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gistlm.errors import UnsupportedModelError

OBSERVERS = 16
"""Most tokens that are read once more."""
_NAME = "gistlm_observed"


class PassIsOver(Exception):
    """Ends a pass of which no more is needed."""


class Observation:
    """Watches one pass over prompts, gist tokens and observers, in this order; ends it at the last layer."""

    def __init__(self, prompt: Tensor, observers: Tensor, layers: int) -> None:
        self.prompt = prompt
        """bool [batch, N]: the first columns' tokens, false for padding"""
        self.observers = observers
        """bool [batch, w]: the last columns', as above"""
        self.layers = layers
        self.shares: list[Tensor] = []
        """By layer, [batch, kv_heads, N]: the observers' attention to each token, as shares among the prompt's."""

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
    def see(self, query: Tensor, key: Tensor, scaling: float | None) -> None:
        """One layer: query [batch, heads, tokens, head_dim], key [batch, kv_heads, columns, head_dim]."""
        batch, kv_heads, _, size = key.shape
        width = self.observers.shape[1]
        queries = query[:, :, query.shape[2] - width :].reshape(batch, kv_heads, -1, size)
        scores = queries.float() @ key[:, :, : self.prompt.shape[1]].float().transpose(2, 3)
        scores = scores * (size**-0.5 if scaling is None else scaling)
        scores = scores.masked_fill(~self.prompt[:, None, None], torch.finfo(scores.dtype).min)
        shares = scores.softmax(dim=-1).view(batch, kv_heads, -1, width, scores.shape[3])
        self.shares.append((shares * self.observers[:, None, None, :, None]).sum(dim=(2, 3)))
        if len(self.shares) == self.layers:
            raise PassIsOver

    def columns(self, candidates: Tensor, most: int) -> list[Tensor]:
        """By layer, [batch, kv_heads, most]: columns of the ``candidates`` (bool [batch, N]), most looked at first.

        Where there are fewer, what is behind them means nothing.
        """
        return [
            shares.masked_fill(~candidates[:, None], -1).sort(dim=-1, descending=True, stable=True).indices[..., :most]
            for shares in self.shares
        ]


def check_observable(decoder: Any) -> None:
    """Raise `UnsupportedModelError` unless the stock model can be watched."""
    if not decoder._supports_sdpa:
        raise UnsupportedModelError(
            "the prompt's tokens to be kept are chosen by watching torch's scaled dot-product attention, which "
            f"{type(decoder).__name__} does not use; set kept to 0"
        )


_watching: ContextVar[Observation] = ContextVar("watching")


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    _watching.get().see(query, key, options.get("scaling"))
    with sdpa_kernel(SDPBackend.MATH) if query.requires_grad else nullcontext():  # the fused one's gradient is slow
        attended: tuple[Tensor, Tensor | None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, attention_mask, **options
        )
    return attended


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
