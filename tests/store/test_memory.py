"""The memory store: its bound, the order in which gists leave, names, and threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from gists import make_gist
from hypothesis import given
from hypothesis import strategies as st
from store_rules import check_against_dict, check_refuses

from gistlm.errors import InputError, StoreError
from gistlm.store.memory import MemoryStore

A, B, C, D = (make_gist(seed) for seed in range(4))
SIZE = A.nbytes


def test_a_memory_store_behaves_like_a_dict() -> None:
    check_against_dict(MemoryStore, reopen=None, examples=60)


def test_the_least_recently_used_gist_leaves_first() -> None:
    store = MemoryStore(3 * SIZE)
    for gist in (A, B, C):
        store.put(gist)
    store.get(A.id)
    store.put(B)
    store.put(D)
    assert list(store) == [A.id, B.id, D.id]


def test_asking_whether_a_gist_is_there_is_no_use_of_it() -> None:
    store = MemoryStore(2 * SIZE)
    store.put(A)
    store.put(B)
    assert A.id in store
    store.put(C)
    assert list(store) == [B.id, C.id]


def test_getting_by_name_is_a_use() -> None:
    store = MemoryStore(2 * SIZE)
    store.put(A, "a")
    store.put(B)
    store.get("a")
    store.put(C)
    assert list(store) == [A.id, C.id]


def test_a_large_gist_drives_out_as_many_as_it_needs_and_no_more() -> None:
    store = MemoryStore(4 * SIZE)
    for gist in (A, B, C, D):
        store.put(gist)
    large = make_gist(9, k=5)  # two and a half times the others
    store.put(large)
    assert list(store) == [D.id, large.id]
    assert store.nbytes == SIZE + large.nbytes


def test_a_gist_of_the_stores_size_fits_and_a_larger_one_is_refused_without_harm() -> None:
    store = MemoryStore(SIZE)
    store.put(A, "a")
    with pytest.raises(StoreError, match=rf"this gist has {2 * SIZE} bytes, the store holds {SIZE} in all"):
        store.put(make_gist(9, k=4), "a")
    found = store.get("a")
    assert found is not None and found.id == A.id


def test_a_gist_that_leaves_takes_its_names_with_it() -> None:
    store = MemoryStore(SIZE)
    store.put(A, "a")
    store.put(A, "also-a")
    store.put(B, "b")
    assert store.get("a") is None and "also-a" not in store and "b" in store
    store.put(A)
    assert "a" not in store


def test_a_name_that_moved_on_survives_its_first_gist() -> None:
    store = MemoryStore(2 * SIZE)
    store.put(A, "name")
    store.put(B, "name")
    store.put(C)
    assert list(store) == [B.id, C.id]
    found = store.get("name")
    assert found is not None and found.id == B.id


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4)), max_size=20), st.integers(1, 6))
def test_the_bound_holds_whatever_is_put(puts: list[tuple[int, int]], room: int) -> None:
    store = MemoryStore(room * SIZE)
    expected: list[tuple[str, int]] = []
    for seed, k in puts:
        gist = make_gist(seed, k=k)
        if gist.nbytes > room * SIZE:
            with pytest.raises(StoreError):
                store.put(gist)
            continue
        store.put(gist)
        expected = [(key, size) for key, size in expected if key != gist.id] + [(gist.id, gist.nbytes)]
        while sum(size for _, size in expected) > room * SIZE:
            expected.pop(0)
        assert store.nbytes == sum(size for _, size in expected) <= store.max_bytes
        assert list(store) == [key for key, _ in expected]


@pytest.mark.parametrize("max_bytes", [0, -1])
def test_a_store_without_room_is_refused(max_bytes: int) -> None:
    with pytest.raises(InputError, match=f"max_bytes must be 1 or more, got {max_bytes}"):
        MemoryStore(max_bytes)


def test_a_key_that_is_neither_id_nor_name_is_refused() -> None:
    check_refuses(MemoryStore(), "../../x", InputError)


def test_a_closed_store_holds_nothing() -> None:
    store = MemoryStore()
    store.put(A, "a")
    store.close()
    assert len(store) == store.nbytes == 0 and "a" not in store


def test_threads_that_share_a_store_keep_its_bound_and_its_count() -> None:
    store = MemoryStore(3 * SIZE)
    gists = [make_gist(seed) for seed in range(8)]

    def work(turn: int) -> None:
        gist = gists[turn % 8]
        store.put(gist, f"name-{turn % 5}")
        found = store.get(gist.id)
        assert found is None or found.id == gist.id
        list(store)
        if turn % 7 == 0:
            store.delete(f"name-{turn % 3}")
            store.delete(gist.id)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(4000)))
    assert store.nbytes == SIZE * len(store) <= store.max_bytes
    names = [name for name in (f"name-{number}" for number in range(5)) if name in store]
    for key in list(store):
        store.delete(key)
    assert store.nbytes == 0 and not any(name in store for name in names)
