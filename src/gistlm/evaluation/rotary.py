"""Turning cached keys to other positions under a rotary embedding; knows nothing of prompts or gists.

Su et al. 2021, "RoFormer", https://arxiv.org/abs/2104.09864, in the layout of most stock models: dimension i
turns with dimension i + d/2. Whether a model is of that kind is not looked up but tried out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache

from gistlm.errors import UnsupportedModelError
from gistlm.gisting.kv_cache import key_values_of
from gistlm.models.checkpoint import Checkpoint
from gistlm.models.embeddings import embedding_weight
from gistlm.models.transformers_compat import CACHE

_TOKENS, _SHIFT = 8, 11
_TOLERANCE = 1e-3
"""Of the keys' norm, in float32."""


def rotate(keys: Tensor, by: Tensor, inverse_frequencies: Tensor) -> Tensor:
    """Keys [kv_heads, n, head_dim] moved ``by`` positions [n]; dimensions that carry no rotation stay."""
    angle = by[:, None].float() * inverse_frequencies.float()  # [n, d/2]
    half = angle.shape[1]
    first, second, rest = keys[..., :half], keys[..., half : 2 * half], keys[..., 2 * half :]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def frequencies(checkpoint: Checkpoint) -> list[Tensor]:
    """The inverse frequencies [d/2] of every layer.

    Raises `UnsupportedModelError` where turning the keys by them does not give what the model itself gives at
    shifted positions.
    """
    name = checkpoint.architecture.name
    rotary = getattr(checkpoint.reader.get_decoder(), "rotary_emb", None)
    if checkpoint.architecture.numbering != "relative" or rotary is None:
        raise UnsupportedModelError(f"the architecture {name!r} has no rotary embedding by which keys could be moved")
    config = checkpoint.reader.config.get_text_config(decoder=True)
    types = getattr(config, "layer_types", None) or ["full_attention"] * checkpoint.architecture.layers
    tables = [getattr(rotary, f"{kind}_inv_freq", getattr(rotary, "inv_freq", None)) for kind in types]
    # layers of one kind share a table, and in half precision deep layers drift by more than could be told
    found = [table for table in tables if isinstance(table, Tensor)]
    if len(found) < len(tables) or not _fit(checkpoint, found, [types.index(kind) for kind in set(types)]):
        raise UnsupportedModelError(f"the architecture {name!r} has no rotary embedding of the standard kind")
    return found


@torch.no_grad()
def _fit(checkpoint: Checkpoint, inverse_frequencies: list[Tensor], layers: list[int]) -> bool:
    """Whether keys turned by a shift are the keys of shifted positions, in some layers."""
    reader = checkpoint.reader
    ids = torch.arange(3, 3 + _TOKENS, device=reader.device)[None] % embedding_weight(reader).shape[0]
    caches = []
    for first in (0, _SHIFT):
        cache = DynamicCache()
        positions = torch.arange(first, first + _TOKENS, device=ids.device)[None]
        reader.get_decoder()(ids, position_ids=positions, **{CACHE: cache}, use_cache=True)
        caches.append([keys[0].float() for keys, _ in key_values_of(cache)])
    by = torch.full((_TOKENS,), _SHIFT, device=ids.device)
    tolerance = _TOLERANCE * (1 if reader.dtype == torch.float32 else 50)
    for layer in layers:
        at_zero, shifted, inverse = caches[0][layer], caches[1][layer], inverse_frequencies[layer]
        if 2 * inverse.shape[0] > at_zero.shape[2]:
            return False
        if (rotate(at_zero, by, inverse) - shifted).norm() > tolerance * shifted.norm():
            return False
    return True
