"""Choose, per attention head, which of the prompt's KV entries to keep, using probe queries; knows attention alone.

Probe queries are tokens behind the prompt that stand in for the rest, which is not known yet. In every layer and for
each key/value head, their attention to the prompt says which of its tokens to keep, since attention is sparse and heads
need different tokens. The first learned gist token is fitted so that it answers the probe queries as all dropped tokens
together do.

Sources. Probe queries choose for each head: Li et al. 2024, "SnapKV". A prompt that is read again shows what must be
kept of it: Kim et al. 2025, "KVzip". Keys and values fitted to attention in closed form: Zweiger et al. 2026, "Fast KV
Compaction via Attention Matching".
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

_RIDGE = 0.05
"""Of the fitted key, beside the mean square of the probe queries."""
_NAME = "gistlm_probed"
_LOWEST = torch.finfo(torch.float32).min
"""The score of what is not there."""


class Probe(NamedTuple):
    """What one layer's probe queries ask of a prompt; Q: all queries of a key/value head's group."""

    queries: Tensor
    """[batch, kv_heads, Q, head_dim], times the attention's scaling"""
    scores: Tensor
    """[batch, kv_heads, Q, N]: of the prompt's tokens, before softmax; of padding the lowest"""
    attention: Tensor
    """[batch, kv_heads, Q, N]: softmax over the prompt's tokens"""
    is_probe: Tensor
    """[batch, 1, Q, 1]: 1, or 0 for padding"""
    mass: Tensor
    """[batch, kv_heads, N]: attention mass, the sum over all probe queries"""

    @classmethod
    def at(cls, queries: Tensor, keys: Tensor, prompt: Tensor, is_probe: Tensor) -> Probe:
        """From queries as above, keys [batch, kv_heads, N, head_dim], which take no gradients as a prompt's pass has
        none, and which of the prompt and of the queries are no padding, bool [batch, N] and [batch, Q].
        """
        scores = (queries @ keys.detach().transpose(2, 3)).masked_fill(~prompt[:, None, None], _LOWEST)
        attention, shown = scores.softmax(dim=-1), is_probe[:, None, :, None].to(queries.dtype)
        return cls(queries, scores, attention, shown, (shown.transpose(2, 3) @ attention)[:, :, 0])


