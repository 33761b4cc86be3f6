"""Measured pieces in a file: each whole or not at all, wherever a kill comes; other people's files are left alone."""

import json
import logging
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gistlm.errors import InputError
from gistlm.evaluation import resume_log as module
from gistlm.evaluation.resume_log import ResumeLog

BASIS = {"model": "a"}
PIECES = [{"x": [0.1, 1 / 3]}, {"y": "ü\n\u2028"}, {"z": []}]
NEW = "measured now"
SIZE = 3 * 4096
"""Bytes of the file with these pieces."""
OLD_FORMAT = b'{"format": "gistlm.eval.partial", "version": 1}\n{"name": "a", "seconds": 1.0, "value": 1}\n'


def run(path: Path, pieces: list[Any], accept: Callable[[Any], bool] = lambda value: True) -> list[Any]:
    """What a run gets that would measure these pieces."""
    log = ResumeLog(path, BASIS)
    got = [log.measured(log.name(place=place), accept, lambda p=piece: p) for place, piece in enumerate(pieces)]
    log.close()
    return got


def change(path: Path, statement: str, *values: Any) -> list[Any]:
    """Run a statement on the closed file; returns its rows."""
    database = sqlite3.connect(path, isolation_level=None)
    rows = database.execute(statement, values).fetchall()
    database.close()
    return rows


def test_pieces_come_back_to_the_last_digit_and_are_not_measured_again(tmp_path: Path) -> None:
    assert run(tmp_path / "x", PIECES) == PIECES
    assert run(tmp_path / "x", [NEW] * 4) == [*PIECES, NEW]
    assert run(tmp_path / "x", [1, 2, 3, 4], accept=lambda value: value == NEW) == [1, 2, 3, NEW]
    assert run(tmp_path / "x", [0] * 4) == [1, 2, 3, NEW]


def test_the_time_that_was_taken_counts_once_for_pieces_that_are_accepted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path / "x", PIECES)
    seconds = [row[0] for row in change(tmp_path / "x", "SELECT seconds FROM pieces ORDER BY rowid")]
    log = ResumeLog(tmp_path / "x", BASIS)
    with caplog.at_level(logging.INFO, "gistlm"):
        for place in range(3):
            log.measured(log.name(place=place), lambda value: "y" not in value, lambda: NEW)
    assert log.seconds == seconds[0] + seconds[2]
    assert caplog.messages == [f"going on from {tmp_path / 'x'}"]


def test_names_depend_on_basis_and_work(tmp_path: Path) -> None:
    one, other = ResumeLog(tmp_path / "x", BASIS), ResumeLog(tmp_path / "y", {"model": "b"})
    assert len({one.name(a=1), one.name(a=2), one.name(b=1), other.name(a=1)}) == 4
    assert one.name(a=1) == ResumeLog(None, BASIS).name(a=1)


WRITER = """
import sys
from gistlm.evaluation.resume_log import ResumeLog
log = ResumeLog(sys.argv[1], {})
for place in range(1_000_000):
    log.measured(str(place), bool, lambda: [place] * 5_000)
    print(place, flush=True)
"""


@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_wherever_a_kill_comes_whole_pieces_count_and_more_can_follow(tmp_path: Path, pieces: int) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / "x"], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(pieces):
            told = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        told = max([told, *(int(line) for line in writer.stdout.read().splitlines())])
    log = ResumeLog(tmp_path / "x", {})
    got = [log.measured(str(place), bool, lambda: NEW) for place in range(told + 3)]
    assert got[: told + 1] == [[place] * 5_000 for place in range(told + 1)]
    assert got[told + 1] in ([told + 1] * 5_000, NEW) and got[-1] == NEW
    log.close()


@settings(max_examples=60)
@given(st.integers(1, SIZE - 1), st.integers(0, 255))
@example(1, 0)
@example(100, 0)
@example(4096, 0)
@example(SIZE - 1, 0)
def test_a_file_that_is_cut_or_changed_costs_a_refusal_or_a_piece_and_no_other_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, flipped: int
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "x"
    run(path, PIECES)
    content = path.read_bytes()
    assert len(content) == SIZE
    content = content[:place] + (bytes([content[place] ^ flipped]) + content[place + 1 :] if flipped else b"")
    path.write_bytes(content)
    try:
        got = run(path, [NEW] * 3, lambda value: value in PIECES)
    except InputError as error:
        assert re.search(r"delete it to measure anew|move it away", str(error))
        assert path.read_bytes() == content
    else:
        assert all(each in (whole, NEW) for each, whole in zip(got, PIECES, strict=True))


@pytest.mark.parametrize(
    ("column", "value"),
    [("value", None), ("value", "{"), ("value", b"\xff"), ("value", 7.5), ("value", "[" * 100_000), ("value", ""),
     ("seconds", None), ("seconds", -1.0), ("seconds", float("inf")), ("seconds", "x"), ("name", "other")],
)  # fmt: skip
def test_a_damaged_piece_is_measured_again(tmp_path: Path, column: str, value: Any) -> None:
    run(tmp_path / "x", PIECES)
    change(tmp_path / "x", f"UPDATE pieces SET {column} = ? WHERE rowid = 2", value)
    assert run(tmp_path / "x", [NEW] * 3, lambda piece: piece in PIECES) == [PIECES[0], NEW, PIECES[2]]


