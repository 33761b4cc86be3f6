"""Keeps gists in this process's memory and deletes the least recently used first; knows nothing of files."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

from gistlm.errors import InputError, StoreError
from gistlm.store.store import Store, check_name, is_id

if TYPE_CHECKING:
    from gistlm.gist import Gist


@dataclass
class _Held:
    gist: Gist
    names: set[str] = field(default_factory=set)


class MemoryStore(Store):
    """A store of at most ``max_bytes`` bytes (`Gist.nbytes`). A gist's names are deleted with it.

    `put` and `get` count as uses. `put` raises `StoreError` for a gist that is larger than ``max_bytes``.
    """

    def __init__(self, max_bytes: int = 1 << 30) -> None:
        if max_bytes < 1:
            raise InputError(f"max_bytes must be 1 or more, got {max_bytes}")
        self.max_bytes = max_bytes
        self.nbytes = 0
        """Total size of the gists held now."""
        self._held: OrderedDict[str, _Held] = OrderedDict()  # by id, the least recently used first
        self._names: dict[str, str] = {}  # name -> id of a gist that is held
        self._lock = Lock()

    @classmethod
    def open(cls, location: str, *, max_bytes: int | None = None) -> MemoryStore:
        """A new, empty store for ``memory://``, by default of 1 GiB."""
        if location != "memory://":
            raise InputError(f"a memory store has no location of its own: write memory://, not {location}")
        return cls() if max_bytes is None else cls(max_bytes)

    def put(self, gist: Gist, name: str | None = None) -> str:
        """See `Store.put`."""
        if name is not None:
            check_name(name)
        if gist.nbytes > self.max_bytes:
            raise StoreError(
                f"this gist has {gist.nbytes:,} bytes, the store holds {self.max_bytes:,} in all; "
                f"make gists of fewer tokens or raise max_bytes"
            )
        key = gist.id
        with self._lock:
            if key not in self._held:
                self._make_room(gist.nbytes)
                self._held[key] = _Held(gist)
                self.nbytes += gist.nbytes
            self._held.move_to_end(key)
            if name is not None:
                self._unname(name)
                self._names[name] = key
                self._held[key].names.add(name)
        return key

    def get(self, key: str) -> Gist | None:
        """See `Store.get`."""
        with self._lock:
            found = self._resolve(key)
            if found is None:
                return None
            self._held.move_to_end(found)
            return self._held[found].gist

    def delete(self, key: str) -> bool:
        """See `Store.delete`."""
        with self._lock:
            return self._forget(key) if is_id(key) else self._unname(key)

    def __contains__(self, key: str) -> bool:
        """See `Store.__contains__`."""
        with self._lock:
            return self._resolve(key) is not None

    def __iter__(self) -> Iterator[str]:
        """Ids of all gists, the least recently used first."""
        with self._lock:
            return iter(list(self._held))

    def __len__(self) -> int:
        """See `Store.__len__`."""
        return len(self._held)

    def close(self) -> None:
        """Delete all gists."""
        with self._lock:
            self._held.clear()
            self._names.clear()
            self.nbytes = 0

    def _resolve(self, key: str) -> str | None:
        found = key if is_id(key) else self._names.get(key)
        return found if found in self._held else None

    def _make_room(self, nbytes: int) -> None:
        while self.nbytes + nbytes > self.max_bytes:
            self._forget(next(iter(self._held)))

    def _forget(self, key: str) -> bool:
        held = self._held.pop(key, None)
        if held is None:
            return False
        self.nbytes -= held.gist.nbytes
        for name in held.names:
            del self._names[name]
        return True

    def _unname(self, name: str) -> bool:
        key = self._names.pop(name, None)
        if key is None:
            return False
        self._held[key].names.discard(name)
        return True
