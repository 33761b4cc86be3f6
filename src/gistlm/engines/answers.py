"""Answers while they are made: their own tokens, their text, and where they end; knows no model.

An answer ends at a token that ends answers, or when its text holds a stop string. What stands before the answer does
not count. transformers calls a stopping criterion after every token; these take the tokens from there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from gistlm.engines.base import cut_at_stop


class Answer:
    """One row's answer."""

    def __init__(self, decode: Callable[[list[int]], str], endings: Collection[int], stops: Sequence[str]) -> None:
        self._decode, self._endings, self._stops = decode, endings, stops
        self.tokens: list[int] = []
        """Those of its text."""
        self.ended = False
        """Whether a token ended it."""
        self.stopped = False
        """Whether a stop string did."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended by itself."""
        return self.ended or self.stopped

    @property
    def whole(self) -> str:
        """Its text, with a stop string that ended it."""
        return self._decode(self.tokens)

    @property
    def text(self) -> str:
        """Its text up to the first stop string."""
        return cut_at_stop(self.whole, self._stops)

    def take(self, token: int) -> None:
        """Add the next token; what follows an answer that is over is padding."""
        if self.is_over:
            return
        if token in self._endings:
            self.ended = True
            return
        self.tokens.append(token)
        if self._stops:
            whole = self.whole.rstrip("\ufffd")  # half a character is none yet
            self.stopped = any(stop in whole for stop in self._stops)


class Answers(StoppingCriteria):
    """Gives every row's new token to its answer, and stops the rows whose answers are over."""

    def __init__(self, rows: Sequence[Answer]) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """From ids [batch, tokens], bool [batch]."""
        for answer, token in zip(self.rows, input_ids[:, -1].tolist(), strict=True):
            answer.take(token)
        return torch.tensor([answer.is_over for answer in self.rows], device=input_ids.device)


class Pieces(StoppingCriteria):
    """One answer's whole text in pieces, while another thread makes it."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self._closed = False
        self._texts: SimpleQueue[str | None] = SimpleQueue()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """After every token, from ids [1, tokens], bool [1]: whether nobody reads on."""
        self._texts.put(self.answer.whole)
        return torch.tensor([self._closed], device=input_ids.device)

    def of(self, generate: Callable[[], object]) -> Iterator[str]:
        """Pieces as ``generate``, which has this among its criteria, makes them in a thread.

        A reader that stops listening stops the generation. Raises what ``generate`` raises.
        """
        problems: list[BaseException] = []

        def run() -> None:
            try:
                generate()
            except BaseException as problem:
                problems.append(problem)
            finally:
                self._texts.put(None)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield from self._pieces()
        finally:
            self._closed = True
            thread.join()
        if problems:
            raise problems[0]

    def _pieces(self) -> Iterator[str]:
        told = 0
        for text in iter(self._texts.get, None):
            piece = text.rstrip("\ufffd")[told:]  # half a character waits for its other half
            if piece:
                yield piece
                told += len(piece)
        if rest := self.answer.whole[told:]:
            yield rest
