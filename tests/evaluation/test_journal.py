"""Measured pieces in a file: whole lines count, whatever was cut or damaged; other people's files are left alone."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gistlm.errors import InputError
from gistlm.evaluation import resume_log as module
from gistlm.evaluation.resume_log import HEADER, Journal

BASIS = {"model": "a"}
PIECES = [{"x": [0.1, 1 / 3]}, {"y": "ü\n\u2028"}, {"z": []}]
NEW = "measured now"


def run(path: Path, pieces: list[Any], accept: Callable[[Any], bool] = lambda value: True) -> list[Any]:
    """What a run gets that would measure these pieces."""
    journal = Journal(path, BASIS)
    got = [journal.measured(journal.name(place=place), accept, lambda p=piece: p) for place, piece in enumerate(pieces)]
    journal.close()
    return got


def test_pieces_come_back_to_the_last_digit_and_are_not_measured_again(tmp_path: Path) -> None:
    assert run(tmp_path / "x", PIECES) == PIECES
    assert run(tmp_path / "x", [NEW] * 4) == [*PIECES, NEW]
    assert run(tmp_path / "x", [1, 2, 3, 4], accept=lambda value: value == NEW) == [1, 2, 3, NEW]
    assert run(tmp_path / "x", [0] * 4) == [1, 2, 3, NEW]


def test_the_time_that_was_taken_counts_once_for_pieces_that_are_accepted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path / "x", PIECES)
    seconds = [json.loads(line)["seconds"] for line in (tmp_path / "x").read_text().splitlines()[1:]]
    journal = Journal(tmp_path / "x", BASIS)
    with caplog.at_level(logging.INFO, "gistlm"):
        for place in range(3):
            journal.measured(journal.name(place=place), lambda value: "y" not in value, lambda: NEW)
    assert journal.seconds == seconds[0] + seconds[2]
    assert caplog.messages == [f"going on from {tmp_path / 'x'}"]


def test_names_depend_on_basis_and_work(tmp_path: Path) -> None:
    one, other = Journal(tmp_path / "x", BASIS), Journal(tmp_path / "y", {"model": "b"})
    assert len({one.name(a=1), one.name(a=2), one.name(b=1), other.name(a=1)}) == 4
    assert one.name(a=1) == Journal(None, BASIS).name(a=1)


@given(st.floats(0, 1))
def test_wherever_a_kill_cuts_the_file_whole_pieces_count_and_more_can_follow(
    tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    path = tmp_path_factory.mktemp("cut") / "x"
    run(path, PIECES)
    content = path.read_bytes()
    path.write_bytes(content[: len(HEADER) + round(share * (len(content) - len(HEADER)))])
    whole = max(0, path.read_bytes().count(b"\n") - 1)
    expected = PIECES[:whole] + [NEW] * (4 - whole)
    assert run(path, [NEW] * 4) == expected
    assert run(path, ["other"] * 4) == expected


@pytest.mark.parametrize(
    "line", [b"", b"7", b"[]", b"{}", b'{"name": 1, "seconds": 1.0, "value": 1}', b'{"name": "a", "seconds": 1e999}',
             b'{"name": "a", "seconds": -1.0, "value": 1}',
             b"\xff", b"[" * 100_000]
)  # fmt: skip
def test_a_damaged_line_is_passed_over(tmp_path: Path, line: bytes) -> None:
    run(tmp_path / "x", PIECES)
    header, first, *rest = (tmp_path / "x").read_bytes().splitlines(keepends=True)
    (tmp_path / "x").write_bytes(header + first + line + b"\n" + b"".join(rest))
    assert run(tmp_path / "x", [NEW] * 3) == PIECES


def test_the_file_goes_when_all_that_it_holds_is_in_the_results(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x"
    Journal(path, BASIS).close()
    assert not path.exists()
    run(path, PIECES)
    journal = Journal(path, BASIS)
    assert journal.when_stopped() == ""
    for place in range(2):
        journal.measured(journal.name(place=place), bool, lambda: NEW)
    assert str(path) in journal.when_stopped()
    with caplog.at_level(logging.INFO, "gistlm"):
        journal.remove()
    assert path.exists() and journal.when_stopped() == ""  # the third piece is of other settings
    assert "keeps what runs with other settings measured" in caplog.messages[-1]
    journal = Journal(path, BASIS)
    for place in range(3):
        journal.measured(journal.name(place=place), lambda value: True, lambda: NEW)
    journal.remove()
    assert not path.exists()


def test_without_a_path_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = Journal(None, BASIS)
    assert [journal.measured("a", lambda value: True, lambda n=n: n) for n in range(2)] == [0, 1]
    assert journal.when_stopped() == ""
    journal.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_is_refused_while_the_first_has_the_file(tmp_path: Path) -> None:
    first = Journal(tmp_path / "x", BASIS)
    first.measured("a", bool, lambda: 1)
    with pytest.raises(InputError, match="another run is writing"):
        Journal(tmp_path / "x", BASIS)
    first.measured("b", bool, lambda: 2)
    first.close()
    second = Journal(tmp_path / "x", BASIS)
    assert [second.measured(name, bool, lambda: NEW) for name in ("a", "b")] == [1, 2]


@pytest.mark.parametrize("content", [b"notes", b"{", HEADER[:-1], json.dumps({"format": "gistlm.eval"}).encode()])
def test_another_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match=r"another (file|version)"):
        Journal(tmp_path / "x", BASIS)
    assert (tmp_path / "x").read_bytes() == content


def test_a_file_of_another_version_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(HEADER.replace(b"1}", b"2}"))
    with pytest.raises(InputError, match="another version of gistlm"):
        Journal(tmp_path / "x", BASIS)


@pytest.mark.parametrize("name", ["", "none/x", "nul\0"])
def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot write to"):
        Journal(f"{tmp_path}/{name}", BASIS)


def test_a_file_that_takes_no_more_ends_the_keeping_and_not_the_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "x", BASIS)
    journal.measured("a", bool, lambda: 1)
    monkeypatch.setattr(module, "MAX_BYTES", (tmp_path / "x").stat().st_size)
    with caplog.at_level(logging.WARNING, "gistlm"):
        assert [journal.measured(name, bool, lambda: 2) for name in "bc"] == [2, 2]
    assert len(caplog.messages) == 1 and "what follows is measured again" in caplog.messages[0]
    assert str(tmp_path / "x") in journal.when_stopped()  # of what came before
    journal.close()
    again = Journal(tmp_path / "x", BASIS)
    assert [again.measured(name, bool, lambda: NEW) for name in "ab"] == [1, NEW]


def test_a_run_that_can_write_no_more_still_has_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Journal(tmp_path / "x", BASIS)
    monkeypatch.setattr(module, "MAX_BYTES", len(HEADER))
    first.measured("a", bool, lambda: 1)
    with pytest.raises(InputError, match="another run is writing"):
        Journal(tmp_path / "x", BASIS)
    first.close()
    assert not (tmp_path / "x").exists()  # it had no piece


def test_a_file_that_its_last_run_deletes_while_it_is_opened_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = module.fcntl.flock

    def late(*arguments: Any) -> None:
        (tmp_path / "x").unlink()
        lock(*arguments)

    monkeypatch.setattr(module.fcntl, "flock", late)
    with pytest.raises(InputError, match="another run is writing"):
        Journal(tmp_path / "x", BASIS)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "x", PIECES)
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    with pytest.raises(InputError, match="delete it to measure anew"):
        Journal(tmp_path / "x", BASIS)
