"""A report shows what result files hold: gaps closed, prompt lengths, tables; as a page, Markdown or a picture."""

import base64
import re
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gistlm.errors import DataError, MissingDependencyError
from gistlm.evaluation.results import FORMAT, VERSION, write_results
from gistlm.evaluation.statistics import PairedDifference, by_length, group_by_length, paired_differences
from gistlm.report import plots
from gistlm.report.render import write_report
from gistlm.report.tables import MAX_FILES, Result, drawn_metrics, gather, origin, points, retention, tables, title

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
EVIL = "<script>alert('x')</script> | a `` ` `` [b](c) **d** $\\frac{$"
PLOTS = (
    "Quality against compression", "Quality against prompt length", "Cost against quality", "What is retained",
    "Judged answers",
)  # fmt: skip


def figures(value: float, closed: float | None) -> dict[str, Any]:
    return {
        "value": value,
        "gap_closed": closed,
        "gap_closed_95": None if closed is None else [closed - 0.1, closed + 0.1],
    }


def condition(name: str, k: int | None, closed: float) -> dict[str, Any]:
    sizes = {"kv_bytes": 640 * (k or 30), "cached_tokens": 7.0, "prompt_tokens": 30.5}
    compression = None if name == "none" else 30.5 / (k or 30.5)
    metrics = {"nll": figures(2 - closed, closed), "rougeL": figures(closed, closed)}
    return {"name": name, "k": k, **sizes, "compression": compression, "metrics": metrics}


def made_up(rows: int = 40) -> dict[str, Any]:
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
        "skipped": {"llmlingua2": "no such model"},
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
            {"condition": "gist@4", "against": "full", "wins": 1, "ties": 2, "losses": 3, "nonsense": 4,
             "win_rate": 0.3, "win_rate_95": interval}
        ],
    }  # fmt: skip


@pytest.fixture
def result(tmp_path: Path) -> Path:
    return write_results(tmp_path / "one.json", made_up())


def written(values: dict[str, Any], path: Path) -> str:
    """The report of one result, as text."""
    source = write_results(path.with_name("source.json"), values)
    return write_report(gather([source]), path)[0].read_text(encoding="utf-8")


def test_gaps_closed_stand_by_condition_and_growing_k_without_the_controls() -> None:
    found = points(made_up(), "nll")
    assert {name: [point.k for point in some] for name, some in found.items()} == {"gist": [1, 4], "truncation": [4]}
    one = found["gist"][0]
    assert (one.gap_closed, one.kv_bytes) == (0.25, 640)
    assert one.interval == pytest.approx((0.15, 0.35))
    assert one.compression == pytest.approx(30.5)


def test_rows_of_like_prompt_length_have_their_own_gap_closed() -> None:
    groups = by_length(made_up(), "nll")
    assert [(each.shortest, each.longest, each.rows) for each in groups["gist@1"]] == [
        (10, 19, 10), (20, 29, 10), (30, 39, 10), (40, 49, 10),
    ]  # fmt: skip
    assert [each.gap_closed for each in groups["gist@1"]] == [0.5, 0.5, 0.0, 0.0]
    assert [each.gap_closed for each in groups["gist@4"]] == [1.0, 1.0, 0.5, 0.5]
    assert groups["gist@1"][0].interval == pytest.approx((0.5, 0.5))


def test_a_groups_interval_is_wider_where_its_rows_differ_more() -> None:
    values = made_up()
    for row in values["rows"][:10:2]:
        row["metrics"]["gist@1"]["nll"] = 1.9
    first, second, *_ = by_length(values, "nll")["gist@1"]
    assert first.interval is not None and second.interval is not None
    assert first.interval[0] < first.gap_closed - 0.05 < first.gap_closed + 0.05 < first.interval[1]
    assert second.interval[1] - second.interval[0] < 1e-9