def test_the_file_goes_when_all_that_it_holds_is_in_the_results(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x"
    ResumeLog(path, BASIS).close()
    assert not path.exists()
    run(path, PIECES)
    log = ResumeLog(path, BASIS)
    assert log.when_stopped() == ""
    for place in range(2):
        log.measured(log.name(place=place), bool, lambda: NEW)
    assert str(path) in log.when_stopped()
    with caplog.at_level(logging.INFO, "gistlm"):
        log.remove()
    assert path.exists() and log.when_stopped() == ""  # the third piece is of other settings
    assert "keeps what runs with other settings measured" in caplog.messages[-1]
    log = ResumeLog(path, BASIS)
    for place in range(3):
        log.measured(log.name(place=place), lambda value: True, lambda: NEW)
    log.remove()
    assert list(tmp_path.iterdir()) == []


def test_without_a_path_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = ResumeLog(None, BASIS)
    assert [log.measured("a", lambda value: True, lambda n=n: n) for n in range(2)] == [0, 1]
    assert log.when_stopped() == ""
    log.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_is_refused_while_the_first_has_the_file(tmp_path: Path) -> None:
    first = ResumeLog(tmp_path / "x", BASIS)
    first.measured("a", bool, lambda: 1)
    with pytest.raises(InputError, match="another run is writing"):
        ResumeLog(tmp_path / "x", BASIS)
    other = subprocess.run([sys.executable, "-c", WRITER, tmp_path / "x"], capture_output=True, text=True, check=False)
    assert "another run is writing" in other.stderr and other.stdout == ""
    first.measured("b", bool, lambda: 2)
    first.close()
    second = ResumeLog(tmp_path / "x", BASIS)
    assert [second.measured(name, bool, lambda: NEW) for name in ("a", "b")] == [1, 2]


@pytest.mark.parametrize(
    "content", [b"notes", b"{", OLD_FORMAT[:10], json.dumps({"format": "gistlm.eval"}).encode(), b"SQLite format 3\0"]
)
def test_another_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match="is another file, where measured rows are to be kept; move it away"):
        ResumeLog(tmp_path / "x", BASIS)
    assert (tmp_path / "x").read_bytes() == content


def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    change(tmp_path / "x", "CREATE TABLE pieces (name, value, seconds)")
    content = (tmp_path / "x").read_bytes()
    with pytest.raises(InputError, match="is another file"):
        ResumeLog(tmp_path / "x", BASIS)
    assert (tmp_path / "x").read_bytes() == content


def test_a_file_without_the_table_that_belongs_there_is_called_damaged(tmp_path: Path) -> None:
    run(tmp_path / "x", PIECES)
    change(tmp_path / "x", "ALTER TABLE pieces RENAME COLUMN value TO other")
    with pytest.raises(InputError, match="is damaged; delete it to measure anew"):
        ResumeLog(tmp_path / "x", BASIS)


def test_a_file_of_another_version_is_called_that_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(OLD_FORMAT)
    run(tmp_path / "new", PIECES)
    change(tmp_path / "new", "PRAGMA user_version = 2")
    for name in ("old", "new"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(InputError, match="by another version of gistlm; delete it to measure anew"):
            ResumeLog(tmp_path / name, BASIS)
        assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("name", ["", "none/x", "nul\0"])
def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot write to"):
        ResumeLog(f"{tmp_path}/{name}", BASIS)


def fill(log: ResumeLog) -> None:
    """From now on the file takes nothing, as on a full disk."""
    assert log._database is not None
    log._database.execute("PRAGMA max_page_count = 1")


def test_a_file_that_takes_no_more_ends_the_keeping_and_not_the_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = ResumeLog(tmp_path / "x", BASIS)
    log.measured("a", bool, lambda: 1)
    fill(log)
    with caplog.at_level(logging.WARNING, "gistlm"):
        assert [log.measured(name, bool, lambda: "2" * 10_000) for name in "bc"] == ["2" * 10_000] * 2
    assert len(caplog.messages) == 1 and "what follows is measured again" in caplog.messages[0]
    assert str(tmp_path / "x") in log.when_stopped()  # of what came before
    log.close()
    again = ResumeLog(tmp_path / "x", BASIS)
    assert [again.measured(name, bool, lambda: NEW) for name in "ab"] == [1, NEW]


def test_a_run_that_can_write_no_more_still_has_the_file(tmp_path: Path) -> None:
    first = ResumeLog(tmp_path / "x", BASIS)
    fill(first)
    first.measured("a", bool, lambda: "1" * 10_000)
    with pytest.raises(InputError, match="another run is writing"):
        ResumeLog(tmp_path / "x", BASIS)
    first.close()
    assert not (tmp_path / "x").exists()  # it had no piece


@pytest.mark.parametrize("begun", [False, True])
def test_a_file_that_its_last_run_deletes_while_it_is_opened_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    connect = sqlite3.connect

    def late(*arguments: Any, **options: Any) -> sqlite3.Connection:
        database = connect(*arguments, **options)
        (tmp_path / "x").unlink()
        return database

    if begun:
        run(tmp_path / "x", PIECES)
    monkeypatch.setattr(module.sqlite3, "connect", late)
    with pytest.raises(InputError, match="another run is writing"):
        ResumeLog(tmp_path / "x", BASIS)
