"""Rows to padded batches with a random number of gist tokens; knows nothing of models, losses or optimisers.

A *draw* is a row in one pass over all rows, numbered pass * rows + row. Which draws make a step, and each one's
number of gist tokens, follow from the seed alone: a resumed run repeats them, and several processes share them out.
A batch is left-padded on both sides of the gist, so outputs end at the last column.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from gistlm.data.rows import Row
from gistlm.gisting.kv_cache import left_pad
from gistlm.gisting.placement import Part, Placement, leaves_few
from gistlm.prompt import PromptTokenizer


@dataclass
class Batch:
    """Rows of one training step; every tensor on the model's device."""

    prompts: Tensor
    """[batch, N] token ids, left-padded"""
    prompt_parts: Tensor
    """[batch, N] of `Part`"""
    rests: Tensor
    """[batch, R] token ids, output included, left-padded"""
    rest_parts: Tensor
    """[batch, R] of `Part`"""
    output_lengths: Tensor
    """[batch]"""
    k: Tensor
    """[batch]: gist tokens that the row's rest may see"""
    cross_entropy: Tensor
    """[batch]: weight of the output's cross-entropy, beside what the recipe gives all rows"""

    @property
    def tokens(self) -> int:
        """Tokens of prompts, inputs and outputs, padding left out."""
        return int((self.prompt_parts != Part.PAD).sum() + (self.rest_parts != Part.PAD).sum())

    def targets(self) -> tuple[Tensor, Tensor]:
        """The last M tokens, which cover the longest output, [batch, M], and which are outputs, bool [batch, M]."""
        most = min(self.rests.shape[1] - 1, int(self.output_lengths.max()))
        from_end = torch.arange(most, 0, -1, device=self.rests.device)
        return self.rests[:, -most:], from_end <= self.output_lengths[:, None]


@dataclass(frozen=True)
class Example:
    """A tokenised row."""

    prompt: list[int]
    rest: list[int]
    """The output included."""
    output_length: int
    cross_entropy: float = 0.0
    """Of its `Row`."""

    @property
    def tokens(self) -> int:
        """Prompt, input and output."""
        return len(self.prompt) + len(self.rest)


class Examples(Dataset[dict[str, Any]]):
    """Tokenised rows that are short enough."""

    def __init__(
        self, rows: Sequence[Row], prompts: PromptTokenizer, max_tokens: int, max_rest_tokens: int | None = None
    ) -> None:
        examples = (tokenize(row, prompts) for row in rows)
        rest_limit = max_rest_tokens or max_tokens
        self.examples = [
            example for example in examples if example.tokens <= max_tokens and len(example.rest) <= rest_limit
        ]

    @classmethod
    def of(cls, examples: list[Example]) -> Examples:
        """Rows that are tokens already."""
        made = cls.__new__(cls)
        made.examples = examples
        return made

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        return {"example": self.examples[draw % len(self)], "draw": draw}

    def lengths(self) -> list[int]:
        """One number a row by which to group rows: those near in rest (in steps of 24 tokens), then in prompt.

        Prompt and rest are padded apart, so their sum would group rows that pad each other.
        """
        return [len(example.rest) // 24 * 100_000 + len(example.prompt) for example in self.examples]

    def of_process(self, process: int, processes: int) -> Examples:
        """The rows that fall to one of several processes."""
        return Examples.of(self.examples[process::processes])


_GROUPED = 50
"""Steps whose rows are drawn together, and then put near those of like length."""


class Draws(Sampler[int]):
    """The draws of a whole run in order: pass after pass over all rows, each shuffled anew and grouped by length.

    ``batch_size`` counts the rows of a step over all processes. Of each pass, as many rows as fill no step are left
    out, others each time.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, steps: int, seed: int) -> None:
        assert len(lengths) >= batch_size, "a pass must fill a step"
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[int]:
        return islice(chain.from_iterable(map(self._in_pass, count())), len(self))

    def _in_pass(self, number: int) -> list[int]:
        draw, size = random.Random(f"{self.seed} {number}"), self.batch_size
        rows = draw.sample(range(len(self.lengths)), len(self.lengths) - len(self.lengths) % size)
        steps: list[list[int]] = []
        for start in range(0, len(rows), size * _GROUPED):
            near = sorted(rows[start : start + size * _GROUPED], key=self.lengths.__getitem__)
            steps += [near[place : place + size] for place in range(0, len(near), size)]
        draw.shuffle(steps)
        return [number * len(self.lengths) + row for step in steps for row in step]


def tokenize(row: Row, prompts: PromptTokenizer) -> Example:
    """Ids of a row under a prompt format."""
    output = prompts.output_ids(row.output)
    return Example(prompts.prompt_ids(row.prompt), prompts.rest_ids(row.input) + output, len(output), row.cross_entropy)


class Collator:
    """Items to the fields of one `Batch`. Each row's k follows from the seed and its draw, not from its batch.

    Where gists are not ``nested``, a longer one teaches nothing of the shorter ones, and every k is drawn. Nor does a
    gist of kept tokens alone: a smaller k is drawn in its place.
    """

    def __init__(self, placement: Placement, k: list[int] | None, seed: int, nested: bool = True) -> None:
        max_k = placement.max_k
        powers = [1 << place for place in range(max_k.bit_length()) if 1 << place < max_k]
        self.choices = k or [*(powers if nested else range(1, max_k)), max_k]
        self.seed = seed
        self.placement = placement

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        k = [random.Random(f"{self.seed} {item['draw']}").choice(self._choices(item["example"])) for item in items]
        return vars(collate([item["example"] for item in items], k))

    def _choices(self, example: Example) -> list[int]:
        if not self.placement.kept:
            return self.choices
        tokens = len(example.prompt) - self.placement.opening
        return [k for k in self.choices if not leaves_few(tokens, k)] or [min(self.choices)]


def collate(examples: Sequence[Example], k: Sequence[int], device: torch.device | str = "cpu") -> Batch:
    """Pad examples into one batch."""
    device = torch.device(device)
    prompts, prompt_parts = left_pad([example.prompt for example in examples], Part.PROMPT, device)
    rests, rest_parts = left_pad([example.rest for example in examples], Part.REST, device)
    output_lengths = torch.tensor([example.output_length for example in examples], device=device)
    cross_entropy = torch.tensor([example.cross_entropy for example in examples], device=device)
    ks = torch.tensor(list(k), device=device)
    return Batch(prompts, prompt_parts, rests, rest_parts, output_lengths, ks, cross_entropy)