def test_prompts_of_one_length_are_in_one_group_and_few_rows_make_few_groups() -> None:
    rows = [{"prompt_tokens": length} for length in [7] * 30 + [9] * 10 + [8]]
    assert [{row["prompt_tokens"] for row in group} for group in group_by_length(rows)] == [{7}, {8, 9}]
    assert [len(group_by_length(made_up(count)["rows"])) for count in (1, 19, 20, 39)] == [1, 1, 2, 3]


def test_of_a_group_in_which_the_prompt_changes_nothing_no_gap_is_closed() -> None:
    values = made_up()
    for row in values["rows"][:10]:
        row["metrics"]["none"]["nll"] = 1.0
    assert by_length(values, "nll")["gist@1"][0].gap_closed is None
    assert tables(values)[3].rows[0] == ["10 to 19", "10", "no gap", "no gap"]


def test_longer_outputs_weigh_more_in_a_group_under_a_token_metric_alone() -> None:
    values = made_up(2)
    values["rows"][0]["output_tokens"] = 15
    for row in values["rows"]:
        for each in row["metrics"].values():
            each["rougeL"] = each["nll"]
    (tokens,), (texts,) = (by_length(values, metric)["gist@1"] for metric in ("nll", "rougeL"))
    assert tokens.gap_closed == pytest.approx((15 * 0.5 + 5 * 0.0) / (15 * 1.0 + 5 * 2.0))
    assert texts.gap_closed == pytest.approx((0.5 + 0.0) / (1.0 + 2.0))


def test_a_group_of_all_rows_closes_the_gap_that_the_runner_measured(tmp_path: Path) -> None:
    values = gather([RESULTS / "eval-alpaca-unseen.json"])[0].values
    for row in values["rows"]:
        row["prompt_tokens"] = 9
    for metric in ("nll", "kl"):
        gists = points(values, metric)["gist"]
        for point in gists:
            (whole,) = by_length(values, metric)[f"gist@{point.k}"]
            assert whole.gap_closed == pytest.approx(point.gap_closed, abs=1e-4)
            assert whole.interval == pytest.approx(point.interval, abs=1e-4)


def test_a_paired_difference_is_that_of_two_gaps_closed_at_the_same_k() -> None:
    values = made_up()
    (found,) = paired_differences(values, "nll")
    assert (found.baseline, found.k) == ("truncation", 4)
    assert found.difference == pytest.approx((1.0 + 1.0) / (1.0 + 2.0))
    assert found.interval and 0.5 < found.interval[0] < found.difference < found.interval[1] < 1.0
    assert found.standing == "ahead"
    for row in values["rows"]:
        row["metrics"]["gist@4"], row["metrics"]["truncation@4"] = (
            row["metrics"]["truncation@4"], row["metrics"]["gist@4"],
        )  # fmt: skip
    (behind,) = paired_differences(values, "nll")
    assert behind.difference == pytest.approx(-found.difference) and str(behind).endswith("), behind")
    for row in values["rows"][::2]:
        row["metrics"]["gist@4"], row["metrics"]["truncation@4"] = (
            row["metrics"]["truncation@4"], row["metrics"]["gist@4"],
        )  # fmt: skip
    assert str(paired_differences(values, "nll")[0]).endswith("), not significant")


def test_a_paired_difference_of_one_row_has_no_interval_and_is_not_significant() -> None:
    (found,) = paired_differences(made_up(1), "nll")
    assert str(found) == "100, not significant"


@pytest.mark.parametrize(
    ("difference", "interval", "text"),
    [
        (-0.0013, (-0.002, -0.0005), "-0.13 (-0.2 to -0.05), behind"),
        (0.5, (0.0, 0.9), "50 (0 to 90), not significant"),
        (0.006, (-0.002, 0.016), "0.6 (-0.2 to 1.6), not significant"),
        (0.2137, (0.1936, 0.4), "21.4 (19.4 to 40)"),
        (-0.0013, (-0.002, -0.00001), "-0.13 (-0.2 to -0.001), behind"),
    ],
)
def test_a_paired_difference_says_on_which_side_of_zero_it_is(
    difference: float, interval: tuple[float, float], text: str
) -> None:
    assert str(PairedDifference(4, "last", 9, difference, interval)) == text


