"""What the full-prompt model says of each row, kept in a folder: later passes over the rows, and other runs on the same
base, need not ask it again. Knows nothing of losses.

Kept of a row are the states from which the model's head makes the logits of its targets (the logits would take as many
times the room as a vocabulary has more entries than a state), and where its rest looked. The file's name is a hash of
the base and the row's tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gistlm.compress import Encoded, gist_layers
from gistlm.errors import InputError, UnsupportedModelError
from gistlm.files import reason, remove_abandoned, sha256, write_atomically
from gistlm.mask import Part
from gistlm.training.batch import Batch
from gistlm.training.launch import shares_weights
from gistlm.training.objectives import Passes

_STATES, _LOOKS = "states", "looks"


class Teacher:
    """The full prompt's pass over a batch, of whose rows each is run once.

    Raises `InputError` where the folder cannot be written, now or later, and in the first batch `UnsupportedModelError`
    for a model that changes its logits behind the head.
    """

    def __init__(self, passes: Passes, folder: str | Path) -> None:
        self.passes = passes
        self.folder = Path(folder)
        if shares_weights():
            raise InputError("with FSDP all processes must run the same passes; leave teacher_cache out")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for shelf in self.folder.glob("[0-9a-f][0-9a-f]"):
                remove_abandoned(shelf)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise self._unwritable(error) from error

    def __call__(self, batch: Batch, weights: Tensor, watched: bool) -> tuple[Tensor, Any]:
        """As `Passes.full_prompt`, for the targets whose weights [batch, last] are not zero; other logits mean nothing.
        Takes no gradients.
        """
        last, counts = weights.shape[1], (weights > 0).sum(dim=1).tolist()
        paths = [self._path(batch, row) for row in range(len(counts))]
        found = [
            self._read(path, count, int(tokens) if watched else 0)
            for path, count, tokens in zip(paths, counts, (batch.prompt_parts != Part.PAD).sum(dim=1), strict=True)
        ]
        known = [row for row, tensors in enumerate(found) if tensors]
        new = [row for row, tensors in enumerate(found) if not tensors]
        pieces = []
        if known:
            pieces.append(self._recall(_rows(batch, known), last, [tensors for tensors in found if tensors]))
        if new:
            pieces.append(self._ask(_rows(batch, new), weights[new], watched, [paths[row] for row in new]))
        if len(pieces) == 1:
            return pieces[0]
        order = torch.tensor([*known, *new], device=weights.device).argsort()
        logits, encoded = zip(*pieces, strict=True)
        return torch.cat(logits)[order], _joined(encoded, order)

    def _ask(self, batch: Batch, weights: Tensor, watched: bool, paths: list[Path]) -> tuple[Tensor, Any]:
        """Run the pass, and keep what it gives of every row."""
        last = weights.shape[1]
        with self._head_inputs() as inputs:
            logits, encoded = self.passes.full_prompt(batch, last, watched)
        states = inputs[-1]
        if not self._is_checked:
            self._is_checked = True
            if not torch.equal(self._head(states)[:, -logits.shape[1] :].to(logits.dtype), logits):
                raise UnsupportedModelError(
                    f"{type(self.passes.checkpoint.reader).__name__} changes its logits behind its head, and "
                    "teacher_cache keeps what goes into the head; set teacher_cache to null"
                )
        for row, path in enumerate(paths):
            tensors = {_STATES: states[row, states.shape[1] - int((weights[row] > 0).sum()) :]}
            if watched:
                tokens = int((batch.prompt_parts[row] != Part.PAD).sum())
                tensors[_LOOKS] = torch.cat([look[row] for look in encoded.looks])[:, -tokens:]
            data = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
            try:
                write_atomically(path, data)
            except OSError as error:
                raise self._unwritable(error) from error
        return _widened(logits, last), encoded

    def _recall(self, batch: Batch, last: int, found: list[dict[str, Tensor]]) -> tuple[Tensor, Any]:
        """The same from what is kept, and a pass over the prompts alone."""
        device = batch.rests.device
        states = torch.stack([_widened(tensors[_STATES][None], last)[0] for tensors in found]).to(device)
        encoded = self.passes.encode(batch)
        if _LOOKS in found[0]:
            width = batch.prompts.shape[1]
            looks = torch.stack([_widened(tensors[_LOOKS].T[None], width)[0].T for tensors in found]).to(device)
            encoded = replace(encoded, looks=list(torch.split(looks, self._heads, dim=1)))
        return self._head(states), encoded

    def _read(self, path: Path, count: int, tokens: int) -> dict[str, Tensor] | None:
        """A row's states of ``count`` targets, and where its rest looked in a prompt of so many ``tokens`` if not 0.

        None where there is no such file, or one that is damaged or holds something else: the row is run again.
        """
        shapes = {_STATES: [count, self._width]} | ({_LOOKS: [sum(self._heads), tokens]} if tokens else {})
        try:
            with safe_open(path, "pt") as file:
                if any(file.get_slice(name).get_shape() != shape for name, shape in shapes.items()):
                    return None
                tensors = {name: file.get_tensor(name) for name in shapes}
        except (OSError, SafetensorError):
            return None
        dtypes = {_STATES: self.passes.checkpoint.reader.dtype, _LOOKS: torch.float32}
        return tensors if all(tensor.dtype == dtypes[name] for name, tensor in tensors.items()) else None

    def _path(self, batch: Batch, row: int) -> Path:
        sides = (batch.prompts, batch.prompt_parts), (batch.rests, batch.rest_parts)
        ids = [json.dumps(tokens[row][parts[row] != Part.PAD].tolist()).encode() for tokens, parts in sides]
        name = sha256(self._model, *ids, b"%d" % batch.output_lengths[row])
        return self.folder / name[:2] / f"{name}.safetensors"

    @cached_property
    def _model(self) -> bytes:
        """What the states depend on beside the row."""
        checkpoint = self.passes.checkpoint
        config = {name: value for name, value in checkpoint.reader.config.to_dict().items() if name != "_name_or_path"}
        known = [checkpoint.config.base_fingerprint, str(checkpoint.reader.dtype), config]
        return json.dumps(known, sort_keys=True, default=str).encode()

    @cached_property
    def _heads(self) -> list[int]:
        """Key/value heads of every layer."""
        return [heads for heads, _, _ in gist_layers(self.passes.checkpoint)]

    @property
    def _head(self) -> Any:
        return self.passes.checkpoint.reader.get_output_embeddings()

    @property
    def _width(self) -> int:
        return int(self._head.weight.shape[1])

    _is_checked = False

    @contextmanager
    def _head_inputs(self) -> Iterator[list[Tensor]]:
        """What goes into the model's head meanwhile, [batch, targets, hidden] of each pass."""
        inputs: list[Tensor] = []
        handle = self._head.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        try:
            yield inputs
        finally:
            handle.remove()

    def _unwritable(self, error: Exception) -> InputError:
        return InputError(f"cannot write to teacher_cache {self.folder}: {reason(error)}; name another folder")


def _rows(batch: Batch, rows: list[int]) -> Batch:
    return Batch(**{name: tensor[rows] for name, tensor in vars(batch).items()})


def _widened(columns: Tensor, width: int) -> Tensor:
    """[batch, n, ...] with zeros on the left, to so many columns."""
    missing = columns.new_zeros(len(columns), width - columns.shape[1], *columns.shape[2:])
    return torch.cat([missing, columns], dim=1) if missing.shape[1] else columns


def _joined(pieces: Sequence[Any], order: Tensor) -> Any:
    """Rows encoded in pieces, in ``order`` [batch]; None where prompts are not encoded apart."""
    if pieces[0] is None:
        return None

    def join(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors))[order]

    looks = None if pieces[0].looks is None else [join(each) for each in zip(*(p.looks for p in pieces), strict=True)]
    return Encoded(
        key_values=[
            (join([keys for keys, _ in layer]), join([values for _, values in layer]))
            for layer in zip(*(piece.key_values for piece in pieces), strict=True)
        ],
        parts=join([piece.parts for piece in pieces]),
        positions=join([piece.positions for piece in pieces]),
        gist_start=join([piece.gist_start for piece in pieces]),
        tokens=join([piece.tokens for piece in pieces]),
        looks=looks,
    )
