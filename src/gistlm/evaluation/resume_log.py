"""Measured pieces in a file while the rest is measured, so that a stopped evaluation goes on; knows no metric.

The file has a header and one JSON object a line. What a kill cut short does not count. Pieces are named after all that
their figures depend on, so that those of other settings may stand beside them and are never taken.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from gistlm.errors import InputError
from gistlm.evaluation.results import MAX_BYTES, is_of
from gistlm.files import reason, sha256

try:
    import fcntl
except ImportError:  # not a POSIX system: two runs at a time may then take each other's pieces away, never change them
    fcntl = None  # type: ignore[assignment]

FORMAT = b'{"format": "gistlm.eval.partial"'
HEADER = FORMAT + b', "version": 1}\n'
_LINE = {"name": str, "seconds": float, "value": object}

_log = logging.getLogger(__name__)


class Journal:
    """Pieces of an evaluation by name, each in the file as soon as it is measured. Holds the file until `close`."""

    def __init__(self, path: str | Path | None, basis: Mapping[str, Any]) -> None:
        """Open the file, or begin it; without a path nothing is kept.

        basis: what all pieces depend on, as plain values (see `describe.basis`). Raises `InputError` where the path
        holds anything else, is in use by another run, or cannot be written.
        """
        self.path = Path(path) if path is not None else None
        self.seconds = 0.0
        """What the pieces that were taken from the file had taken to measure."""
        self._basis = json.dumps(basis, sort_keys=True)
        self._pieces: dict[str, dict[str, Any]] = {}
        self._own: set[str] = set()
        """Names of the pieces in the file that this run took or wrote."""
        self._size = 0
        self._takes_more = True
        self._file: BinaryIO | None = self._open(self.path) if self.path is not None else None

    def name(self, **work: Any) -> str:
        """A name for what depends on the basis and on these plain values."""
        return sha256(self._basis.encode(), json.dumps(work, sort_keys=True).encode())

    def measured(self, name: str, accept: Callable[[Any], bool], measure: Callable[[], Any]) -> Any:
        """The piece of that name, plain values: from the file if it is there and accepted, else measured and kept."""
        piece = self._pieces.get(name)
        if piece is not None and accept(piece["value"]):
            if not self._own:
                _log.info("going on from %s", self.path)
            self._own.add(name)
            self.seconds += piece["seconds"]
            return piece["value"]
        begin = time.perf_counter()
        value = measure()
        self._keep(name, value, time.perf_counter() - begin)
        return value

    def when_stopped(self) -> str:
        """How to go on, for a run that ends before its results are written; empty if nothing of it is kept."""
        if not self._own:
            return ""
        return f"what was measured is in {self.path}, and the same command goes on from there"

    def remove(self) -> None:
        """Delete the file, unless it holds pieces of other settings: all is measured, and in the results."""
        if set(self._pieces) <= self._own:
            self._pieces.clear()
        else:
            _log.info("%s keeps what runs with other settings measured; delete it if they are not to go on", self.path)
        self._own.clear()
        self.close()

    def close(self) -> None:
        """Leave the file for a later run, if there is anything in it."""
        if self._file is None or self.path is None:
            return
        if not self._pieces:  # while the lock is held, so that the file is no other run's
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
        with suppress(OSError):
            self._file.close()
        self._file = None

    def _open(self, path: Path) -> BinaryIO:
        try:
            file = path.open("a+b")
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise InputError(f"cannot write to {path}: {reason(error)}; name another --json") from error
        try:
            _lock(file, path)
            file.seek(0)
            content = file.read(MAX_BYTES + 1)
            _check(path, content)
            self._size = self._read(content)
            file.truncate(self._size)
            if not self._size:
                file.write(HEADER)
                file.flush()
                self._size = len(HEADER)
        except BlockingIOError as error:
            file.close()
            raise InputError(f"another run is writing {path}; wait for its end, or name another --json") from error
        except OSError as error:
            file.close()
            raise InputError(f"cannot write to {path}: {reason(error)}; name another --json") from error
        except InputError:
            file.close()
            raise
        return file

    def _read(self, content: bytes) -> int:
        """Take in the pieces; the number of bytes up to a line that is not whole. Damaged lines are passed over."""
        whole = content[: content.rfind(b"\n") + 1]
        for line in whole[len(HEADER) :].split(b"\n"):
            try:
                piece = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if is_of(piece, _LINE) and piece["seconds"] >= 0:
                self._pieces[piece["name"]] = piece
        return len(whole)

    def _keep(self, name: str, value: Any, seconds: float) -> None:
        """Write a piece. A full disk ends the keeping, not the work."""
        if self._file is None or not self._takes_more:
            return
        piece = {"name": name, "seconds": seconds, "value": value}
        line = (json.dumps(piece) + "\n").encode()
        try:
            if self._size + len(line) > MAX_BYTES:
                raise OSError(f"it would have more than {MAX_BYTES >> 20} MiB")
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            _log.warning("%s takes no more (%s): if stopped, what follows is measured again", self.path, reason(error))
            self._takes_more = False  # and the file stays open: the lock goes with it
        else:
            self._size += len(line)
            self._pieces[name] = piece
            self._own.add(name)


def _lock(file: BinaryIO, path: Path) -> None:
    """Raise `BlockingIOError` if another run has the file, or had it until now; never where there are no locks."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without them
        return
    if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
        raise BlockingIOError


def _check(path: Path, content: bytes) -> None:
    """Raise `InputError` unless that is what such a file holds."""
    if len(content) > MAX_BYTES:
        raise InputError(f"{path} has more than {MAX_BYTES >> 20} MiB; delete it to measure anew")
    if content.startswith(FORMAT) and not content.startswith(HEADER):
        raise InputError(f"{path} was written by another version of gistlm; delete it to measure anew")
    if content and not content.startswith(HEADER):
        raise InputError(f"{path} is another file, where measured rows are to be kept; move it away")
