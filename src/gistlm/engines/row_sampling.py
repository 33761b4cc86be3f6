"""Sampling row by row in one batch: every row has its own options and its own noise; knows no model.

A row's next token is the largest of its filtered logits plus Gumbel noise, which draws from their softmax. The noise
comes from a generator of the row's own, so a request with a seed has the same answer alone and in any batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gistlm.engines.sampling import Sampling


class RowSampling(LogitsProcessor):
    """Turns logits into ones whose largest is the next token; greedy rows stay as they are."""

    def __init__(self, rows: Sequence[Sampling], device: torch.device) -> None:
        alike: dict[tuple[float, int, float], list[int]] = {}
        for row, each in enumerate(rows):
            if not each.greedy:
                alike.setdefault((each.temperature, each.top_k, each.top_p), []).append(row)
        noise = {row: _generator(each.seed, device) for row, each in enumerate(rows) if not each.greedy}
        self._groups = [
            (torch.tensor(places, device=device), _warpers(*options), [noise[row] for row in places])
            for options, places in alike.items()
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [batch, vocabulary] in float32, and out."""
        chosen = scores.clone()
        for places, warpers, generators in self._groups:
            # minus the logarithm of an exponential draw is Gumbel noise
            draws = torch.stack(
                [torch.empty_like(scores[0]).exponential_(generator=generator) for generator in generators]
            )
            some: Any = scores[places]
            for warper in warpers:
                some = warper(input_ids[places], some)
            chosen[places] = some - draws.log()
        return chosen


def _warpers(temperature: float, top_k: int, top_p: float) -> list[Any]:
    """transformers' own, in its order."""
    found: list[Any] = [TemperatureLogitsWarper(float(temperature))]
    if top_k:
        found.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        found.append(TopPLogitsWarper(float(top_p)))
    return found


def _generator(seed: int | None, device: torch.device) -> torch.Generator:
    """A row's own; without a seed one that torch's own generator, which goes on, decides."""
    own = int(torch.randint(2**62, ())) if seed is None else seed
    return torch.Generator(device).manual_seed(own)