def test_prompts_that_fit_whole_are_left_out_of_paired_differences() -> None:
    values = made_up()
    opening = values["model"]["opening_tokens"]
    for place, row in enumerate(values["rows"]):
        row["prompt_tokens"] = opening + (4 if place % 4 else 5)
        if place % 4:
            row["metrics"]["gist@4"] = row["metrics"]["none"]
    (found,) = paired_differences(values, "nll")
    assert found.rows == 10 and found.difference == pytest.approx((1.0 + 1.0) / (1.0 + 2.0))
    for row in values["rows"]:
        row["prompt_tokens"] = opening + 4
    assert paired_differences(values, "nll") == []


def test_a_paired_difference_is_significant_where_the_same_rows_are_hard_for_both() -> None:
    values = made_up()
    for place, row in enumerate(values["rows"]):
        hard = 0.9 if place % 2 else 0.1
        row["metrics"] = {
            "full": {"nll": 1.0}, "none": {"nll": 2.0}, "gist@1": {"nll": 1.0}, "gist@4": {"nll": 1 + hard - 0.05},
            "truncation@4": {"nll": 1 + hard},
        }  # fmt: skip
    (found,) = paired_differences(values, "nll")
    assert found.interval == pytest.approx((0.05, 0.05)) and found.standing == "ahead"
    spread = [group for name, groups in by_length(values, "nll").items() if name == "gist@4" for group in groups]
    assert all(group.interval and group.interval[1] - group.interval[0] > 0.2 for group in spread)


def test_a_paired_difference_has_one_sign_whether_less_or_more_is_better() -> None:
    values = made_up()
    for row in values["rows"]:
        for each in row["metrics"].values():
            each["rougeL"] = -each["nll"]
    less, more = (paired_differences(values, metric)[0] for metric in ("nll", "rougeL"))
    assert less.difference == pytest.approx(more.difference) and less.interval == pytest.approx(more.interval)


@pytest.mark.parametrize("metric", ["nll", "kl"])
def test_without_rows_a_gap_or_the_metric_nothing_is_ahead(metric: str) -> None:
    values = made_up()
    assert paired_differences({**values, "rows": []}, metric) == []
    del values["rows"][3]["metrics"]["truncation@4"]["nll"]
    assert paired_differences(values, metric) == []
    values = made_up()
    for row in values["rows"]:
        row["metrics"]["none"]["nll"] = row["metrics"]["full"]["nll"]
    assert paired_differences(values, metric) == []


def test_the_paired_difference_of_measured_conditions_is_that_of_the_shown_gaps_closed() -> None:
    values = gather([RESULTS / "eval-alpaca-unseen.json"])[0].values
    closed = {(point.name, point.k): point.gap_closed for some in points(values, "kl").values() for point in some}
    found = paired_differences(values, "kl")
    assert len(found) == len(closed) - len(values["settings"]["k"])
    every = [each for each in found if each.rows == len(values["rows"])]
    assert {each.k for each in every} == {1}
    for each in every:
        assert each.difference == pytest.approx(closed["gist", each.k] - closed[each.baseline, each.k], abs=1e-4)


def test_retention_is_a_grid_of_kinds_and_conditions() -> None:
    found = retention(made_up())
    assert found is not None
    assert found[:2] == (["name", "code-4"], ["full", "gist@1"])
    assert (found[2]["name", "gist@1"].accuracy, found[2]["name", "gist@1"].n) == (0.5, 4)
    assert retention({**made_up(), "retention": None}) is None


