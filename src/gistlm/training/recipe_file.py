"""A recipe's YAML file as plain values; knows no option and loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from gistlm.errors import DataError

_MAX_BYTES = 1 << 20


def read_recipe_file(path: str | Path) -> dict[str, Any]:
    """The mapping in a recipe's file. Raises `DataError` in one sentence."""
    path = Path(path)
    try:
        if path.exists() and not (path.is_file() and path.stat().st_size <= _MAX_BYTES):
            raise DataError(f"the recipe {path} is no file of at most {_MAX_BYTES:,} bytes; give a YAML file")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"there is no recipe at {path}; recipes/ has examples") from None
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: wrong UTF-8, or a NUL in the path
        raise DataError(f"cannot read the recipe {path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise DataError(f"the recipe {path} must be a mapping of options, got {type(values).__name__}")
    return values
