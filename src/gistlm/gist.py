"""A gist: the keys and values of k gist tokens that have read a prompt.

Knows nothing of models or text: `compress` makes gists, an engine reads them, `gist_file` says what a file holds.
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
from gistlm.gist_file import Array, Form, GistFile, GistInfo, check_dtype, check_forms, describe, header

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}


@dataclass(frozen=True, eq=False)
class Gist:
    """k gist tokens as keys and values, one pair of tensors [kv_heads, k, head_dim] a layer."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    provenance: GistInfo
    states: Tensor | None = None
    """[k, hidden]: the final states of an encoder's gist tokens, which its decoder reads; None of a decoder's."""

    def __post_init__(self) -> None:
        check_forms(self._forms, self.provenance.kept)

    @property
    def k(self) -> int:
        """Number of gist tokens."""
        return int(self.keys[0].shape[1])

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values alike."""
        return self.keys[0].dtype

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and states in memory."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    @property
    def end(self) -> int:
        """Position of the first token after the gist."""
        return self.provenance.start + self.learned

    @property
    def learned(self) -> int:
        """How many of its tokens are not the prompt's own; 0 where it keeps all or nearly all of a short prompt."""
        return self.k - self.provenance.kept

    @property
    def nested(self) -> bool:
        """Whether its first tokens are gists too, so that it can be shortened."""
        return self.states is None and not self.provenance.kept

    @cached_property
    def id(self) -> str:
        """Content hash (sha256, hex): equal for equal gists, on every machine."""
        return self._file.id

    def shorten(self, j: int) -> Gist:
        """The first j gist tokens, themselves a gist: they never saw the later ones.

        Raises `InputError` for an encoder's gist, whose tokens did, and for one that keeps tokens of its prompt, which
        is a gist only as it is.
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
        """The same gist in another dtype (also by name, such as "bfloat16") or on another device.

        Raises `InputError` for a dtype that no gist has, or whose range its numbers leave.
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
        """Whether every number is finite; no other gist can be saved."""
        return bool(torch.stack([tensor.isfinite().all() for tensor in self._tensors().values()]).all())

    def info(self) -> dict[str, Any]:
        """Plain values for people and programs; the keys are stable."""
        return describe(self.id, self._forms, self.provenance)

    def save(self, path: str | Path) -> Path:
        """Write the gist to ``path``, whole or not at all. Returns the path."""
        path = Path(path)
        try:
            write_atomically(path, self.to_bytes())
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise GistFileError(f"cannot write the gist to {path}: {reason(error)}") from error
        return path

    @classmethod
    def load(cls, path: str | Path) -> Gist:
        """Read a gist. Raises `GistFileError` for anything that is not a whole gist of this version."""
        return cls.from_file(GistFile.load(path))

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "the data") -> Gist:
        """The inverse of `to_bytes`; trusts nothing. ``name`` is used in errors."""
        return cls.from_file(GistFile.from_bytes(data, name))

    @classmethod
    def from_file(cls, file: GistFile) -> Gist:
        """The gist that a file holds, on the CPU."""
        tensors = {
            name: torch.frombuffer(bytearray(data), dtype=DTYPES[form.dtype]).reshape(form.shape)
            for name, (form, data) in file.arrays.items()
        }
        states = tensors.pop("states", None)
        layers = range(len(tensors) // 2)
        keys, values = (tuple(tensors[f"layers.{layer}.{side}"] for layer in layers) for side in ("key", "value"))
        gist = cls(keys, values, file.provenance, states)
        gist.__dict__["id"] = file.id  # known already
        return gist

    def to_bytes(self) -> bytes:
        """The file's content. Raises `GistFileError` for numbers that are not finite, which no gist may have."""
        if not self.is_finite():
            raise GistFileError(
                "this gist cannot be saved: it holds numbers that are not finite; compress the prompt again"
            )
        # copies, because safetensors refuses tensors that share memory
        tensors = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in self._tensors().items()
        }
        return save_tensors(tensors, header(self.id, self.provenance))

    def check_reader(self, fingerprints: Mapping[int, str], name: str, dtype: torch.dtype) -> None:
        """Raise `GistMismatchError` unless a model with these fingerprints, by version, and dtype can read the gist."""
        self.provenance.check_model(fingerprints, name)
        check_dtype(_name(self.dtype), _name(dtype))

    def check_shape(self, layers: Sequence[tuple[int, int, int]], start: int, hidden: int | None = None) -> None:
        """Raise `GistMismatchError` unless the reader's layers have these (kv_heads, key, value dim), the gist begins
        at ``start``, and has states of that size or none: whoever can write a file can give it any fingerprint.
        """
        own_hidden = None if self.states is None else int(self.states.shape[1])
        if own_hidden != hidden:
            raise GistMismatchError(
                f"this gist has {'no' if own_hidden is None else own_hidden} numbers in an encoder's state, the model "
                f"reads {'none' if hidden is None else hidden}; compress the prompt again with this model"
            )
        own = [
            (int(key.shape[0]), int(key.shape[2]), int(value.shape[2]))
            for key, value in zip(self.keys, self.values, strict=True)
        ]
        if own != list(layers):
            raise GistMismatchError(
                f"this gist has {len(own)} layers of (kv_heads, key dim, value dim) {own[0]}, the model {len(layers)} "
                f"of {layers[0]}; compress the prompt again with this model"
            )
        if self.provenance.start != start:
            raise GistMismatchError(
                f"this gist begins at position {self.provenance.start}, and this model reads it at {start}; "
                f"compress the prompt again"
            )

    @property
    def _file(self) -> GistFile:
        """The gist as its file holds it."""
        arrays = {
            name: Array(_form(tensor), tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
            for name, tensor in self._tensors().items()
        }
        return GistFile(arrays, self.provenance)

    @property
    def _forms(self) -> dict[str, Form]:
        return {name: _form(tensor) for name, tensor in self._tensors().items()}

    def _map(self, change: Callable[[Tensor], Tensor]) -> Gist:
        states = None if self.states is None else change(self.states)
        return replace(self, keys=tuple(map(change, self.keys)), values=tuple(map(change, self.values)), states=states)

    def _tensors(self) -> dict[str, Tensor]:
        named = {f"layers.{layer}.key": key for layer, key in enumerate(self.keys)}
        named |= {f"layers.{layer}.value": value for layer, value in enumerate(self.values)}
        return named if self.states is None else {**named, "states": self.states}


def _form(tensor: Tensor) -> Form:
    return Form(_name(tensor.dtype), tuple(tensor.shape))


def _name(dtype: torch.dtype) -> str:
    """For example "bfloat16"."""
    return str(dtype).removeprefix("torch.")
