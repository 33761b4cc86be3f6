"""Reads and checks gist files, leaving tensors as raw bytes; loads no torch and knows nothing of models.

A gist file is safetensors with a bounded JSON header. Its content hash covers every byte that matters, so a damaged
file is refused. `gist.Gist` holds the same as tensors to compute with. docs/artefact.md specifies the format.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field
from safetensors import SafetensorError, deserialize

from gistlm.errors import GistFileError, GistMismatchError, InputError
from gistlm.files import reason, sha256
from gistlm.options import Options

FORMAT = "gistlm.gist"
VERSIONS = (1, 2)
"""Format versions that can be read; the last is written."""
MAX_POSITION = 1 << 31
"""Positions in a file are smaller than this."""
COMPRESSED, UNIFORM = "compressed", "uniform"
"""Only this origin and this form are written. Planned: origins `tuned` and `joined`, form `free`."""
PLANNED = {"slots", "positions", "scales"}
"""Header keys that version 2 reserves for planned features; none is written or read yet."""
UPGRADE = "read it with the gistlm that made it, or upgrade this one"
Position = Annotated[int, Field(ge=0, lt=MAX_POSITION)]
MAX_HEADER_BYTES = 1 << 20
MAX_FILE_BYTES = 4 << 30
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""The dtypes that a gist may have, with the number of bytes of one element."""

_CODES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Names of `DTYPES` by safetensors' names."""
_NAME = re.compile(r"layers\.(0|[1-9][0-9]*)\.(key|value)")
_PLANNED_NAME = re.compile(r"layers\.(0|[1-9][0-9]*)\.(counts|index|key_scale|value_scale)")
"""Names of tensors that version 2 reserves for planned features."""


class Provenance(Options):
    """Where a gist comes from and which model may read it: the JSON object `gist` in the file's metadata."""

    model: str
    """Fingerprint of the model that reads the gist: weights, settings, tokenizer and prompt format."""
    adapter: str
    """Fingerprint of what wrote the gist: adapter, gist embeddings, fit strengths and probe embeddings."""
    base: str
    """The checkpoint's display name."""
    prompt_sha256: str
    """Hash of the prompt's token ids."""
    prompt_tokens: Position
    """Length of the prompt in tokens, opening included."""
    start: Position
    """Position of the first learned gist token."""
    kept: Position = 0
    """Number of kept tokens. They are the last of the gist's tokens, use positions before ``start``, and so do not move
    the rest. May equal the gist's length."""
    origin: str = COMPRESSED
    """How the gist was made."""
    form: str = UNIFORM
    """"uniform": all layers and heads have equally many tokens."""
    version: Literal[1, 2] = 2
    """File format version; it also says which reader fingerprint ``model`` is."""

    @property
    def fields_of_version(self) -> list[str]:
        """Names of the fields that a file of this version holds. Those of version 1 must not change, or ids would."""
        names = ["model", "adapter", "base", "prompt_sha256", "prompt_tokens", "start"]
        if self.version == 1:
            return names + ["kept"] * bool(self.kept)
        return [*names, "kept", "origin", "form"]

    @classmethod
    def of_version(cls, version: int, values: dict[str, Any]) -> Provenance:
        """Parse the values of a file's header. Raises `GistFileError` for what this gistlm cannot read."""
        if version == 1 and ("origin" in values or "form" in values):
            raise GistFileError("version 1 has no origin and no form")
        if planned := sorted(PLANNED & set(values)):
            raise GistFileError(f"it has {planned[0]}, which this gistlm cannot read yet; {UPGRADE}")
        if "version" in values:
            raise GistFileError("its header has a version inside")
        try:
            made = cls.parse({**values, "version": version})
        except InputError as error:
            raise GistFileError(str(error)) from None
        if (made.origin, made.form) != (COMPRESSED, UNIFORM):
            raise GistFileError(
                f"it is {made.origin!r:.60} and {made.form!r:.60}, which this gistlm cannot read yet; {UPGRADE}"
            )
        return made

    def check_written(self) -> None:
        """Raise `GistFileError` for what no file may say yet."""
        if (self.origin, self.form) != (COMPRESSED, UNIFORM):
            raise GistFileError(f"no gist of origin {self.origin!r:.60} and form {self.form!r:.60} can be saved yet")

    def check_model(self, fingerprints: Mapping[int, str], name: str) -> None:
        """Raise `GistMismatchError` unless a model with these reader fingerprints, by version, can read the gist.

        name: the model's display name.
        """
        wanted = fingerprints.get(self.version, "")
        if self.model != wanted:
            raise self.mismatch(name, wanted[:12])

    def mismatch(self, name: str, fingerprint: str) -> GistMismatchError:
        """The error for a model that cannot read the gist; its name and fingerprint are shown in the message."""
        return GistMismatchError(
            f"this gist was made for {self.base} (fingerprint {self.model[:12]}), not for {name} "
            f"({fingerprint}); compress the prompt again with this model"
        )

    def to_json(self) -> str:
        """The text of the object `gist` in a file's metadata."""
        return json.dumps({name: getattr(self, name) for name in self.fields_of_version}, sort_keys=True)


