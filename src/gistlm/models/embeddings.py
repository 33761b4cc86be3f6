"""Input embeddings of gist tokens: where they start before training, and the prompt's tokens that they start from.

A gist token's input is its learned embedding and, in an anchored checkpoint, the embedding of one of the prompt's
tokens, its anchor. Vocabularies of byte-pair encodings number their tokens in the order in which they were merged, the
commonest first: the highest ids are a prompt's rarest tokens, which say most about it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel


def initial_embeddings(reader: PreTrainedModel, k: int, seed: int, *, anchored: bool) -> Tensor:
    """[k, hidden], the same for one seed: noise about the mean of the vocabulary's embeddings, with their spread.

    Beside anchors, noise about zero with a tenth of that spread: little beside an anchor.
    """
    weight = embedding_weight(reader).float()
    noise = torch.randn(k, weight.shape[1], generator=torch.Generator().manual_seed(seed))
    noise = noise.to(weight.device) * weight.std(0)
    return (noise * 0.1 if anchored else weight.mean(0) + noise).to(reader.dtype)


def random_words(reader: PreTrainedModel, count: int, seed: int) -> Tensor:
    """[count, hidden]: embeddings of tokens drawn from the vocabulary, the same for one seed."""
    weight = embedding_weight(reader)
    drawn = torch.randperm(len(weight), generator=torch.Generator().manual_seed(seed))[:count]
    return weight[drawn.to(weight.device)]


def embedding_weight(reader: PreTrainedModel) -> Tensor:
    """[vocabulary, hidden]: the input embeddings."""
    weight = reader.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight.detach()


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
