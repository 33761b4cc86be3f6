"""Mix the rows of several sources and hold some apart; knows nothing of files, tokenizers or torch."""

from __future__ import annotations

import logging
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from pydantic import PositiveInt

from gistlm.data.rows import Row, read_rows
from gistlm.errors import DataError, InputError
from gistlm.files import sha256
from gistlm.options import Number, Options, Text

logger = logging.getLogger(__name__)

MIN_PROMPT_WORDS = 3
"""A shorter prompt, such as "Translate:", may be in training and in evaluation."""
RUN_WORDS = 13
"""So many words in a row that a training row shares with an evaluation row make it a near duplicate."""
SHORT_RUN_WORDS = 8
"""The same for evaluation rows that have fewer than RUN_WORDS words."""


class DataSource(Options):
    """One entry of a recipe's list of data."""

    path: Text
    """A .jsonl or .json file (either may end in .gz), a folder, or a datasets id: hf:owner/name[:split]."""

    limit: PositiveInt | None = None
    """Use at most this many rows, drawn at random by the seed; all when absent."""

    max_chars: PositiveInt | None = None
    """Drop rows whose prompt, input and output together have more characters than this."""

    min_output_chars: PositiveInt | None = None
    """Drop rows whose output has fewer characters than this: a one-word answer teaches little."""

    split_long_inputs: bool = False
    """Make a prompt from the leading part of the input where a row has none; else such rows are dropped."""

    cross_entropy_weight: Number = 0.0
    """frozen only: weight of its outputs' cross-entropy beside the recipe's, to answer better than it does."""


def load_sources(sources: Sequence[DataSource], seed: int) -> list[Row]:
    """Read all sources, bound each as it says, and shuffle them together; one seed gives one order."""
    rng = random.Random(seed)
    rows: list[Row] = []
    for source in sources:
        found = read_rows(source.path, split_long_inputs=source.split_long_inputs, seed=seed)
        longest, shortest = source.max_chars or sys.maxsize, source.min_output_chars or 0
        found = [
            row for row in found if len(row.prompt + row.input + row.output) <= longest and len(row.output) >= shortest
        ]
        if not found:
            raise DataError(f"no row of {source.path} is within max_chars and min_output_chars; loosen them")
        if source.limit is not None and source.limit < len(found):
            found = rng.sample(found, source.limit)
        rows += [replace(row, cross_entropy=source.cross_entropy_weight) for row in found]
    if not rows:
        raise InputError("the list of data sources is empty; name at least one file or hf:owner/name")
    rng.shuffle(rows)
    return rows


def hold_out(rows: Sequence[Row], size: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Part rows into (train, held out): no prompt, normalised, and no task is on both sides; both keep their order.

    What has to stay together is taken whole, in random order, while it fits, so at most ``size`` rows are held out.
    Where whole tasks cannot fill half of that, prompts alone are kept apart. Logs which it was, and how many rows.
    Raises InputError for a size out of range and DataError when no prompt fits.
    """
    total = len(rows)
    if not 0 <= size < total:
        raise InputError(
            f"cannot hold out {size:,} of {total:,} rows; validation_rows must be from 0 to {max(0, total - 1)}"
        )
    if not size:
        return list(rows), []
    apart = "prompt and task" if any(row.task for row in rows) else "prompt"
    groups = _groups(rows, tasks=True)
    held = _drawn(groups, size, seed)
    if 2 * sum(group in held for group in groups) < size:
        apart = "prompt"
        groups = _groups(rows, tasks=False)
        held = _drawn(groups, size, seed)
    if not held:
        raise DataError(
            f"cannot hold out {size:,} of {total:,} rows: each prompt has at least {min(Counter(groups).values()):,}, "
            "which may be on one side only; hold out more, or use data with more prompts"
        )
    train = [row for row, group in zip(rows, groups, strict=True) if group not in held]
    held_out = [row for row, group in zip(rows, groups, strict=True) if group in held]
    logger.info("%d of %d validation rows are held out, apart by %s", len(held_out), size, apart)
    return train, held_out


def _groups(rows: Sequence[Row], *, tasks: bool) -> list[int]:
    """A number for every row, equal where rows share a prompt or, with ``tasks``, a task, be it over other rows."""
    parent = list(range(len(rows)))
    first: dict[tuple[str, str], int] = {}

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    for number, row in enumerate(rows):
        shared = [("prompt", normalise(row.prompt))]
        if tasks and row.task:
            shared.append(("task", row.task))
        for key in shared:
            parent[root(number)] = root(first.setdefault(key, number))
    return [root(number) for number in range(len(rows))]


def _drawn(groups: Sequence[int], size: int, seed: int) -> set[int]:
    """Draw groups in random order as long as they fit into ``size`` rows. groups: the group of each row.

    If the groups drawn fill less than half of ``size``, draw one that fills at least half alone, if there is one.
    """
    counts, room = Counter(groups), size
    drawn: set[int] = set()
    order = random.Random(seed).sample(list(counts), len(counts))
    for group in order:
        if counts[group] <= room:
            drawn.add(group)
            room -= counts[group]
    large = [group for group in order if size <= 2 * counts[group] <= 2 * size]
    return {large[0]} if large and 2 * room > size else drawn


def without(rows: Iterable[Row], excluded: Iterable[Row]) -> list[Row]:
    """The rows that are not of the excluded (evaluation) rows, in their order.

    A row is left out when its prompt and input, joined and normalised, are those of an excluded row, wherever the text
    is cut; when its prompt is one of theirs and has MIN_PROMPT_WORDS; or when prompt and input share a run of words
    with one of theirs: RUN_WORDS, or SHORT_RUN_WORDS where the excluded row has fewer words than RUN_WORDS. Runs are
    compared without case and punctuation.
    """
    texts: set[str] = set()
    prompts: set[str] = set()
    runs: dict[int, set[tuple[str, ...]]] = {RUN_WORDS: set(), SHORT_RUN_WORDS: set()}
    for row in excluded:
        texts.add(_text(row))
        prompts.add(normalise(row.prompt))
        words = _words(row)
        length = SHORT_RUN_WORDS if len(words) < RUN_WORDS else RUN_WORDS
        runs[length].update(_runs(words, length))
    prompts = {prompt for prompt in prompts if len(prompt.split()) >= MIN_PROMPT_WORDS}

    def is_known(row: Row) -> bool:
        if _text(row) in texts or normalise(row.prompt) in prompts:
            return True
        words = _words(row)
        return any(not known.isdisjoint(_runs(words, length)) for length, known in runs.items() if known)

    return [row for row in rows if not is_known(row)]


def hash_rows(training: Sequence[Row], held_out: Sequence[Row]) -> str:
    """A hash of the rows that a run trains on and of those held out: their texts, weights and tasks, in their order."""
    parts = [str(len(training))]
    for row in (*training, *held_out):
        parts += [row.prompt, row.input, row.output, repr(float(row.cross_entropy)), row.task]
    return sha256(*(part.encode("utf-8", "surrogatepass") for part in parts))


def normalise(text: str) -> str:
    """The text with case folded and each run of whitespace made one space: what counts as the same prompt."""
    return " ".join(text.casefold().split())


def _text(row: Row) -> str:
    return normalise(f"{row.prompt} {row.input}")


def _words(row: Row) -> list[str]:
    return re.findall(r"\w+", _text(row))


def _runs(words: list[str], length: int) -> Iterator[tuple[str, ...]]:
    """Every `length` consecutive words."""
    return zip(*(words[start:] for start in range(length)), strict=False)
