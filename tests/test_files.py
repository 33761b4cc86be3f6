"""Whole files or none: what a reader, an error or another thread finds."""

from __future__ import annotations

import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gists import files_below

from gistlm import files
from gistlm.errors import InputError
from gistlm.files import check_target, home, reason, remove_abandoned, sha256, write_atomically


def test_a_file_is_written_in_folders_that_did_not_exist(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "file", b"content")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"content"
    assert files_below(tmp_path) == ["a/b/file"]


def test_an_existing_file_is_replaced_and_its_open_readers_keep_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with path.open("rb") as reader:
        write_atomically(path, b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


def test_a_target_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    for name in ("old", "new", "folder/new"):
        check_target(tmp_path / name)
    assert (tmp_path / "old").read_bytes() == b"old"
    assert files_below(tmp_path) == ["old"]


@pytest.mark.parametrize("name", ["", "file/x", "a" * 300])
def test_a_target_that_cannot_be_written_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot write to"):
        check_target(tmp_path / name)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_an_error_midway_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, broken, fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert files_below(tmp_path) == ["file"]


def test_the_file_reaches_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda handle: (order.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(files.os, "replace", lambda *paths: (order.append("replace"), replace(*paths))[1])
    write_atomically(tmp_path / "file", b"content")
    assert order == ["fsync", "replace", "fsync"]


def test_a_folder_in_the_files_place_is_an_error_and_stays(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write_atomically(tmp_path / "taken", b"content")
    assert (tmp_path / "taken").is_dir()
    assert files_below(tmp_path) == []


def test_the_longest_file_name_the_system_allows_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    write_atomically(path, b"content")
    assert path.read_bytes() == b"content"


@pytest.mark.skipif(os.name != "posix", reason="modes are a POSIX matter")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_mode_that_the_umask_allows(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "file", b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_writing_never_changes_the_umask_which_other_threads_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> int:
        raise AssertionError("a thread that creates a file at this moment gets another mode")

    monkeypatch.setattr(files.os, "umask", fail)
    write_atomically(tmp_path / "file", b"content")


def test_threads_that_write_one_file_leave_one_of_their_contents(tmp_path: Path) -> None:
    contents = [bytes([number]) * 50_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_atomically(tmp_path / "file", content), contents * 4))
    assert (tmp_path / "file").read_bytes() in contents
    assert files_below(tmp_path) == ["file"]


def test_abandoned_temporary_files_go_when_they_are_old_and_nothing_else_goes(tmp_path: Path) -> None:
    yesterday = time.time() - 86_400
    old, fresh = ".gistlm-0123456789abcdef.tmp", ".gistlm-fedcba9876543210.tmp"
    for name in (old, fresh, "file", ".other.tmp", ".gistlm-0123456789abcdef.tmp.bak"):
        (tmp_path / name).write_bytes(b"part")
        if name != fresh:
            os.utime(tmp_path / name, (yesterday, yesterday))
    remove_abandoned(tmp_path)
    assert files_below(tmp_path) == sorted([fresh, "file", ".other.tmp", ".gistlm-0123456789abcdef.tmp.bak"])


def test_what_a_killed_writer_leaves_is_recognised_as_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", power_cut)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", b"content")
    monkeypatch.undo()
    assert len(files_below(tmp_path)) == 1
    remove_abandoned(tmp_path, seconds=-1)
    assert files_below(tmp_path) == []


def test_the_hash_tells_apart_lists_that_join_to_the_same_bytes() -> None:
    assert len({sha256(b"ab", b"c"), sha256(b"a", b"bc"), sha256(b"abc"), sha256(b"abc", b"")}) == 4
    assert sha256(b"ab", b"c") == sha256(b"ab", b"c")


def test_the_home_folder_is_the_environments_or_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GISTLM_HOME", "/somewhere")
    assert home() == Path("/somewhere")
    monkeypatch.setenv("GISTLM_HOME", "")
    assert home() == Path.home() / ".cache" / "gistlm"


def test_an_errors_reason_is_the_systems_sentence_without_number_and_path() -> None:
    assert reason(FileNotFoundError(2, "No such file or directory", "x")) == "No such file or directory"
    assert reason(OSError("no words of the system")) == "no words of the system"
    assert reason(ValueError("embedded null byte")) == "embedded null byte"
