"""Read training and evaluation rows from files and datasets; knows nothing of recipes, tokenizers or torch.

A record is recognised by its keys (a key whose value is null counts as absent), in this order:

    messages | conversations          a chat: role and content, or from and value (see `chat_rows`)
    instruction, instances            a self-instruct seed task: one row for each instance of input and output
    prompt, [input,] output           the row itself
    instruction, [input,] output      Alpaca and T0: the instruction is the prompt
    prompt, [input,] completion       OpenAI and TRL: the completion is the output
    prompt, completion                TRL: two lists of chat messages, which together are one chat
    instruction, [input,] completion  the same as with an output

A text under `system` is the first system message, or stands before the prompt. Where no set of keys has all its values,
nulls count as empty texts. The last five may name their task, or else their template (see `hold_out`).

Texts are kept as they are, but for the ``<|endoftext|>`` that ends T0's outputs. A row without an output teaches and
tests nothing and is dropped, as is one without a prompt unless `split_long_inputs` makes one. What is dropped, or used
in part, is counted and logged by reason (see `row_counts`).
"""

from __future__ import annotations

import gzip
import importlib
import json
import os
import random
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from gistlm.data.chats import chat_texts
from gistlm.data.fields import RowCounts, UnusableRowError, items, kind, mapping, text
from gistlm.errors import DataError, InputError, MissingDependencyError

MAX_LINE_BYTES = 16 * 2**20
MAX_JSON_BYTES = 512 * 2**20
MIN_SPLIT_CHARS = 200
SPLIT_RANGE = (0.3, 0.8)

_END_OF_TEXT = "<|endoftext|>"
_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
_FORMATS = (
    ("messages",),
    ("conversations",),
    ("instruction", "instances"),
    ("prompt", "output"),
    ("instruction", "output"),
    ("prompt", "completion"),
    ("instruction", "completion"),
)
"""The keys by which a record is recognised; the first set that it has counts."""
_USED = ("system", "input", "task", "template")
"""Keys that are read beside those of a format."""
_SAYS_NOTHING = ("id", "name", "source", "category", "url", "is_classification")
"""Keys that say nothing to a model, and are passed over without a word."""
_BOUNDARIES = tuple(  # from the best place to cut a text to the least; group 1 is the separator
    re.compile(pattern)
    for pattern in (
        r"(\r?\n(?:[ \t]*\r?\n)+)",
        r"(\r?\n)",
        r"(?:[.!?][\"'\u201d\u2019)\]]*(?=\s)|[\u3002\uff01\uff1f][\u201d\u2019\u300d\u300f\uff09]*)(\s*)",
    )
)


@dataclass(frozen=True, slots=True)
class Row:
    """One example: the prompt is what gets compressed, the input follows it, the output is the answer."""

    prompt: str
    input: str
    output: str
    cross_entropy: float = 0.0
    """Weight of the output's cross-entropy in training, beside what the recipe gives all rows."""
    task: str = ""
    """The record's `task`, or else its `template`; one name is one task in all sources (see `hold_out`)."""


def read_rows(source: str, *, limit: int | None = None, split_long_inputs: bool = False, seed: int = 0) -> list[Row]:
    """The first `limit` rows (or all) of a file, a folder or a datasets id, in their order.

    Logs how many rows are dropped or used in part, for each reason, and where the first of them is.
    Raises DataError when the source cannot be read or holds no usable row, and MissingDependencyError when an
    hf: source or a folder is named and the package datasets is not installed.
    """
    check_count("limit", limit)
    counts = RowCounts()
    rows = list(islice(_usable(_parse(source, counts), counts, split_long_inputs, seed), limit))
    if not rows:
        found = "; ".join(counts.sentences())
        raise DataError(
            f"{source} is empty or has no usable row{found and f' ({found})'}; a row needs an output and a prompt, "
            f"or with split_long_inputs an input of at least {MIN_SPLIT_CHARS} characters"
        )
    counts.log()
    return rows


def check_source(source: str) -> None:
    """Raise `DataError` unless the source is a dataset's id, a folder, or a file of a kind that can be read."""
    if source.startswith("hf:") or os.path.isdir(source):
        return
    if not (source.endswith(_SUFFIXES) and os.path.exists(source)):
        fault = "is not a kind of file that can be read" if os.path.exists(source) else "does not exist"
        raise DataError(f"the data {source} {fault}; give a {', '.join(_SUFFIXES)} file or hf:owner/name")


