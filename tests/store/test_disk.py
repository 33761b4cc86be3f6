"""The disk store: what it keeps, what it refuses, and what several processes and kills leave behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from gists import files_below, killed_at, make_gist, moments_of_a_save, put_bounded, put_in_turn, put_many, run_together
from store_rules import check_against_dict, check_refuses

from gistlm.errors import GistFileError, InputError, StoreError
from gistlm.gist import Gist
from gistlm.store.disk import DiskStore

A, B = make_gist(1), make_gist(2)


def object_file(folder: Path, gist: Gist) -> Path:
    return folder / "objects" / gist.id[:2] / f"{gist.id}.gist"


def pointer_file(folder: Path) -> Path:
    (path,) = (path for path in (folder / "names").rglob("*") if path.is_file())
    return path


def test_a_disk_store_behaves_like_a_dict_that_outlives_its_process(tmp_path: Path) -> None:
    numbers = count()
    check_against_dict(
        lambda: DiskStore(tmp_path / str(next(numbers))), lambda store: DiskStore(store.folder), examples=15
    )


def test_a_gist_lies_under_its_id_as_an_ordinary_gist_file(tmp_path: Path) -> None:
    key = DiskStore(tmp_path).put(A)
    assert key == A.id
    assert files_below(tmp_path) == [f"objects/{key[:2]}/{key}.gist"]
    assert Gist.load(object_file(tmp_path, A)).id == key


def test_a_name_leads_to_the_gist_last_put_under_it(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    store.put(A, "policy")
    store.put(B, "policy")
    found = DiskStore(tmp_path).get("policy")
    assert found is not None and found.id == B.id
    assert set(store) == {A.id, B.id}


def test_what_was_never_put_or_was_deleted_is_not_there(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    assert store.get(A.id) is None and A.id not in store and not store.delete(A.id)
    assert store.get("a") is None and "a" not in store and not store.delete("a")
    store.put(A, "a")
    assert store.delete(A.id)
    assert store.get("a") is None and "a" not in store and A.id not in store and len(store) == 0


def test_names_that_differ_only_in_case_are_two_names(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    store.put(A, "policy")
    store.put(B, "Policy")
    first, second = store.get("policy"), store.get("Policy")
    assert first is not None and second is not None
    assert (first.id, second.id) == (A.id, B.id)
    assert len({path.name.lower() for path in (tmp_path / "names").rglob("*") if path.is_file()}) == 2


# A bound


def size_of(gist: Gist) -> int:
    return len(gist.to_bytes())


def set_ages(folder: Path, *gists: Gist) -> None:
    """Let these gists have been used long ago, the first the longest."""
    for number, gist in enumerate(gists):
        os.utime(object_file(folder, gist), (1000 + number, 1000 + number))


def test_a_bounded_store_lets_the_least_recently_used_gist_go_first(tmp_path: Path) -> None:
    gists = [make_gist(seed) for seed in range(5)]
    store = DiskStore(tmp_path, max_bytes=3 * size_of(A))
    for number, gist in enumerate(gists[:3]):
        store.put(gist, f"n{number}")
    set_ages(tmp_path, *gists[:3])
    assert store.get("n0") is not None  # a use
    assert "n1" in store  # none
    store.put(gists[3])
    assert set(store) == {gists[number].id for number in (0, 2, 3)}
    assert store.get("n1") is None and "n1" not in store
    set_ages(tmp_path, gists[3], gists[0], gists[2])
    store.put(gists[4])
    assert set(store) == {gists[number].id for number in (0, 2, 4)}


def test_the_gist_that_is_put_stays_even_when_its_clock_is_behind(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, max_bytes=size_of(A))
    store.put(A)
    os.utime(object_file(tmp_path, A), (time.time() + 9999, time.time() + 9999))
    store.put(B)
    assert list(store) == [B.id]


def test_a_gist_larger_than_the_bound_is_refused_and_nothing_leaves(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, max_bytes=size_of(A))
    store.put(A, "a")
    with pytest.raises(StoreError, match=r"the store holds .* in all; make gists of fewer tokens or raise max_bytes"):
        store.put(make_gist(3, k=40), "a")
    found = store.get("a")
    assert found is not None and found.id == A.id


def test_a_store_without_a_bound_keeps_what_a_bounded_one_on_the_folder_would_not(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    gists = [make_gist(seed) for seed in range(6)]
    for gist in gists:
        store.put(gist)
    assert len(store) == 6
    DiskStore(tmp_path, max_bytes=2 * size_of(A)).put(gists[5])
    assert len(store) == 2 and gists[5].id in store


def test_processes_that_share_a_bounded_store_leave_whole_gists_within_the_bound(tmp_path: Path) -> None:
    bound = 6 * size_of(A)
    seeds = [list(range(10 * process, 10 * process + 10)) for process in range(4)]
    assert run_together(put_bounded, [(tmp_path, each, bound) for each in seeds]) == [0] * 4
    store = DiskStore(tmp_path, bound)
    store.put(A)
    assert A.id in store and 1 <= len(store) <= 6
    assert all(store.get(key) is not None for key in store)
    assert not list(tmp_path.rglob("*.tmp"))


# Several processes, and kills


def test_ten_processes_that_write_one_store_lose_nothing_and_leave_whole_files(tmp_path: Path) -> None:
    seeds = [[100 * process + number for number in range(5)] + list(range(4)) for process in range(10)]
    assert run_together(put_many, [(tmp_path, each, "shared") for each in seeds]) == [0] * 10
    store = DiskStore(tmp_path)
    every = sorted({seed for each in seeds for seed in each})
    for seed in every:
        found = store.get(f"seed-{seed}")
        assert found is not None and found.id == make_gist(seed).id
    assert set(store) == {make_gist(seed).id for seed in every}
    assert "shared" in store
    assert len(files_below(tmp_path)) == 2 * len(every) + 1  # objects, their names, the shared name; no litter


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_kill_during_a_put_leaves_the_old_gist_or_the_new_one(tmp_path: Path) -> None:
    width = 30_000
    ids = {make_gist(seed, width=width).id for seed in (1, 2, 3)}
    for moment in moments_of_a_save(tmp_path, 8):
        with killed_at(moment, put_in_turn, tmp_path, "name", [1, 2, 3], width):
            store = DiskStore(tmp_path)
            found = store.get("name")
            assert found is not None and found.id in ids
            assert set(store) <= ids
            assert all(store.get(key) is not None for key in store)
    assert list(tmp_path.rglob("*.tmp")), "no kill ever fell into a put; the test shows nothing"


def test_what_killed_writers_left_is_no_gist_and_goes_when_it_is_old(tmp_path: Path) -> None:
    DiskStore(tmp_path).put(A, "a")
    yesterday = time.time() - 86_400
    old = object_file(tmp_path, A).with_name(".gistlm-0123456789abcdef.tmp")
    old_pointer = pointer_file(tmp_path).with_name(".gistlm-0123456789abcdef.tmp")
    fresh = old.with_name(".gistlm-fedcba9876543210.tmp")
    for path in (old, old_pointer, fresh):
        path.write_bytes(A.to_bytes()[:50])
    os.utime(old, (yesterday, yesterday))
    os.utime(old_pointer, (yesterday, yesterday))
    store = DiskStore(tmp_path)
    assert list(store) == [A.id]
    assert fresh.exists(), "its writer may still be at work"
    assert not old.exists() and not old_pointer.exists()


def test_a_gist_deleted_between_finding_and_reading_is_simply_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DiskStore(tmp_path)
    store.put(A)
    load = Gist.load

    def delete_then_load(path: Path) -> Gist:
        path.unlink()
        return load(path)

    monkeypatch.setattr(Gist, "load", delete_then_load)
    assert store.get(A.id) is None


# Paths that lead out


@pytest.mark.parametrize("key", ["../../x", "/etc/passwd", "..", "a/../../b", "a\0b", "x" * 5000, ""])
def test_no_key_climbs_out_of_the_store(tmp_path: Path, key: str) -> None:
    folder = tmp_path / "a" / "b" / "store"
    store = DiskStore(folder)
    A.save(tmp_path / "a" / "x")
    before = files_below(tmp_path)
    check_refuses(store, key, InputError)
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("depth", ["file", "folder", "objects"])
def test_a_symbolic_link_in_the_store_is_refused(tmp_path: Path, depth: str) -> None:
    folder, outside = tmp_path / "store", tmp_path / "outside"
    store = DiskStore(folder)
    store.put(A)
    inside = {"file": object_file(folder, A), "folder": object_file(folder, A).parent, "objects": folder / "objects"}
    inside[depth].rename(outside)
    inside[depth].symlink_to(outside)
    content = [path.read_bytes() for path in [outside, *outside.rglob("*")] if path.is_file()]
    for act in (store.get, store.delete, store.__contains__, lambda _: store.put(A)):
        with pytest.raises(StoreError, match="goes through a symbolic link"):
            act(A.id)
    assert list(store) == list(DiskStore(folder)) == []
    assert [path.read_bytes() for path in [outside, *outside.rglob("*")] if path.is_file()] == content


def test_a_pointer_that_is_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "store")
    store.put(A, "a")
    pointer = pointer_file(tmp_path / "store")
    pointer.rename(tmp_path / "outside")
    pointer.symlink_to(tmp_path / "outside")
    for act in (store.get, store.delete, store.__contains__, lambda name: store.put(B, name)):
        with pytest.raises(StoreError, match="goes through a symbolic link"):
            act("a")
    assert A.id in (tmp_path / "outside").read_text()


def test_the_stores_own_folder_may_be_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    store = DiskStore(tmp_path / "link")
    store.put(A, "a")
    assert list(store) == [A.id] and store.get("a") is not None


# Damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: b"not a gist",
        lambda data: B.to_bytes(),
    ],
    ids=["cut", "empty", "bit", "text", "another gist"],
)
def test_a_damaged_gist_is_an_error_that_names_the_file_until_it_is_put_again(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    store = DiskStore(tmp_path)
    store.put(A, "a")
    path = object_file(tmp_path, A)
    path.write_bytes(damage(path.read_bytes()))
    for key in (A.id, "a"):
        with pytest.raises(GistFileError, match=str(path)):
            store.get(key)
    assert A.id in store
    store.put(A)
    found = store.get("a")
    assert found is not None and found.id == A.id


@pytest.mark.parametrize(
    "content", ["", "../../x", "{id} a", "{id} b\n", "{id}\n", "{id} a\n" + " " * 600, "{ID} a\n", "\xff"]
)
def test_a_damaged_pointer_is_an_error_that_names_the_file_until_it_is_put_again(tmp_path: Path, content: str) -> None:
    store = DiskStore(tmp_path)
    store.put(A, "a")
    pointer = pointer_file(tmp_path)
    pointer.write_text(content.format(id=A.id, ID=A.id.upper()), encoding="latin-1")
    for ask in (store.get, store.__contains__):
        with pytest.raises(StoreError, match=f"{pointer} is damaged"):
            ask("a")
    store.put(A, "a")
    assert "a" in store
    pointer.write_text("damaged again")
    assert store.delete("a")


def test_files_that_are_not_the_stores_are_passed_over_and_left_alone(tmp_path: Path) -> None:
    DiskStore(tmp_path).put(A, "a")
    shelf = object_file(tmp_path, A).parent
    foreign = [
        tmp_path / "README",
        tmp_path / "objects" / "notes.txt",
        tmp_path / "objects" / "zz" / f"{'0' * 64}.gist",
        shelf / "x.gist",
        shelf / f"{A.id}.gist.bak",
        shelf / f"{A.id.upper()}.GIST",
        shelf / f"{'f' if A.id[0] != 'f' else '0'}{'0' * 63}.gist",  # an id that belongs into another folder
        shelf / ".gistlm-readme.tmp",
    ]
    yesterday = time.time() - 86_400
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(A.to_bytes())
        os.utime(path, (yesterday, yesterday))
    (shelf / f"{A.id[:2]}{'0' * 62}.gist").mkdir()
    store = DiskStore(tmp_path)
    assert list(store) == [A.id] and len(store) == 1
    assert all(path.exists() for path in foreign)


# Places that cannot be


def test_a_store_cannot_be_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "a\0b"):
        with pytest.raises(StoreError, match="cannot open"):
            DiskStore(folder)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_full_disk_is_a_typed_error_that_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    store = DiskStore(tmp_path)
    store.put(A, "a")
    before = files_below(tmp_path)
    monkeypatch.setattr(f"gistlm.files.os.{broken}", fail)
    with pytest.raises(StoreError, match=r"cannot write .*\.gist in the store: No space left on device"):
        store.put(B, "a")
    monkeypatch.undo()
    assert files_below(tmp_path) == before
    found = store.get("a")
    assert found is not None and found.id == A.id


def test_a_folder_in_a_gists_place_is_a_typed_error(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    object_file(tmp_path, A).mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot write"):
        store.put(A)
    with pytest.raises(StoreError, match="cannot delete"):
        store.delete(A.id)
    with pytest.raises(GistFileError, match="is not a file"):
        store.get(A.id)
