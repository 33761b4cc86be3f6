"""The gist and its file: what comes back is what was saved, whatever the path and whenever the kill."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gists import files_below, killed_at, make_gist, make_info, moments_of_a_save, same, save_in_turn
from hypothesis import given, settings
from hypothesis import strategies as st

from gistlm.errors import GistFileError, GistMismatchError, InputError
from gistlm.gist import Gist
from gistlm.gist_file import MAX_FILE_BYTES, VERSIONS

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
GIST = make_gist(k=2, layers=1, width=1)
ONE = torch.ones(2, 2, 1)


# What is kept


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("k", "layers", "width"), [(1, 1, 1), (4, 3, 8), (16, 2, 5)])
def test_a_gist_comes_back_from_its_file_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype, k: int, layers: int, width: int
) -> None:
    gist = make_gist(k=k, layers=layers, width=width, dtype=dtype)
    path = gist.save(tmp_path / "x.gist")
    back = Gist.load(path)
    assert same(back, gist)
    assert back.id == gist.id
    assert files_below(tmp_path) == ["x.gist"]


def test_special_numbers_and_odd_names_come_back() -> None:
    numbers = torch.tensor([3.4e38, -3.4e38, -0.0, 1e-45]).reshape(1, 1, 4)
    gist = Gist((numbers,), (-numbers,), make_info(base='naïve "model" \\ 模型\n', start=0))
    assert same(Gist.from_bytes(gist.to_bytes()), gist)


@settings(max_examples=25)
@given(seed=st.integers(0, 3), k=st.integers(1, 3), dtype=st.sampled_from(DTYPES), start=st.integers(0, 2))
def test_ids_are_equal_for_equal_gists_and_only_for_them(seed: int, k: int, dtype: torch.dtype, start: int) -> None:
    gist = make_gist(seed, k=k, dtype=dtype, start=start)
    assert gist.id == make_gist(seed, k=k, dtype=dtype, start=start).id
    assert gist.id != make_gist(seed + 1, k=k, dtype=dtype, start=start).id
    assert gist.id != make_gist(seed, k=k, dtype=dtype, start=start + 1).id
    assert gist.id != make_gist(seed, k=k, dtype=dtype, start=start, adapter="other").id
    assert gist.id != replace(gist, keys=gist.values, values=gist.keys).id


def test_an_id_does_not_change_from_one_gistlm_to_the_next() -> None:
    tensors = tuple(torch.arange(6.0).reshape(1, 2, 3) + layer for layer in range(2))
    ids = {version: Gist(tensors, tensors, make_info(version=version)).id for version in VERSIONS}
    assert ids == {
        1: "c492f2a9708347148e495385fdc6568a97e9dc55c25eb6dcb7345affc4360803",
        2: "448e8bb53cca761c7876498d6e9df1f0df36cfbc8cb1a48b88e8c06fa2751db4",
    }


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_kept_tokens_are_counted_in_the_file_and_keep_a_gist_from_being_shortened(kept: int) -> None:
    gist = make_gist(k=4, kept=kept)
    back = Gist.from_bytes(gist.to_bytes())
    assert same(back, gist) and back.id == gist.id
    assert gist.end == gist.provenance.start + 4 - kept
    assert gist.learned == 4 - kept
    for j in range(1, 5):
        if kept and j < 4:
            with pytest.raises(InputError, match=f"4 tokens keeps {kept} tokens.*compress the prompt again with k={j}"):
                back.shorten(j)
            continue
        short = back.shorten(j)
        assert (short.k, short.provenance.kept) == (j, kept)
        assert short.end == gist.provenance.start + j - kept
    assert gist.nested == (not kept)


def test_layers_of_different_shapes_are_kept() -> None:
    keys = (torch.ones(2, 3, 4), torch.ones(1, 3, 8))
    values = (torch.ones(2, 3, 6), torch.ones(1, 3, 2))
    gist = Gist(keys, values, make_info())
    assert same(Gist.from_bytes(gist.to_bytes()), gist)


def test_keys_and_values_may_share_memory_or_be_views_or_have_gradients() -> None:
    base = torch.randn(3, 2, 4, 5)
    for keys, values in (
        ((base[0],), (base[0],)),
        ((base[0], base[1]), (base[1], base[2])),
        ((base[0].transpose(1, 2),), (base[1].transpose(1, 2),)),
        ((base[0].clone().requires_grad_(),), (base[1],)),
    ):
        gist = Gist(keys, values, make_info())
        assert same(Gist.from_bytes(gist.to_bytes()), gist)


@pytest.mark.parametrize("length", [1152, 19280])  # in little-endian these begin like a pickle and like a zip
def test_no_header_length_makes_a_gist_look_like_a_pickle_or_a_zip(length: int) -> None:
    short = make_gist(base="")
    padding = length - int.from_bytes(short.to_bytes()[:8], "little")
    gist = make_gist(base="x" * padding)
    data = gist.to_bytes()
    assert int.from_bytes(data[:8], "little") == length
    assert Gist.from_bytes(data).id == gist.id


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_shortening_keeps_the_first_tokens_and_frees_the_others(kv_heads: int) -> None:
    gist = make_gist(k=5)
    gist = replace(
        gist, keys=tuple(key[:kv_heads] for key in gist.keys), values=tuple(v[:kv_heads] for v in gist.values)
    )
    short = gist.shorten(2)
    assert short.k == 2 and short.provenance == gist.provenance and short.end == gist.provenance.start + 2
    for long, cut in zip((*gist.keys, *gist.values), (*short.keys, *short.values), strict=True):
        assert torch.equal(long[:, :2], cut)
        assert cut.untyped_storage().nbytes() == cut.nbytes
    assert short.id == gist.shorten(4).shorten(2).id != gist.id
    assert gist.shorten(5).id == gist.id


@pytest.mark.parametrize("j", [0, -1, 3])
def test_a_gist_cannot_be_shortened_to_nothing_or_to_more_than_it_has(j: int) -> None:
    with pytest.raises(InputError, match=f"gist of 2 tokens to {j}; give a number from 1 to 2"):
        make_gist(k=2).shorten(j)


def test_nbytes_counts_keys_and_values() -> None:
    assert make_gist(k=3, layers=2, width=4).nbytes == 2 * 2 * (2 * 3 * 4) * 4
    assert make_gist(k=3, layers=2, width=4, dtype=torch.bfloat16).nbytes == 2 * 2 * (2 * 3 * 4) * 2


def test_info_is_plain_values_under_stable_keys() -> None:
    gist = make_gist(k=2, layers=3, width=4, prompt_tokens=30)
    info = gist.info()
    assert json.loads(json.dumps(info)) == info == {
        "id": gist.id, "kind": "decoder", "k": 2, "layers": 3, "kv_heads": 2, "head_dim": 4, "dtype": "float32",
        "nbytes": 384, "prompt_nbytes": 384 * 15, "compression": 15.0, "model": "5eed" * 16, "adapter": "ada0" * 16,
        "base": "tiny", "prompt_sha256": "ab12" * 16, "prompt_tokens": 30, "start": 3, "kept": 0,
        "origin": "compressed", "form": "uniform", "version": 2,
    }  # fmt: skip


def test_another_dtype_is_another_gist() -> None:
    gist = make_gist()
    assert gist.to(torch.bfloat16).dtype == torch.bfloat16
    assert gist.to(torch.bfloat16).id != gist.id
    assert gist.to(torch.float32).id == gist.id


def test_numbers_beyond_a_dtypes_range_are_not_converted_to_it() -> None:
    large = torch.full((1, 2, 1), 1e6)
    gist = Gist((large,), (large,), make_info())
    with pytest.raises(InputError, match="beyond the range of float16; convert it to bfloat16 or float32"):
        gist.to("float16")
    assert gist.to("bfloat16").is_finite()


# Who may read it


def test_its_own_model_may_read_a_gist() -> None:
    GIST.check_reader({2: GIST.provenance.model}, "tiny", torch.float32)


def test_another_models_refusal_names_both_models() -> None:
    with pytest.raises(
        GistMismatchError, match=r"made for tiny \(fingerprint 5eed5eed5eed\), not for big \(0123456789ab"
    ):
        GIST.check_reader({2: "0123456789abcdef"}, "big", torch.float32)


def test_another_dtypes_refusal_names_both_dtypes() -> None:
    with pytest.raises(GistMismatchError, match="gist is float32, the model is bfloat16"):
        GIST.check_reader({2: GIST.provenance.model}, "tiny", torch.bfloat16)


# Tensors that are no gist


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        ((), ()),
        ((ONE,), ()),
        ((ONE, ONE), (ONE,)),
        ((torch.ones(2, 2),), (torch.ones(2, 2),)),
        ((ONE,), (ONE.half(),)),
        ((ONE.long(),), (ONE.long(),)),
    ],
)
def test_tensors_that_are_no_gist_cannot_become_one(keys: Any, values: Any) -> None:
    with pytest.raises(GistFileError):
        Gist(keys, values, make_info())


# Paths


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(GistFileError, match=r"there is no gist at .*x\.gist; make one with: gistlm compress"):
        Gist.load(tmp_path / "x.gist")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gist").touch()
    with pytest.raises(GistFileError, match=r"x\.gist is not a gist: it has only 0 bytes"):
        Gist.load(tmp_path / "x.gist")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "x.gist"
    folder.mkdir()
    with pytest.raises(GistFileError, match=r"x\.gist is not a file"):
        Gist.load(folder)
    with pytest.raises(GistFileError, match="cannot write the gist to"):
        GIST.save(folder)
    assert folder.is_dir() and files_below(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="needs a named pipe")
def test_a_pipe_or_a_device_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gist")
    for path in (tmp_path / "pipe.gist", Path("/dev/zero")):
        with pytest.raises(GistFileError, match="is not a file"):
            Gist.load(path)


def test_a_file_larger_than_any_gist_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "x.gist").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # takes no room on the disk
    with pytest.raises(GistFileError, match="a gist has at most"):
        Gist.load(tmp_path / "x.gist")


@pytest.mark.parametrize("name", ["a\0b.gist", "x" * 300 + ".gist", "file/x.gist"])
def test_a_path_that_cannot_be_is_a_typed_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GistFileError):
        Gist.load(tmp_path / name)
    with pytest.raises(GistFileError, match="cannot write the gist to"):
        GIST.save(tmp_path / name)
    assert files_below(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_forbids_writing_is_a_typed_error_and_stays_clean(tmp_path: Path) -> None:
    GIST.save(tmp_path / "x.gist")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(GistFileError, match="Permission denied"):
            make_gist(7).save(tmp_path / "x.gist")
    finally:
        tmp_path.chmod(0o700)
    assert Gist.load(tmp_path / "x.gist").id == GIST.id
    assert files_below(tmp_path) == ["x.gist"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_a_save_that_fails_leaves_the_old_gist_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def fail(*_: object) -> None:
        raise error

    path = GIST.save(tmp_path / "x.gist")
    monkeypatch.setattr("gistlm.files.os.replace", fail)
    with pytest.raises(GistFileError, match=rf"cannot write the gist to .*x\.gist: {error.strerror}"):
        make_gist(7).save(path)
    assert Gist.load(path).id == GIST.id
    assert files_below(tmp_path) == ["x.gist"]


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_kill_during_a_save_leaves_the_old_gist_or_the_new_one(tmp_path: Path) -> None:
    path, width = tmp_path / "x.gist", 30_000
    ids = {make_gist(seed, width=width).id for seed in (1, 2)}
    for moment in moments_of_a_save(tmp_path, 10):
        with killed_at(moment, save_in_turn, path, [1, 2], width):
            assert Gist.load(path).id in ids
    assert len(files_below(tmp_path)) > 1, "no kill ever fell into a save; the test shows nothing"


@pytest.mark.parametrize("planned", [{"origin": "tuned"}, {"form": "free"}])
def test_what_is_planned_is_not_written(planned: dict[str, str]) -> None:
    with pytest.raises(GistFileError, match="can be saved yet"):
        make_gist(**planned).to_bytes()
