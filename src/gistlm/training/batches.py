"""Makes padded batches of rows, with a random number of gist tokens; knows nothing of models, losses or optimisers.

A *draw* is a row in one pass over all rows, numbered pass * rows + row. The draws of each step, and each draw's number
of gist tokens, depend on the seed only: a resumed run repeats them, and several processes can share them. Prompts and
rests are left-padded, so outputs end at the last column.
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
    """[batch]: number of output tokens, which are the last of the rest"""
    k: Tensor
    """[batch]: maximum number of tokens in the row's gist"""
    cross_entropy: Tensor
    """[batch]: weight of the output's cross-entropy, which is added to the recipe's weight for all rows"""

    @property
    def tokens(self) -> int:
        """Number of tokens of prompts, inputs and outputs, without padding."""
        return int((self.prompt_parts != Part.PAD).sum() + (self.rest_parts != Part.PAD).sum())

    def targets(self) -> tuple[Tensor, Tensor]:
        """Targets: the last M tokens [batch, M], and which of them are output tokens, bool [batch, M].

        M is the longest output's length, but at most R - 1, because the first column has nothing to predict it.
        """
        longest = min(self.rests.shape[1] - 1, int(self.output_lengths.max()))
        from_end = torch.arange(longest, 0, -1, device=self.rests.device)
        return self.rests[:, -longest:], from_end <= self.output_lengths[:, None]


@dataclass(frozen=True)
class Example:
    """A tokenised row."""

    prompt: list[int]
    rest: list[int]
    """Input and output, with the template's text around them."""
    output_length: int
    """Number of output tokens."""
    cross_entropy: float = 0.0
    """`Row.cross_entropy`"""

    @property
    def tokens(self) -> int:
        """Number of tokens of prompt, input and output."""
        return len(self.prompt) + len(self.rest)


class Examples(Dataset[dict[str, Any]]):
    """Tokenised rows; those longer than max_tokens, or with a rest longer than max_rest_tokens, are left out."""

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
        """Examples of rows that are tokenised already, all of them."""
        made = cls.__new__(cls)
        made.examples = examples
        return made

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        return {"example": self.examples[draw % len(self)], "draw": draw}

    def lengths(self) -> list[int]:
        """Sort key of each row: by the rest's length in steps of 24 tokens, then by the prompt's length.

        Prompts and rests are padded separately, so sorting by total length would put together rows that need padding.
        """
        return [len(example.rest) // 24 * 100_000 + len(example.prompt) for example in self.examples]

    def of_process(self, process: int, processes: int) -> Examples:
        """Rows of process number ``process`` out of ``processes``."""
        return Examples.of(self.examples[process::processes])


_GROUPED = 50
"""Number of steps whose rows are sorted by length together."""


class Draws(Sampler[int]):
    """All draws of a run in order: pass after pass over all rows, each shuffled anew and grouped by length.

    batch_size: number of rows in a step, over all processes. A pass leaves out the rows that would not fill a last
    step; they differ from pass to pass.
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
    """Tokenise a row in a prompt format."""
    output = prompts.output_ids(row.output)
    return Example(prompts.prompt_ids(row.prompt), prompts.rest_ids(row.input) + output, len(output), row.cross_entropy)


class Collator:
    """Collates items of `Examples` into the fields of one `Batch`, with a random k for each row.

    A row's k depends on the seed and its draw only, not on its batch.

    k: numbers to draw from; None: powers of two and max_k if gists are nested, else all numbers up to max_k. nested:
    whether the first j tokens of a gist are a gist too, so that training a long gist trains the shorter ones. A k for
    which a row's gist would have no learned token (`leaves_few`) is not drawn; if no other is left, the smallest is.
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
