"""A gist: the keys and values of k gist tokens that have read a prompt, and the file that keeps them.

Knows nothing of models or text: `compress` makes gists, an engine reads them. The file is safetensors with
a bounded JSON header; its content hash covers every byte that matters, so a damaged file is refused.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from gistlm.errors import GistFileError, GistMismatchError, InputError
from gistlm.files import reason, sha256, write_atomically
from gistlm.provenance import GistInfo

FORMAT = "gistlm.gist"
VERSION = 1
MAX_HEADER_BYTES = 1 << 20
MAX_FILE_BYTES = 4 << 30
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


@dataclass(frozen=True, eq=False)
class Gist:
    """k gist tokens as keys and values, one pair of tensors [kv_heads, k, head_dim] a layer."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    provenance: GistInfo
    states: Tensor | None = None
    """[k, hidden]: the final states of an encoder's gist tokens, which its decoder reads; None of a decoder's."""

    def __post_init__(self) -> None:
        if not self.keys or len(self.keys) != len(self.values):
            raise GistFileError(
                f"a gist has keys and values for every layer, got {len(self.keys)} and {len(self.values)}"
            )
        for key, value in zip(self.keys, self.values, strict=True):
            if key.dim() != 3 or value.dim() != 3 or key.shape[:2] != value.shape[:2] or key.shape[1] != self.k:
                raise GistFileError(
                    f"a gist's layers must be [kv_heads, k, head_dim], got {[*key.shape]} and {[*value.shape]}"
                )
            if not key.numel() or not value.numel():
                raise GistFileError(f"a gist cannot be empty, got {[*key.shape]} and {[*value.shape]}")
            if key.dtype != self.dtype or value.dtype != self.dtype:
                raise GistFileError(f"a gist has one dtype, got {self.dtype}, {key.dtype} and {value.dtype}")
        if self.provenance.kept > self.k:
            raise GistFileError(f"a gist of {self.k} tokens cannot keep {self.provenance.kept} of its prompt")
        states = self.states
        if states is not None and (states.dim(), states.shape[0], states.dtype) != (2, self.k, self.dtype):
            raise GistFileError(f"states must be {self.dtype} [k, hidden], got {states.dtype} {[*states.shape]}")
        if self.dtype not in DTYPES.values():
            raise GistFileError(f"a gist's dtype is one of {', '.join(DTYPES)}, got {self.dtype}")

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
        return _content_hash(self._tensors(), self.provenance.to_json())

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
        """The same gist in another dtype (also by name, such as "bfloat16") or on another device."""
        wanted = DTYPES.get(target, target) if isinstance(target, str) else target
        if isinstance(wanted, torch.dtype) and wanted not in DTYPES.values():
            raise InputError(f"a gist's dtype is one of {', '.join(DTYPES)}, got {target}")
        try:
            return self._map(lambda tensor: tensor.to(wanted))
        except (RuntimeError, AssertionError, TypeError) as error:
            raise InputError(f"a gist cannot be moved to {target!r}; give a dtype or a device such as cpu") from error

    def info(self) -> dict[str, Any]:
        """Plain values for people and programs; the keys are stable."""
        size = self.nbytes
        prompt_bytes = size // self.k * self.provenance.prompt_tokens
        return {
            "id": self.id,
            "k": self.k,
            "kind": "decoder" if self.states is None else "encoder",
            "layers": len(self.keys),
            "kv_heads": int(self.keys[0].shape[0]),
            "head_dim": int(self.keys[0].shape[2]),
            "dtype": str(self.dtype).removeprefix("torch."),
            "nbytes": size,
            "prompt_nbytes": prompt_bytes,
            "compression": round(self.provenance.prompt_tokens / self.k, 2),
            **asdict(self.provenance),
        }

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
        path = Path(path)
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise GistFileError(f"{path} is not a file; give the path of a .gist file")
            if status.st_size > MAX_FILE_BYTES:
                raise GistFileError(f"{path} has {status.st_size:,} bytes; a gist has at most {MAX_FILE_BYTES:,}")
            data = path.read_bytes()
        except FileNotFoundError:
            raise GistFileError(
                f"there is no gist at {path}; make one with: gistlm compress PROMPT.txt -o {path}"
            ) from None
        except (OSError, ValueError) as error:
            raise GistFileError(f"cannot read the gist at {path}: {reason(error)}") from error
        return cls.from_bytes(data, str(path))

    def to_bytes(self) -> bytes:
        """The file's content."""
        metadata = {"format": FORMAT, "version": str(VERSION), "gist": self.provenance.to_json(), "sha256": self.id}
        # copies, because safetensors refuses tensors that share memory
        tensors = {
            name: tensor.detach().clone(memory_format=torch.contiguous_format)
            for name, tensor in self._tensors().items()
        }
        return save_tensors(tensors, metadata)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "the data") -> Gist:
        """The inverse of `to_bytes`; trusts nothing. ``name`` is used in errors."""
        metadata = _read_metadata(data, name)
        if metadata.get("format") != FORMAT:
            raise GistFileError(f"{name} is a safetensors file but not a gist")
        if metadata.get("version") != str(VERSION):
            raise GistFileError(
                f"{name} has gist format version {metadata.get('version')}; this gistlm reads version {VERSION}"
            )
        try:
            provenance = GistInfo(**json.loads(metadata["gist"]))
            tensors = load_tensors(data)
            states = tensors.pop("states", None)
            layers = range(len(tensors) // 2)
            keys = tuple(tensors.pop(f"layers.{layer}.key") for layer in layers)
            values = tuple(tensors.pop(f"layers.{layer}.value") for layer in layers)
            if tensors:
                raise GistFileError(f"it holds tensors that no gist has: {sorted(tensors)[:3]}")
            gist = cls(keys, values, provenance, states)
        except KeyError as error:
            raise GistFileError(f"{name} is a damaged gist: it has no {error}") from error
        except (GistFileError, SafetensorError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            raise GistFileError(f"{name} is a damaged gist: {error}") from error
        if gist.id != metadata.get("sha256"):
            raise GistFileError(f"{name} is damaged: its content does not match its hash")
        if not all(bool(tensor.isfinite().all()) for tensor in gist._tensors().values()):
            raise GistFileError(f"{name} is damaged: it holds numbers that are not finite")
        return gist

    def check_reader(self, model: str, name: str, dtype: torch.dtype) -> None:
        """Raise `GistMismatchError` unless a model with this fingerprint and dtype can read the gist."""
        made_by = self.provenance
        if made_by.model != model:
            raise GistMismatchError(
                f"this gist was made for {made_by.base} (fingerprint {made_by.model[:12]}), not for {name} "
                f"({model[:12]}); compress the prompt again with this model"
            )
        if self.dtype != dtype:
            raise GistMismatchError(
                f"this gist is {self.dtype}, the model is {dtype}; convert it with gist.to({dtype}) "
                f"or load the model with dtype={self.dtype}"
            )

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

    def _map(self, change: Callable[[Tensor], Tensor]) -> Gist:
        states = None if self.states is None else change(self.states)
        return replace(self, keys=tuple(map(change, self.keys)), values=tuple(map(change, self.values)), states=states)

    def _tensors(self) -> dict[str, Tensor]:
        named = {f"layers.{layer}.key": key for layer, key in enumerate(self.keys)}
        named |= {f"layers.{layer}.value": value for layer, value in enumerate(self.values)}
        return named if self.states is None else {**named, "states": self.states}


def _content_hash(tensors: dict[str, Tensor], metadata: str) -> str:
    parts = [metadata.encode()]
    for name, tensor in sorted(tensors.items()):
        parts.append(f"{name} {tensor.dtype} {[*tensor.shape]}".encode())
        parts.append(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return sha256(*parts)


def _read_metadata(data: bytes, name: str) -> dict[str, str]:
    """The header's metadata; the header is bounded before it is parsed."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8:
        raise GistFileError(f"{name} is not a gist: it has only {len(data)} bytes")
    if length > MAX_HEADER_BYTES and data.startswith((b"\x80", b"PK\x03\x04")):
        raise GistFileError(f"{name} is a pickle or a zip, which gistlm never opens; gists are safetensors files")
    if length > MAX_HEADER_BYTES or length > len(data) - 8:
        raise GistFileError(f"{name} is not a gist or is cut short: its header claims {length:,} bytes")
    try:
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (ValueError, AttributeError, RecursionError) as error:
        raise GistFileError(f"{name} is not a gist: its header is not JSON") from error
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise GistFileError(f"{name} is not a gist: its header has no metadata")
    return metadata
