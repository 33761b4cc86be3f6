"""What the embeddings of gist tokens are before training; knows models only."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor
from transformers import PreTrainedModel


class Initial(StrEnum):
    """Where gist embeddings start."""

    SPREAD = "spread"
    """Drawn with the mean and the spread of the vocabulary's embeddings, each its own."""
    MEAN = "mean"
    """The mean of the vocabulary's embeddings, and noise of a hundredth of their spread."""
    WORDS = "words"
    """The embeddings of tokens drawn from the vocabulary."""
    SMALL = "small"
    """Noise of a tenth of the vocabulary's spread about zero: little beside an anchor."""


def default_initial(anchored: bool) -> Initial:
    """Where gist embeddings start unless a recipe says otherwise."""
    return Initial.SMALL if anchored else Initial.SPREAD


def initial_embeddings(reader: PreTrainedModel, k: int, seed: int, kind: Initial) -> Tensor:
    """[k, hidden], the same for one seed."""
    weight = embedding_weight(reader).float()
    generator = torch.Generator().manual_seed(seed)
    if kind == Initial.WORDS:
        return weight[torch.randperm(len(weight), generator=generator)[:k].to(weight.device)].to(reader.dtype)
    noise = torch.randn(k, weight.shape[1], generator=generator).to(weight.device) * weight.std(0)
    embeddings = {
        Initial.SPREAD: weight.mean(0) + noise,
        Initial.MEAN: weight.mean(0) + noise * 0.01,
        Initial.SMALL: noise * 0.1,
    }[kind]
    return embeddings.to(reader.dtype)


def embedding_weight(reader: PreTrainedModel) -> Tensor:
    """[vocabulary, hidden]: the input embeddings."""
    weight = reader.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight.detach()
