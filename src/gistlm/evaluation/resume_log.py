"""Keeps measured pieces in a file while the rest is measured, so that a stopped evaluation goes on; knows no metric.

The file is an SQLite database with one table. Every piece is a transaction: a kill leaves it whole or not at all.
Pieces are named after all that their figures depend on, so that those of other settings may stand beside them and are
never taken.
"""

from __future__ import annotations

import json
import logging
import math
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gistlm.errors import InputError
from gistlm.files import sha256

APPLICATION_ID = int.from_bytes(b"gist")
"""Of this format, in the database's header."""
VERSION = 1
_OLD_FORMAT = b'{"format": "gistlm.eval.partial"'
"""Begins a file of JSON lines, as earlier versions wrote."""
_FOREIGN = "{} is another file, where measured rows are to be kept; move it away"
_OTHER_VERSION = "{} was written by another version of gistlm; delete it to measure anew"
_DAMAGED = "{} is damaged; delete it to measure anew"
_DELETED = ("SQLITE_READONLY_DBMOVED", "SQLITE_IOERR_FSTAT")
"""What SQLite says of a file that was deleted after it was opened: its last run has just ended."""

_log = logging.getLogger(__name__)


class ResumeLog:
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
        self._own: set[str] = set()
        """Names of the pieces in the file that this run took or wrote."""
        self._takes_more = True
        self._database = _open(self.path) if self.path is not None else None

    def name(self, **work: Any) -> str:
        """A name for what depends on the basis and on these plain values."""
        return sha256(self._basis.encode(), json.dumps(work, sort_keys=True).encode())

    def measured(self, name: str, accept: Callable[[Any], bool], measure: Callable[[], Any]) -> Any:
        """The piece of that name, plain values: from the file if it is there and accepted, else measured and kept."""
        piece = self._find(name)
        if piece is not None and accept(piece[0]):
            if not self._own:
                _log.info("going on from %s", self.path)
            self._own.add(name)
            self.seconds += piece[1]
            return piece[0]
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
        if not self.close(and_delete=self._own):
            _log.info("%s keeps what runs with other settings measured; delete it if they are not to go on", self.path)
        self._own.clear()

    def close(self, and_delete: Collection[str] = ()) -> bool:
        """Leave the file for a later run; delete it where it has no other pieces than these. Whether it is gone."""
        if self._database is None or self.path is None:
            return True
        gone = False
        with suppress(sqlite3.Error):
            gone = all(name in and_delete for (name,) in self._database.execute("SELECT name FROM pieces"))
        if gone:  # while it is locked, so that the file is no other run's
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
        self._database.close()
        self._database = None
        return gone

    def _find(self, name: str) -> tuple[Any, float] | None:
        """The piece's value and seconds; None where it is not there, or damaged."""
        if self._database is None:
            return None
        try:
            value, seconds = self._database.execute(
                "SELECT value, seconds FROM pieces WHERE name = ?", [name]
            ).fetchone()
            value = json.loads(value)
        except (sqlite3.Error, TypeError, ValueError, RecursionError):  # TypeError: no row
            return None
        return (value, seconds) if isinstance(seconds, float) and 0 <= seconds < math.inf else None

    def _keep(self, name: str, value: Any, seconds: float) -> None:
        """Write a piece. A full disk ends the keeping, not the work."""
        if self._database is None or not self._takes_more:
            return
        try:
            self._database.execute("INSERT OR REPLACE INTO pieces VALUES (?, ?, ?)", [name, json.dumps(value), seconds])
        except sqlite3.Error as error:
            _log.warning("%s takes no more (%s): if stopped, what follows is measured again", self.path, error)
            self._takes_more = False  # and the file stays open: the lock goes with it
        else:
            self._own.add(name)


def _open(path: Path) -> sqlite3.Connection:
    """The database, locked until it is closed. Raises `InputError` where it cannot be had."""
    try:
        database = sqlite3.connect(path, timeout=0, isolation_level=None)  # None: each statement is a transaction
        try:
            _claim(database, path)
        except BaseException:
            database.close()
            raise
    except InputError:
        raise
    except (sqlite3.Error, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(_refusal(path, error)) from error
    return database


def _claim(database: sqlite3.Connection, path: Path) -> None:
    """Lock the database and begin it if it is empty. Nothing is written to one that is not ours."""
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    database.execute("BEGIN EXCLUSIVE")
    if path.exists() and path.stat().st_size == 1:  # which SQLite takes for an empty file
        raise InputError(_FOREIGN.format(path))
    kind = [database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
    if kind != [0, 0] or database.execute("SELECT * FROM sqlite_master").fetchone():
        if kind[0] != APPLICATION_ID:
            raise InputError(_FOREIGN.format(path))
        if kind[1] != VERSION:
            raise InputError(_OTHER_VERSION.format(path))
        if database.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise InputError(_DAMAGED.format(path))
    database.execute(f"PRAGMA application_id = {APPLICATION_ID}")  # fails where the file was deleted meanwhile
    database.execute(f"PRAGMA user_version = {VERSION}")
    database.execute("CREATE TABLE IF NOT EXISTS pieces (name TEXT PRIMARY KEY, value TEXT, seconds REAL)")
    database.execute("SELECT name, value, seconds FROM pieces LIMIT 1")
    database.execute("COMMIT")


def _refusal(path: Path, error: Exception) -> str:
    """Why the file cannot be had, and what to do."""
    code = getattr(error, "sqlite_errorname", "")
    if code.startswith("SQLITE_BUSY") or code in _DELETED:
        return f"another run is writing {path}; wait for its end, or name another --json"
    if code == "SQLITE_NOTADB":
        return (_OTHER_VERSION if path.read_bytes().startswith(_OLD_FORMAT) else _FOREIGN).format(path)
    if code.startswith("SQLITE_CORRUPT") or code == "SQLITE_ERROR":  # ERROR: the table has no such columns
        return _DAMAGED.format(path)
    return f"cannot write to {path}: {error}; name another --json"
