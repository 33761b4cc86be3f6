"""The gist mask: Mu, Li, Goodman 2023, "Learning to Compress Prompts with Gist Tokens", section 3.

https://arxiv.org/abs/2304.08467. No other file decides which token may attend to which. Knows only which part of a
sequence each column belongs to; knows no models, text or caches.

              key   o   p p p   g g   r r
    query  o        1   . . .   . .   . .      o  opening: the template's first tokens, if they stay visible
           p        .   1 . .   . .   . .      p  prompt:  causal (it begins with a second copy of the opening)
           p        .   1 1 .   . .   . .
           p        .   1 1 1   . .   . .
           g        .   1 1 1   1 .   . .      g  gist:    the prompt and earlier gist tokens
           g        .   1 1 1   1 1   . .
           r        1   . . .   1 1   1 .      r  rest:    opening, gist and earlier rest, never the prompt
           r        1   . . .   1 1   1 1

1: the query may attend to the key.

    positive control   r attends to the prompt and earlier rest, not to the gist
    negative control   r attends to the opening and earlier rest, neither to prompt nor to gist
    encoder            without causality; prompt and gist attend to each other, and in the positive control prompt and
                       rest do
    cross-attention    every decoder token attends to what r attends to
"""

from __future__ import annotations

import torch
from torch import Tensor

from gistlm.gisting.placement import Condition, Part

_REST_SEES = {
    Condition.GIST: {Part.OPENING, Part.GIST, Part.REST},
    Condition.POSITIVE: {Part.PROMPT, Part.REST},
    Condition.NEGATIVE: {Part.OPENING, Part.REST},
}


def _sees(parts: Tensor, condition: Condition, both_ways: bool) -> Tensor:
    """Which query may attend to which key by their parts alone: parts [batch, S] -> bool [batch, S queries, S keys].

    both_ways: the prompt also attends to the gist or, in the positive control, to the rest.
    """
    table = torch.zeros(len(Part), len(Part), dtype=torch.bool, device=parts.device)
    table[Part.OPENING, Part.OPENING] = True
    table[Part.PROMPT, Part.PROMPT] = True
    table[Part.PROMPT, Part.REST if condition == Condition.POSITIVE else Part.GIST] = both_ways
    table[Part.GIST, [Part.PROMPT, Part.GIST]] = True
    table[Part.REST, sorted(_REST_SEES[condition])] = True
    return table[parts[:, :, None], parts[:, None, :]]


def decoder_mask(
    parts: Tensor, positions: Tensor, condition: Condition = Condition.GIST, window: int | None = None
) -> Tensor:
    """The mask of a decoder-only model.

    parts: one `Part` per column [batch, S], in the order opening, prompt, gist, rest. positions: [batch, S]; they are
    used only with a sliding window. window: keys ``window`` or more positions before the query are hidden. Returns bool
    [batch, S queries, S keys], true where the query may attend to the key.
    """
    column = torch.arange(parts.shape[1], device=parts.device)
    visible = _sees(parts, condition, both_ways=False) & (column[None, :] <= column[:, None])
    if window is not None:
        visible &= positions[:, :, None] - positions[:, None, :] < window
    return visible


def encoder_mask(parts: Tensor, condition: Condition = Condition.GIST) -> Tensor:
    """The mask of a bidirectional encoder: parts [batch, S] -> bool [batch, S queries, S keys]."""
    return _sees(parts, condition, both_ways=True)


def cross_attention_mask(parts: Tensor, condition: Condition = Condition.GIST) -> Tensor:
    """Which encoder columns every decoder token may attend to: parts [batch, S] -> bool [batch, S keys]."""
    return torch.isin(parts, torch.tensor(sorted(_REST_SEES[condition]), device=parts.device))


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Mask to add to attention scores, 0 or the dtype's minimum: bool [batch, Q, K] -> [batch, 1, Q, K]."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
