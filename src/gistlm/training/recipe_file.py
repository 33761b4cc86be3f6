"""A recipe's YAML file as plain values; knows no option and loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from gistlm.errors import DataError


def read_recipe_file(path: str | Path) -> dict[str, Any]:
    """The mapping in a recipe's file. Raises `DataError` in one sentence."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"there is no recipe at {path}; recipes/ has examples") from None
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: wrong UTF-8, or a NUL in the path
        raise DataError(f"cannot read the recipe {path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise DataError(f"the recipe {path} must be a mapping of options, got {type(values).__name__}")
    return values
