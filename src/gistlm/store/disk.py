"""Keeps gists as files in one folder, which any number of processes may share; knows nothing of models or text.

    objects/ab/abcd...ef.gist   a gist, named by its id
    names/01/0123...89          a pointer: the id and the name, in a file named by the name's hash

Every file is written under another name and then renamed, so that no lock is needed: a reader finds the old file or
the new one, also if the writer was killed. No gist is deleted by itself unless the store is opened with ``max_bytes``.
Files that are not the store's are left alone.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from gistlm.errors import GistFileError, InputError, StoreError
from gistlm.files import reason, remove_abandoned, write_atomically
from gistlm.gist import Gist
from gistlm.store.store import Store, check_name, is_id

_SHELF = re.compile(r"[0-9a-f]{2}")
_OBJECT = re.compile(r"[0-9a-f]{64}\.gist")
_POINTER = re.compile(rb"([0-9a-f]{64}) ([!-~]{1,200})\n")
_POINTER_BYTES = 512


class DiskStore(Store):
    """A store in a folder, which is made if it is missing.

    The folder itself may be a symbolic link; a link inside it raises `StoreError`, so that no key leads out of it.

    max_bytes: maximum size of all gist files. `put` then deletes the least recently used gists until the others fit,
    and `get` counts as a use. The maximum holds for this object: others on the folder may have another or none. Each
    `put` lists the folder. If a gist was deleted, `get` by its names returns None; a name's file of under 300 bytes
    stays until `delete`.
    """

    def __init__(self, folder: str | Path, max_bytes: int | None = None) -> None:
        if not str(folder):
            raise InputError("a disk store needs a folder; the current one is .")
        if max_bytes is not None and max_bytes < 1:
            raise InputError(f"max_bytes must be 1 or more, got {max_bytes}")
        self.max_bytes = max_bytes
        path = Path(folder).expanduser()
        with _explained("open", path):
            path.mkdir(parents=True, exist_ok=True)
            self.folder = path.resolve(strict=True)
            for each in [*self._folders("objects"), *self._folders("names")]:
                remove_abandoned(each)

    @classmethod
    def open(cls, location: str, *, max_bytes: int | None = None) -> DiskStore:
        """Open the store in a folder, given as a path or as file:///path."""
        if not location.startswith("file://"):
            return cls(location, max_bytes)
        parts = urlsplit(location)
        if parts.netloc not in ("", "localhost"):
            raise InputError(f"{location} names another machine; a folder here has three slashes: file:///folder")
        return cls(url2pathname(parts.path), max_bytes)

    def put(self, gist: Gist, name: str | None = None) -> str:
        """See `Store.put`. Always writes, so a damaged file of this gist is repaired."""
        if name is not None:
            check_name(name)
        data = gist.to_bytes()
        if self.max_bytes is not None and len(data) > self.max_bytes:
            raise StoreError(
                f"this gist's file has {len(data):,} bytes, the store holds {self.max_bytes:,} in all; "
                f"make gists of fewer tokens or raise max_bytes"
            )
        self._write(self._object(gist.id), data)
        if name is not None:
            self._write(self._pointer(name), f"{gist.id} {name}\n".encode())
        if self.max_bytes is not None:
            self._evict(self.max_bytes, keep=gist.id)
        return gist.id

    def get(self, key: str) -> Gist | None:
        """See `Store.get`. The error names the file."""
        path = self._find(key)
        if path is None:
            return None
        try:
            gist = Gist.load(path)
        except GistFileError:
            if not path.exists():  # deleted by another process a moment ago
                return None
            raise
        if gist.id != path.stem:
            raise GistFileError(f"{path} is damaged: it holds another gist, {gist.id}")
        if self.max_bytes is not None:
            with suppress(OSError):  # deleted a moment ago, or a folder that may only be read
                os.utime(path)
        return gist

    def delete(self, key: str) -> bool:
        """See `Store.delete`."""
        path = self._object(key) if is_id(key) else self._pointer(key)
        with _explained("delete", path):
            try:
                path.unlink()
            except FileNotFoundError:
                return False
        return True

    def __contains__(self, key: str) -> bool:
        """See `Store.__contains__`."""
        return self._find(key) is not None

    def __iter__(self) -> Iterator[str]:
        """See `Store.__iter__`. Gists that come or go meanwhile may be missed."""
        return (path.stem for path in self._objects())

    def __len__(self) -> int:
        """See `Store.__len__`. Reads the folder."""
        return sum(1 for _ in self)

    def _objects(self) -> Iterator[Path]:
        for folder in self._folders("objects"):
            with _explained("read", folder):
                files = [path for path in folder.iterdir() if _OBJECT.fullmatch(path.name)]
            for path in files:
                if path.name.startswith(folder.name) and path.is_file() and not path.is_symlink():
                    yield path

    def _evict(self, max_bytes: int, keep: str) -> None:
        """Delete the least recently used gists but ``keep`` until the others fit; other processes may do so too."""
        used = []
        for path in self._objects():
            with _explained("read", path), suppress(FileNotFoundError):
                status = path.stat()
                used.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in used)
        for seen, size, path in sorted(used):
            if total <= max_bytes:
                return
            with _explained("delete", path), suppress(FileNotFoundError):
                if path.stem == keep or path.stat().st_mtime_ns != seen:  # another process has used it since
                    continue
                path.unlink()
            total -= size

    def _find(self, key: str) -> Path | None:
        """The gist's file, or None if there is none."""
        found = key if is_id(key) else self._follow(self._pointer(key))
        if found is None:
            return None
        path = self._object(found)
        with _explained("read", path):
            return path if path.exists() else None

    def _follow(self, pointer: Path) -> str | None:
        """The id in a pointer's file, or None if there is no such file."""
        with _explained("read", pointer):
            try:
                with pointer.open("rb") as file:
                    match = _POINTER.fullmatch(file.read(_POINTER_BYTES))
            except FileNotFoundError:
                return None
        if match is None or _pointer_name(match[2]) != pointer.name:
            raise StoreError(f"{pointer} is damaged: it is not a pointer to a gist; put the gist under its name again")
        return match[1].decode()

    def _object(self, key: str) -> Path:
        return self._inside(self.folder / "objects" / key[:2] / f"{key}.gist")

    def _pointer(self, name: str) -> Path:
        hashed = _pointer_name(name.encode())
        return self._inside(self.folder / "names" / hashed[:2] / hashed)

    def _inside(self, path: Path) -> Path:
        with _explained("read", path):
            if path.resolve() != path:
                raise StoreError(f"{path} goes through a symbolic link; a store has none, remove it")
        return path

    def _folders(self, kind: str) -> list[Path]:
        """The two-digit folders in "objects" or "names"; symbolic links are not followed."""
        above = self.folder / kind
        if above.is_symlink() or not above.is_dir():
            return []
        found = [path for path in above.iterdir() if _SHELF.fullmatch(path.name)]
        return [path for path in found if path.is_dir() and not path.is_symlink()]

    def _write(self, path: Path, data: bytes) -> None:
        with _explained("write", path):
            write_atomically(path, data)


def _pointer_name(name: bytes) -> str:
    return hashlib.sha256(name).hexdigest()


@contextmanager
def _explained(deed: str, path: Path) -> Iterator[None]:
    """Turn the system's errors into `StoreError`, which says what was attempted, and where."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL in the path; RuntimeError: no home for ~
        raise StoreError(f"cannot {deed} {path} in the store: {reason(error)}") from error
