"""A recipe's rows, read and tokenised, and a file that keeps them so; knows nothing of steps or losses.

The file is for a machine that is lent for minutes: it need not read and tokenise texts.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gistlm.data.rows import Row, read_rows
from gistlm.data.sources import hash_rows, hold_out, load_sources, without
from gistlm.errors import DataError
from gistlm.files import reason, write_atomically
from gistlm.prompt import PromptTokenizer
from gistlm.training.batches import Example, Examples
from gistlm.training.config import TrainConfig

logger = logging.getLogger(__name__)

_TOKENS, _LENGTHS, _CROSS_ENTROPY, _NOTES = "tokens", "lengths", "cross_entropy", "gistlm"


class Texts(NamedTuple):
    """A recipe's rows as they were read."""

    training: list[Row]
    validation: list[Row]
    left_out: int
    """Rows that `exclude` left out."""

    @classmethod
    def read(cls, config: TrainConfig) -> Self:
        """Training and validation rows, held apart (see `hold_out`). Raises `DataError`."""
        found = load_sources(config.data, config.seed)
        rows = without(found, [row for path in config.exclude or [] for row in read_rows(path, split_long_inputs=True)])
        left_out = len(found) - len(rows)
        if config.exclude:
            logger.info("%d of %d rows left out: they are in %s", left_out, len(found), ", ".join(config.exclude))
        if not rows:
            raise DataError(
                f"all {left_out} rows are in the data to exclude; train on other data than it is measured on"
            )
        return cls(*hold_out(rows, config.validation_rows, config.seed), left_out)

    @property
    def data_hash(self) -> str:
        """Of all rows (see `hash_rows`)."""
        return hash_rows(self.training, self.validation)

    def tokenize(self, config: TrainConfig, prompts: PromptTokenizer) -> Tokenized:
        """The rows that are short enough, as tokens."""
        limits = config.max_tokens, config.max_rest_tokens
        training, validation = (Examples(rows, prompts, *limits) for rows in (self.training, self.validation))
        total, used = len(self.training) + len(self.validation), len(training) + len(validation)
        if used < total:
            logger.info("%d of %d rows left out: longer than max_tokens or max_rest_tokens", total - used, total)
        return Tokenized(training, validation, self.data_hash, self.left_out)


class Tokenized(NamedTuple):
    """A recipe's rows as tokens."""

    training: Examples
    validation: Examples
    data_hash: str
    """Hash of the rows' texts."""
    left_out: int
    """Number of rows left out, as in `Texts`."""

    def check(self, rows: int) -> None:
        """Raise `DataError` if there are fewer rows than a step needs."""
        if len(self.training) < rows:
            raise DataError(
                f"only {len(self.training)} rows are short enough, and a step takes {rows}; raise max_tokens or "
                "max_rest_tokens, or give more data"
            )

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        examples = [*self.training.examples, *self.validation.examples]
        tokens = [token for example in examples for token in example.prompt + example.rest]
        lengths = [[len(example.prompt), len(example.rest), example.output_length] for example in examples]
        tensors = {
            _TOKENS: torch.tensor(tokens, dtype=torch.int32),
            _LENGTHS: torch.tensor(lengths, dtype=torch.int32),
            _CROSS_ENTROPY: torch.tensor([example.cross_entropy for example in examples]),
        }
        notes = {"training": len(self.training), "data_hash": self.data_hash, "left_out": self.left_out}
        write_atomically(path, save(tensors, {_NOTES: json.dumps(notes)}))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file. Raises `DataError` where it is damaged or something else."""
        try:
            with safe_open(path, "pt") as file:
                notes = json.loads(file.metadata()[_NOTES])
                tensors = [file.get_tensor(name) for name in (_TOKENS, _LENGTHS, _CROSS_ENTROPY)]
            examples = list(_examples(*tensors))
            count = int(notes["training"])
            parts = Examples.of(examples[:count]), Examples.of(examples[count:])
            return cls(*parts, str(notes["data_hash"]), int(notes["left_out"]))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise DataError(f"{path} holds no tokenised rows ({reason(error)}); make it anew") from error


def _examples(tokens: Tensor, lengths: Tensor, cross_entropy: Tensor) -> Iterator[Example]:
    """From ids one row after the other [n], lengths [rows, 3] of prompt, rest and output, and weights [rows]."""
    sizes = lengths[:, :2].flatten().tolist()
    pieces = iter(torch.split(tokens, sizes))
    for output, weight in zip(lengths[:, 2].tolist(), cross_entropy.tolist(), strict=True):
        yield Example(next(pieces).tolist(), next(pieces).tolist(), output, weight)
