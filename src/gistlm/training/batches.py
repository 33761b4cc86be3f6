"""Rows to padded batches with a random number of gist tokens; knows nothing of losses or optimisers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from gistlm.compress import left_pad
from gistlm.mask import Part
from gistlm.prompt import PromptTokenizer
from gistlm.training.objectives import Batch
from gistlm.training.rows import Row


@dataclass(frozen=True)
class Example:
    """A tokenised row."""

    prompt: list[int]
    rest: list[int]
    """The output included."""
    output_length: int

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

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"example": self.examples[index], "index": index}

    def lengths(self) -> list[int]:
        """One number a row by which to group rows: those near in rest (in steps of 24 tokens), then in prompt.

        Prompt and rest are padded apart, so their sum would group rows that pad each other.
        """
        return [len(example.rest) // 24 * 100_000 + len(example.prompt) for example in self.examples]


def tokenize(row: Row, prompts: PromptTokenizer) -> Example:
    """Ids of a row under a prompt format."""
    output = prompts.output_ids(row.output)
    return Example(prompts.prompt_ids(row.prompt), prompts.rest_ids(row.input) + output, len(output))


class Collator:
    """Items to the fields of one `Batch`.

    Each row's k is drawn from the seed and the batch's items alone, so that a resumed run draws the same.
    """

    def __init__(self, max_k: int, fixed_k: int | None, seed: int) -> None:
        self.choices = [fixed_k] if fixed_k else [k for k in (1, 2, 4, 8, 16, 32, 64) if k < max_k] + [max_k]
        self.seed = seed

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        draw = random.Random(f"{self.seed} {[item['index'] for item in items]}")
        examples = [item["example"] for item in items]
        return vars(collate(examples, [draw.choice(self.choices) for _ in examples]))


def collate(examples: Sequence[Example], k: Sequence[int], device: torch.device | str = "cpu") -> Batch:
    """Pad examples into one batch."""
    device = torch.device(device)
    prompts, prompt_parts = left_pad([example.prompt for example in examples], Part.PROMPT, device)
    rests, rest_parts = left_pad([example.rest for example in examples], Part.REST, device)
    output_lengths = torch.tensor([example.output_length for example in examples], device=device)
    return Batch(prompts, prompt_parts, rests, rest_parts, output_lengths, torch.tensor(list(k), device=device))
