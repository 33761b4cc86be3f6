"""The seam between those who ask for text and the engines that make it; knows no engine and loads no torch.

An engine implements `compress`, `complete`, `stream`, `score` and `close`; `generate` is built on `complete`.
`logits` and `checkpoint` are for measuring, and an engine without them says so.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

from gistlm.engines.batches import BATCH_TOKENS
from gistlm.errors import InputError
from gistlm.messages import Input, is_text, split_system

if TYPE_CHECKING:
    from torch import Tensor

    from gistlm.gist import Gist
    from gistlm.models.checkpoint import Checkpoint

ENGINES = {
    "transformers": "gistlm.engines.transformers:GistModel",
    "fake": "gistlm.engines.fake:FakeEngine",
}
"""name -> module:class, loaded when asked for."""

GREEDY_BELOW = 1e-5
"""Temperatures below this are 0, as in vLLM: logits divided by less may overflow."""


class SamplingOptions(TypedDict, total=False):
    """The keyword arguments of `generate` and `stream`; see `Sampling`."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    stop: str | Sequence[str]
    seed: int | None


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when to stop."""

    max_new_tokens: int = 128
    """At most this many tokens."""
    temperature: float = 0.0
    """0 takes the likeliest token, and so does anything below `GREEDY_BELOW` (1e-5); higher is more varied."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together have this probability."""
    top_k: int = 0
    """Sample from this many likeliest tokens; 0 is all."""
    stop: str | Sequence[str] = ()
    """Strings at which the answer ends; they are not part of it."""
    seed: int | None = None
    """Fixes sampling for one call; None continues torch's own generator."""

    def __post_init__(self) -> None:
        stops = (self.stop,) if isinstance(self.stop, str) else self.stop
        for name, allowed, fits in (
            ("max_new_tokens", "a whole number of 1 or more", _whole(self.max_new_tokens, 1)),
            ("temperature", "a number from 0 to 100", _number(self.temperature) and 0 <= self.temperature <= 100),
            ("top_p", "a number above 0 and at most 1", _number(self.top_p) and 0 < self.top_p <= 1),
            ("top_k", "a whole number of 0 or more", _whole(self.top_k, 0)),
            ("stop", "a non-empty string or several", _strings(stops)),
            ("seed", "a whole number from 0 to 2**63 - 1", self.seed is None or _whole(self.seed, 0, 1 << 63)),
        ):
            if not fits:
                raise InputError(f"{name} must be {allowed}, got {getattr(self, name)!r}")
        object.__setattr__(self, "stop", tuple(stops))

    @property
    def greedy(self) -> bool:
        """Whether every token is the likeliest one."""
        return self.temperature < GREEDY_BELOW


def _whole(value: object, least: int, below: float = float("inf")) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < below


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _strings(values: object) -> bool:
    return isinstance(values, (list, tuple)) and all(isinstance(value, str) and is_text(value) for value in values)


@dataclass(frozen=True)
class Request:
    """One input and what stands before it: a gist, a full prompt, or nothing.

    An input is a text, or a conversation that ends with the user's message. A conversation's system message is the full
    prompt; a blank one says nothing beside a gist or a prompt. Raises `InputError` for anything else, and for a system
    message beside a gist or a prompt.
    """

    input: Input
    """Messages are kept with their roles and plain texts alone."""
    gist: Gist | None = None
    prompt: str | None = None
    """None leaves it to the model's chat template, which may have a system message of its own."""
    bare_opening: bool = False
    """With neither gist nor prompt: the template's opening as a gist would stand behind it, and no system message of
    the template's own. This is the negative control of an evaluation."""

    def __post_init__(self) -> None:
        if self.gist is not None and self.prompt is not None:
            raise InputError("a request has a gist or a prompt, not both; compare them as two requests of one call")
        if self.gist is not None and not hasattr(self.gist, "provenance"):
            raise InputError(f"gists are Gist objects, got {type(self.gist).__name__}; a file is read with Gist.load")
        if self.prompt is not None and not isinstance(self.prompt, str):
            raise InputError(f"a prompt must be a string, got {type(self.prompt).__name__}")
        if self.prompt is not None and not self.prompt.strip():
            raise InputError("the prompt is empty; give its text, or None for no prompt")
        system, rest = split_system(self.input)
        alone = self.gist is None and self.prompt is None
        if system is not None and not system.strip() and (self.bare_opening or not alone):
            system = None
        if self.bare_opening and not (alone and system is None):
            raise InputError("bare_opening is for a request with neither gist nor prompt; leave out one or the other")
        if system is not None and self.gist is not None:
            raise InputError(
                "a gist stands where a system message would, so there can be no system message beside it; compress "
                "its text into the gist, or put it into the user message"
            )
        if system is not None and self.prompt is not None:
            raise InputError("a system message is the full prompt, so give it or a prompt, not both")
        object.__setattr__(self, "input", rest)
        object.__setattr__(self, "prompt", self.prompt if system is None else system)


@dataclass(frozen=True)
class Completion:
    """An answer and what it took."""

    text: str
    finish_reason: Literal["stop", "length"]
    fresh_tokens: int
    """Tokens encoded for this request."""
    cached_tokens: int
    """Tokens whose keys and values were at hand: opening and gist."""
    new_tokens: int
    """Tokens generated, the ending one included."""


