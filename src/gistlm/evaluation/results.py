"""The results of one evaluation as a JSON file: written whole, read with every field checked; computes nothing.

A result is a plain dict, and `ResultFile` is its documentation: these keys are stable. A condition's label is its
name for "full" and "none", else name@k, for example "gist@4". The values in "rows" are those of that row alone:
a mean over its tokens for nll, kl and agreement (and the answer_ ones), the row's own score for the others.
Floats have six decimals. Two runs with the same settings on one machine differ in "run" only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from gistlm.errors import DataError
from gistlm.files import reason, write_atomically
from gistlm.options import first_mistake

FORMAT = "gistlm.eval"
VERSION = 1
DECIMALS = 6
EXAMPLES = 20
"""Rows whose texts are kept."""
MAX_BYTES = 1 << 30


class Plain(BaseModel):
    """Base of what is kept as JSON: strict, and other keys are passed over."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


Int = Annotated[int, Field(gt=-(1 << 63), lt=1 << 63)]
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]


class Run(Plain):
    command: str
    date: str
    machine: dict[str, Any]
    seconds: float


class Model(Plain):
    name: str
    fingerprint: str
    adapter: str
    dtype: str
    kv_bytes_per_token: Int
    opening_tokens: Int


class Data(Plain):
    name: str
    sha256: str
    rows: Int
    skipped: Int
    output_tokens: Int
    answer_tokens: Int


class Settings(Plain):
    k: list[Int]
    seed: Int
    limit: Int | None
    max_tokens: Int
    new_tokens: Int
    baselines: list[str]
    generate: bool
    resamples: Int


class Figures(Plain):
    value: float
    gap_closed: float | None
    gap_closed_95: Interval | None


class ConditionResult(Plain):
    name: str
    k: Int | None
    kv_bytes: Int
    cached_tokens: float
    prompt_tokens: float
    compression: float | None
    metrics: dict[str, Figures]


class RowFigures(Plain):
    prompt_tokens: Int
    input_tokens: Int
    output_tokens: Int
    answer_tokens: Int
    kind: str | None
    metrics: dict[str, dict[str, float]]


class Example(Plain):
    prompt: str
    input: str
    reference: str
    answers: dict[str, str]


class Retention(Plain):
    kind: str
    condition: str
    n: Int
    correct: Int
    score: float
    score_95: Interval


class Verdicts(Plain):
    condition: str
    against: str
    wins: Int
    ties: Int
    losses: Int
    nonsense: Int
    win_rate: float
    win_rate_95: Interval


class ResultFile(Plain):
    """The keys and kinds of a result; metrics and answers are by condition's label."""

    format: str
    version: Int
    run: Run
    model: Model
    data: Data
    settings: Settings
    skipped: dict[str, str]
    conditions: list[ConditionResult]
    rows: list[RowFigures]
    examples: list[Example]
    retention: list[Retention] | None
    judge: list[Verdicts] | None


def write_results(path: str | Path, results: Mapping[str, Any]) -> Path:
    """Write a result, whole or not at all. Raises `DataError` where the file cannot be written."""
    rounded = round_floats(results)
    _check(rounded, "the result")
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
    _check(results, str(path))
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
    """Whether a plain value is what a type of pydantic's, such as a `Plain` model, says."""
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


def _check(results: dict[str, Any], where: str) -> None:
    try:
        ResultFile.model_validate(results)
    except ValidationError as error:
        mistake = first_mistake(error, ResultFile)
        raise DataError(f"{where} is no whole result: {mistake}; run `gistlm eval` again") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
