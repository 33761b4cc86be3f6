"""Damaged, foreign and hostile files: nothing but a whole gist ever loads as one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from gists import make_gist, same
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_tensors
from tiny import tiny_checkpoint

from gistlm.engines.transformers import GistModel
from gistlm.errors import GistFileError, GistMismatchError
from gistlm.gist import Gist
from gistlm.gist_file import MAX_HEADER_BYTES, VERSIONS, file_metadata

GISTS = {version: make_gist(k=2, layers=1, width=1, version=version) for version in VERSIONS}
GIST = GISTS[VERSIONS[-1]]


def file_of(tensors: dict[str, torch.Tensor], **metadata: str) -> bytes:
    """A safetensors file with a gist's metadata, changed; its hash is that of `GIST`."""
    whole = {**file_metadata(GIST.id, GIST.provenance), **metadata}
    return save_tensors({name: tensor.clone() for name, tensor in tensors.items()}, whole)


def with_header(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header, bytes or JSON, and perhaps another length in front."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + body


def assert_refused(data: bytes, match: str | None = None) -> None:
    with pytest.raises(GistFileError, match=match) as caught:
        Gist.from_bytes(data, "some.gist")
    assert "some.gist" in str(caught.value)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_cut_short_anywhere_is_refused(version: int) -> None:
    whole = GISTS[version].to_bytes()
    for length in range(len(whole)):
        assert_refused(whole[:length])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_with_any_one_bit_flipped_is_refused(version: int) -> None:
    whole = GISTS[version].to_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(GistFileError):
            Gist.from_bytes(bytes(damaged))
            pytest.fail(f"bit {bit % 8} of byte {bit // 8} ({whole[bit // 8 :][:12]!r}) made no difference")


@settings(max_examples=300)
@given(
    gist=st.sampled_from([*GISTS.values()]),
    part=st.floats(0, 1),
    removed=st.integers(0, 64),
    put=st.binary(max_size=64),
)
def test_a_file_with_bytes_replaced_is_refused_or_the_same_gist(
    gist: Gist, part: float, removed: int, put: bytes
) -> None:
    whole = gist.to_bytes()
    at = round(part * len(whole))
    damaged = whole[:at] + put + whole[at + removed :]
    try:
        loaded = Gist.from_bytes(damaged)
    except GistFileError:
        return
    assert same(loaded, gist)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    assert_refused(data)
    assert_refused(with_header(data))


@settings(max_examples=200)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    ),
    st.sampled_from(["whole", "__metadata__", "gist", "tensor"]),
)
def test_any_json_in_the_header_is_refused(value: Any, where: str) -> None:
    metadata: Any = {**file_metadata(GIST.id, GIST.provenance), "gist": json.dumps(value)}
    made: Any = {"__metadata__": value if where == "__metadata__" else metadata}
    if where == "tensor":
        made["layers.0.key"] = value
    assert_refused(with_header(value if where == "whole" else made))


