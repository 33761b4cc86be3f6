"""Reading rows through the package datasets, from local folders only."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from gistlm.data.rows import Row, read_rows
from gistlm.errors import DataError, MissingDependencyError

ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3"}


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package, with its cache in tmp_path and no way to a hub."""
    package = pytest.importorskip("datasets")
    monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(package.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return package


def test_a_local_folder_is_read_as_a_dataset_by_path_and_by_hf_id(tmp_path: Path, datasets: Any) -> None:
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    datasets.Dataset.from_list([ALPACA, {**ALPACA, "input": "4 5"}]).to_parquet(folder / "train.parquet")
    datasets.Dataset.from_list([{**ALPACA, "input": "6 7"}]).to_parquet(folder / "test.parquet")
    assert [row.input for row in read_rows(str(folder))] == ["1 2", "4 5"]
    assert [row.input for row in read_rows(f"hf:{folder}")] == ["1 2", "4 5"]
    assert [row.input for row in read_rows(f"hf:{folder}:test")] == ["6 7"]
    assert [row.input for row in read_rows(f"hf:{folder}:train[1:]")] == ["4 5"]
    with pytest.raises(DataError, match="split 'nowhere'"):
        read_rows(f"hf:{folder}:nowhere")


def test_chats_keep_their_turns_through_a_dataset(tmp_path: Path, datasets: Any) -> None:
    turns = [{"role": r, "content": r.upper()} for r in ("system", "user", "assistant")]
    lines = [json.dumps(record) + "\n" for record in ({"messages": turns}, ALPACA)]
    (tmp_path / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    assert read_rows(f"hf:{tmp_path}") == [Row("SYSTEM", "USER", "ASSISTANT"), Row("Add.", "1 2", "3")]


def test_a_dataset_that_cannot_be_reached_is_one_clear_error(datasets: Any) -> None:
    with pytest.raises(DataError, match=r"'owner/name' \(split 'test'\) cannot be loaded") as caught:
        read_rows("hf:owner/name:test")
    assert "\n" not in str(caught.value)


def test_no_code_of_a_dataset_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    calls: list[dict[str, Any]] = []

    def load_dataset(name: str, **options: Any) -> list[dict[str, str]]:
        calls.append({"name": name, **options})
        return [ALPACA]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_rows("hf:owner/name") == [Row("Add.", "1 2", "3")]
    assert calls == [{"name": "owner/name", "split": "train"}]


def test_without_the_datasets_package_the_extra_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'gistlm\[data\]'"):
        read_rows("hf:owner/name")