class ProbedPass:
    """One pass of a stock model whose last columns are probe queries: records their attention mass on a prompt."""

    def __init__(self, prompt: Tensor, own: Tensor, probes: Tensor) -> None:
        self.prompt = prompt
        """bool [batch, N]: which of the first columns are the prompt's tokens"""
        self.own = own
        """bool [batch, N]: the prompt's own tokens, without the visible opening"""
        self.probes = probes
        """bool [batch, w]: which of the last columns are probe queries"""
        self.mass: list[Tensor] = []
        """By layer, [batch, kv_heads, N]: attention mass on each of the prompt's own tokens, as a part of that on the
        whole prompt"""
        self.eager = False
        """Whether the model attends by its own plain products, as set for training; else by torch's."""

    @contextmanager
    def __call__(self, decoder: Any) -> Iterator[None]:
        """Meanwhile passes of ``decoder``, a stock model, are recorded. Raises `UnsupportedModelError` else."""
        check_probeable(decoder)
        config = decoder.config
        before = config._attn_implementation
        self.eager = before == "eager"
        token = _pass.set(self)
        config._attn_implementation = _NAME
        try:
            yield
        finally:
            config._attn_implementation = before
            _pass.reset(token)

    def see(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> None:
        """One layer: query [batch, heads, tokens, head_dim], key and value [batch, kv_heads, columns, dim]."""
        self._probe(query, key, scaling)

    def _probe(self, query: Tensor, key: Tensor, scaling: float | None) -> Probe:
        batch, kv_heads, _, size = key.shape
        width, n = self.probes.shape[1], self.prompt.shape[1]
        # [batch, heads, width, head_dim] -> [batch, kv_heads, group * width, head_dim]: one query head after the other
        queries = query[:, :, query.shape[2] - width :].reshape(batch, kv_heads, -1, size).float()
        queries = queries * (size**-0.5 if scaling is None else scaling)
        probe = Probe.at(queries, key[:, :, :n].float(), self.prompt, self.probes.repeat(1, queries.shape[2] // width))
        self.mass.append(probe.mass * self.own[:, None])
        return probe


class KeepingPass(ProbedPass):
    """A pass over prompts, gist tokens and probe queries, in this order; makes the gists."""

    def __init__(
        self, prompt: Tensor, own: Tensor, probes: Tensor, learned: int, kept: Tensor, fit_weights: Tensor
    ) -> None:
        super().__init__(prompt, own, probes)
        self.learned = learned
        """Columns of learned gist tokens."""
        self.kept = kept
        """[batch]: tokens to keep of each prompt"""
        self.most_kept = int(kept.max())
        self.fit_weights = fit_weights
        """[layers, 2]: see `fit`"""
        self.gists: list[tuple[Tensor, Tensor]] = []
        """By layer, keys and values [batch, kv_heads, learned + most kept, dim]: the learned tokens, the first of them
        fitted, and behind them the tokens with most attention mass. Where a prompt keeps fewer, the last mean
        nothing."""

    def see(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> None:
        """One layer, as in `ProbedPass`; makes its gists."""
        probe = self._probe(query, key, scaling)
        ranked = self.mass[-1].masked_fill(~self.own[:, None], -1).sort(dim=-1, descending=True, stable=True).indices
        ranked = ranked[..., : self.most_kept]
        n = self.prompt.shape[1]
        columns = [side[:, :, n : n + self.learned] for side in (key, value)]
        if self.learned:
            first = columns[0][:, :, :1], columns[1][:, :, :1]
            fitted = fit(first, self.fit_weights[len(self.gists)], probe, value[:, :, :n], self._dropped(ranked))
            columns = [torch.cat([one, side[:, :, 1:]], dim=2) for one, side in zip(fitted, columns, strict=True)]
        keys, values = (
            torch.cat([made, _at(ranked, side)], dim=2) for made, side in zip(columns, (key, value), strict=True)
        )
        self.gists.append((keys, values))

    def _dropped(self, ranked: Tensor) -> Tensor:
        """bool [batch, kv_heads, N]: the prompt's own tokens that its gist does not keep; all where it keeps all."""
        own = self.own[:, None].expand(-1, ranked.shape[1], -1)
        place = torch.arange(ranked.shape[2], device=ranked.device)
        is_kept = torch.zeros_like(own).scatter(2, ranked, (place < self.kept[:, None, None]).expand_as(ranked))
        dropped = own & ~is_kept
        return torch.where(dropped.any(dim=-1, keepdim=True), dropped, own)


def fit(
    column: tuple[Tensor, Tensor], weights: Tensor, probe: Probe, values: Tensor, dropped: Tensor
) -> tuple[Tensor, Tensor]:
    """One token's key and value [batch, kv_heads, 1, dim], moved by ``weights`` [2], of key and value, towards those
    that approximate the attention output of all ``dropped`` tokens, bool [batch, kv_heads, N].

    That key's score is for every query the log of the sum of theirs (ridge regression that starts from the column's
    key); that value is what attention to them gives, on average. Queries weigh as much as they attend to these tokens.
    values: of the prompt [batch, kv_heads, N, value_dim], without gradients.
    """
    key, value = column
    mass = probe.attention @ dropped[..., None].float() * probe.is_probe
    total = mass.sum(dim=2, keepdim=True).clamp_min(1e-9)
    output = (probe.mass * dropped)[:, :, None] / total @ values.detach().float()
    sums = probe.scores.logsumexp(dim=-1, keepdim=True) + mass.clamp_min(1e-9).log()
    weighted = probe.queries * (mass / total)
    gram = weighted.transpose(2, 3) @ probe.queries
    was = key.float().transpose(2, 3)
    residual = weighted.transpose(2, 3) @ sums - gram @ was
    ridge = _RIDGE * gram.diagonal(dim1=2, dim2=3).sum(dim=-1, keepdim=True).clamp_min(1e-6)
    system = gram + torch.diag_embed(ridge.expand(-1, -1, gram.shape[-1]))
    step = torch.linalg.solve_ex(system, residual).result  # `solve` would wait for the device, to check it
    moved = value.float() + weights[1] * (output - value.float())
    return (was + weights[0] * step).transpose(2, 3).to(key.dtype), moved.to(value.dtype)


def attention_divergence(target: list[Tensor], probe: list[Tensor]) -> Tensor:
    """KL(target attention, probe attention) in nats over the prompt's own tokens, the mean over layers, heads and rows.

    Both are attention mass [batch, kv_heads, N] by layer, as `ProbedPass.mass`. Trains the probe queries.
    """
    wanted, found = (torch.cat(mass, dim=1) for mass in (target, probe))  # at once: an accelerator waits for launches
    wanted, found = (mass / mass.sum(dim=-1, keepdim=True).clamp_min(1e-9) for mass in (wanted, found))
    return (wanted * (wanted.clamp_min(1e-9).log() - found.clamp_min(1e-9).log())).sum(dim=-1).mean()


def check_probeable(decoder: Any) -> None:
    """Raise `UnsupportedModelError` unless the stock model's attention can be recorded."""
    if not decoder._supports_sdpa:
        raise UnsupportedModelError(
            "kept tokens are chosen by recording torch's scaled dot-product attention, which "
            f"{type(decoder).__name__} does not use; set kept to 0"
        )


def _at(columns: Tensor, tensor: Tensor) -> Tensor:
    """Columns [batch, kv_heads, kept] of [batch, kv_heads, N, dim]."""
    return tensor.gather(2, columns[..., None].expand(-1, -1, -1, tensor.shape[3]))


_pass: ContextVar[ProbedPass] = ContextVar("pass")


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    probed = _pass.get()
    probed.see(query, key, value, options.get("scaling"))
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if probed.eager and attention_mask is not None and attention_mask.is_floating_point():
        # plain products add the mask, so that it has to be one of floats; transformers gives every model's this name
        attend = getattr(sys.modules[type(module).__module__], "eager_attention_forward", attend)
    attended: tuple[Tensor, Tensor | None] = attend(module, query, key, value, attention_mask, **options)
    return attended


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
