"""Writes a report in the form that its file's suffix names, whole or not at all; knows no form from inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gistlm.errors import DataError
from gistlm.files import reason, write_atomically
from gistlm.report import plots
from gistlm.report.html import page
from gistlm.report.markdown import text_and_pictures
from gistlm.report.tables import Result

Files = dict[Path, bytes]


def write_report(results: Sequence[Result], path: Path) -> list[Path]:
    """Write a report; returns all files written, the report itself first.

    Raises `DataError` for another suffix or where nothing can be written, `MissingDependencyError` without matplotlib.
    """
    form = FORMS.get(path.suffix.lower())
    if form is None:
        raise DataError(f"a report ends in {', '.join(FORMS)}, got {path.name!r}; name such a file with -o")
    if not path.parent.is_dir():
        raise DataError(f"there is no folder {path.parent} to write {path.name} in; make it first, or name another")
    if path.is_dir():
        raise DataError(f"cannot write the report to {path}: it is a folder; name a file in it")
    if any(result.path.resolve() == path.resolve() for result in results):
        raise DataError(f"{path} is one of the results; name another file for the report")
    files = form(results, path)
    try:
        _write(files)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DataError(f"cannot write the report to {path}: {reason(error)}; name another file") from error
    return list(files)


def _html(results: Sequence[Result], path: Path) -> Files:
    return {path: page(results).encode()}


def _markdown(results: Sequence[Result], path: Path) -> Files:
    folder = path.with_name(f"{path.stem}_files")
    text, pictures = text_and_pictures(results, folder.name)
    return {path: text.encode(), **{folder / name: content for name, content in pictures.items()}}


def _png(results: Sequence[Result], path: Path) -> Files:
    return {path: plots.draw_all(results)}


FORMS: dict[str, Callable[[Sequence[Result], Path], Files]] = {".html": _html, ".md": _markdown, ".png": _png}
"""suffix -> what makes the files, the report itself first."""


def _write(files: Files) -> None:
    """All files, the report itself last; where one cannot be written, what was not there before is removed."""
    made = [path for path in files if not path.exists()]
    folders = {path.parent for path in files if not path.parent.exists()}
    try:
        for path in reversed(files):
            write_atomically(path, files[path])
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        for folder in folders:
            if folder.is_dir():
                folder.rmdir()
        raise
