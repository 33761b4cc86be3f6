"""Where files are kept, writing them whole, and why one could not be read; knows nothing of what is in them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import stat
import time
from pathlib import Path
from typing import Any

from gistlm.errors import InputError

_MAX_JSON_BYTES = 64 << 20
_TEMPORARY = re.compile(r"\.gistlm-[0-9a-f]{16}\.tmp")


def home() -> Path:
    """The folder for what gistlm keeps between runs: $GISTLM_HOME, or ~/.cache/gistlm."""
    return Path(os.environ.get("GISTLM_HOME") or Path.home() / ".cache" / "gistlm")


def reason(error: Exception) -> str:
    """Why a file could not be read or written, in the system's words where it has any."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def write_atomically(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` so that a reader, or a kill, finds the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def check_target(path: Path, source: str | Path | None = None) -> None:
    """Raise `InputError` unless a file can be written at ``path``: found out before the work, not after it. Makes its
    folder. A path that is the work's own ``source`` is refused too.
    """
    temporary = _temporary(path)
    try:
        if source is not None and path.exists() and os.path.realpath(path) == os.path.realpath(source):
            raise InputError(f"{path} would be written over what it is made from; name another file")
        if path.is_dir():
            raise InputError(f"cannot write to {path}: it is a folder; name a file in it")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        temporary.unlink()
    except OSError as error:
        raise InputError(f"cannot write to {path}: {reason(error)}; name another file") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of bounded size. Raises `OSError`, or `ValueError` for anything else."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_JSON_BYTES:
        raise ValueError(f"{path} is no file of at most {_MAX_JSON_BYTES:,} bytes")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object")
    return values


def remove_abandoned(folder: Path, seconds: float = 3600) -> None:
    """Delete the temporary files of killed writers: those in ``folder`` older than ``seconds``, where allowed."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            try:
                if time.time() - path.lstat().st_mtime > seconds:
                    path.unlink()
            except OSError:  # its writer has finished, another process was quicker, or we may not: never mind
                continue


def sha256(*parts: bytes) -> str:
    """The hex digest of the parts, each preceded by its length so that no two lists collide."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _temporary(path: Path) -> Path:
    """A new name beside ``path`` that `remove_abandoned` knows."""
    return path.parent / f".gistlm-{secrets.token_hex(8)}.tmp"


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
