"""A gist: keys and values of k tokens that take a prompt's place.

Knows nothing of models or text: `compress` makes gists, an engine reads them, `gist_file` checks what a file holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from gistlm.errors import GistFileError, GistMismatchError, InputError
from gistlm.files import reason, write_atomically
from gistlm.gist_file import DTYPES as DTYPE_NAMES
from gistlm.gist_file import Array, GistFile, Provenance, TensorSpec, check_dtype, check_specs, describe, file_metadata

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}


@dataclass(frozen=True, eq=False)
class Gist:
    """Keys and values of k tokens, learned ones and then kept ones; a pair of [kv_heads, k, head_dim] per layer."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    provenance: Provenance
    states: Tensor | None = None
    """[k, hidden]: final states of an encoder's gist tokens, which its decoder reads; None for a decoder-only model"""

    def __post_init__(self) -> None:
        check_specs(self._specs, self.provenance.kept)

    @property
    def k(self) -> int:
        """Number of tokens, learned and kept."""
        return int(self.keys[0].shape[1])

    @property
    def dtype(self) -> torch.dtype:
        """The one dtype of keys, values and states."""
        return self.keys[0].dtype

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and states in memory."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    @property
    def end(self) -> int:
        """Position of the first token of the rest."""
        return self.provenance.start + self.learned

    @property
    def learned(self) -> int:
        """Number of learned tokens; 0 if the gist keeps all or nearly all tokens of a short prompt."""
        return self.k - self.provenance.kept

    @property
    def nested(self) -> bool:
        """Whether its first j tokens are a gist too, for every j, so that it can be shortened."""
        return self.states is None and not self.provenance.kept

    @cached_property
    def id(self) -> str:
        """Content hash (sha256, hex): equal for equal gists, on every machine."""
        return self._file.id

    def shorten(self, j: int) -> Gist:
        """The gist of the first j tokens, which never attended to the later ones.

        Raises `InputError` for an encoder's gist, whose tokens attend to each other, and for a gist with kept tokens,
        whose first token depends on which tokens are kept.
        """
        if self.states is not None:
            raise InputError(
                "a gist of an encoder cannot be shortened: its tokens have read each other both ways; compress the "
                "prompt again with a smaller k"
            )
        if type(j) is not int or not 1 <= j <= self.k:
            raise InputError(f"cannot shorten a gist of {self.k} tokens to {j!r}; give a number from 1 to {self.k}")
        if self.provenance.kept and j < self.k:
            raise InputError(
                f"this gist of {self.k} tokens keeps {self.provenance.kept} tokens of its prompt, and is chosen "
                f"as a whole; compress the prompt again with k={j}"
            )
        return self._map(lambda tensor: tensor[:, :j].clone(memory_format=torch.contiguous_format))

    def to(self, target: torch.dtype | torch.device | str) -> Gist:
        """A copy of the gist in another dtype (also by name, such as "bfloat16") or on another device.

        Raises `InputError` for a dtype that is not in `DTYPES`, or that cannot hold the gist's numbers.
        """
        wanted = DTYPES.get(target, target) if isinstance(target, str) else target
        if isinstance(wanted, torch.dtype) and wanted not in DTYPES.values():
            raise InputError(f"a gist's dtype is one of {', '.join(DTYPES)}, got {target}")
        try:
            moved = self._map(lambda tensor: tensor.to(wanted))
        except (RuntimeError, AssertionError, TypeError) as error:
            raise InputError(f"a gist cannot be moved to {target!r}; give a dtype or a device such as cpu") from error
        if moved.dtype != self.dtype and not moved.is_finite():
            raise InputError(
                f"this gist holds numbers beyond the range of {_name(moved.dtype)}; convert it to bfloat16 or float32"
            )
        return moved

    def is_finite(self) -> bool:
        """Whether every number is finite; a gist for which this is false cannot be saved."""
        return bool(torch.stack([tensor.isfinite().all() for tensor in self._tensors().values()]).all())

    def info(self) -> dict[str, Any]:
        """A description in plain values, for people and programs; its keys are stable."""
        return describe(self.id, self._specs, self.provenance)

    def save(self, path: str | Path) -> Path:
        """Write the gist to ``path`` atomically. Returns the path."""
        path = Path(path)
        try:
            write_atomically(path, self.to_bytes())
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise GistFileError(f"cannot write the gist to {path}: {reason(error)}") from error
        return path

    @classmethod
    def load(cls, path: str | Path) -> Gist:
        """Read a gist file. Raises `GistFileError` for anything but an undamaged gist of a version in `VERSIONS`."""
        return cls.from_file(GistFile.load(path))

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "the data") -> Gist:
        """Read what `to_bytes` returned; the data is not trusted. name: what error messages call the data."""
        return cls.from_file(GistFile.from_bytes(data, name))

    @classmethod
    def from_file(cls, file: GistFile) -> Gist:
        """Make tensors, on the CPU, of a file's content."""
        tensors = {
            name: torch.frombuffer(bytearray(data), dtype=DTYPES[spec.dtype]).reshape(spec.shape)
            for name, (spec, data) in file.arrays.items()
        }
        states = tensors.pop("states", None)
        layers = range(len(tensors) // 2)
        keys, values = (tuple(tensors[f"layers.{layer}.{side}"] for layer in layers) for side in ("key", "value"))
        gist = cls(keys, values, file.provenance, states)
        gist.__dict__["id"] = file.id  # known already
        return gist

    def to_bytes(self) -> bytes:
        """The bytes of a gist file. Raises `GistFileError` if the gist holds numbers that are not finite."""
        self.provenance.check_written()
        if not self.is_finite():
            raise GistFileError(
                "this gist cannot be saved: it holds numbers that are not finite; compress the prompt again"
            )
        # copies, because safetensors refuses tensors that share memory
        tensors = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in self._tensors().items()
        }
        return save_tensors(tensors, file_metadata(self.id, self.provenance))

    def check_reader(self, fingerprints: Mapping[int, str], name: str, dtype: torch.dtype) -> None:
        """Raise `GistMismatchError` unless a model with these reader fingerprints and this dtype can read the gist.

        fingerprints: by version, as `Checkpoint.fingerprints`. name: the model's display name.
        """
        self.provenance.check_model(fingerprints, name)
        check_dtype(_name(self.dtype), _name(dtype))

    def check_shape(self, layers: Sequence[tuple[int, int, int]], start: int, hidden: int | None = None) -> None:
        """Raise `GistMismatchError` unless the gist has the shape and position that the reader needs.

        layers: (kv_heads, key dim, value dim) of each of the reader's layers. start: position at which the reader reads
        the gist. hidden: size of the states that the reader needs, None if it needs none. Matching fingerprints do not
        make this check superfluous: whoever can write a file can give it any fingerprint.
        """
        found_hidden = None if self.states is None else int(self.states.shape[1])
        if found_hidden != hidden:
            raise GistMismatchError(
                f"this gist has {'no' if found_hidden is None else found_hidden} numbers in an encoder's state, the "
                f"model reads {'none' if hidden is None else hidden}; compress the prompt again with this model"
            )
        found = [
            (int(key.shape[0]), int(key.shape[2]), int(value.shape[2]))
            for key, value in zip(self.keys, self.values, strict=True)
        ]
        if found != list(layers):
            raise GistMismatchError(
                f"this gist has {len(found)} layers of (kv_heads, key dim, value dim) {found[0]}, the model "
                f"{len(layers)} of {layers[0]}; compress the prompt again with this model"
            )
        if self.provenance.start != start:
            raise GistMismatchError(
                f"this gist begins at position {self.provenance.start}, and this model reads it at {start}; "
                f"compress the prompt again"
            )

    @property
    def _file(self) -> GistFile:
        """The content of the gist's file."""
        arrays = {
            name: Array(_spec(tensor), tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
            for name, tensor in self._tensors().items()
        }
        return GistFile(arrays, self.provenance)

    @property
    def _specs(self) -> dict[str, TensorSpec]:
        return {name: _spec(tensor) for name, tensor in self._tensors().items()}

    def _map(self, change: Callable[[Tensor], Tensor]) -> Gist:
        states = None if self.states is None else change(self.states)
        return replace(self, keys=tuple(map(change, self.keys)), values=tuple(map(change, self.values)), states=states)

    def _tensors(self) -> dict[str, Tensor]:
        named = {f"layers.{layer}.key": key for layer, key in enumerate(self.keys)}
        named |= {f"layers.{layer}.value": value for layer, value in enumerate(self.values)}
        return named if self.states is None else {**named, "states": self.states}


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(_name(tensor.dtype), tuple(tensor.shape))


def _name(dtype: torch.dtype) -> str:
    """The dtype's name, for example "bfloat16"."""
    return str(dtype).removeprefix("torch.")
