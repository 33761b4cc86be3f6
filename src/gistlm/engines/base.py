"""The interface between callers and engines; imports no engine and no torch.

An engine implements `answer`, which streams; `complete`, `stream` and `generate` are built on it. `compress`, `score`,
`logits` and `checkpoint` are optional, and raise `InputError` in an engine that does not implement them.
"""

from __future__ import annotations

import copy
import importlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Unpack, overload

from gistlm.engines.batches import BATCH_TOKENS
from gistlm.engines.blocking import iterate
from gistlm.engines.sampling import Sampling, SamplingOptions
from gistlm.errors import InputError
from gistlm.messages import Input, split_system

if TYPE_CHECKING:
    from torch import Tensor

    from gistlm.gist import Gist
    from gistlm.models.checkpoint import Checkpoint

ENGINES = {
    "transformers": "gistlm.engines.transformers:GistModel",
}
"""name -> module:class, imported when asked for."""


DEFAULT = Sampling()


@dataclass(frozen=True)
class Request:
    """One input and what stands before it: a gist, a full prompt, or nothing.

    An input is a text, or a conversation that ends with the user's message. A conversation's system message is the full
    prompt. A blank system message is ignored if there is a gist, a prompt or ``bare_opening``. Raises `InputError` for
    anything else, and for a system message together with a gist or a prompt.
    """

    input: Input
    """After construction without a system message; messages have only the keys role and content, and text content."""
    gists: Gist | Sequence[Gist] | None = None
    """A gist or a list of them. Gists cannot be joined yet, so more than one is refused. After construction a tuple of
    at most one gist; use `gist`."""
    prompt: str | None = None
    """The full prompt. None: the model's chat template decides, which may have a default system message."""
    sampling: Sampling = DEFAULT
    """How the answer's tokens are chosen, and where it ends."""
    bare_opening: bool = False
    """Without gist and prompt: begin with the template's opening exactly as before a gist, and without the template's
    default system message. The negative control of evaluations."""

    @property
    def gist(self) -> Gist | None:
        """The gist that stands before the input, or None."""
        return self.gists[0] if self.gists else None  # type: ignore[index]  # a tuple by `__post_init__`

    def __post_init__(self) -> None:
        gists = tuple(self.gists) if isinstance(self.gists, (list, tuple)) else (self.gists,)
        object.__setattr__(self, "gists", tuple(gist for gist in gists if gist is not None))
        if len(self.gists) > 1:  # type: ignore[arg-type]
            raise InputError(f"gists cannot be joined yet, so a request takes one; got {len(gists)}")
        if not isinstance(self.sampling, Sampling):
            raise InputError(f"sampling must be a Sampling, got {type(self.sampling).__name__}")
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
    """A whole answer and how many tokens it took."""

    text: str
    finish_reason: Literal["stop", "length"]
    """"stop": a token that ends answers, or a stop string. "length": the request's maximum number of new tokens."""
    fresh_tokens: int
    """Number of tokens encoded for this request."""
    cached_tokens: int
    """Number of tokens whose keys and values came from the cache: opening and gist."""
    new_tokens: int
    """Number of tokens generated, the one that ended the answer included."""


class Piece(NamedTuple):
    """A part of an answer."""

    row: int
    """Index of the request in the call."""
    text: str
    """The next part of the answer's text; may be empty in the last piece."""
    completion: Completion | None = None
    """The whole answer, in its last piece; None before."""


