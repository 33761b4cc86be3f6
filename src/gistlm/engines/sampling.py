"""How an answer's next token is chosen and where the answer ends; knows no model and loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypedDict

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveInt

from gistlm.messages import is_text
from gistlm.options import Options

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


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _check_stop(text: str) -> str:
    if not is_text(text):
        raise ValueError(f"a stop string must be a text that is not empty, got {text!r}")
    return text


class Sampling(Options):
    """How the next token is chosen and when to stop."""

    max_new_tokens: PositiveInt = 128
    """At most this many tokens."""
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 0.0
    """0 takes the likeliest token, and so does anything below `GREEDY_BELOW` (1e-5); higher is more varied."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that together have this probability."""
    top_k: NonNegativeInt = 0
    """Sample from this many likeliest tokens; 0 is all."""
    stop: Annotated[tuple[Annotated[str, AfterValidator(_check_stop)], ...], BeforeValidator(_as_tuple)] = ()
    """Strings at which the answer ends; they are not part of it."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    """Fixes the answer: in float32 it is the same alone and in any batch. None continues torch's own generator."""

    @property
    def greedy(self) -> bool:
        """Whether every token is the likeliest one."""
        return self.temperature < GREEDY_BELOW
