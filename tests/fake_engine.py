"""An engine without a model, for tests of what stands before an engine; its words are its tokens.

An answer repeats the input and says what stood before it, so a test can see that both arrived. Knows gists,
and loads torch only where one is made or read.
"""

from __future__ import annotations

import asyncio
import random
import re
import zlib
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from gistlm.engines.answers import cut_at_stop
from gistlm.engines.base import Completion, Engine, Piece, Request, make_requests, one_each
from gistlm.errors import InputError, PromptTooLongError
from gistlm.files import sha256
from gistlm.messages import Input, turns

if TYPE_CHECKING:
    from gistlm.gist import Gist

FAKE = "fake_engine:FakeEngine"
"""Its name for `--engine` and `load_engine`."""
CONTEXT = 4096
"""Words of prompt, input and answer together."""
MAX_K = 16
_LAYERS, _HEADS, _HEAD_DIM = 2, 1, 4


class FakeEngine(Engine):
    """Deterministic answers in no time, or one word every ``delay`` seconds."""

    def __init__(self, name: str, dtype: str = "float32", delay: float = 0.0) -> None:
        self.name = name
        self.dtype = dtype
        self.delay = delay
        self.closed = False
        self.fingerprint = sha256(b"fake", name.encode())

    @classmethod
    def from_pretrained(cls, name: str, **options: Any) -> FakeEngine:
        """Any name is a model. options: dtype and delay; those of other engines are ignored."""
        return cls(str(name), options.get("dtype") or "float32", options.get("delay") or 0.0)

    @overload
    def compress(self, prompt: str, k: int = 4) -> Gist: ...  # type: ignore[overload-overlap]
    @overload
    def compress(self, prompt: Sequence[str], k: int = 4) -> list[Gist]: ...
    def compress(self, prompt: str | Sequence[str], k: int = 4) -> Gist | list[Gist]:
        """Gists whose numbers depend on the prompt alone, so that a shorter one begins a longer one."""
        if not 1 <= k <= MAX_K:
            raise InputError(f"k is the number of gist tokens, from 1 to {MAX_K} for this checkpoint; got {k!r}")
        if isinstance(prompt, str):
            return self._gist(prompt, k)
        return [self._gist(each, k) for each in prompt]

    def answer(self, requests: Sequence[Request]) -> AsyncIterator[Piece]:
        """The answers one after the other, word by word."""
        return self._answer(requests, [self._words(request) for request in requests])

    async def _answer(self, requests: Sequence[Request], words: Sequence[list[str]]) -> AsyncIterator[Piece]:
        for row, (request, own) in enumerate(zip(requests, words, strict=True)):
            whole, told = self._complete(request, own), ""
            for word in own[: request.sampling.max_new_tokens]:
                await asyncio.sleep(self.delay)
                piece = whole.text[len(told) : len(told) + len(word)]
                told += piece
                yield Piece(row, piece)
            yield Piece(row, whole.text[len(told) :], whole)

    def score(
        self, inputs: Input | Sequence[Input], outputs: str | Sequence[str],
        gists: Gist | Sequence[Gist | None] | None = None, *, prompts: str | Sequence[str | None] | None = None,
    ) -> Any:  # fmt: skip
        """A number from -1 to 0 for every word of the output and for its end, as float32 tensors [words + 1]."""
        import torch

        requests, single = make_requests(inputs, gists, prompts)
        scores = []
        for request, output in zip(requests, one_each(outputs, len(requests), "outputs"), strict=True):
            before = self._before(request)
            words = [*output.split(), ""]
            scores.append(torch.tensor([-zlib.crc32(f"{before} {word}".encode()) / 2**32 for word in words]))
        return scores[0] if single else scores

    def close(self) -> None:
        """Remembered, for tests."""
        self.closed = True

    def _gist(self, prompt: str, k: int) -> Gist:
        import torch

        from gistlm.gist import DTYPES, Gist
        from gistlm.gist_file import Provenance

        if self.dtype not in DTYPES:
            raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        words = prompt.split()
        if not words:
            raise InputError("the prompt is empty; give the text that is to be compressed")
        if len(words) > CONTEXT - k - 1:
            raise PromptTooLongError(len(words), CONTEXT - k - 1)
        prompt_hash = sha256(prompt.encode())
        source = torch.Generator().manual_seed(int(prompt_hash[:15], 16))
        whole = torch.randn(2, _LAYERS, _HEADS, MAX_K, _HEAD_DIM, generator=source)[:, :, :, :k].to(DTYPES[self.dtype])
        keys, values = (tuple(layer.contiguous() for layer in side) for side in whole)
        info = Provenance(
            model=self.fingerprint,
            adapter=sha256(b"fake adapter"),
            base=self.name,
            prompt_sha256=prompt_hash,
            prompt_tokens=len(words),
            start=0,
        )
        return Gist(keys, values, info)

    def _complete(self, request: Request, words: list[str]) -> Completion:
        text = "".join(words[: request.sampling.max_new_tokens])
        cut = cut_at_stop(text, request.sampling.stop)
        ended = len(words) < request.sampling.max_new_tokens
        fresh = _count(request.input) + len((request.prompt or "").split())
        return Completion(
            cut,
            "stop" if ended or len(cut) < len(text) else "length",
            fresh_tokens=fresh,
            cached_tokens=request.gist.k if request.gist is not None else 0,
            new_tokens=len(cut.split()) + (ended and cut == text),
        )

    def _words(self, request: Request) -> list[str]:
        """The whole answer, each word with the space before it."""
        before, sampling = self._before(request), request.sampling
        length = _count(request.input) + len((request.prompt or "").split()) + sampling.max_new_tokens
        if length > CONTEXT:
            raise PromptTooLongError(length, CONTEXT, "request with room for its answer")
        texts = turns(request.input)
        text = f"answer {len(texts) // 2 + 1} over {before}: {texts[-1]}"
        if not sampling.greedy:
            text += f" ({random.Random(sampling.seed).random():.6f})"
        return re.findall(r"\s*\S+", text)

    def _before(self, request: Request) -> str:
        """What stands before the input, in words."""
        if request.gist is not None:
            from gistlm.gist import DTYPES

            request.gist.check_reader({2: self.fingerprint}, self.name, DTYPES[self.dtype])
            return f"a gist of {request.gist.k} tokens"
        return f"a prompt of {len(request.prompt.split())} tokens" if request.prompt else "no prompt"


def _count(request: Input) -> int:
    return sum(len(text.split()) for text in turns(request))