def test_tables_say_value_gap_closed_and_interval() -> None:
    references, answers, ahead, lengths, probed, judged = tables(made_up())
    assert ahead.head == ["baseline", "gist@4, 40 rows"]
    (found,) = paired_differences(made_up(), "nll")
    assert found.interval and ahead.rows == [["truncation", str(found)]]
    assert str(found) == f"66.7 ({100 * found.interval[0]:.3g} to {100 * found.interval[1]:.3g})"
    assert references.head == ["condition", "KV bytes a prompt", "compression", "nll"]
    assert references.rows[0] == ["full", "19,200", "1.0x", "1.000"]
    assert references.rows[2] == ["gist@4", "2,560", "7.6x", "1.250 (75 %, 65 to 85 %)"]
    assert answers.rows[3] == ["gist@1", "640", "30.5x", "0.250 (25 %, 15 to 35 %)"]
    assert lengths.rows[0] == ["10 to 19", "10", "50 %, 50 to 50 %", "100 %, 100 to 100 %"]
    assert probed.rows[0] == ["name", "2 of 4 (100 %, 10 to 90 %)", "2 of 4 (50 %, 10 to 90 %)"]
    assert judged.rows == [["gist@4", "full", "1", "2", "3", "4", "30 %, 10 to 90 %"]]


def test_a_gap_closed_just_below_zero_is_not_minus_zero() -> None:
    values = made_up()
    values["conditions"][4]["metrics"]["nll"] = figures(2.0, -0.004)
    assert tables(values)[0].rows[4][3] == "2.000 (0 %, -10 to 10 %)"


def test_the_origin_names_command_seed_machine_model_and_what_was_skipped(result: Path) -> None:
    found = dict(origin(gather([result])[0]))
    assert (found["file"], found["command"], found["date"]) == ("one.json", "gistlm eval", "2026-01-02")
    assert found["machine"] == "cpu C, threads 1"
    assert found["seed"] == "0; intervals from 2,000 resamples of the rows"
    assert found["data"].startswith("rows.jsonl: 40 rows")
    assert found["llmlingua2 was skipped"] == "no such model"


