"""Make gists with kept tokens in one forward pass, by recording attention.

Probe queries are tokens that run after prompt and gist tokens in place of the rest, which is not known yet; some of
them can be trained. In each layer, every key/value head keeps the prompt tokens that get most attention from the probe
queries, because heads attend to few tokens and need different ones. The first learned gist token is fitted so that it
gives the probe queries what all dropped tokens together would.

Knows transformers' attention interface; knows no checkpoint, positions or text.

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
"""Ridge strength when fitting the key, relative to the attention-weighted mean squared norm of the probe queries."""
_NAME = "gistlm_probed"
_LOWEST = torch.finfo(torch.float32).min
"""The attention score of padding."""


class Probe(NamedTuple):
    """Attention of one layer's probe queries to a prompt.

    Q counts, for one key/value head, the probe queries of all query heads that share it.
    """

    queries: Tensor
    """[batch, kv_heads, Q, head_dim]: the query vectors, times the attention's scaling"""
    scores: Tensor
    """[batch, kv_heads, Q, N]: attention scores of the prompt's tokens before softmax; `_LOWEST` for padding"""
    attention: Tensor
    """[batch, kv_heads, Q, N]: softmax of the scores over the prompt's tokens"""
    probe_weight: Tensor
    """[batch, 1, Q, 1]: 1 for a probe query, 0 for padding in its place"""
    mass: Tensor
    """[batch, kv_heads, N]: attention mass, the sum of ``attention`` over all probe queries"""

    @classmethod
    def from_queries(cls, queries: Tensor, keys: Tensor, prompt: Tensor, is_probe: Tensor) -> Probe:
        """Let queries, as above, attend to the prompt's keys [batch, kv_heads, N, head_dim].

        prompt, is_probe: which keys and which queries are not padding, bool [batch, N] and [batch, Q]. The keys get no
        gradients, because the prompt's pass takes none.
        """
        scores = (queries @ keys.detach().transpose(2, 3)).masked_fill(~prompt[:, None, None], _LOWEST)
        attention, probe_weight = scores.softmax(dim=-1), is_probe[:, None, :, None].to(queries.dtype)
        mass = (probe_weight.transpose(2, 3) @ attention)[:, :, 0]
        return cls(queries, scores, attention, probe_weight, mass)


