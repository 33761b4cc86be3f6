"""Measured pieces in a file while the rest is measured, so that a stopped evaluation goes on; knows no metric.

The file has a header and one JSON object a line. A line that a kill cut short ends what counts. Pieces are named
after all that their figures depend on, so that those of other settings stand beside them and are never taken.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from gistlm.errors import InputError
from gistlm.evaluation.results import MAX_BYTES, is_of
from gistlm.files import reason, sha256

HEADER = b'{"format": "gistlm.eval.partial", "version": 1}\n'

_log = logging.getLogger(__name__)


class Journal:
    """Pieces of an evaluation by name, each in the file as soon as it is measured."""

    def __init__(self, path: str | Path, basis: Mapping[str, Any]) -> None:
        """Read what an earlier run left there; the file is made with the first piece.

        basis: what all pieces depend on, such as model and machine, as plain values. Raises `InputError` where the path
        holds anything else or cannot be read.
        """
        self.path = Path(path)
        self.seconds = 0.0
        """What the pieces that were recalled had taken."""
        self._basis = json.dumps(basis, sort_keys=True)
        self._pieces: dict[str, dict[str, Any]] = {}
        self._file: BinaryIO | None = None
        self._full = False
        self._end = self._read(self._content())

    def name(self, **work: Any) -> str:
        """The name of a piece that depends on the basis and on these plain values."""
        return sha256(self._basis.encode(), json.dumps(work, sort_keys=True).encode())

    def recall(self, name: str, kind: Any) -> Any:
        """The piece of that name, or None where there is none of that kind (as in `results.SCHEMA`)."""
        piece = self._pieces.get(name)
        if piece is None or not is_of(piece["value"], kind):
            return None
        if not self.seconds:
            _log.info("going on from %s", self.path)
        self.seconds += piece["seconds"]
        return piece["value"]

    def keep(self, name: str, value: Any, seconds: float) -> None:
        """Write a piece. A full disk ends the keeping, not the work."""
        if self._full:
            return
        line = json.dumps({"name": name, "seconds": seconds, "value": value}) + "\n"
        try:
            if self._file is None:
                self._file = self.path.open("ab")
                self._file.truncate(self._end)
                self._file.write(b"" if self._end else HEADER)
            self._file.write(line.encode())
            self._file.flush()
        except OSError as error:
            self._full = True
            _log.warning(
                "%s cannot be written (%s); if stopped now, all is to be measured again", self.path, reason(error)
            )

    def left(self) -> str:
        """What to say when the work is stopped."""
        if self._file is None and not self._end:
            return "interrupted"
        return f"interrupted; what was measured is in {self.path}, and the same command goes on from there"

    def close(self) -> None:
        """Leave the file for a later run."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def remove(self) -> None:
        """Delete the file: everything is measured, and in the results."""
        self.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _content(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {reason(error)}; name another --json") from error
        if not (content.startswith(HEADER) or HEADER.startswith(content)):
            raise InputError(f"{self.path} is another file, where measured rows are to be kept; move it away")
        if len(content) > MAX_BYTES:
            raise InputError(f"{self.path} has more than {MAX_BYTES >> 20} MiB; delete it to measure anew")
        return content

    def _read(self, content: bytes) -> int:
        """Take in every whole line; the number of bytes up to the first that is not."""
        if not content.startswith(HEADER):
            return 0
        end = len(HEADER)
        for line in content[end:].splitlines(keepends=True):
            try:
                piece = json.loads(line)
            except (ValueError, RecursionError):
                break
            if not line.endswith(b"\n") or not is_of(piece, {"name": str, "seconds": float, "value": object}):
                break
            self._pieces[piece["name"]] = piece
            end += len(line)
        return end
