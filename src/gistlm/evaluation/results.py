"""The results of one evaluation as a JSON file: written whole, read with every field checked; computes nothing.

A result is a plain dict, and `SCHEMA` is its documentation: these keys are stable. A condition's label is its
name for "full" and "none", else name@k, for example "gist@4". The values in "rows" are those of that row alone:
a mean over its tokens for nll, kl and agreement (and the answer_ ones), the row's own score for the others.
Floats have six decimals. Two runs with the same settings on one machine differ in "run" only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gistlm.errors import DataError
from gistlm.files import reason, write_atomically

FORMAT = "gistlm.eval"
VERSION = 1
DECIMALS = 6
EXAMPLES = 20
"""Rows whose texts are kept."""
MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class MappingOf:
    """A mapping with any names and values of one kind."""

    kind: Any


@dataclass(frozen=True)
class PairOf:
    """A list of two values of one kind, for example the ends of an interval."""

    kind: Any


OPTIONAL_FLOAT = (float, None)
INTERVAL = PairOf(float)

SCHEMA: dict[str, Any] = {
    "format": str,
    "version": int,
    "run": {"command": str, "date": str, "machine": MappingOf(object), "seconds": float},
    "model": {
        "name": str,
        "fingerprint": str,
        "adapter": str,
        "dtype": str,
        "kv_bytes_per_token": int,
        "opening_tokens": int,
    },
    "data": {"name": str, "sha256": str, "rows": int, "skipped": int, "output_tokens": int, "answer_tokens": int},
    "settings": {
        "k": [int],
        "seed": int,
        "limit": (int, None),
        "max_tokens": int,
        "new_tokens": int,
        "baselines": [str],
        "generate": bool,
        "resamples": int,
    },
    "skipped": MappingOf(str),
    "conditions": [
        {
            "name": str,
            "k": (int, None),
            "kv_bytes": int,
            "cached_tokens": float,
            "prompt_tokens": float,
            "compression": OPTIONAL_FLOAT,
            "metrics": MappingOf({"value": float, "gap_closed": OPTIONAL_FLOAT, "gap_closed_95": (INTERVAL, None)}),
        }
    ],
    "rows": [
        {
            "prompt_tokens": int,
            "input_tokens": int,
            "output_tokens": int,
            "answer_tokens": int,
            "kind": (str, None),
            "metrics": MappingOf(MappingOf(float)),
        }
    ],
    "examples": [{"prompt": str, "input": str, "reference": str, "answers": MappingOf(str)}],
    "retention": (
        None,
        [{"kind": str, "condition": str, "n": int, "correct": int, "score": float, "score_95": INTERVAL}],
    ),
    "judge": (
        None,
        [
            {
                "condition": str,
                "against": str,
                "wins": int,
                "ties": int,
                "losses": int,
                "nonsense": int,
                "win_rate": float,
                "win_rate_95": INTERVAL,
            }
        ],
    ),
}
"""The keys and kinds of a result: a tuple lists what a value may be, a list the kind of its items, `MappingOf` that
of a mapping's values, `PairOf` that of two."""


def write_results(path: str | Path, results: Mapping[str, Any]) -> Path:
    """Write a result, whole or not at all. Raises `DataError` where the file cannot be written."""
    rounded = round_floats(results)
    _check(rounded, SCHEMA, "the result")
    content = json.dumps(rounded, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        write_atomically(Path(path), content.encode())
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DataError(f"cannot write the results to {path}: {reason(error)}; name another file") from error
    return Path(path)


def read_results(path: str | Path) -> dict[str, Any]:
    """Read a result. Raises `DataError` for anything that is not a whole result of this version."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise DataError(f"there is no result at {path}; make one with: gistlm eval --json {path}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the result {path}: {reason(error)}") from error
    if len(content) > MAX_BYTES:
        raise DataError(f"{path} has more than {MAX_BYTES >> 20} MiB; a result of `gistlm eval` is smaller")
    try:
        results = json.loads(content.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); give a file that `gistlm eval --json` wrote") from error
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise DataError(f"{path} is JSON but not a result; give a file that `gistlm eval --json` wrote")
    if results.get("version") != VERSION:
        raise DataError(f"{path} is a result of version {results.get('version')!r}; this gistlm reads {VERSION}")
    _check(results, SCHEMA, str(path))
    return results


def label(name: str, k: int | None) -> str:
    """A condition's name in "rows", "examples", "retention" and "judge"."""
    return name if k is None else f"{name}@{k}"


def round_floats(value: Any) -> Any:
    """The same plain value with every float rounded; minus zero becomes zero."""
    if isinstance(value, float):
        return round(value, DECIMALS) + 0.0
    if isinstance(value, Mapping):
        return {key: round_floats(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [round_floats(item) for item in value]
    return value


def is_of(value: Any, kind: Any) -> bool:
    """Whether a plain value is of a kind of `SCHEMA`."""
    try:
        _check(value, kind, "")
    except DataError:
        return False
    return True


def _check(value: Any, kind: Any, where: str) -> None:
    """Raise `DataError` unless the value is of a kind of `SCHEMA`."""
    if isinstance(kind, tuple):
        options = [option for option in kind if option is not None]
        if not (value is None and None in kind):
            _check(value, options[0], where)
    elif isinstance(kind, dict | MappingOf):
        _check_mapping(value, kind, where)
    elif isinstance(kind, list | PairOf):
        if not isinstance(value, list) or (isinstance(kind, PairOf) and len(value) != 2):
            _refuse(where, "a list of two" if isinstance(kind, PairOf) else "a list", value)
        for place, item in enumerate(value):
            _check(item, kind.kind if isinstance(kind, PairOf) else kind[0], f"{where}, entry {place}")
    elif kind is not object and not _is(value, kind):
        _refuse(where, kind.__name__, value)


def _check_mapping(value: Any, kind: dict[str, Any] | MappingOf, where: str) -> None:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        _refuse(where, "a mapping with names", value)
    if isinstance(kind, dict) and (missing := [name for name in kind if name not in value]):
        raise DataError(f"{where} is no whole result: {missing[0]!r} is missing; run `gistlm eval` again")
    for name, item in value.items():
        expected = kind.kind if isinstance(kind, MappingOf) else kind.get(name, object)
        _check(item, expected, f"{where}, {name!r}")


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, kind) and kind is bool
    if kind is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max  # JSON can say 1e999
    if kind is int:
        return isinstance(value, int) and abs(value) < 1 << 63
    return isinstance(value, kind)


def _refuse(where: str, expected: str, value: Any) -> NoReturn:
    raise DataError(f"{where} must be {expected}, got {str(value)[:60]!r}; run `gistlm eval` again")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