TENSORS = GIST._tensors()
KEY, VALUE = TENSORS["layers.0.key"], TENSORS["layers.0.value"]
ONE = torch.ones(2, 2, 1)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({}, "for every layer, got none"),
        ({"layers.0.key": KEY}, r"it has no 'layers\.0\.value'"),
        ({"layers.0.key": KEY, "layers.00.value": VALUE}, r"tensors that no gist has: \['layers\.00\.value'\]"),
        ({"layers.0.key": KEY, "layers.1.value": VALUE}, r"it has no 'layers\.0\.value'"),
        ({**TENSORS, "layers.2.key": ONE, "layers.2.value": ONE}, r"it has no 'layers\.1\.key'"),
        ({**TENSORS, "layers.0.counts": ONE}, r"it has 'layers\.0\.counts', which this gistlm cannot read yet"),
        ({**TENSORS, "layers.0.key_scale": ONE}, r"it has 'layers\.0\.key_scale', which this gistlm cannot read yet"),
        ({**TENSORS, "extra": ONE}, r"tensors that no gist has: \['extra'\]"),
        ({**TENSORS, "layers.0.key": torch.ones(2, 3, 1)}, r"must be \[kv_heads, k, head_dim\]"),
        ({**TENSORS, "layers.0.value": torch.ones(1, 2, 1)}, r"must be \[kv_heads, k, head_dim\]"),
        (
            {**TENSORS, "layers.1.key": torch.ones(2, 3, 1), "layers.1.value": torch.ones(2, 3, 1)},
            r"must be \[kv_heads",
        ),
        ({"layers.0.key": torch.ones(4), "layers.0.value": torch.ones(4)}, r"must be \[kv_heads, k, head_dim\]"),
        ({"layers.0.key": torch.ones(()), "layers.0.value": torch.ones(())}, "damaged"),
        ({"layers.0.key": torch.ones(2, 0, 1), "layers.0.value": torch.ones(2, 0, 1)}, "cannot be empty"),
        ({"layers.0.key": torch.ones(0, 2, 1), "layers.0.value": torch.ones(0, 2, 1)}, "cannot be empty"),
        ({"layers.0.key": torch.ones(2, 2, 0), "layers.0.value": torch.ones(2, 2, 0)}, "cannot be empty"),
        ({"layers.0.key": ONE.to(torch.int8), "layers.0.value": ONE.to(torch.int8)}, "got I8"),
        ({"layers.0.key": ONE.double(), "layers.0.value": ONE.double()}, "got F64"),
        ({**TENSORS, "layers.0.value": VALUE.to(torch.bfloat16)}, "one dtype"),
        ({name: tensor.to(torch.float16) for name, tensor in TENSORS.items()}, "does not match its hash"),
        ({"layers.0.key": VALUE, "layers.0.value": KEY}, "does not match its hash"),
    ],
)
def test_tensors_that_are_not_this_gists_are_refused(tensors: dict[str, torch.Tensor], match: str) -> None:
    assert_refused(file_of(tensors), match)


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        (
            {"version": "3"},
            "format version '3'; this gistlm reads versions 1 and 2; read it with the gistlm that made it",
        ),
        ({"version": "1"}, "version 1 has no origin and no form"),
        ({"gist": GIST.provenance.to_json().replace("compressed", "tuned")}, "it is 'tuned' and 'uniform', which this"),
        ({"gist": GIST.provenance.to_json().replace("uniform", "free")}, "it is 'compressed' and 'free', which this"),
        *(
            (
                {"gist": GIST.provenance.to_json().replace('"start"', f'"{name}": [], "start"')},
                f"it has {name}, which this",
            )
            for name in ("slots", "positions", "scales")
        ),
        ({"gist": GIST.provenance.to_json().replace('"start"', '"version": 1, "start"')}, "has a version inside"),
        ({"version": "01"}, "format version '01'"),
        ({"format": "something.else"}, "safetensors file but not a gist"),
        ({"sha256": "0" * 64}, "does not match its hash"),
        ({"gist": "[1]"}, "damaged"),
        ({"gist": "{"}, "damaged"),
        ({"gist": "[" * 100_000}, "damaged"),
        ({"gist": "1" * 10_000}, "damaged"),
        ({"gist": make_gist(base="tinier").provenance.to_json()}, "does not match its hash"),
        (
            {"gist": GIST.provenance.to_json().replace('"start": 3', '"start": true')},
            "start must be a valid integer, got True",
        ),
        (
            {"gist": GIST.provenance.to_json().replace('"start": 3', '"start": -3')},
            "must be greater than or equal to 0",
        ),
        ({"gist": GIST.provenance.to_json().replace('"start": 3', f'"start": {"9" * 4000}')}, "damaged"),
        ({"gist": GIST.provenance.to_json().replace('"kept": 0', '"kept": 3')}, "2 tokens cannot keep 3"),
        ({"gist": GIST.provenance.to_json().replace('"kept": 0', '"kept": -1')}, "must be greater than"),
        (
            {"gist": GIST.provenance.to_json().replace('"kept": 0', '"kept": 0.5')},
            "kept must be a valid integer, got 0.5",
        ),
        ({"gist": GIST.provenance.to_json().replace('"tiny"', "7")}, "base must be a valid string, got 7"),
        ({"gist": GIST.provenance.to_json().replace('"base"', '"bass"')}, "damaged"),
        ({"gist": GIST.provenance.to_json().replace('"start": 3', '"start": 3, "more": 4')}, "damaged"),
    ],
)
def test_metadata_that_is_not_this_gists_is_refused(metadata: dict[str, str], match: str) -> None:
    assert_refused(file_of(TENSORS, **metadata), match)


@pytest.mark.parametrize(
    "changed",
    [{"format": None}, {"version": None}, {"gist": None}, {"sha256": None}],
    ids=lambda each: next(iter(each)),
)
def test_missing_metadata_is_refused(changed: dict[str, None]) -> None:
    metadata = file_metadata(GIST.id, GIST.provenance)
    assert_refused(save_tensors(TENSORS, {name: value for name, value in metadata.items() if name not in changed}))


def test_another_safetensors_file_is_refused_as_one() -> None:
    assert_refused(save_tensors({"weight": torch.ones(2)}), "safetensors file but not a gist")
    assert_refused(save_tensors({"weight": torch.ones(2)}, {"format": "pt"}), "safetensors file but not a gist")