class Page(HTMLParser):
    """What a page holds: its tags with their attributes, and whether all are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_a_page_holds_every_plot_table_and_answer(result: Path, tmp_path: Path) -> None:
    text = write_report(gather([result]), tmp_path / "report.html")[0].read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert all(f"<h3>{name}</h3>" in text for name in PLOTS)
    for image in page.all("img"):
        kind, _, content = str(image["src"]).partition(",")
        assert kind == "data:image/png;base64" and base64.b64decode(content).startswith(b"\x89PNG")
        assert len(str(image["alt"])) > 30
    assert len(page.all("img")) == len(page.all("figcaption")) == len(PLOTS)
    assert len(page.all("table")) == len(page.all("caption")) == 7
    assert {cell.get("scope") for cell in page.all("th")} == {"col", "row"}
    assert "nll: gist 25 % at k=1, 75 % at k=4; truncation 0 % at k=4." in text
    assert text.count("so &lt;script&gt;") == 1


def test_whatever_a_result_holds_is_text_on_the_page(tmp_path: Path) -> None:
    values = made_up()
    values["model"]["name"] = values["data"]["name"] = values["run"]["command"] = values["run"]["machine"]["cpu"] = EVIL
    values["skipped"] = {EVIL: EVIL}
    values["judge"][0]["condition"] = values["retention"][0]["kind"] = EVIL
    values["examples"][0]["answers"] = {EVIL: EVIL, 'x" onload="y': 'a" b'}
    text = written(values, tmp_path / "r.html")
    page = Page(text)
    names = {name for _, attributes in page.tags for name in attributes}
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "b"})
    assert names.isdisjoint({"onload", "onclick", "onerror", "href"})
    assert "http:" not in text and "https:" not in text
    assert "&lt;script&gt;alert(&#39;x&#39;)" in text
    assert "default-src 'none'" in text


def test_markdown_has_its_pictures_beside_it_and_cells_that_stay_cells(tmp_path: Path) -> None:
    values = made_up()
    values["model"]["name"] = EVIL
    values["judge"][0]["condition"] = EVIL
    path = write_results(tmp_path / "one.json", values)
    made = write_report(gather([path]), tmp_path / "my report.md")
    text = made[0].read_text(encoding="utf-8")
    assert [path.parent for path in made[1:]] == [tmp_path / "my report_files"] * len(PLOTS)
    for path in made[1:]:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert f"(my%20report_files/{path.name})" in text
    assert f"  ```text\n  {EVIL}\n  ```" in text
    row = next(line for line in text.splitlines() if line.startswith("| gist@4"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 5
    assert "<script" not in re.sub(r"```.*?```", "", text.replace("\\<", ""), flags=re.DOTALL)
    heading = next(line for line in text.splitlines() if line.startswith("## "))
    assert "\\[b\\](c) \\*\\*d\\*\\*" in heading and "\\$" in heading


def test_a_fence_is_longer_than_any_in_the_answer_and_keeps_its_lines(tmp_path: Path) -> None:
    values = made_up()
    values["examples"][0]["answers"]["full"] = "a ```` b\n\n# c"
    assert "  `````text\n  a ```` b\n\n  # c\n  `````" in written(values, tmp_path / "r.md")


def test_characters_that_no_page_can_hold_are_replaced(tmp_path: Path) -> None:
    values = made_up()
    for name in ("name", "fingerprint"):
        values["model"][name] = "a\x00b"
    values["examples"][0]["prompt"] = "one\r\ntwo\x1b[0m \x85"
    path = write_results(tmp_path / "x.json", values)
    path.write_text(path.read_text().replace("a\\u0000b", "a\\ud800b"))  # half of a pair, as JSON can say it
    for suffix in (".html", ".md", ".png"):
        write_report(gather([path]), tmp_path / f"r{suffix}")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "a\ufffdb on rows.jsonl" in text and "one\ntwo\ufffd[0m \ufffd" in text


def test_any_name_can_be_drawn_without_a_warning(tmp_path: Path) -> None:
    one, two = made_up(), made_up()
    one["model"]["name"], two["model"]["name"] = "_hidden", "$\\frac{$"
    one["conditions"][4]["name"], one["judge"][0]["condition"], two["retention"][0]["kind"] = "", "日本" * 40, "_"
    for row in one["rows"]:
        row["metrics"]["@4"] = row["metrics"].pop("truncation@4")
    paths = [write_results(tmp_path / f"{place}.json", values) for place, values in enumerate((one, two))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plots.draw_all(gather(paths)).startswith(b"\x89PNG")


@pytest.mark.parametrize("suffix", [".html", ".md", ".png"])
def test_the_same_results_give_the_same_bytes_under_any_style(
    suffix: str, result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib

    before = [path.read_bytes() for path in write_report(gather([result]), tmp_path / f"a{suffix}")]
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 20.0)
    assert [path.read_bytes() for path in write_report(gather([result]), tmp_path / f"a{suffix}")] == before


def test_several_results_stand_one_under_the_other_after_their_gists_are_compared(result: Path, tmp_path: Path) -> None:
    other = {**made_up(), "retention": None, "judge": None, "examples": []}
    second = write_results(tmp_path / "two.json", other)
    (tmp_path / "far").mkdir()
    third = write_results(tmp_path / "far" / "two.json", other)
    text = write_report(gather([result, second, third]), tmp_path / "r.html")[0].read_text()
    assert text.count("<h2>") == 4 and text.count("<img alt=") == 12
    assert text.index("<h2>Gists of all results") < text.index("<h2>tiny on rows.jsonl (one.json)")
    assert "<h2>tiny on rows.jsonl (two.json), 2</h2>" in text
    assert text.count("made with --no-examples") == 2


def test_results_of_different_k_are_compared_where_each_has_figures(result: Path, tmp_path: Path) -> None:
    values = made_up()
    values["conditions"] = [each for each in values["conditions"] if each["k"] != 4]
    values["settings"]["k"] = [1]
    other = write_results(tmp_path / "two.json", values)
    together = plots.comparison(gather([result, other]))
    assert together is not None
    assert "(one.json): 25 % at k=1, 75 % at k=4; tiny on rows.jsonl (two.json): 25 % at k=1." in together.alt
    assert plots.draw(together).startswith(b"\x89PNG")


def test_the_page_on_evaluation_lists_every_plot() -> None:
    section = (RESULTS.parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8").partition("## The report")[2]
    rows = re.findall(r"^\| (.+?) \|", section.partition("\n## ")[0], re.MULTILINE)
    assert rows == ["plot", "---", "Gists of all results", *PLOTS]


def test_a_probe_alone_makes_a_report(tmp_path: Path) -> None:
    empty = {"conditions": [], "rows": [], "examples": [], "judge": None}
    values = {**made_up(), **empty, "data": {**made_up()["data"], "rows": 0}}
    path = write_results(tmp_path / "x.json", values)
    assert title(values) == "tiny"
    for suffix in (".html", ".md", ".png"):
        assert write_report(gather([path]), tmp_path / f"r{suffix}")


def test_without_gaps_baselines_or_gists_there_is_less_to_draw_and_no_error(tmp_path: Path) -> None:
    flat = made_up()
    for each in flat["conditions"]:
        each["metrics"]["nll"] |= {"gap_closed": None, "gap_closed_95": None}
    assert drawn_metrics(flat) == []
    lone = made_up()
    lone["conditions"] = [each for each in lone["conditions"] if each["name"] != "gist"]
    for name, values, drawn in (("flat", flat, PLOTS[3:]), ("lone", lone, (PLOTS[0], *PLOTS[2:]))):
        path = write_results(tmp_path / f"{name}.json", values)
        assert tuple(plot.name for plot in plots.plots_of(gather([path])[0])) == drawn
        assert write_report(gather([path]), tmp_path / "r.md")
    nothing = {**flat, "retention": None, "judge": None}
    path = write_results(tmp_path / "nothing.json", nothing)
    assert write_report(gather([path]), tmp_path / "r.html")
    with pytest.raises(DataError, match="no figures to draw"):
        write_report(gather([path]), tmp_path / "r.png")


def test_gaps_closed_far_off_are_drawn_at_the_edge(tmp_path: Path) -> None:
    values = made_up()
    values["conditions"][2]["metrics"]["nll"] = figures(9.0, -40.0)
    values["conditions"][3]["metrics"]["nll"] = figures(-9.0, 7.0)
    assert plots.draw_all([Result(Path("x"), "x", values)]).startswith(b"\x89PNG")


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


def test_files_that_cannot_be_used_are_one_sentence(result: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="given twice"):
        gather([result, result.parent / "." / result.name])
    with pytest.raises(DataError, match=f"at most {MAX_FILES} results, got {MAX_FILES + 1}"):
        gather([tmp_path / f"{place}.json" for place in range(MAX_FILES + 1)])
    with pytest.raises(DataError, match=r"ends in \.html, \.md, \.png, got 'r\.pdf'"):
        write_report(gather([result]), tmp_path / "r.pdf")
    with pytest.raises(DataError, match="there is no folder"):
        write_report(gather([result]), tmp_path / "none" / "r.html")
    named = result.rename(tmp_path / "one.html")
    with pytest.raises(DataError, match="one of the results"):
        write_report(gather([named]), named)


def test_what_cannot_be_written_leaves_nothing_behind(result: Path, tmp_path: Path) -> None:
    (tmp_path / "r.md").mkdir()
    with pytest.raises(DataError, match="it is a folder"):
        write_report(gather([result]), tmp_path / "r.md")
    (tmp_path / "s_files" / "1-cost-against-quality.png").mkdir(parents=True)
    with pytest.raises(DataError, match="cannot write the report"):
        write_report(gather([result]), tmp_path / "s.md")
    (tmp_path / "t_files").write_text("")
    with pytest.raises(DataError, match="cannot write the report"):
        write_report(gather([result]), tmp_path / "t.md")
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"one.json", "r.md", "s_files", "s_files/1-cost-against-quality.png", "t_files"}


def test_without_matplotlib_the_error_says_what_to_install(
    result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    with pytest.raises(MissingDependencyError, match="gistlm\\[eval\\]"):
        write_report(gather([result]), tmp_path / "r.html")


def test_a_report_needs_no_torch(result: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from gistlm.report.render import write_report; from gistlm.report.tables import gather; "
        f"from pathlib import Path; write_report(gather([{str(result)!r}]), Path({str(tmp_path / 'r.html')!r})); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
