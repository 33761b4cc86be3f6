"""Measured pieces in a file: whole lines count, whatever was cut or damaged; other people's files are left alone."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gistlm.errors import InputError
from gistlm.evaluation.journal import HEADER, Journal

BASIS = {"model": "a"}
PIECES = [{"x": [0.1, 1 / 3]}, {"y": "ü\n\u2028"}, {"z": []}]


def kept(path: Path, pieces: list[Any], start: int = 0) -> list[str]:
    """The names of the pieces, after they were kept."""
    journal = Journal(path, BASIS)
    names = [journal.name(place=start + place) for place in range(len(pieces))]
    for name, piece in zip(names, pieces, strict=True):
        journal.keep(name, piece, 1.5)
    journal.close()
    return names


def found(path: Path, names: list[str]) -> list[Any]:
    journal = Journal(path, BASIS)
    return [journal.recall(name, object) for name in names]


def test_pieces_come_back_to_the_last_digit_with_the_time_they_took(tmp_path: Path) -> None:
    names = kept(tmp_path / "x", PIECES)
    assert found(tmp_path / "x", names) == PIECES
    journal = Journal(tmp_path / "x", BASIS)
    assert journal.recall(names[0], {"x": [float]}) == PIECES[0] and journal.seconds == 1.5
    assert journal.recall(names[0], {"x": [int]}) is None and journal.seconds == 1.5
    assert journal.recall("another", object) is None


def test_names_depend_on_basis_and_work(tmp_path: Path) -> None:
    one, other = Journal(tmp_path / "x", BASIS), Journal(tmp_path / "x", {"model": "b"})
    assert len({one.name(a=1), one.name(a=2), one.name(b=1), other.name(a=1)}) == 4
    assert one.name(a=1) == Journal(tmp_path / "y", BASIS).name(a=1)


@given(st.data())
def test_wherever_a_kill_cuts_the_file_whole_pieces_count_and_more_can_follow(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "x"
    names = kept(path, PIECES)
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = max(0, content[:cut].count(b"\n") - 1)
    assert found(path, names) == PIECES[:whole] + [None] * (len(PIECES) - whole)
    more = kept(path, ["more"], start=10)
    assert found(path, [*names, *more]) == PIECES[:whole] + [None] * (len(PIECES) - whole) + ["more"]


@pytest.mark.parametrize(
    "line",
    [b"7", b"[]", b"{}", b'{"name": 1, "seconds": 1.0, "value": 1}', b'{"name": "a", "seconds": 1e999}', b"\xff"],
)
def test_a_line_of_something_else_ends_what_counts(tmp_path: Path, line: bytes) -> None:
    names = kept(tmp_path / "x", PIECES)
    header, first, *rest = (tmp_path / "x").read_bytes().splitlines(keepends=True)
    (tmp_path / "x").write_bytes(header + first + line + b"\n" + b"".join(rest))
    assert found(tmp_path / "x", names) == [PIECES[0], None, None]


def test_a_run_that_measures_nothing_leaves_no_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "x", BASIS)
    journal.close()
    assert not (tmp_path / "x").exists() and journal.left() == "interrupted"
    kept(tmp_path / "x", PIECES)
    journal = Journal(tmp_path / "x", BASIS)
    assert str(tmp_path / "x") in journal.left()
    journal.remove()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("content", [b"notes", json.dumps({"format": "gistlm.eval"}).encode(), HEADER[:-2] + b"2"])
def test_another_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match="another file"):
        Journal(tmp_path / "x", BASIS)
    assert (tmp_path / "x").read_bytes() == content


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        Journal(tmp_path, BASIS)


def test_a_file_that_cannot_be_written_ends_the_keeping_and_not_the_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "none" / "x", BASIS)
    with caplog.at_level(logging.WARNING, "gistlm"):
        journal.keep("a", 1, 0.0)
        journal.keep("b", 1, 0.0)
    assert [record.message for record in caplog.records if "cannot be written" in record.message] == [
        caplog.records[0].message
    ]