def _tensor(shape: list[int], dtype: str = "F32", end: int = 0) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


@pytest.mark.parametrize(
    "entry",
    [
        _tensor([0, 2**62, 2]),
        _tensor([0, 2**63, 2]),
        _tensor([0, 2**64]),
        _tensor([2**32, 2**32], end=16),
        _tensor([1, 2, 1], end=2**60),
        _tensor([1, 16, 1], "F4", end=8),
        _tensor([1, 8, 1], "F8_E8M0", end=8),
        _tensor([1, 1, 1], "C64", end=8),
        {**_tensor([1, 1, 1]), "data_offsets": [4, 0]},
        {**_tensor([1, 1, 1]), "data_offsets": [-4, 0]},
        {"dtype": "F32"},
    ],
    ids=json.dumps,
)
def test_impossible_tensors_are_refused_before_memory_is_taken(entry: dict[str, Any]) -> None:
    made = {"__metadata__": file_metadata(GIST.id, GIST.provenance), "layers.0.key": entry, "layers.0.value": entry}
    assert_refused(with_header(made, bytes(16)))


@pytest.mark.parametrize("claimed", [MAX_HEADER_BYTES + 1, 1 << 40, (1 << 64) - 1])
def test_a_header_that_claims_too_much_is_refused_unread(claimed: int) -> None:
    assert_refused(with_header(b"{}", length=claimed), f"header claims {claimed:,} bytes")


def test_a_header_larger_than_allowed_is_refused_although_it_is_there() -> None:
    assert_refused(with_header(b"{" + b" " * MAX_HEADER_BYTES + b"}"), "header claims")


def test_a_deeply_nested_header_is_refused() -> None:
    assert_refused(with_header(b"[" * MAX_HEADER_BYTES), "not JSON")
    assert_refused(with_header(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "not JSON")


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_is_refused_and_never_run(tmp_path: Path, protocol: int) -> None:
    import pickle

    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "x.gist"
    path.write_bytes(pickle.dumps([Trap(), "padding"], protocol))
    with pytest.raises(GistFileError, match=r"x\.gist"):
        Gist.load(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("new_format", [True, False])
def test_a_torch_checkpoint_is_refused_as_one(tmp_path: Path, new_format: bool) -> None:
    path = tmp_path / "x.gist"
    torch.save({"keys": KEY}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(GistFileError, match=r"x\.gist is a pickle or a zip"):
        Gist.load(path)


# Whole files that do not fit the model, whatever they say of themselves


def forged(gist: Gist, layers: slice = slice(None), heads: slice = slice(None), start: int | None = None) -> Gist:
    """The gist with fewer layers or heads or another position, under the right fingerprint."""
    provenance = gist.provenance if start is None else gist.provenance.replace(start=start)
    keys, values = (tuple(t[heads] for t in tensors[layers]) for tensors in (gist.keys, gist.values))
    return Gist.from_bytes(Gist(keys, values, provenance).to_bytes())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": slice(0, 1)}, "1 layers"),
        ({"heads": slice(0, 1)}, "kv_heads"),
        ({"start": 100}, "position 100"),
    ],
)
def test_a_gist_of_another_shape_or_place_is_refused_under_the_right_fingerprint(
    change: dict[str, Any], said: str
) -> None:
    model = GistModel(tiny_checkpoint("llama"))
    gist = model.compress("a prompt", 2)
    model.generate("hi", forged(gist), max_new_tokens=1)
    with pytest.raises(GistMismatchError, match=said):
        model.generate("hi", forged(gist, **change), max_new_tokens=1)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_that_are_not_finite_are_neither_read_nor_written(
    tmp_path: Path, dtype: torch.dtype, number: float
) -> None:
    gist = make_gist(k=2, layers=2, width=1, dtype=dtype)
    gist.values[1][0, 1, 0] = number
    with pytest.raises(GistFileError, match=r"not finite, in layers\.1\.value"):
        Gist.from_bytes(save_tensors(gist._tensors(), file_metadata(gist.id, gist.provenance)))
    with pytest.raises(GistFileError, match="cannot be saved: it holds numbers that are not finite"):
        gist.save(tmp_path / "x.gist")
    assert not any(tmp_path.iterdir())


def test_the_largest_numbers_of_a_dtype_are_finite() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        gist = make_gist(k=2, layers=1, width=1, dtype=dtype)
        gist.values[0][0, 1, 0], gist.values[0][0, 0, 0] = torch.finfo(dtype).max, torch.finfo(dtype).min
        assert same(Gist.from_bytes(gist.to_bytes()), gist)
