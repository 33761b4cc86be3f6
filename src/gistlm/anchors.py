"""Which tokens of a prompt its gist starts from or keeps; knows token ids only.

A gist token's input is its learned embedding and, in an anchored checkpoint, the embedding of one of the prompt's
tokens, its anchor. A checkpoint may also keep some of the prompt's own tokens beside the learned ones. Vocabularies of
byte-pair encodings number their tokens in the order in which they were merged, the commonest first: the highest ids are
a prompt's rarest tokens, which say most about it.
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


def kept_columns(ranks: Tensor, is_prompt: Tensor, most: int) -> Tensor:
    """The columns of the prompt's tokens, highest rank first: [batch, most], `NONE` where they are used up.

    ranks: [batch, N], 0 or more; is_prompt as above. Of a token that comes again the last stands for all, and the
    others follow once every token has been taken. The i-th column does not depend on how many are asked for.
    """
    index = torch.arange(ranks.shape[1], device=ranks.device)
    own, column = ranks.masked_fill(~is_prompt, NONE).flip(1).sort(dim=1, descending=True, stable=True)
    begins = torch.ones_like(is_prompt)
    begins[:, 1:] = own[:, 1:] != own[:, :-1]
    repeats = index - torch.where(begins, index, 0).cummax(dim=1).values  # how often the token comes again later
    order = (own - repeats * (own.amax() + 1)).masked_fill(own == NONE, torch.iinfo(own.dtype).min)
    first = order.sort(dim=1, descending=True, stable=True).indices[:, :most]
    chosen = (len(index) - 1 - column.gather(1, first)).masked_fill(own.gather(1, first) == NONE, NONE)
    return F.pad(chosen, (0, most - chosen.shape[1]), value=NONE)