def split_text(text: str, rng: random.Random) -> tuple[str, str, str] | None:
    """Cut a text into head, separator and tail, which join to it; None when there is no good place.

    The cut is at a paragraph's end, else a line's, else a sentence's: within SPLIT_RANGE, a fraction of the
    characters, the one nearest to a fraction drawn from it. A text under MIN_SPLIT_CHARS is not cut.
    """
    if len(text) < MIN_SPLIT_CHARS:
        return None
    low, high = (fraction * len(text) for fraction in SPLIT_RANGE)
    target = rng.uniform(low, high)
    for pattern in _BOUNDARIES:
        cuts = [match.span(1) for match in pattern.finditer(text)]
        cuts = [(a, b) for a, b in cuts if low <= a <= high and text[:a].strip() and text[b:].strip()]
        if cuts:
            start, end = min(cuts, key=lambda cut: abs(cut[0] - target))
            return text[:start], text[start:end], text[end:]
    return None


def check_count(what: str, value: int | None) -> None:
    """Raise `InputError` unless the value is None or a whole number of at least 1."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise InputError(f"{what} is {value!r}; give a whole number of at least 1, or leave it out")


def _usable(rows: Iterable[tuple[str, Row]], counts: RowCounts, split_long_inputs: bool, seed: int) -> Iterator[Row]:
    """The rows with a prompt and an output, the prompt cut from the input where that is asked for."""
    for where, row in rows:
        prompt, rest, output = row.prompt, row.input, row.output.removesuffix(_END_OF_TEXT)
        if split_long_inputs and not prompt.strip():
            prompt, _, rest = split_text(rest, random.Random(f"{seed}:{rest}")) or ("", "", rest)
        if not output.strip():
            counts.drop("no output", where)
        elif not prompt.strip():
            counts.drop("no prompt", where)
        else:
            yield replace(row, prompt=prompt, input=rest, output=output)


def _parse(source: str, counts: RowCounts) -> Iterator[tuple[str, Row]]:
    """(place for messages, row) of every row of the source, be it without a prompt or an output."""
    check_source(source)
    if source.startswith("hf:") or os.path.isdir(source):
        records = _from_datasets(source.removeprefix("hf:"))
    else:
        records = _from_file(Path(source))
    for where, record in records:
        try:
            yield from [(where, row) for row in _rows_of(record, where, counts)]
        except UnusableRowError as reason:
            counts.drop(str(reason), where)


def _from_file(path: Path) -> Iterator[tuple[str, object]]:
    """(place for messages, record) of each record of a JSON or JSON lines file, compressed or not."""
    by_line = path.name.removesuffix(".gz").endswith(".jsonl")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from (_json_lines if by_line else _json_list)(cast(IO[bytes], file), path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); check that it is whole and readable") from error


def _json_lines(file: IO[bytes], path: Path) -> Iterator[tuple[str, object]]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{path}:{number} is over {MAX_LINE_BYTES // 2**20} MB; put one row on each line")
        if line.strip():
            yield f"{path}:{number}", _decode(line.rstrip(), path, number)


def _json_list(file: IO[bytes], path: Path) -> Iterator[tuple[str, object]]:
    content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise DataError(f"{path} is over {MAX_JSON_BYTES // 2**20} MB; write it as .jsonl, one row a line")
    records = _decode(content, path, 1) if content.strip() else []
    if not isinstance(records, list):
        raise DataError(f"{path} holds a JSON {kind(records)}; give a list of rows, or name it .jsonl")
    yield from ((f"{path}, row {number}", record) for number, record in enumerate(records, 1))


def _decode(content: bytes, path: Path, first_line: int) -> object:
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        raise DataError(f"{path}:{line} is not UTF-8 text; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(f"{path}:{line} is not valid JSON ({error.msg}); correct it or remove it") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{first_line} is JSON that cannot be read ({error}); correct it") from error


def _from_datasets(name: str) -> Iterator[tuple[str, object]]:
    """(place for messages, record) of each record of ``name[:split]``, a dataset's id or a local folder."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        install = "pip install 'gistlm[data]'"
        raise MissingDependencyError("datasets", "reading a dataset by id", install) from error
    split = "train"
    if ":" in name and not os.path.isdir(name):
        name, split = name.split(":", 1)
    try:
        dataset = datasets.load_dataset(name, split=split)
    except Exception as error:  # datasets, huggingface_hub, pyarrow and fsspec each raise their own
        cause = error.__cause__ or error
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise DataError(
            f"the dataset {name!r} (split {split!r}) cannot be loaded ({reason}); "
            f"check its id, its split and the connection, or give a local file"
        ) from error
    yield from ((f"{name}, row {number}", record) for number, record in enumerate(dataset, 1))


