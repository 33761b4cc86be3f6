"""Which tokens of a prompt its gist tokens start from; knows token ids only.

A gist token's input is its learned embedding and, in an anchored checkpoint, the embedding of one of the prompt's
tokens, its anchor. Vocabularies of byte-pair encodings number their tokens in the order in which they were merged, the
commonest first: the highest ids are a prompt's rarest tokens, which say most about it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NONE = -1
"""Stands where a prompt has no more tokens."""


def anchor_ids(tokens: Tensor, is_prompt: Tensor, most: int) -> Tensor:
    """The prompt's distinct tokens, highest id first: [batch, most] ids, `NONE` where they are used up.

    tokens: ids [batch, N]; is_prompt: bool [batch, N], false for padding and template. The i-th anchor does not depend
    on how many are asked for, so a gist's first tokens remain a gist.
    """
    ranked = tokens.masked_fill(~is_prompt, NONE).sort(dim=1, descending=True).values
    again = torch.zeros_like(is_prompt)
    again[:, 1:] = ranked[:, 1:] == ranked[:, :-1]
    ranked = ranked.masked_fill(again, NONE).sort(dim=1, descending=True).values[:, :most]
    return F.pad(ranked, (0, most - ranked.shape[1]), value=NONE)
