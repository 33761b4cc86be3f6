"""The retention probe: which kinds of content of a prompt its gist keeps; knows the engine's seam and no model.

Every probe of `probes` is asked with its full prompt, without it, and over its gist at each k. Answers are greedy
and either right or wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from gistlm.engines.base import Engine, Request, with_sampling
from gistlm.engines.sampling import Sampling
from gistlm.errors import InputError
from gistlm.evaluation.conditions import gists_of_each_k
from gistlm.evaluation.probes import KINDS, Probe, probe_rows
from gistlm.evaluation.progress import OnProgress, Progress
from gistlm.evaluation.results import is_of, label
from gistlm.evaluation.resume_log import ResumeLog
from gistlm.evaluation.statistics import wilson

PER_KIND = 50
"""Probes of each kind, unless a limit is lower."""
BATCH = 16
"""Probes that run together."""
NEW_TOKENS = 24
"""Maximum number of an answer's tokens."""
LONG_ANSWERS = {"code-16": 32, "code-32": 56}
"""The same for kinds that need more."""


def measure(
    engine: Engine,
    ks: Sequence[int],
    seed: int = 0,
    limit: int | None = None,
    on_progress: OnProgress | None = None,
    resume_log: ResumeLog | None = None,
) -> list[dict[str, Any]]:
    """Scores of every kind under every condition: the list "retention" of `results.ResultFile`.

    ks: numbers of gist tokens. limit: most probes of each kind, where that is less than `PER_KIND`. on_progress:
    called with the answers that are done, and with all of them. resume_log: keeps the scores of every kind as soon as
    they are known, and gives back those of an earlier run. Raises `InputError` for a k that the checkpoint does not
    have.
    """
    ks = sorted(set(ks))
    if ks and ks[0] < 1:
        raise InputError(f"k is a number of gist tokens, 1 or more; got {ks[0]}")
    probes = probe_rows(seed, PER_KIND if limit is None else min(limit, PER_KIND))
    labels = [label("full", None), label("none", None), *(label("gist", k) for k in ks)]
    resume_log = resume_log or ResumeLog(None, {})
    asked = [(probe.kind, probe.prompt, probe.input, probe.expected) for probe in probes]
    work = resume_log.name(probes=asked, conditions=labels)
    n, entries = len(probes) // len(KINDS), list[dict[str, Any]]()
    expected = dict[str, Annotated[int, Field(strict=True, ge=0, le=n)]]
    progress = Progress(len(probes) * len(labels), on_progress)
    for place, kind in enumerate(KINDS, 1):
        own = [probe for probe in probes if probe.kind == kind]
        right = resume_log.measured(
            f"{work} {kind}",
            lambda counts: is_of(counts, expected) and counts.keys() == set(labels),
            partial(_count, own, engine, ks, labels, progress),
        )
        progress.reach(place * n * len(labels))
        entries += [_entry(kind, condition, n, right[condition]) for condition in labels]
    return entries


def _count(
    probes: Sequence[Probe], engine: Engine, ks: Sequence[int], labels: Sequence[str], step: Progress
) -> dict[str, int]:
    """Right answers to the probes of one kind under each condition."""
    right = dict.fromkeys(labels, 0)
    sampling = Sampling(max_new_tokens=LONG_ANSWERS.get(probes[0].kind, NEW_TOKENS))
    for start in range(0, len(probes), BATCH):
        batch = probes[start : start + BATCH]
        for condition, requests in zip(labels, _requests(engine, batch, ks), strict=True):
            answers = engine.complete(with_sampling(requests, sampling))
            right[condition] += sum(probe.correct(each.text) for probe, each in zip(batch, answers, strict=True))
            step(len(batch))
    return right


def _requests(engine: Engine, probes: Sequence[Probe], ks: Sequence[int]) -> list[list[Request]]:
    """Full prompt, bare opening, and gists of each k."""
    made = [
        [Request(probe.input, prompt=probe.prompt) for probe in probes],
        [Request(probe.input, bare_opening=True) for probe in probes],
    ]
    if ks:
        gists = gists_of_each_k(engine, [probe.prompt for probe in probes], ks)
        made += [[Request(probe.input, gist) for probe, gist in zip(probes, gists[k], strict=True)] for k in ks]
    return made


def _entry(kind: str, condition: str, n: int, correct: int) -> dict[str, Any]:
    score = correct / n
    return {
        "kind": kind,
        "condition": condition,
        "n": n,
        "correct": correct,
        "score": score,
        "score_95": wilson(correct, n),
    }
