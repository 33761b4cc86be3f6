"""Caches the teacher's results in a folder, for later passes over the rows and for other runs on the same base.

Knows nothing of losses. A row's file holds the hidden states from which the model's head computes the logits of its
targets (the logits themselves would be larger, as the vocabulary is larger than a state) and its rest's attention mass.
The file's name is a hash of the base, the row's tokens and what is cached.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gistlm.compress import gist_layers
from gistlm.errors import InputError, UnsupportedModelError
from gistlm.files import reason, remove_abandoned, sha256, write_atomically
from gistlm.gisting.placement import Part
from gistlm.training.batches import Batch
from gistlm.training.distributed import is_sharded
from gistlm.training.objectives import Passes

_STATES, _MASS, _DIGEST = "states", "looks", "sha256"
_WRITE_TEST = ".writable"
"""Written and removed when a run begins, to find out whether the folder can be written."""


class Teacher:
    """The full prompt's pass over a batch (a `TeacherPass`), skipped if all of the batch's rows are cached.

    Raises `InputError` if the folder cannot be written, on construction or later, and in the first batch
    `UnsupportedModelError` for a model that changes its logits after the head.
    """

    def __init__(self, passes: Passes, folder: str | Path) -> None:
        self.passes = passes
        self.folder = Path(folder)
        self._is_checked = False
        if is_sharded():
            raise InputError("with FSDP all processes must run the same passes; leave teacher_cache out")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for shelf in self.folder.glob("[0-9a-f][0-9a-f]"):
                remove_abandoned(shelf)
            write_atomically(self.folder / _WRITE_TEST, b"")
            (self.folder / _WRITE_TEST).unlink(missing_ok=True)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise self._unwritable(error) from error

    def __call__(self, batch: Batch, is_output: Tensor, probed: bool) -> tuple[Tensor, Any]:
        """Logits [batch, last, vocabulary] and encoded prompts, as from `Passes.full_prompt`, without gradients.

        is_output: bool [batch, last], which targets are output tokens; other logits mean nothing. The pass runs if any
        row is not cached.
        """
        counts = is_output.sum(dim=1).tolist()
        lengths = (batch.prompt_parts != Part.PAD).sum(dim=1).tolist()
        paths = self._paths(batch, counts, probed)
        found = [
            self._read(path, count, length if probed else None)
            for path, count, length in zip(paths, counts, lengths, strict=True)
        ]
        known = [tensors for tensors in found if tensors]
        if len(known) == len(found):
            return self._recall(batch, is_output.shape[1], known)
        with self._head_inputs() as inputs:
            logits, encoded = self.passes.full_prompt(batch, is_output.shape[1], probed)
        self._check(inputs, logits)
        states = inputs[-1].cpu()
        mass = torch.cat([each.cpu() for each in encoded.rest_mass], dim=1) if probed else None
        for row, path in enumerate(paths):
            if found[row]:
                continue
            tensors = {_STATES: states[row, states.shape[1] - counts[row] :]}
            if mass is not None:
                tensors[_MASS] = mass[row, :, mass.shape[2] - lengths[row] :]
            self._write(path, {name: tensor.contiguous() for name, tensor in tensors.items()})
        return logits, encoded

    def _recall(self, batch: Batch, last: int, known: list[dict[str, Tensor]]) -> tuple[Tensor, Any]:
        """The result of `__call__` from cached tensors, ``known`` for every row, and a pass over the prompts only."""
        device, width = batch.rests.device, batch.prompts.shape[1]
        padded = [F.pad(each[_STATES], (0, 0, last - len(each[_STATES]), 0)) for each in known]
        encoded = self.passes.encode(batch)
        if _MASS in known[0]:
            mass = torch.stack([F.pad(each[_MASS], (width - each[_MASS].shape[1], 0)) for each in known]).to(device)
            encoded = replace(encoded, rest_mass=list(torch.split(mass, self._heads, dim=1)))
        return self._head(torch.stack(padded).to(device)), encoded

    def _check(self, inputs: list[Tensor], logits: Tensor) -> None:
        """In the first batch, raise `UnsupportedModelError` unless the head's inputs give the logits."""
        if self._is_checked:
            return
        self._is_checked = True
        made = self._head(inputs[-1])[:, -logits.shape[1] :].to(logits.dtype) if inputs else None
        if made is None or not torch.allclose(made, logits, rtol=0, atol=0, equal_nan=True):
            raise UnsupportedModelError(
                f"{type(self.passes.checkpoint.reader).__name__} changes its logits after its head, and "
                "teacher_cache keeps what goes into the head; set teacher_cache to null"
            )

    def _read(self, path: Path, count: int, length: int | None) -> dict[str, Tensor] | None:
        """Read a row's states of ``count`` targets and, if ``length`` is given, its rest's attention mass on a prompt
        of that length. None if there is no such file, or if it is damaged or holds something else; the row is then run.
        """
        shapes = {_STATES: [count, self._head.weight.shape[1]]}
        if length is not None:
            shapes[_MASS] = [sum(self._heads), length]
        try:
            with safe_open(path, "pt") as file:
                if any(file.get_slice(name).get_shape() != shape for name, shape in shapes.items()):
                    return None
                tensors = {name: file.get_tensor(name) for name in shapes}
                digest = (file.metadata() or {}).get(_DIGEST)
        except (OSError, SafetensorError):
            return None
        dtypes = {_STATES: self._head.weight.dtype, _MASS: torch.float32}
        fits = all(tensor.dtype == dtypes[name] for name, tensor in tensors.items())
        return tensors if fits and digest == _digest(tensors) else None

    def _write(self, path: Path, tensors: dict[str, Tensor]) -> None:
        try:
            write_atomically(path, save(tensors, {_DIGEST: _digest(tensors)}))
        except OSError as error:
            raise self._unwritable(error) from error

    def _paths(self, batch: Batch, counts: list[int], probed: bool) -> list[Path]:
        """Each row's file. Another number of targets, or attention mass beside the states, makes it another file."""
        rows = zip(
            *(each.tolist() for each in (batch.prompts, batch.prompt_parts, batch.rests, batch.rest_parts)),
            batch.output_lengths.tolist(),
            counts,
            strict=True,
        )
        names = [
            sha256(
                self._model,
                json.dumps([prompt[parts.count(Part.PAD) :], rest[rest_parts.count(Part.PAD) :]]).encode(),
                json.dumps([output, count, probed]).encode(),
            )
            for prompt, parts, rest, rest_parts, output, count in rows
        ]
        return [self.folder / name[:2] / f"{name}.safetensors" for name in names]

    @cached_property
    def _model(self) -> bytes:
        """Everything but the row that the states depend on, as JSON."""
        checkpoint = self.passes.checkpoint
        config = {name: value for name, value in checkpoint.reader.config.to_dict().items() if name != "_name_or_path"}
        known = [checkpoint.config.bases[0].weights, str(checkpoint.reader.dtype), config, checkpoint.placement.opening]
        return json.dumps(known, sort_keys=True, default=str).encode()

    @cached_property
    def _heads(self) -> list[int]:
        """Number of key/value heads in every layer, found by a pass of one token."""
        return [heads for heads, _, _ in gist_layers(self.passes.checkpoint)]

    @property
    def _head(self) -> Any:
        return self.passes.checkpoint.reader.get_output_embeddings()

    @contextmanager
    def _head_inputs(self) -> Iterator[list[Tensor]]:
        """Record the inputs of the model's head within the `with` block, one [batch, targets, hidden] per pass."""
        inputs: list[Tensor] = []
        handle = self._head.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        try:
            yield inputs
        finally:
            handle.remove()

    def _unwritable(self, error: Exception) -> InputError:
        return InputError(f"cannot write to teacher_cache {self.folder}: {reason(error)}; name another folder")


def _digest(tensors: dict[str, Tensor]) -> str:
    return sha256(*(tensors[name].view(torch.uint8).numpy().tobytes() for name in sorted(tensors)))
