"""`gistlm report`: a page from result files; errors in one sentence."""

from pathlib import Path

from cli.running import Run, error_line

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_result_files_become_a_page_and_its_path_is_named(real: Run, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = real("report", RESULTS / "eval-retention.json", "-o", out)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{out}\n"
    assert "<h1>gistlm report</h1>" in out.read_text(encoding="utf-8")


def test_what_is_no_result_and_what_is_no_report_are_refused_in_one_sentence(real: Run, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}")
    done = real("report", other, "-o", tmp_path / "r.html")
    assert done.exit_code == 1 and "is JSON but not a result" in error_line(done)
    done = real("report", RESULTS / "eval-retention.json", "-o", tmp_path / "r.doc")
    assert done.exit_code == 1 and "a report ends in .html, .md, .png" in error_line(done)
    assert real("report", "-o", tmp_path / "r.html").exit_code == 2
    assert not list(tmp_path.glob("r.*"))
