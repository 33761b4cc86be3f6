"""Metrics as pure functions on arrays and strings; knows nothing of models, gists or files.

Token metrics are sums over one text's tokens, so that means over any choice of rows are sums over sums.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from gistlm.errors import MissingDependencyError

ROUGE = ("rouge1", "rouge2", "rougeL")
SHORT_WORDS = 5
"""References of at most this number of words are compared exactly."""


def log_probabilities(logits: Tensor) -> Tensor:
    """[tokens, vocabulary] in float32, nats."""
    return F.log_softmax(logits.float(), dim=-1)


def negative_log_likelihood(log_probabilities: Tensor, targets: Tensor) -> float:
    """Nats summed over the targets [tokens], under [tokens, vocabulary]."""
    return float(-log_probabilities.gather(-1, targets[:, None]).double().sum())


def divergence(teacher: Tensor, student: Tensor) -> float:
    """KL(teacher || student) in nats, summed over tokens; both are log-probabilities [tokens, vocabulary]."""
    return float(F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1).double().sum())


def agreement(teacher: Tensor, student: Tensor) -> int:
    """Positions at which both find the same token likeliest; both [tokens, vocabulary]."""
    return int((teacher.argmax(-1) == student.argmax(-1)).sum())


def token_sums(teacher: Tensor, student: Tensor, targets: Tensor) -> dict[str, float]:
    """All three of a student against its targets [tokens] and its teacher; both [tokens, vocabulary]."""
    return {
        "nll": negative_log_likelihood(student, targets),
        "kl": divergence(teacher, student),
        "agreement": agreement(teacher, student),
    }


def rouge(prediction: str, reference: str) -> dict[str, float]:
    """F1 of ROUGE-1, -2 and -L with stemming (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries").

    Words are runs of ASCII letters and digits, as in the package rouge-score; equal texts count as 1 always.
    """
    if prediction.strip() == reference.strip():
        return dict.fromkeys(ROUGE, 1.0)
    scores = rouge_scorer().score(reference, prediction)
    return {name: float(scores[name].fmeasure) for name in ROUGE}


def exact_match(prediction: str, reference: str) -> float:
    """1 where the texts are equal but for case and space at their ends, else 0."""
    return float(prediction.strip().casefold() == reference.strip().casefold())


def short_references(references: Sequence[str]) -> bool:
    """Whether a task's references are short enough for `exact_match` to mean something."""
    return all(len(reference.split()) <= SHORT_WORDS for reference in references)


@functools.cache
def rouge_scorer() -> Any:
    """The package's scorer; raises `MissingDependencyError`."""
    try:
        package = importlib.import_module("rouge_score.rouge_scorer")
    except ImportError as error:
        install = "pip install 'gistlm[eval]'"
        raise MissingDependencyError("rouge-score", "scoring generated answers", install) from error
    return package.RougeScorer(list(ROUGE), use_stemmer=True)
