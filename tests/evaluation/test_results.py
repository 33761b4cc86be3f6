"""The result file: what is written is read, and what is no whole result is refused in one sentence."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from gistlm.errors import DataError
from gistlm.evaluation.results import FORMAT, VERSION, label, read_results, round_floats, write_results


def made_up() -> dict[str, Any]:
    """A result with one of everything."""
    figures = {"value": 0.123456789, "gap_closed": 1, "gap_closed_95": [0.5, 1.5]}
    controls = {"value": 0.5, "gap_closed": None, "gap_closed_95": None}
    sizes = {"kv_bytes": 640, "cached_tokens": 7.0, "prompt_tokens": 30.5}
    interval = [0.1, 0.9]
    return {
        "format": FORMAT,
        "version": VERSION,
        "run": {"command": "gistlm eval", "date": "2026-01-02", "machine": {"threads": 1}, "seconds": 1.5},
        "model": {
            "name": "tiny", "fingerprint": "ab", "adapter": "cd", "dtype": "float32", "kv_bytes_per_token": 64,
            "opening_tokens": 3,
        },
        "data": {"name": "rows.jsonl", "sha256": "ef", "rows": 1, "skipped": 0, "output_tokens": 5, "answer_tokens": 4},
        "settings": {
            "k": [4], "seed": 0, "limit": None, "max_tokens": 1024, "new_tokens": 64, "baselines": [],
            "generate": True, "resamples": 2000,
        },
        "skipped": {"llmlingua2": "no such model"},
        "conditions": [
            {"name": "none", "k": None, **sizes, "compression": None, "metrics": {"nll": controls}},
            {"name": "gist", "k": 4, **sizes, "compression": 7.5, "metrics": {"nll": figures}},
        ],
        "rows": [
            {
                "prompt_tokens": 30, "input_tokens": 9, "output_tokens": 5, "answer_tokens": 4, "kind": None,
                "metrics": {"none": {"nll": 0.5}, "gist@4": {"nll": 0.25}},
            }
        ],
        "examples": [{"prompt": "p", "input": "ü", "reference": "r", "answers": {"gist@4": "a"}}],
        "retention": [
            {"kind": "name", "condition": "gist@4", "n": 2, "correct": 1, "score": 0.5, "score_95": interval}
        ],
        "judge": [
            {"condition": "gist@4", "against": "full", "wins": 1, "ties": 2, "losses": 3, "nonsense": 4,
             "win_rate": 0.3, "win_rate_95": interval}
        ],
    }  # fmt: skip


def write(path: Path, change: Any) -> Path:
    """A result that ``change`` has been at, as a file."""
    values = copy.deepcopy(made_up())
    change(values)
    path.write_text(json.dumps(values))
    return path


def test_a_result_is_read_as_it_was_written_but_for_digits(tmp_path: Path) -> None:
    path = write_results(tmp_path / "new" / "x.json", made_up())
    values = read_results(path)
    assert values == round_floats(made_up())
    assert values["conditions"][1]["metrics"]["nll"]["value"] == 0.123457
    assert list(values) == list(made_up())
    assert "ü" in path.read_text(encoding="utf-8")


def test_probe_and_judge_may_be_missing_and_a_run_may_have_no_rows(tmp_path: Path) -> None:
    values = {**made_up(), "retention": None, "judge": None, "rows": [], "conditions": [], "examples": []}
    assert read_results(write_results(tmp_path / "x.json", values)) == round_floats(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("model"), "model is missing"),
        (lambda v: v.update(format="gistlm.gist"), "not a result"),
        (lambda v: v.update(version=2), "version 2; this gistlm reads 1"),
        (lambda v: v["data"].update(rows="1"), "data.rows must be a valid integer, got"),
        (lambda v: v["data"].update(rows=True), "data.rows must be a valid integer, got"),
        (lambda v: v["settings"].update(k=4), "settings.k must be a valid list, got 4"),
        (lambda v: v["conditions"][1].pop("kv_bytes"), "conditions.1.kv_bytes is missing"),
        (lambda v: v["conditions"][1]["metrics"]["nll"].update(value=None), "nll.value must be a valid number"),
        (lambda v: v["rows"][0]["metrics"]["none"].update(nll="low"), "nll must be a valid number, got 'low'"),
        (lambda v: v["judge"][0].update(wins=0.5), "judge.0.wins must be a valid integer, got 0.5"),
        (lambda v: v.update(examples={}), "examples must be a valid list"),
        (lambda v: v["conditions"][1]["metrics"]["nll"].update(gap_closed_95=[0.5]), "_95 must have at least 2 items"),
        (lambda v: v["model"].update(kv_bytes_per_token=10**400), "model.kv_bytes_per_token must be less than"),
        (lambda v: v["judge"][0].update(win_rate=10**400), "win_rate must be a valid number"),
    ],
)
def test_what_is_no_whole_result_is_refused_by_its_place(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_results(write(tmp_path / "x.json", change))


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"format": NaN}', b"[" * 100_000])
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DataError, match="gistlm eval"):
        read_results(tmp_path / "x.json")


def test_a_number_too_large_for_a_float_is_refused(tmp_path: Path) -> None:
    text = json.dumps(made_up()).replace('"seconds": 1.5', '"seconds": 1e999')
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=r"run\.seconds must be a finite number, got inf"):
        read_results(tmp_path / "x.json")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no result at"):
        read_results(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot read"):
        read_results(tmp_path)


def test_an_impossible_place_to_write_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot write"):
        write_results(tmp_path, made_up())
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_is_not_whole_is_not_written(tmp_path: Path) -> None:
    values = made_up()
    del values["conditions"][0]["metrics"]
    with pytest.raises(DataError, match=r"conditions\.0\.metrics is missing; run `gistlm eval`"):
        write_results(tmp_path / "x.json", values)
    assert not (tmp_path / "x.json").exists()


def test_rounding_leaves_whole_numbers_and_no_minus_zero() -> None:
    rounded = round_floats({"a": -1e-9, "b": 3, "c": [True, 1.23456789]})
    assert json.dumps(rounded) == '{"a": 0.0, "b": 3, "c": [true, 1.234568]}'


def test_a_label_names_condition_and_k() -> None:
    assert [label("full", None), label("gist", 4)] == ["full", "gist@4"]
