"""Answers while they are made: their own tokens, their text, and where they end; knows no model.

An answer ends at a token that ends answers, when its text holds a stop string, or when it has as many tokens as it may.
What stands before the answer does not count. transformers calls a stopping criterion after every token; this one takes
the tokens from there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from gistlm.engines.sampling import Sampling

_HALF = "\ufffd"
"""How half a character is decoded."""


class Answer:
    """One row's answer."""

    def __init__(self, decode: Callable[[list[int]], str], endings: Collection[int], sampling: Sampling) -> None:
        self._decode, self._endings = decode, endings
        self._stops, self._most = sampling.stop, sampling.max_new_tokens
        self.tokens: list[int] = []
        """Those of its text."""
        self.ended = False
        """Whether a token ended it."""
        self.stopped = False
        """Whether a stop string did."""
        self._told = 0
        """Characters that `news` has told."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended by itself."""
        return self.ended or self.stopped

    @property
    def is_done(self) -> bool:
        """Whether it has ended, or has as many tokens as it may."""
        return self.is_over or len(self.tokens) >= self._most

    @property
    def text(self) -> str:
        """Its text up to the first stop string."""
        return cut_at_stop(self._decode(self.tokens), self._stops)

    def take(self, token: int) -> None:
        """Add the next token; what follows an answer that is done is padding."""
        if self.is_done:
            return
        if token in self._endings:
            self.ended = True
            return
        self.tokens.append(token)
        if self._stops:
            whole = self._decode(self.tokens).rstrip(_HALF)  # half a character is none yet
            self.stopped = any(stop in whole for stop in self._stops)

    def news(self) -> str:
        """What is new in its text, but what may still become a stop string or another character."""
        text = self.text if self.is_done else self._decode(self.tokens).rstrip(_HALF)
        end = len(text)
        if not self.is_done:
            end -= max((_overlap(text, stop) for stop in self._stops), default=0)
        piece = text[self._told : end]
        self._told += len(piece)
        return piece


class Answers(StoppingCriteria):
    """Gives every row's new token to its answer, tells of each answer that goes on, and stops those that are done."""

    def __init__(
        self,
        rows: Sequence[Answer],
        tell: Callable[[int], None] = lambda row: None,
        cancelled: threading.Event | None = None,
    ) -> None:
        """tell: called after every token of a row with its number; cancelled: set where nobody reads on."""
        self.rows = rows
        self.tell = tell
        self.cancelled = cancelled or threading.Event()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """From ids [batch, tokens], bool [batch]: which rows are to stop."""
        for row, (answer, token) in enumerate(zip(self.rows, input_ids[:, -1].tolist(), strict=True)):
            if not answer.is_done:
                answer.take(token)
                self.tell(row)
        stop = self.cancelled.is_set()
        return torch.tensor([stop or answer.is_done for answer in self.rows], device=input_ids.device)


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of ``stop`` with which ``text`` ends."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