class TensorSpec(NamedTuple):
    """A tensor's dtype, such as "float32", and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the tensor's data in bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype]


class Array(NamedTuple):
    """A tensor as raw bytes."""

    spec: TensorSpec
    data: bytes
    """The elements in row-major order, little-endian."""


@dataclass(frozen=True, eq=False)
class GistFile:
    """The content of a gist file; its tensors' names, shapes and dtypes are checked on construction."""

    arrays: Mapping[str, Array]
    """Tensors by name: "layers.0.key", "layers.0.value", ... [kv_heads, k, head_dim]; for an encoder also "states"
    [k, hidden]."""
    provenance: Provenance

    def __post_init__(self) -> None:
        check_specs(self.specs, self.provenance.kept)

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Dtype and shape of every tensor."""
        return {name: array.spec for name, array in self.arrays.items()}

    @property
    def dtype(self) -> str:
        """The one dtype that all tensors have."""
        return self.arrays["layers.0.key"].spec.dtype

    @property
    def end(self) -> int:
        """Position of the first token of the rest."""
        return self.provenance.start + self.specs["layers.0.key"].shape[1] - self.provenance.kept

    @cached_property
    def id(self) -> str:
        """Content hash (sha256, hex): equal for equal gists, on every machine."""
        parts = [self.provenance.to_json().encode()]
        for name, (spec, data) in sorted(self.arrays.items()):
            parts += [f"{name} torch.{spec.dtype} {[*spec.shape]}".encode(), data]
        return sha256(*parts)

    def info(self) -> dict[str, Any]:
        """A description in plain values, for people and programs; its keys are stable."""
        return describe(self.id, self.specs, self.provenance)

    def check_finite(self) -> None:
        """Raise `GistFileError` unless every number is finite."""
        for name, (spec, data) in self.arrays.items():
            if not _is_finite(spec.dtype, data):
                raise GistFileError(f"it holds numbers that are not finite, in {name}")

    @classmethod
    def load(cls, path: str | Path) -> GistFile:
        """Read a gist file. Raises `GistFileError` for anything but an undamaged gist of a version in `VERSIONS`."""
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

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "the data") -> GistFile:
        """Parse the bytes of a gist file, none of which is trusted. name: what error messages call the data."""
        metadata = _read_metadata(data, name)
        if metadata.get("format") != FORMAT:
            raise GistFileError(f"{name} is a safetensors file but not a gist")
        version = metadata.get("version", "")
        if version not in map(str, VERSIONS):
            raise GistFileError(
                f"{name} has gist format version {version!r:.60}; this gistlm reads versions 1 and 2; {UPGRADE}"
            )
        try:
            values = json.loads(metadata["gist"])
            if not isinstance(values, dict):
                raise GistFileError("its header is no object")
            file = cls(_arrays(data), Provenance.of_version(int(version), values))
        except KeyError as error:
            raise GistFileError(f"{name} is a damaged gist: it has no {error}") from error
        except (GistFileError, SafetensorError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise GistFileError(f"{name} is a damaged gist: {error}") from error
        if file.id != metadata.get("sha256"):
            raise GistFileError(f"{name} is damaged: its content does not match its hash")
        try:
            file.check_finite()
        except GistFileError as error:
            raise GistFileError(f"{name} is damaged: {error}") from None
        return file


def check_specs(specs: Mapping[str, TensorSpec], kept: int) -> None:
    """Raise `GistFileError` unless tensors with these specs can be a gist with ``kept`` kept tokens."""
    names = set(specs) - {"states"}
    if not names:
        raise GistFileError("a gist has keys and values for every layer, got none")
    if planned := sorted(name for name in names if _PLANNED_NAME.fullmatch(name)):
        raise GistFileError(f"it has {planned[0]!r}, which this gistlm cannot read yet; {UPGRADE}")
    if extra := sorted(name for name in names if not _NAME.fullmatch(name)):
        raise GistFileError(f"it holds tensors that no gist has: {extra[:3]}")
    layers = (len(names) + 1) // 2
    for layer, side in product(range(layers), ("key", "value")):
        if f"layers.{layer}.{side}" not in names:
            raise GistFileError(f"it has no 'layers.{layer}.{side}'")
    dtype, shape = specs["layers.0.key"]
    k = shape[1] if len(shape) == 3 else -1
    for layer in range(layers):
        key, value = specs[f"layers.{layer}.key"], specs[f"layers.{layer}.value"]
        if len(key.shape) != 3 or len(value.shape) != 3 or key.shape[:2] != value.shape[:2] or key.shape[1] != k:
            raise GistFileError(
                f"a gist's layers must be [kv_heads, k, head_dim], got {[*key.shape]} and {[*value.shape]}"
            )
        if not math.prod(key.shape) or not math.prod(value.shape):
            raise GistFileError(f"a gist cannot be empty, got {[*key.shape]} and {[*value.shape]}")
        if key.dtype != dtype or value.dtype != dtype:
            raise GistFileError(f"a gist has one dtype, got {dtype}, {key.dtype} and {value.dtype}")
    if kept > k:
        raise GistFileError(f"a gist of {k} tokens cannot keep {kept} of its prompt")
    states = specs.get("states")
    if states is not None and (len(states.shape), states.shape[:1], states.dtype) != (2, (k,), dtype):
        raise GistFileError(f"states must be {dtype} [k, hidden], got {states.dtype} {[*states.shape]}")
    if dtype not in DTYPES:
        raise GistFileError(f"a gist's dtype is one of {', '.join(DTYPES)}, got {dtype}")


def file_metadata(content_hash: str, provenance: Provenance) -> dict[str, str]:
    """The safetensors metadata of a gist file. content_hash: `GistFile.id`."""
    return {"format": FORMAT, "version": str(provenance.version), "gist": provenance.to_json(), "sha256": content_hash}


def describe(content_hash: str, specs: Mapping[str, TensorSpec], provenance: Provenance) -> dict[str, Any]:
    """A gist's description in plain values (see `GistFile.info`). content_hash: `GistFile.id`."""
    (dtype, (heads, k, head_dim)) = specs["layers.0.key"]
    nbytes = sum(spec.nbytes for spec in specs.values())
    return {
        "id": content_hash,
        "k": k,
        "kind": "encoder" if "states" in specs else "decoder",
        "layers": sum(name.endswith(".key") for name in specs),
        "kv_heads": heads,
        "head_dim": head_dim,
        "dtype": dtype,
        "nbytes": nbytes,
        "prompt_nbytes": nbytes // k * provenance.prompt_tokens,
        "compression": round(provenance.prompt_tokens / k, 2),
        **provenance.model_dump(),
    }


