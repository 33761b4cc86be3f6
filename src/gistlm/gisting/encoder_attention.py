"""Runs stock T5 encoders under the gist mask, with keys and values from an earlier pass; knows no checkpoints, no text.

transformers passes a keyword that an encoder's forward does not know on to the registered attention function. That
function adds the mask and the position bias for the columns' true distances, so that padding may be anywhere, and puts
keys and values from an earlier pass before those of this one.
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
    """Inputs and results of the attention function in one pass.

    visible: bool [batch, Q, K], where a query may attend to a key. distances: [batch, Q, K], the key's position minus
    the query's. past: keys and values from an earlier pass, or an empty list.
    """

    def __init__(self, visible: Tensor, distances: Tensor, past: KeyValues) -> None:
        self.visible, self.distances, self.past = visible, distances, past
        self.written: KeyValues = []
        """Keys and values that this pass computed, per layer."""
        self.bias: Tensor | None = None
        """[batch, heads, Q, K]: mask plus position bias, from the last layer that has a position bias"""


def encode(
    encoder: Any, embeddings: Tensor, parts: Tensor, positions: Tensor,
    condition: Condition = Condition.GIST, past: KeyValues | None = None,
) -> tuple[Tensor, KeyValues]:  # fmt: skip
    """Run columns through a stock encoder under the gist mask.

    embeddings: the new columns' input embeddings [batch, S, hidden]. past: keys and values of C earlier columns. parts,
    positions: [batch, C + S], first of the earlier columns, then of the new ones. Returns the new columns' final states
    [batch, S, hidden], and their keys and values per layer.
    """
    queries = embeddings.shape[1]
    visible = encoder_mask(parts, condition)[:, -queries:]
    state = _Pass(visible, positions[:, None, :] - positions[:, -queries:, None], past or [])
    with _gist_attention(encoder):
        states: Tensor = encoder(inputs_embeds=embeddings, gist_pass=state).last_hidden_state
    return states, state.written


def decoder_inputs(model: Any, outputs: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Decoder arguments of a stock model, with which it predicts ``outputs`` (token ids) in its last columns.

    Rows are left-padded, which changes nothing: the decoder's attention depends only on differences of columns.
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
    """Attention function for transformers; query, key and value are [batch, heads, tokens, head_dim]."""
    gist_pass.written.append((key, value))
    if gist_pass.past:
        past_key, past_value = gist_pass.past[module.layer_idx]
        key, value = cat([past_key, key], dim=2), cat([past_value, value], dim=2)
    if module.has_relative_attention_bias:
        mask = additive(gist_pass.visible, query.dtype)
        gist_pass.bias = _distance_bias(module, gist_pass.distances).to(query.dtype) + mask
    assert gist_pass.bias is not None, "the first layer has biases"
    # no SDPA: its backward is slow on CPUs, and it would save no memory, since the bias is as large as the scores
    scores = query @ key.transpose(2, 3) * (1.0 if scaling is None else scaling) + gist_pass.bias
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return (weights @ value).transpose(1, 2).contiguous(), None


def _distance_bias(module: Any, distances: Tensor) -> Tensor:
    """The layer's learned position bias [batch, heads, Q, K] for distances [batch, Q, K]."""
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
    """Within the `with` block, the encoder uses `_attend`."""
    AttentionInterface.register(_NAME, _attend)
    before = encoder.config._attn_implementation
    encoder.config._attn_implementation = _NAME
    try:
        yield
    finally:
        encoder.config._attn_implementation = before
