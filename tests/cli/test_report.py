"""`gistlm report`: a page from result files, in a process that loads no torch; errors in one sentence."""

from pathlib import Path

import pytest
from cli.running import Process, Run, error_line

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
PROBE = RESULTS / "eval-retention.json"


def test_result_files_become_a_page_and_its_path_is_named(real: Run, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = real("report", PROBE, "-o", out)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{out}\n"
    assert "<h1>gistlm report</h1>" in out.read_text(encoding="utf-8")


def test_a_report_is_made_without_torch_and_says_nothing_on_stderr(process: Process, tmp_path: Path) -> None:
    done = process("report", PROBE, "-o", "r.md", PYTHONPROFILEIMPORTTIME="1")
    assert (done.returncode, done.stdout) == (0, "r.md\nr_files/1-what-is-retained.png\n")
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "matplotlib.artist" in loaded and loaded.isdisjoint({"torch", "transformers", "gistlm.models.checkpoint"})
    assert all(line.startswith("import time:") for line in done.stderr.splitlines()), done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.json", "-o", "r.html"], "there is no result at none.json"),
        (["other.json", "-o", "r.html"], "is JSON but not a result"),
        ([PROBE, PROBE, "-o", "r.html"], "is given twice"),
        ([PROBE, "-o", "r.doc"], "a report ends in .html, .md, .png"),
        ([PROBE, "-o", "none/r.html"], "there is no folder none"),
        ([PROBE, "-o", "folder.html"], "it is a folder"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_writes_nothing(
    real: Run, tmp_path: Path, arguments: list[str | Path], said: str
) -> None:
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "folder.html").mkdir()
    assert said in error_line(real("report", *arguments))
    assert {path.name for path in tmp_path.iterdir()} == {"other.json", "folder.html"}


def test_no_files_are_wrong_usage(real: Run) -> None:
    assert real("report", "-o", "r.html").exit_code == 2