def check_dtype(dtype: str, wanted: str) -> None:
    """Raise `GistMismatchError` unless a gist in ``dtype`` can be read by a model in the dtype ``wanted``."""
    if dtype != wanted:
        raise GistMismatchError(
            f"this gist is {dtype}, the model is {wanted}; convert it with gist.to({wanted!r}), "
            f"or load the model with dtype={dtype}"
        )


def _arrays(data: bytes) -> dict[str, Array]:
    """The file's tensors by name. Raises `SafetensorError` for a file that safetensors cannot read."""
    found = {}
    for name, tensor in deserialize(data):  # type: ignore[no-untyped-call]
        dtype = _CODES.get(tensor["dtype"], tensor["dtype"])
        found[name] = Array(TensorSpec(dtype, tuple(tensor["shape"])), tensor["data"])
    return found


def _is_finite(dtype: str, data: bytes) -> bool:
    if dtype == "bfloat16":  # numpy has no bfloat16; one is inf or NaN if all exponent bits are 1
        return not bool(((np.frombuffer(data, "<u2") & 0x7F80) == 0x7F80).any())
    return bool(np.isfinite(np.frombuffer(data, f"<{'f4' if dtype == 'float32' else 'f2'}")).all())


def _read_metadata(data: bytes, name: str) -> dict[str, str]:
    """The metadata in the header, whose length is checked before it is parsed."""
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
