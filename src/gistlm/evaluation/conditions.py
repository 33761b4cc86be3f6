"""What stands in a prompt's place: requests for every condition; knows nothing of metrics, rows or files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gistlm.engines.base import Engine, Request
from gistlm.errors import GistlmError, InputError
from gistlm.evaluation.baselines import BASELINES, Maker, Source, make_baseline, of_each_k
from gistlm.evaluation.results import label
from gistlm.gist import Gist
from gistlm.messages import Input


@dataclass(frozen=True)
class EvalCondition:
    """A name and, where tokens are counted, how many there are beside the visible opening."""

    name: str
    k: int | None = None

    @property
    def label(self) -> str:
        """For example "full" or "gist@4"."""
        return label(self.name, self.k)


FULL = EvalCondition("full")
"""The positive control."""
NONE = EvalCondition("none")
"""The negative control: nothing but the visible opening."""


class EvalConditions:
    """The conditions of one evaluation: both controls, gists, and the baselines that can be had."""

    def __init__(self, engine: Engine, ks: Sequence[int], baselines: Sequence[str], source: Source) -> None:
        self.engine = engine
        self.ks = list(ks)
        self.makers: dict[str, Maker] = {}
        self.skipped: dict[str, str] = {}
        """The reason for every baseline that cannot be had."""
        for name in check_baselines(baselines):
            try:
                self.makers[name] = make_baseline(name, source)
            except GistlmError as error:
                self.skipped[name] = str(error)
        self.all = [FULL, NONE, *(EvalCondition(name, k) for name in ("gist", *self.makers) for k in self.ks)]

    def requests(self, prompts: Sequence[str], inputs: Sequence[Input]) -> dict[EvalCondition, list[Request]]:
        """A request for each row under each condition, in the order of `all`."""
        pairs = list(zip(prompts, inputs, strict=True))
        made = {
            FULL: [Request(text, prompt=prompt) for prompt, text in pairs],
            NONE: [Request(text, bare_opening=True) for _, text in pairs],
        }
        for name, gists in {"gist": gists_of_each_k(self.engine, prompts, self.ks), **self._baselines(prompts)}.items():
            for k in self.ks:
                made[EvalCondition(name, k)] = [
                    Request(text, gist) for (_, text), gist in zip(pairs, gists[k], strict=True)
                ]
        return made

    def _baselines(self, prompts: Sequence[str]) -> dict[str, dict[int, list[Gist]]]:
        return {name: make(prompts, self.ks) for name, make in self.makers.items()}


def gists_of_each_k(engine: Engine, prompts: Sequence[str], ks: Sequence[int]) -> dict[int, list[Gist]]:
    """Every prompt's gists, compressed at the largest k and shortened where that can be."""
    return of_each_k(lambda k: engine.compress(list(prompts), k), ks)


def check_baselines(names: Sequence[str]) -> tuple[str, ...]:
    """The names themselves, each once. Raises `InputError` for an unknown one."""
    if unknown := [name for name in names if name not in BASELINES]:
        raise InputError(f"there is no baseline {unknown[0]!r}; there are {', '.join(BASELINES)}, or none for none")
    return tuple(dict.fromkeys(names))