class Engine(ABC):
    """A model that answers over gists."""

    batch_tokens: int = BATCH_TOKENS
    """Maximum tokens in one batch, padding included; a longer request is a batch of its own."""

    @classmethod
    @abstractmethod
    def from_pretrained(cls, name: str, /, *args: Any, **options: Any) -> Engine:
        """Load the engine with a checkpoint. It must accept the options base, device and dtype; None is the default."""

    @abstractmethod
    def answer(self, requests: Sequence[Request]) -> AsyncIterator[Piece]:
        """Pieces of all answers as they are made; requests with gists, prompts and neither may be mixed.

        Bad requests raise on this call, before anything is run. To cancel, close the iterator or cancel its task.
        """

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Whole answers, in the requests' order."""
        pieces = iterate(self.answer(requests))
        made = {piece.row: piece.completion for piece in pieces if piece.completion is not None}
        return [made[row] for row in range(len(requests))]

    def stream(
        self, input: Input, gist: Gist | None = None, *, prompt: str | None = None, **options: Unpack[SamplingOptions]
    ) -> Iterator[str]:
        """Pieces of one answer's text as they are made. Bad requests raise on this call, not on the first iteration."""
        return self.stream_request(Request(input, gist, prompt, Sampling.parse(options)))

    def stream_request(self, request: Request) -> Iterator[str]:
        """Pieces of the text of one request's answer; see `stream`."""
        return _texts(iterate(self.answer([request])))

    @overload
    def compress(self, prompt: str, k: int = 4) -> Gist: ...  # type: ignore[overload-overlap]
    @overload
    def compress(self, prompt: Sequence[str], k: int = 4) -> list[Gist]: ...
    def compress(self, prompt: str | Sequence[str], k: int = 4) -> Gist | list[Gist]:
        """Compress a prompt into a gist of k tokens, or each of several. Raises `InputError` if the engine cannot."""
        raise InputError(f"{type(self).__name__} makes no gists; compress with the engine 'transformers'")

    def score(
        self, inputs: Input | Sequence[Input], outputs: str | Sequence[str],
        gists: Gist | Sequence[Gist | None] | None = None, *, prompts: str | Sequence[str | None] | None = None,
    ) -> Any:  # fmt: skip
        """Log-probability (nats) of every output token, the one that ends it included: [tokens], or a list of them.

        Raises `InputError` if the engine cannot score.
        """
        raise InputError(f"{type(self).__name__} scores no outputs; use the engine 'transformers' to measure with")

    def logits(self, requests: Sequence[Request], outputs: Sequence[str]) -> Iterator[Tensor]:
        """For every request the logits [tokens, vocabulary] that predict its output, the token that ends it included.

        Raises `InputError` if the engine cannot return logits.
        """
        raise InputError(f"{type(self).__name__} shows no logits; use the engine 'transformers' to measure with")

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint that the engine runs. Raises `InputError` if it is not loaded in this process."""
        raise InputError(f"{type(self).__name__} holds no checkpoint; use the engine 'transformers' to measure with")

    def close(self) -> None:  # noqa: B027 - most engines hold nothing
        """Free the engine's resources."""

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
        """Answer one input, or several in batches.

        gists: one for all inputs, or one (or None) per input. prompts: full prompts in place of gists, one for all
        inputs or one (or None) per input; each input has a gist, a prompt or neither. options: fields of `Sampling`.
        Raises `InputError`, `GistMismatchError` or `PromptTooLongError`.
        """
        requests, single = make_requests(inputs, gists, prompts, Sampling.parse(options))
        answers = [completion.text for completion in self.complete(requests)]
        return answers[0] if single else answers


def _texts(pieces: Iterator[Piece]) -> Iterator[str]:
    """The pieces' texts without empty ones; closing this iterator closes ``pieces``."""
    with closing(pieces):  # type: ignore[type-var]  # a generator
        for piece in pieces:
            if piece.text:
                yield piece.text


def with_sampling(requests: Sequence[Request], sampling: Sampling) -> list[Request]:
    """Copies of the requests with this `Sampling`."""
    made = [copy.copy(request) for request in requests]
    for request in made:
        object.__setattr__(request, "sampling", sampling)  # frozen, and checked already
    return made


def load_engine(name: str, model: str, **options: Any) -> Engine:
    """Load an engine with a checkpoint.

    name: the engine's, a key of `ENGINES` or module:class of another `Engine`. model: the checkpoint: a name from
    `gistlm models`, a folder, or a hub id. options: what the engine's `from_pretrained` takes. Raises `InputError` if
    there is no such engine.
    """
    module, colon, kind = ENGINES.get(name, name).partition(":")
    try:
        found = getattr(importlib.import_module(module), kind) if colon else None
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"the engine {name} cannot be loaded: {error}") from error
    if found is None:
        raise InputError(f"there is no engine {name!r}; there are {', '.join(ENGINES)}, and module:class of your own")
    if not (isinstance(found, type) and issubclass(found, Engine)):
        raise InputError(f"{name} is no Engine; name a class that gistlm.Engine is a base of")
    engine: Engine = found.from_pretrained(model, **options)
    return engine


def make_requests(
    inputs: Input | Sequence[Input],
    gists: Gist | Sequence[Gist | None] | None,
    prompts: str | Sequence[str | None] | None,
    sampling: Sampling = DEFAULT,
) -> tuple[list[Request], bool]:
    """Requests from what `Engine.generate` takes, and whether a single input was given.

    A list of messages (mappings) is one input: a conversation.
    """
    if not isinstance(inputs, (str, list, tuple)):
        raise InputError(f"inputs are a string, messages, or a list of them, got {type(inputs).__name__}")
    single = isinstance(inputs, str) or (len(inputs) > 0 and isinstance(inputs[0], dict))
    every: list[Any] = [inputs] if single else list(inputs)
    pairs = zip(every, one_each(gists, len(every), "gists"), one_each(prompts, len(every), "prompts"), strict=True)
    return [Request(each, gist, prompt, sampling) for each, gist, prompt in pairs], single


def one_each(values: Any, count: int, what: str) -> list[Any]:
    """A list with one value per input: a single value ``count`` times, or a list as it is.

    what: what an error message calls the values. Raises `InputError` for a list of another length.
    """
    if not isinstance(values, (list, tuple)):
        return [values] * count
    if len(values) != count:
        raise InputError(f"{what} must be one for all inputs or one per input: {len(values)} given for {count} inputs")
    return list(values)
