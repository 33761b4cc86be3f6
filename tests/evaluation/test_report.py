"""A report shows what result files hold: shares, bins of prompt lengths, tables; as a page, Markdown or a picture."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gistlm.errors import DataError, MissingDependencyError
from gistlm.evaluation import plots
from gistlm.evaluation.render import write_report
from gistlm.evaluation.report import by_length, gather, points, retention, tables, title
from gistlm.evaluation.results import FORMAT, VERSION, write_results

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
EVIL = "<script>alert('x')</script> | a `` ` `` [b](c) **d**"


def figures(value: float, share: float | None) -> dict[str, Any]:
    return {"value": value, "gap_closed": share, "gap_closed_95": None if share is None else [share - 0.1, share + 0.1]}


def condition(name: str, k: int | None, share: float) -> dict[str, Any]:
    sizes = {"kv_bytes": 640 * (k or 30), "cached_tokens": 7.0, "prompt_tokens": 30.5}
    compression = None if name == "none" else 30.5 / (k or 30.5)
    metrics = {"nll": figures(2 - share, share), "rougeL": figures(share, share)}
    return {"name": name, "k": k, **sizes, "compression": compression, "metrics": metrics}


def made_up(rows: int = 8) -> dict[str, Any]:
    """A result whose gist@1 closes half of the gap for short prompts and none of it for long ones."""
    short = {"full": 1.0, "none": 2.0, "gist@1": 1.5, "gist@4": 1.0, "truncation@4": 2.0}
    long = {"full": 1.0, "none": 3.0, "gist@1": 3.0, "gist@4": 2.0, "truncation@4": 3.0}
    interval = [0.1, 0.9]
    return {
        "format": FORMAT,
        "version": VERSION,
        "run": {"command": "gistlm eval", "date": "2026-01-02", "machine": {"cpu": "C", "threads": 1}, "seconds": 1.0},
        "model": {
            "name": "tiny", "fingerprint": "ab", "adapter": "cd", "dtype": "float32", "kv_bytes_per_token": 64,
            "opening_tokens": 3,
        },
        "data": {
            "name": "rows.jsonl", "sha256": "ef", "rows": rows, "skipped": 0, "output_tokens": 5, "answer_tokens": 4,
        },
        "settings": {
            "k": [1, 4], "seed": 0, "limit": None, "max_tokens": 1024, "new_tokens": 64, "baselines": ["truncation"],
            "generate": True, "resamples": 2000,
        },
        "skipped": {},
        "conditions": [
            condition("full", None, 1.0), condition("none", None, 0.0), condition("gist", 4, 0.75),
            condition("gist", 1, 0.25), condition("truncation", 4, 0.0),
        ],
        "rows": [
            {
                "prompt_tokens": 10 + place, "input_tokens": 9, "output_tokens": 5, "answer_tokens": 4, "kind": None,
                "metrics": {
                    name: {"nll": value, "rougeL": 0.5} for name, value in (short if place < rows / 2 else long).items()
                },
            }
            for place in range(rows)
        ],
        "examples": [
            {"prompt": EVIL, "input": "", "reference": "r", "answers": {"full": "yes", "gist@1": f"so {EVIL}"}}
        ],
        "retention": [
            {"kind": kind, "condition": name, "n": 4, "correct": 2, "score": score, "score_95": interval}
            for kind in ("name", "code-4") for name, score in (("full", 1.0), ("gist@1", 0.5))
        ],
        "judge": [
            {"condition": "gist@4", "against": "full", "wins": 1, "ties": 2, "losses": 3, "win_rate": 0.3,
             "win_rate_95": interval}
        ],
    }  # fmt: skip


@pytest.fixture
def result(tmp_path: Path) -> Path:
    return write_results(tmp_path / "one.json", made_up())


def test_shares_stand_by_condition_and_growing_k_without_the_controls() -> None:
    found = points(made_up(), "nll")
    assert {name: [point.k for point in some] for name, some in found.items()} == {"gist": [1, 4], "truncation": [4]}
    one = found["gist"][0]
    assert (one.share, one.kv_bytes) == (0.25, 640)
    assert one.interval == pytest.approx((0.15, 0.35))
    assert one.compression == pytest.approx(30.5)


def test_rows_of_like_prompt_length_have_their_own_share_of_the_gap() -> None:
    bins = by_length(made_up(), "nll")
    assert [(each.shortest, each.longest, each.rows) for each in bins["gist@1"]] == [
        (10, 11, 2), (12, 13, 2), (14, 15, 2), (16, 17, 2),
    ]  # fmt: skip
    assert [each.share for each in bins["gist@1"]] == [0.5, 0.5, 0.0, 0.0]
    assert [each.share for each in bins["gist@4"]] == [1.0, 1.0, 0.5, 0.5]


def test_a_bin_in_which_the_prompt_changes_nothing_has_no_share() -> None:
    values = made_up()
    for row in values["rows"][:2]:
        row["metrics"]["none"]["nll"] = 1.0
    assert by_length(values, "nll")["gist@1"][0].share is None


def test_longer_outputs_weigh_more_in_a_bin() -> None:
    values = made_up(2)
    values["rows"][0]["output_tokens"] = 15
    merged = copy.deepcopy(values)
    for row in merged["rows"]:
        row["prompt_tokens"] = 7
    both = [by_length(merged, "nll")["gist@1"], by_length(values, "nll")["gist@1"]]
    assert [len(some) for some in both] == [2, 2]
    assert [each.share for each in both[0]] == [0.5, 0.0]


def test_retention_is_a_grid_of_kinds_and_conditions() -> None:
    assert retention(made_up()) == (["name", "code-4"], ["full", "gist@1"], [[1.0, 0.5], [1.0, 0.5]])
    assert retention({**made_up(), "retention": None}) is None


def test_tables_say_value_share_and_interval() -> None:
    whole, probed, judged = tables(made_up())
    assert whole[1] == ["condition", "KV bytes a prompt", "compression", "nll", "rougeL"]
    assert whole[2][2] == ["gist@4", "2,560", "7.6x", "1.250 (75%, 65% to 85%)", "0.750 (75%, 65% to 85%)"]
    assert probed[2] == [["name", "100%", "50%"], ["code-4", "100%", "50%"]]
    assert judged[2] == [["gist@4", "full", "1", "2", "3", "30% (10% to 90%)"]]


def test_a_page_holds_every_plot_table_and_answer_and_no_script(result: Path, tmp_path: Path) -> None:
    [page] = write_report(gather([result]), tmp_path / "report.html")
    text = page.read_text(encoding="utf-8")
    assert text.count("<img alt=") == text.count('src="data:image/png;base64,') == 4
    assert all(f"<h3>{plot.name}</h3>" in text for plot in plots.PLOTS)
    assert "<script" not in text and "&lt;script&gt;alert(&#x27;x&#x27;)" in text
    assert "http" not in text
    assert text.count("so &lt;script&gt;") == 1


def test_markdown_has_its_pictures_beside_it_and_cells_that_stay_cells(result: Path, tmp_path: Path) -> None:
    made = write_report(gather([result]), tmp_path / "report.md")
    text = made[0].read_text(encoding="utf-8")
    assert [path.parent for path in made[1:]] == [tmp_path / "report_files"] * 4
    for path in made[1:]:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert f"({path.parent.name}/{path.name})" in text
    assert f"```\n{EVIL}\n```" in text
    row = next(line for line in text.splitlines() if line.startswith("| gist@4"))
    assert row.count(" | ") == 4


def test_a_fence_is_longer_than_any_in_the_answer(tmp_path: Path) -> None:
    values = made_up()
    values["examples"][0]["answers"]["full"] = "a ```` b"
    path = write_results(tmp_path / "x.json", values)
    assert "`````\na ```` b\n`````" in write_report(gather([path]), tmp_path / "r.md")[0].read_text()


@pytest.mark.parametrize("suffix", [".html", ".md", ".png"])
def test_the_same_results_give_the_same_bytes(suffix: str, result: Path, tmp_path: Path) -> None:
    first = write_report(gather([result]), tmp_path / f"a{suffix}")
    before = [path.read_bytes() for path in first]
    second = write_report(gather([result]), tmp_path / f"a{suffix}")
    assert [path.read_bytes() for path in second] == before


def test_several_results_stand_one_under_the_other(result: Path, tmp_path: Path) -> None:
    other = write_results(tmp_path / "two.json", {**made_up(), "retention": None, "judge": None, "examples": []})
    text = write_report(gather([result, other]), tmp_path / "r.html")[0].read_text()
    assert text.count("<section>") == 2 and text.count("<img alt=") == 7
    assert "made with --no-examples" in text


def test_a_probe_alone_makes_a_report(tmp_path: Path) -> None:
    empty = {"conditions": [], "rows": [], "examples": [], "judge": None}
    values = {**made_up(), **empty, "data": {**made_up()["data"], "rows": 0}}
    path = write_results(tmp_path / "x.json", values)
    assert title(values) == "tiny"
    for suffix in (".html", ".md", ".png"):
        assert write_report(gather([path]), tmp_path / f"r{suffix}")


def test_the_committed_results_make_a_report(tmp_path: Path) -> None:
    found = sorted(RESULTS.glob("eval-*.json"))
    assert found
    assert write_report(gather(found), tmp_path / "r.html")[0].stat().st_size > 100_000


def test_a_result_without_controls_or_with_gaps_in_it_is_refused(tmp_path: Path) -> None:
    values = made_up()
    values["conditions"] = values["conditions"][1:]
    with pytest.raises(DataError, match="no whole result: it lacks full"):
        gather([write_results(tmp_path / "x.json", values)])
    values = made_up()
    del values["rows"][3]["metrics"]["gist@4"]
    with pytest.raises(DataError, match="lacks some conditions' figures"):
        gather([write_results(tmp_path / "y.json", values)])


def test_a_result_given_twice_an_unknown_suffix_and_a_missing_folder_are_one_sentence(
    result: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="given twice"):
        gather([result, result.parent / "." / result.name])
    with pytest.raises(DataError, match=r"ends in \.html, \.md, \.png, got 'r\.pdf'"):
        write_report(gather([result]), tmp_path / "r.pdf")
    with pytest.raises(DataError, match="there is no folder"):
        write_report(gather([result]), tmp_path / "none" / "r.html")
    (tmp_path / "r.html").mkdir()
    with pytest.raises(DataError, match="cannot write the report"):
        write_report(gather([result]), tmp_path / "r.html")


def test_without_matplotlib_the_error_says_what_to_install(
    result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match="gistlm\\[eval\\]"):
        write_report(gather([result]), tmp_path / "r.html")


def test_a_report_needs_no_torch(result: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from gistlm.evaluation.render import write_report; from gistlm.evaluation.report import gather; "
        f"from pathlib import Path; write_report(gather([{str(result)!r}]), Path({str(tmp_path / 'r.html')!r})); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
