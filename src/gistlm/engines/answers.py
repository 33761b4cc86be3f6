"""Answers while they are generated: their tokens, their text, and where they end; knows no model.

An answer ends with a token that ends answers, with a stop string in its text, or with its maximum number of tokens.
Tokens and text before the answer do not count. transformers calls a stopping criterion after every token; the one here
takes the new tokens from that call.
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
"""What the bytes of an incomplete character are decoded as."""


class Answer:
    """The answer to one request of a batch."""

    def __init__(self, decode: Callable[[list[int]], str], endings: Collection[int], sampling: Sampling) -> None:
        self._decode, self._endings = decode, endings
        self._stops, self._max_tokens = sampling.stop, sampling.max_new_tokens
        self.tokens: list[int] = []
        """Tokens of the answer's text, without the token that ended it."""
        self.ended = False
        """Whether a token that ends answers was generated."""
        self.stopped = False
        """Whether the text holds a stop string."""
        self._told = 0
        """Number of characters that `news` has returned so far."""

    @property
    def is_over(self) -> bool:
        """Whether it ended with an ending token or a stop string, as opposed to its maximum number of tokens."""
        return self.ended or self.stopped

    @property
    def is_done(self) -> bool:
        """Whether it takes no more tokens: `is_over`, or its maximum number of tokens is reached."""
        return self.is_over or len(self.tokens) >= self._max_tokens

    @property
    def text(self) -> str:
        """The answer's text up to the first stop string."""
        return cut_at_stop(self._decode(self.tokens), self._stops)

    def take(self, token: int) -> None:
        """Add the next token. Tokens after the answer is done are padding and ignored."""
        if self.is_done:
            return
        if token in self._endings:
            self.ended = True
            return
        self.tokens.append(token)
        if self._stops:
            whole = self._decode(self.tokens).rstrip(_HALF)  # do not search incomplete characters
            self.stopped = any(stop in whole for stop in self._stops)

    def news(self) -> str:
        """The text since the last call, without an end that may become a stop string or another character."""
        text = self.text if self.is_done else self._decode(self.tokens).rstrip(_HALF)
        end = len(text)
        if not self.is_done:
            end -= max((_overlap(text, stop) for stop in self._stops), default=0)
        piece = text[self._told : end]
        self._told += len(piece)
        return piece


class Answers(StoppingCriteria):
    """Gives each row's new token to its answer, and tells `generate` which rows are done."""

    def __init__(
        self,
        rows: Sequence[Answer],
        tell: Callable[[int], None] = lambda row: None,
        cancelled: threading.Event | None = None,
    ) -> None:
        """tell: called with a row's index after each of its tokens. cancelled: set it to stop all rows."""
        self.rows = rows
        self.tell = tell
        self.cancelled = cancelled or threading.Event()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """Which rows are to stop, bool [batch]. input_ids: [batch, tokens], all so far."""
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
    """Length of the longest prefix of ``stop``, but not all of it, that ``text`` ends with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