class Engine(ABC):
    """A model that can compress prompts and answer over gists."""

    batch_tokens: int = BATCH_TOKENS
    """Most tokens that run together, padding included; a longer row runs alone."""

    @classmethod
    @abstractmethod
    def from_pretrained(cls, name: str, /, *args: Any, **options: Any) -> Engine:
        """The engine on a checkpoint; `load_engine` gives base, device and dtype, each None for the default."""

    @overload
    def compress(self, prompt: str, k: int = 4) -> Gist: ...  # type: ignore[overload-overlap]
    @overload
    def compress(self, prompt: Sequence[str], k: int = 4) -> list[Gist]: ...
    @abstractmethod
    def compress(self, prompt: str | Sequence[str], k: int = 4) -> Gist | list[Gist]:
        """One gist of k tokens, or one per prompt."""

    @abstractmethod
    def complete(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """Answers in the requests' order. Requests with gists, prompts and neither may be mixed."""

    @abstractmethod
    def stream(
        self, input: Input, gist: Gist | None = None, *, prompt: str | None = None, **options: Unpack[SamplingOptions]
    ) -> Iterator[str]:
        """Pieces of one answer as they are made."""

    @abstractmethod
    def score(
        self, inputs: Input | Sequence[Input], outputs: str | Sequence[str],
        gists: Gist | Sequence[Gist | None] | None = None, *, prompts: str | Sequence[str | None] | None = None,
    ) -> Any:  # fmt: skip
        """Log-probability (nats) of every output token, the ending one included: [tokens], or a list of them."""

    def logits(self, requests: Sequence[Request], outputs: Sequence[str]) -> Iterator[Tensor]:
        """For every request the logits [tokens, vocabulary] that predict its output, the ending token included.

        Raises `InputError` where the engine shows no whole distributions.
        """
        raise InputError(f"{type(self).__name__} shows no logits; use the engine 'transformers' to measure with")

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint that the engine runs. Raises `InputError` where the engine has none in this process."""
        raise InputError(f"{type(self).__name__} holds no checkpoint; use the engine 'transformers' to measure with")

    def close(self) -> None:  # noqa: B027 - most engines hold nothing
        """Free what the engine holds."""

    @overload
    def generate(  # type: ignore[overload-overlap]
        self, inputs: str, gists: Gist | None = None, *, prompts: str | None = None, **options: Unpack[SamplingOptions]
    ) -> str: ...
    @overload
    def generate(
        self, inputs: Sequence[Input], gists: Gist | Sequence[Gist | None] | None = None, *,
        prompts: str | Sequence[str | None] | None = None, **options: Unpack[SamplingOptions],
    ) -> list[str]: ...  # fmt: skip
    def generate(
        self, inputs: Input | Sequence[Input], gists: Gist | Sequence[Gist | None] | None = None, *,
        prompts: str | Sequence[str | None] | None = None, **options: Unpack[SamplingOptions],
    ) -> str | list[str]:  # fmt: skip
        """Answer one input, or several in one batch.

        gists: one for all inputs, or one (or None) per input. prompts: the same for full prompts, the positive
        control; an input has one or the other. options: see `Sampling`. Raises `InputError`,
        `GistMismatchError` or `PromptTooLongError`.
        """
        requests, single = make_requests(inputs, gists, prompts)
        answers = [completion.text for completion in self.complete(requests, Sampling(**options))]
        return answers[0] if single else answers


def load_engine(name: str, model: str, **options: Any) -> Engine:
    """Load an engine of `ENGINES` on a model. Raises `InputError` for an unknown name."""
    if name not in ENGINES:
        raise InputError(f"there is no engine {name!r}; there are {', '.join(ENGINES)}")
    module, _, kind = ENGINES[name].partition(":")
    found: type[Engine] = getattr(importlib.import_module(module), kind)
    return found.from_pretrained(model, **options)


def make_requests(
    inputs: Input | Sequence[Input],
    gists: Gist | Sequence[Gist | None] | None,
    prompts: str | Sequence[str | None] | None,
) -> tuple[list[Request], bool]:
    """Pair inputs with gists and prompts; the second value says whether a single input was given.

    A list of messages (mappings) is one input: a conversation.
    """
    if not isinstance(inputs, (str, list, tuple)):
        raise InputError(f"inputs are a string, messages, or a list of them, got {type(inputs).__name__}")
    single = isinstance(inputs, str) or (len(inputs) > 0 and isinstance(inputs[0], dict))
    every: list[Any] = [inputs] if single else list(inputs)
    pairs = zip(every, one_each(gists, len(every), "gists"), one_each(prompts, len(every), "prompts"), strict=True)
    return [Request(each, gist, prompt) for each, gist, prompt in pairs], single


def one_each(values: Any, count: int, what: str) -> list[Any]:
    """A value for each of ``count`` inputs: the single one given, or the list itself."""
    if not isinstance(values, (list, tuple)):
        return [values] * count
    if len(values) != count:
        raise InputError(f"{what} must be one for all inputs or one per input: {len(values)} given for {count} inputs")
    return list(values)


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def hold_back(pieces: Iterator[str], stops: Sequence[str]) -> Iterator[str]:
    """Pass pieces on, but never a part of a stop string: what may begin one waits for the next piece."""
    waiting = ""
    for piece in pieces:
        waiting += piece
        cut = cut_at_stop(waiting, stops)
        if len(cut) < len(waiting):
            if cut:
                yield cut
            return
        safe = len(waiting) - max((_overlap(waiting, stop) for stop in stops), default=0)
        if safe:
            yield waiting[:safe]
            waiting = waiting[safe:]
    if waiting:
        yield waiting


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of ``stop`` with which ``text`` ends."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
