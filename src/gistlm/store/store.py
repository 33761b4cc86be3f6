"""The interface between callers and stores of gists; imports no store and no torch."""

from __future__ import annotations

import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistlm.errors import InputError
from gistlm.files import sha256

if TYPE_CHECKING:
    from gistlm.gist import Gist

STORES = {
    "file": "gistlm.store.disk:DiskStore",
    "memory": "gistlm.store.memory:MemoryStore",
}
"""scheme -> module:class, imported when asked for."""

_ID = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,199}")


class Store(ABC):
    """Gists by id (their content hash), and names that point to ids.

    A key is an id or a name: up to 200 letters, digits and ``._:@+-``, the first a letter or digit. Every method
    that takes a key raises `InputError` for anything else, and `StoreError` when the store cannot be read or
    written. A store is safe to use from several threads. An empty store is falsy, as any container is.
    """

    @classmethod
    @abstractmethod
    def open(cls, location: str, *, max_bytes: int | None = None) -> Store:
        """Open the store at a location; a subclass may take further options.

        max_bytes: maximum size of all gists, above which the least recently used are deleted; None is the subclass's
        default.
        """

    @abstractmethod
    def put(self, gist: Gist, name: str | None = None) -> str:
        """Keep a gist and return its id. A name given points to this gist from now on, and no longer to another."""

    @abstractmethod
    def get(self, key: str) -> Gist | None:
        """The gist, or None if there is none. Raises `GistFileError` if it is damaged; `put` repairs it."""

    @abstractmethod
    def delete(self, key: str) -> bool:
        """Delete a name or a gist; False if there was none.

        A name: the gist stays. An id: the gist is deleted, and `get` by its names returns None.
        """

    @abstractmethod
    def __contains__(self, key: str) -> bool:
        """Whether `get` would find a gist. Does not read it, and does not count as a use."""

    @abstractmethod
    def __iter__(self) -> Iterator[str]:
        """Ids of all gists, in no particular order; a gist may be damaged, but never half written."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of gists."""

    def close(self) -> None:  # noqa: B027 - most stores hold nothing
        """Free what the store holds open."""


def open_store(location: str | Path, **options: Any) -> Store:
    """Open a store: a folder, ``file:///folder``, or ``memory://``; for ``options`` see `Store.open`.

    Raises `InputError` for a scheme that is not in `STORES`.
    """
    scheme, separator, _ = str(location).partition("://")
    if not separator:
        scheme = "file"
    if scheme not in STORES:
        raise InputError(
            f"there is no store for {scheme}:// locations; give a folder, or one of {', '.join(STORES)}://"
        )
    module, _, kind = STORES[scheme].partition(":")
    found: type[Store] = getattr(importlib.import_module(module), kind)
    return found.open(str(location), **options)


def request_name(prompt_sha256: str, k: int, model: str, adapter: str, dtype: str) -> str:
    """A name that stands for a prompt, k, checkpoint and dtype, to look a gist up before compressing.

    The arguments are the values of the same keys in `Gist.info`, but k is the number that was asked for.
    `GistModel.request_name` makes the name from a prompt.
    """
    parts = prompt_sha256, str(k), model, adapter, dtype
    return f"request-{sha256(*(part.encode() for part in parts))}"


def is_id(key: str) -> bool:
    """Whether a key is an id; if not, it is a name. Raises `InputError` for a key that is neither."""
    if isinstance(key, str):
        if _ID.fullmatch(key):
            return True
        if _NAME.fullmatch(key):
            return False
    shown = repr(key) if len(repr(key)) <= 60 else repr(key)[:60] + "..."
    raise InputError(
        f"{shown} is not a key of a store; use a gist's id (64 hex digits), or a name of 1 to 200 letters, "
        f"digits and ._:@+- that begins with a letter or digit"
    )


def check_name(name: str) -> None:
    """Raise `InputError` unless a gist may have this name."""
    if is_id(name):
        raise InputError(f"{name!r} looks like a gist's id and cannot be a name; choose another one")
