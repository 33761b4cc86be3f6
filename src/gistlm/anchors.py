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


def anchor_columns(tokens: Tensor, is_prompt: Tensor, most: int) -> Tensor:
    """The columns of the prompt's tokens, highest id first: [batch, most], `NONE` where they are used up.

    tokens: ids [batch, N]; is_prompt: bool [batch, N], false for padding and template. Of a token that comes again the
    last stands for all, and the others follow once every token has been taken. The i-th anchor does not depend on how
    many are asked for, so a gist's first tokens remain a gist.
    """
    index = torch.arange(tokens.shape[1], device=tokens.device)
    ids, column = tokens.masked_fill(~is_prompt, NONE).flip(1).sort(dim=1, descending=True, stable=True)
    begins = torch.ones_like(is_prompt)
    begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
    repeats = index - torch.where(begins, index, 0).cummax(dim=1).values  # how often the token comes again later
    rank = (ids - repeats * (ids.amax() + 1)).masked_fill(ids == NONE, torch.iinfo(ids.dtype).min)
    first = rank.sort(dim=1, descending=True, stable=True).indices[:, :most]
    chosen = (len(index) - 1 - column.gather(1, first)).masked_fill(ids.gather(1, first) == NONE, NONE)
    return F.pad(chosen, (0, most - chosen.shape[1]), value=NONE)
