"""An encoder-decoder model's passes in training; knows nothing of losses.

The counterpart of `decoder_passes`. The rest without its output goes through the encoder, the output to the decoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from gistlm.compress import encode_gists, gist_inputs, place
from gistlm.gisting.encoder_attention import encode
from gistlm.gisting.kv_cache import KeyValues
from gistlm.gisting.mask import cross_attention_mask
from gistlm.gisting.placement import Condition, Part
from gistlm.models.checkpoint import Checkpoint
from gistlm.training.batches import Batch

Gists = tuple[KeyValues, Tensor]
"""Keys and values of each layer, and final states [batch, k, hidden]; padded on the right."""


class EncoderPasses:
    """`objectives.Passes` of an encoder-decoder checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def full_prompt(self, batch: Batch, last: int, probed: bool = False) -> tuple[Tensor, None]:
        """The positive control: logits [batch, last, vocabulary], and None, because `write` encodes the prompts."""
        condition = Condition.POSITIVE
        tokens, rest_parts = _inputs(batch)
        parts, positions = self._columns(batch, rest_parts, condition)
        embeddings = self._embed(torch.cat([batch.prompts, tokens], dim=1))
        states, _ = encode(self._encoder, embeddings, parts, positions, condition)
        return self._decode(batch, states, cross_attention_mask(parts, condition), last), None

    def encode(self, batch: Batch) -> None:
        """Does nothing: `write` encodes the prompts."""

    def write(self, encoded: None, batch: Batch) -> tuple[Gists, None]:
        """Make each row's gist of its k tokens. The second value is None: an encoder keeps no tokens."""
        return encode_gists(self.checkpoint, batch.prompts, batch.prompt_parts, batch.k), None

    def run_rest(self, batch: Batch, gist: Gists | None, condition: Condition, last: int) -> Tensor:
        """Run the rest over cached gists, or without any if ``gist`` is None: logits [batch, last, vocabulary]."""
        key_values, gist_states = gist or ([], None)
        width = 0 if gist_states is None else gist_states.shape[1]
        tokens, rest_parts = _inputs(batch)
        n = batch.prompts.shape[1]
        parts, positions = (each[:, n:] for each in self._columns(batch, rest_parts, condition, width))
        states, _ = encode(self._encoder, self._embed(tokens), parts, positions, condition, key_values)
        if gist_states is not None:
            states = torch.cat([gist_states, states], dim=1)
        return self._decode(batch, states, cross_attention_mask(parts, condition), last)

    def masked_pass(self, batch: Batch, condition: Condition, last: int) -> Tensor:
        """Run prompt, gist and rest in one pass under the gist mask: logits [batch, last, vocabulary]."""
        width = int(batch.k.max())
        gist = gist_inputs(self.checkpoint, batch.prompts, batch.prompt_parts, width)
        tokens, rest_parts = _inputs(batch)
        parts, positions = self._columns(batch, rest_parts, condition, width)
        embeddings = torch.cat([self._embed(batch.prompts), gist, self._embed(tokens)], dim=1)
        states, _ = encode(self._encoder, embeddings, parts, positions, condition)
        return self._decode(batch, states, cross_attention_mask(parts, condition), last)

    def _columns(self, batch: Batch, rest_parts: Tensor, condition: Condition, width: int = 0) -> tuple[Tensor, Tensor]:
        """Parts and positions [batch, N + width + R] of prompt, gist and rest."""
        placed = place(self.checkpoint, batch.prompt_parts, batch.k)
        return self.checkpoint.placement.columns(batch.prompt_parts, rest_parts, placed, condition, (width, 0))

    @property
    def _encoder(self) -> Any:
        return self.checkpoint.reader.get_encoder()

    def _embed(self, tokens: Tensor) -> Tensor:
        embeddings: Tensor = self.checkpoint.reader.get_input_embeddings()(tokens)
        return embeddings

    def _decode(self, batch: Batch, states: Any, visible: Tensor, last: int) -> Tensor:
        """Logits [batch, last, vocabulary] that predict the outputs, given the encoder's states [batch, S, hidden].

        visible: bool [batch, S], which states the decoder may read. The decoder's columns are left-padded, which
        changes nothing: its attention depends only on differences of columns.
        """
        reader = self.checkpoint.reader
        from_end = torch.arange(int(batch.output_lengths.max()), 0, -1, device=batch.rests.device)
        lengths, before = batch.output_lengths[:, None], batch.rests[:, -len(from_end) - 1 : -1]
        logits: Tensor = reader(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=visible.long(),
            decoder_input_ids=torch.where(from_end < lengths, before, reader.config.decoder_start_token_id),
            decoder_attention_mask=(from_end <= lengths).long(),
            use_cache=False,
        ).logits
        return logits[:, -last:]


def _inputs(batch: Batch) -> tuple[Tensor, Tensor]:
    """Ids and parts [batch, longest] of the rests without their outputs, left-padded again."""
    column = torch.arange(batch.rests.shape[1], device=batch.rests.device) - batch.output_lengths[:, None]
    parts = batch.rest_parts.gather(1, column.clamp_min(0)).masked_fill(column < 0, int(Part.PAD))
    longest = int((parts != Part.PAD).sum(dim=1).max())
    return batch.rests.gather(1, column.clamp_min(0))[:, -longest:], parts[:, -longest:]