class ProbedPass:
    """One pass of a stock model whose last columns are probe queries: records their attention mass on a prompt."""

    def __init__(self, prompt: Tensor, compressed: Tensor, probes: Tensor) -> None:
        self.prompt = prompt
        """bool [batch, N]: which of the first columns are the prompt's tokens"""
        self.compressed = compressed
        """bool [batch, N]: prompt tokens that the gist replaces, that is, without the visible opening"""
        self.probes = probes
        """bool [batch, w]: which of the last columns are probe queries, or, as a training target, the rest itself"""
        self.mass: list[Tensor] = []
        """One [batch, kv_heads, N] per layer: attention mass on each of the ``compressed`` tokens, 0 elsewhere. The
        softmax is over the whole prompt."""
        self.eager = False
        """Whether to run the model's own eager attention in place of torch's SDPA."""

    @contextmanager
    def __call__(self, decoder: Any) -> Iterator[None]:
        """Record passes of ``decoder``, a stock model, within the `with` block.

        Raises `UnsupportedModelError` for a model whose attention cannot be recorded.
        """
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
        """Record one layer: query [batch, heads, tokens, head_dim], key and value [batch, kv_heads, columns, dim]."""
        self._probe(query, key, scaling)

    def _probe(self, query: Tensor, key: Tensor, scaling: float | None) -> Probe:
        batch, kv_heads, _, size = key.shape
        width, n = self.probes.shape[1], self.prompt.shape[1]
        # [batch, heads, width, head_dim] -> [batch, kv_heads, group * width, head_dim]: one query head after the other
        queries = query[:, :, query.shape[2] - width :].reshape(batch, kv_heads, -1, size).float()
        queries = queries * (size**-0.5 if scaling is None else scaling)
        is_probe = self.probes.repeat(1, queries.shape[2] // width)
        probe = Probe.from_queries(queries, key[:, :, :n].float(), self.prompt, is_probe)
        self.mass.append(probe.mass * self.compressed[:, None])
        return probe


class KeepingPass(ProbedPass):
    """A pass over prompts, gist tokens and probe queries, in this order; makes the gists."""

    def __init__(
        self, prompt: Tensor, compressed: Tensor, probes: Tensor, learned: int, kept: Tensor, fit_strengths: Tensor
    ) -> None:
        super().__init__(prompt, compressed, probes)
        self.learned = learned
        """Number of learned gist tokens' columns."""
        self.kept = kept
        """[batch]: number of tokens to keep of each prompt"""
        self.most_kept = int(kept.max())
        """Maximum of ``kept`` over the batch."""
        self.fit_strengths = fit_strengths
        """[layers, 2]: the ``strengths`` that `fit` takes"""
        self.gists: list[tuple[Tensor, Tensor]] = []
        """Keys and values of each layer, [batch, kv_heads, learned + most_kept, dim]: the learned tokens, the first of
        them fitted, then the kept tokens, the one with most attention mass first. In a row that keeps fewer than
        ``most_kept``, ignore the last columns."""

    def see(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> None:
        """Record one layer, as in `ProbedPass`, and make its gists."""
        probe = self._probe(query, key, scaling)
        mass = self.mass[-1].masked_fill(~self.compressed[:, None], -1)
        ranked = mass.sort(dim=-1, descending=True, stable=True).indices[..., : self.most_kept]
        n = self.prompt.shape[1]
        columns = [side[:, :, n : n + self.learned] for side in (key, value)]
        if self.learned:
            first = columns[0][:, :, :1], columns[1][:, :, :1]
            fitted = fit(first, self.fit_strengths[len(self.gists)], probe, value[:, :, :n], self._dropped(ranked))
            columns = [torch.cat([one, side[:, :, 1:]], dim=2) for one, side in zip(fitted, columns, strict=True)]
        keys, values = (
            torch.cat([made, _gather_columns(ranked, side)], dim=2)
            for made, side in zip(columns, (key, value), strict=True)
        )
        self.gists.append((keys, values))

    def _dropped(self, ranked: Tensor) -> Tensor:
        """Prompt tokens that a head does not keep, bool [batch, kv_heads, N]. If it keeps all of them, returns all, so
        that `fit` has something to average. ranked: columns [batch, kv_heads, most_kept] by attention mass.
        """
        compressed = self.compressed[:, None].expand(-1, ranked.shape[1], -1)
        rank = torch.arange(ranked.shape[2], device=ranked.device)
        is_within = (rank < self.kept[:, None, None]).expand_as(ranked)
        is_kept = torch.zeros_like(compressed).scatter(2, ranked, is_within)
        dropped = compressed & ~is_kept
        return torch.where(dropped.any(dim=-1, keepdim=True), dropped, compressed)


def fit(
    column: tuple[Tensor, Tensor], strengths: Tensor, probe: Probe, values: Tensor, dropped: Tensor
) -> tuple[Tensor, Tensor]:
    """Fit one gist token so that it approximates the attention output of all dropped tokens.

    The fitted key's score for each query approximates the log-sum-exp of the dropped tokens' scores (ridge regression,
    which starts from the given key); the fitted value is what attention to them gives, averaged over the queries. Each
    query is weighted by its attention to the dropped tokens.

    column: the token's key and value [batch, kv_heads, 1, dim]. strengths: [2], how far, from 0 to 1, key and value
    move to the fitted ones. values: the prompt's [batch, kv_heads, N, value_dim]; they get no gradients. dropped: bool
    [batch, kv_heads, N]. Returns key and value, shaped as ``column``.
    """
    key, value = column
    dropped_mass = probe.attention @ dropped[..., None].float() * probe.probe_weight  # [batch, kv_heads, Q, 1]
    total = dropped_mass.sum(dim=2, keepdim=True).clamp_min(1e-9)
    output = (probe.mass * dropped)[:, :, None] / total @ values.detach().float()
    sums = probe.scores.logsumexp(dim=-1, keepdim=True) + dropped_mass.clamp_min(1e-9).log()
    weighted = probe.queries * (dropped_mass / total)
    gram = weighted.transpose(2, 3) @ probe.queries
    was = key.float().transpose(2, 3)
    residual = weighted.transpose(2, 3) @ sums - gram @ was
    ridge = _RIDGE * gram.diagonal(dim1=2, dim2=3).sum(dim=-1, keepdim=True).clamp_min(1e-6)
    system = gram + torch.diag_embed(ridge.expand(-1, -1, gram.shape[-1]))
    step = torch.linalg.solve_ex(system, residual).result  # `solve` would wait for the device, to check it
    moved = value.float() + strengths[1] * (output - value.float())
    return (was + strengths[0] * step).transpose(2, 3).to(key.dtype), moved.to(value.dtype)


def attention_divergence(target: list[Tensor], probe: list[Tensor]) -> Tensor:
    """KL(target attention, probe attention) in nats, averaged over layers, heads and rows. Trains the probe queries.

    target, probe: attention mass of the rest and of the probe queries, one [batch, kv_heads, N] per layer, as in
    `ProbedPass.mass`; each is normalised to sum to 1 over the prompt tokens that the gist replaces.
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


def _gather_columns(columns: Tensor, tensor: Tensor) -> Tensor:
    """Those columns, indices [batch, kv_heads, kept], of a tensor [batch, kv_heads, N, dim]."""
    return tensor.gather(2, columns[..., None].expand(-1, -1, -1, tensor.shape[3]))


_pass: ContextVar[ProbedPass] = ContextVar("pass")


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention function for transformers: records the layer, then attends as the model would."""
    probed = _pass.get()
    probed.see(query, key, value, options.get("scaling"))
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if probed.eager and attention_mask is not None and attention_mask.is_floating_point():
        # eager attention adds the mask, so it needs a float mask; every transformers model module names it as below
        attend = getattr(sys.modules[type(module).__module__], "eager_attention_forward", attend)
    attended: tuple[Tensor, Tensor | None] = attend(module, query, key, value, attention_mask, **options)
    return attended


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
