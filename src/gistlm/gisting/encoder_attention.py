"""An encoder's passes under the gist mask, on stock T5 models: keys and values of some columns are kept, others read.

transformers hands a keyword that an encoder's forward does not know down to the registered attention function. That
function adds the mask and the bias of the columns' true distances, so that padding may stand anywhere, and puts keys
and values from an earlier pass before those of this one. Knows nothing of checkpoints or text.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, cat, tensor
from transformers import AttentionInterface

from gistlm.gisting.kv_cache import KeyValues
from gistlm.gisting.mask import additive, encoder_mask
from gistlm.gisting.placement import Condition

_NAME = "gistlm_encoder"


class _Pass:  # no dataclass: FSDP hands copies of those to the layers, and what they leave in a copy is lost
    """What the attention function needs of one pass, and what it leaves behind.

    visible: bool [batch, Q, K]; distances: [batch, Q, K], the key's position less the query's.
    """

    def __init__(self, visible: Tensor, distances: Tensor, past: KeyValues) -> None:
        self.visible, self.distances, self.past = visible, distances, past
        self.written: KeyValues = []
        """This pass's own keys and values by layer."""
        self.bias: Tensor | None = None
        """[batch, heads, Q, K]: mask and distances, from the last layer that has biases of its own"""


def encode(
    encoder: Any, embeddings: Tensor, parts: Tensor, positions: Tensor,
    condition: Condition = Condition.GIST, past: KeyValues | None = None,
) -> tuple[Tensor, KeyValues]:  # fmt: skip
    """Run columns through a stock encoder under the gist mask.

    embeddings: [batch, S, hidden] of the new columns; parts, positions: [batch, C + S] of the past's columns, then
    theirs. Returns the new columns' final states [batch, S, hidden] and their keys and values by layer.
    """
    queries = embeddings.shape[1]
    visible = encoder_mask(parts, condition)[:, -queries:]
    state = _Pass(visible, positions[:, None, :] - positions[:, -queries:, None], past or [])
    with _gist_attention(encoder):
        states: Tensor = encoder(inputs_embeds=embeddings, gist_pass=state).last_hidden_state
    return states, state.written


def decoder_inputs(model: Any, outputs: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """What a stock model's decoder takes to predict outputs (token ids): they end at the last of its columns.

    The decoder counts differences of columns too, so padding on the left changes nothing.
    """
    start, width = model.config.decoder_start_token_id, max(map(len, outputs))
    rows = [[start] * (width - len(ids) + 1) + list(ids[:-1]) for ids in outputs]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in outputs]
    names = ("decoder_input_ids", "decoder_attention_mask")
    return {name: tensor(values, device=model.device) for name, values in zip(names, (rows, mask), strict=True)}


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *, gist_pass: _Pass,
    scaling: float | None = None, dropout: float = 0.0, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """An attention function of transformers: query, key and value are [batch, heads, tokens, head_dim]."""
    gist_pass.written.append((key, value))
    if gist_pass.past:
        past_key, past_value = gist_pass.past[module.layer_idx]
        key, value = cat([past_key, key], dim=2), cat([past_value, value], dim=2)
    if module.has_relative_attention_bias:
        mask = additive(gist_pass.visible, query.dtype)
        gist_pass.bias = _distance_bias(module, gist_pass.distances).to(query.dtype) + mask
    assert gist_pass.bias is not None, "the first layer has biases"
    # plain products: torch's fused attention for CPUs is slow backward, and the bias is as large as the scores anyway
    scores = query @ key.transpose(2, 3) * (1.0 if scaling is None else scaling) + gist_pass.bias
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return (weights @ value).transpose(1, 2).contiguous(), None


def _distance_bias(module: Any, distances: Tensor) -> Tensor:
    """The layer's learned bias for distances [batch, Q, K]: [batch, heads, Q, K]."""
    bucket = module._relative_position_bucket
    known = inspect.signature(bucket).parameters
    options = {
        "bidirectional": True,
        "num_buckets": module.relative_attention_num_buckets,
        "max_distance": module.relative_attention_max_distance,
    }
    buckets = bucket(distances, **{name: value for name, value in options.items() if name in known})
    bias: Tensor = module.relative_attention_bias(buckets).permute(0, 3, 1, 2)
    return bias


@contextmanager
def _gist_attention(encoder: Any) -> Iterator[None]:
    """The encoder with the attention function above; its own is put back."""
    AttentionInterface.register(_NAME, _attend)
    own = encoder.config._attn_implementation
    encoder.config._attn_implementation = _NAME
    try:
        yield
    finally:
        encoder.config._attn_implementation = own