def _rows_of(record: object, where: str, counts: RowCounts) -> list[Row]:
    """The rows one record holds; its format is told by its keys. Raises `UnusableRowError` where it can hold none."""
    fields = mapping(record, where, "a row")
    known = _format_of(record, fields, where)
    rows = _rows_of_format(known, fields, where, counts)
    if any(row.output.strip() for row in rows):
        for key in sorted(map(str, fields.keys() - {*known, *_USED, *_SAYS_NOTHING})):
            if fields.get(key) not in ("", [], {}):
                counts.use_in_part(f"the key {key[:40]!r} is ignored", where)
    return rows


def _rows_of_format(known: tuple[str, ...], fields: dict[str, Any], where: str, counts: RowCounts) -> list[Row]:
    match known:
        case ["messages" | "conversations" as key]:
            return [_chat_row(fields, items(fields, key, where), where, counts)]
        case ["instruction", "instances"]:
            prompt = _with_system(fields, text(fields, "instruction", where), where)
            instances = [mapping(item, where, "an instance") for item in items(fields, "instances", where)]
            if not instances:
                raise UnusableRowError("no instances")
            return [Row(prompt, text(item, "input", where), text(item, "output", where)) for item in instances]
        case [prompt_key, output_key]:
            return [_flat_row(fields, prompt_key, output_key, where, counts)]
    raise AssertionError("every format has its case")


def _format_of(record: Any, fields: dict[str, Any], where: str) -> tuple[str, ...]:
    """The first format whose keys all have a value, or else are all there."""
    for keys in (fields.keys(), record.keys()):
        for known in _FORMATS:
            if keys >= set(known):
                return known
    found = ", ".join(str(key)[:40] for key in list(fields)[:10]) or "none"
    raise DataError(
        f"{where} has no known set of keys (found: {found}); allowed are prompt or instruction with output or "
        f"completion, instruction with instances, messages, or conversations; rename its keys"
    )


def _flat_row(fields: dict[str, Any], prompt_key: str, output_key: str, where: str, counts: RowCounts) -> Row:
    """The row of a record with a prompt and an output, be they lists of chat messages."""
    named = (str(fields[key]) for key in ("task", "template") if fields.get(key, "") != "")
    task = next(named, "")
    given = text(fields, "input", where)
    if prompt_key != "prompt" or not any(isinstance(fields.get(key), list) for key in (prompt_key, output_key)):
        prompt = _with_system(fields, text(fields, prompt_key, where), where)
        return Row(prompt, given, text(fields, output_key, where), task=task)
    if given.strip():
        raise UnusableRowError("an input beside a prompt of chat messages")
    opening = _messages(fields, prompt_key, "user", where)
    completion = _messages(fields, output_key, "assistant", where)
    return replace(_chat_row(fields, opening + completion, where, counts, len(opening)), task=task)


def _chat_row(
    fields: dict[str, Any], messages: list[object], where: str, counts: RowCounts, completion_from: int = 0
) -> Row:
    if system := text(fields, "system", where):
        messages, completion_from = [{"role": "system", "content": system}, *messages], completion_from + 1
    return Row(*chat_texts(messages, where, counts, completion_from))


def _messages(fields: dict[str, Any], key: str, role: str, where: str) -> list[object]:
    """A field's chat messages; a text is one message of that role."""
    if isinstance(fields.get(key), list):
        return items(fields, key, where)
    return [{"role": role, "content": text(fields, key, where)}]


def _with_system(fields: dict[str, Any], prompt: str, where: str) -> str:
    """The prompt after the record's system text, if it has one."""
    system = text(fields, "system", where)
    return f"{system}\n\n{prompt}" if system.strip() and prompt.strip() else system or prompt
