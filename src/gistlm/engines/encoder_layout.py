"""Lays out requests with gists, prompts and neither as one batch for an encoder-decoder model; generates nothing.

columns      0 ........ C-1 | C ............ C+T-1
a gist       pad gist       | pad rest
a prompt     pad .......... | pad prompt rest
neither      pad .......... | pad rest

The encoder runs the columns from C on over the gists' keys and values. The decoder attends to the gists' final states
and to those of these columns. A batch without gists goes through the stock encoder, without our attention function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from gistlm.compress import gist_layers
from gistlm.engines.base import Request
from gistlm.engines.layout import Prepared, Row, fresh_ids
from gistlm.errors import InputError
from gistlm.gist import Gist
from gistlm.gisting.encoder_attention import decoder_inputs, encode
from gistlm.gisting.kv_cache import left_pad
from gistlm.gisting.placement import Part, left_positions
from gistlm.models.checkpoint import Checkpoint


class EncoderLayout:
    """Builds inputs for an encoder-decoder checkpoint; the counterpart of `layout.Layout`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._layers = gist_layers(checkpoint)

    def check(self, gist: Gist) -> None:
        """Raise `GistMismatchError` unless the gist has the shape and position that the reader needs."""
        gist.check_shape(self._layers, 0, self._hidden)

    def row(self, request: Request, output: list[int], room: int) -> Row:
        """A request as token ids. output: ids to score, or none. room: maximum number of tokens to be generated.

        Raises `InputError` for a conversation of several turns and for an empty prompt.
        """
        if not isinstance(request.input, str) and len(request.input) > 1:
            raise InputError("an encoder-decoder model answers one message; give the input as a text")
        fresh, cached = fresh_ids(self.checkpoint, request), 0 if request.gist is None else request.gist.k
        return Row(request, fresh, output, (cached, len(fresh), len(output) + room))

    def prepare(self, rows: Sequence[Row]) -> Prepared:
        """Build one batch of rows; their outputs go to the decoder."""
        device = self.checkpoint.reader.device
        tokens, fresh_parts = left_pad([row.fresh for row in rows], Part.REST, device)
        gists = [row.request.gist for row in rows]
        lengths = [0 if gist is None else gist.k for gist in gists]
        width = max(lengths)
        column = torch.arange(-width, 0, device=device)
        counts = torch.tensor(lengths, device=device)[:, None]
        parts = torch.where(column >= -counts, int(Part.GIST), int(Part.PAD))
        positions = torch.cat([column + counts, left_positions(fresh_parts, counts[:, 0])], dim=1)
        cached, states = [], None
        if width:
            states = self._padded([None if gist is None else gist.states for gist in gists], width)
            for layer in range(len(self._layers)):
                keys, values = (
                    self._padded([None if gist is None else getattr(gist, side)[layer] for gist in gists], width)
                    for side in ("keys", "values")
                )
                cached.append((keys, values))
        outputs = [row.output for row in rows]
        return Prepared(tokens, cached, torch.cat([parts, fresh_parts], dim=1), positions, states, outputs)

    def generation_inputs(self, prepared: Prepared) -> dict[str, Any]:
        """Arguments of transformers' `generate`."""
        states, visible = self._encoded(prepared)
        return {"encoder_outputs": BaseModelOutput(last_hidden_state=states), "attention_mask": visible}

    def output_logits(self, prepared: Prepared, last: int) -> Tensor:
        """Logits [batch, last, vocabulary] that predict the outputs, which end at the last column."""
        reader = self.checkpoint.reader
        with torch.no_grad():
            states, visible = self._encoded(prepared)
            logits: Tensor = reader(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=visible,
                use_cache=False,
                **decoder_inputs(reader, prepared.outputs),
            ).logits
        return logits[:, -last:]

    @property
    def _hidden(self) -> int:
        return int(self.checkpoint.gist_embeddings.shape[1])

    def _encoded(self, prepared: Prepared) -> tuple[Any, Tensor]:
        """Encoder states [batch, C + T, hidden], and which of them the decoder may read, 0 or 1 [batch, C + T]."""
        reader = self.checkpoint.reader
        visible = (prepared.parts != Part.PAD).long()
        encoder: Any = reader.get_encoder()
        if prepared.states is None:
            mask = None if bool(visible.all()) else visible
            return encoder(input_ids=prepared.tokens, attention_mask=mask).last_hidden_state, visible
        embeddings = reader.get_input_embeddings()(prepared.tokens)
        fresh, _ = encode(encoder, embeddings, prepared.parts, prepared.positions, past=prepared.cached)
        return torch.cat([prepared.states, fresh], dim=1), visible

    def _padded(self, rows: Sequence[Tensor | None], width: int) -> Tensor:
        """Stack rows [..., k, size], padded on the left with zeros, to [batch, ..., width, size]. None: all padding."""
        device = self.checkpoint.reader.device
        empty = next(row for row in rows if row is not None)[..., :0, :]
        whole = [(empty if row is None else row).to(device) for row in rows]
        return torch.stack([F.pad(row, (0, 0, width - row.shape[-2], 0)) for row in whole])
