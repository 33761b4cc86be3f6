"""Keys, the names of requests, and how a location leads to a store."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from gists import make_gist
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_checkpoint

import gistlm.store
from gistlm.engines.transformers import GistModel
from gistlm.errors import InputError
from gistlm.store.disk import DiskStore
from gistlm.store.memory import MemoryStore
from gistlm.store.store import STORES, check_name, is_id, open_store, request_name

NO_KEYS = [
    "", ".", "..", "../../x", "/etc/passwd", "a/b", "a\\b", "C:x/y", "a\0b", "a b", "a\n", ".hidden", "-flag", "naïve",
    "x" * 201, "\ud800", "~", "%2e%2e%2fx",
]  # fmt: skip


@pytest.mark.parametrize("key", [*NO_KEYS, 7, None, b"bytes", Path("path")], ids=ascii)
def test_what_is_neither_an_id_nor_a_name_is_refused_with_the_rule(key: str) -> None:
    with pytest.raises(InputError, match=r"is not a key of a store; use a gist's id \(64 hex digits\), or a name"):
        is_id(key)


@pytest.mark.parametrize("name", ["a", "7", "support-policy.v2", "me@here:x+y_z", "A" * 200, "F" * 64, "f" * 63])
def test_a_name_is_not_an_id(name: str) -> None:
    assert not is_id(name)
    check_name(name)


def test_an_id_is_no_name() -> None:
    assert is_id(make_gist().id)
    with pytest.raises(InputError, match="looks like a gist's id"):
        check_name(make_gist().id)


@given(st.text())
def test_any_text_is_an_id_a_name_or_a_typed_error(text: str) -> None:
    try:
        kind = is_id(text)
    except InputError:
        return
    assert re.fullmatch("[0-9a-f]{64}" if kind else "[A-Za-z0-9._:@+-]{1,200}", text)


def test_a_requests_name_is_fixed_and_differs_for_every_part_of_it() -> None:
    parts = ("ab" * 32, 4, "model", "adapter", "float32")
    name = request_name(*parts)
    assert name == request_name(*parts)
    check_name(name)
    others = [
        ("cd" * 32, 4, "model", "adapter", "float32"),
        ("ab" * 32, 5, "model", "adapter", "float32"),
        ("ab" * 32, 4, "modela", "dapter", "float32"),
        ("ab" * 32, 4, "model", "adapter", "bfloat16"),
    ]
    assert len({name, *(request_name(*other) for other in others)}) == 5


def test_a_gist_put_under_its_requests_name_is_found_before_compressing(tmp_path: Path) -> None:
    model, other = GistModel(tiny_checkpoint()), GistModel(tiny_checkpoint("qwen2"))
    gist = model.compress("Be brief.", 4)
    for store in (MemoryStore(), DiskStore(tmp_path)):
        info = gist.info()
        store.put(gist, request_name(*(info[part] for part in ("prompt_sha256", "k", "model", "adapter", "dtype"))))
        found = store.get(model.request_name("Be brief.", 4))
        assert found is not None and found.id == gist.id
        assert store.get(model.request_name("Be brief.", 5)) is None
        assert store.get(model.request_name("Be very brief.", 4)) is None
        assert store.get(other.request_name("Be brief.", 4)) is None


def test_what_cannot_be_compressed_has_no_name() -> None:
    model = GistModel(tiny_checkpoint())
    for prompt, k in (("Be brief.", 0), ("Be brief.", model.max_k + 1), (" ", 4), (7, 4)):
        with pytest.raises(InputError):
            model.request_name(prompt, k)  # type: ignore[arg-type]


def test_the_package_of_stores_gives_what_its_users_need() -> None:
    assert gistlm.store.__all__ == ["Store", "open_store", "request_name"]
    assert gistlm.store.open_store is open_store and gistlm.store.request_name is request_name


def test_every_store_takes_a_bound_in_bytes(tmp_path: Path) -> None:
    for location in ("memory://", str(tmp_path)):
        store = open_store(location, max_bytes=10_000)
        assert isinstance(store, (MemoryStore, DiskStore)) and store.max_bytes == 10_000
        for wrong in (0, -1):
            with pytest.raises(InputError, match="max_bytes must be 1 or more"):
                open_store(location, max_bytes=wrong)


def test_a_location_is_a_folder_a_file_url_or_memory(tmp_path: Path) -> None:
    folder = tmp_path / "my gists"
    for location in (str(folder), folder, folder.as_uri()):
        store = open_store(location)
        assert isinstance(store, DiskStore) and store.folder == folder.resolve()
    memory = open_store("memory://", max_bytes=1000)
    assert isinstance(memory, MemoryStore) and memory.max_bytes == 1000


@pytest.mark.parametrize(
    ("location", "match"),
    [
        ("gopher://x", "no store for gopher:// locations; give a folder, or one of file, memory://"),
        ("", "needs a folder"),
        ("memory://x", "write memory://, not memory://x"),
        ("file://elsewhere/x", "names another machine"),
    ],
)
def test_a_location_that_leads_nowhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str, match: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=match):
        open_store(location)
    assert list(tmp_path.iterdir()) == []


def test_every_store_of_the_table_exists() -> None:
    assert [open_store("memory://").__class__.__name__, "DiskStore"] == [
        STORES[scheme].partition(":")[2] for scheme in ("memory", "file")
    ]


def test_the_seam_loads_no_torch() -> None:
    code = "import sys, gistlm.store.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0
