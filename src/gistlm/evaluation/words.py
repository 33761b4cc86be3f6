"""Which words of a prompt to keep when there is room for few; knows nothing of models' caches or gists."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gistlm.errors import MissingDependencyError, ModelNotFoundError

LLMLINGUA2 = "microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank"
"""The smaller of the two published classifiers."""

Weighted = list[tuple[str, float]]
"""Words in their order, each with what it is worth."""
Rank = Callable[[str], Weighted]

_KEEP = 1
"""The classifier's label for a token to keep."""


def choose(weighted: Weighted, encode: Callable[[str], list[int]], k: int) -> list[int]:
    """The token ids of the words that are worth most, in their order: k in all, or every word where all fit.

    Each word is encoded on its own with the space before it. The last one to find room may be cut.
    """
    kept: dict[int, list[int]] = {}
    room = k
    for place in sorted(range(len(weighted)), key=lambda place: (-weighted[place][1], place)):
        if room <= 0:
            break
        word = weighted[place][0]
        kept[place] = encode(word if place == 0 else f" {word}")[:room]
        room -= len(kept[place])
    return [index for place in sorted(kept) for index in kept[place]]


def tfidf(corpus: Sequence[str]) -> Rank:
    """Words by term frequency times inverse document frequency in a corpus; a word's repetitions come last."""
    try:
        text = importlib.import_module("sklearn.feature_extraction.text")
    except ImportError as error:
        install = "pip install 'gistlm[eval]'"
        raise MissingDependencyError("scikit-learn", "the TF-IDF baseline", install) from error
    vectorizer = text.TfidfVectorizer(token_pattern=r"\w+")
    try:
        vectorizer.fit(corpus)
    except ValueError:  # no prompt has a word, only signs: every place is worth the same
        return lambda prompt: [(word, 0.0) for word in prompt.split()]
    analyze, column_of = vectorizer.build_analyzer(), vectorizer.vocabulary_

    def rank(prompt: str) -> Weighted:
        row, seen, weighted = vectorizer.transform([prompt]).toarray()[0], set[str](), []
        for word in prompt.split():
            terms = [term for term in analyze(word) if term in column_of]
            new = [term for term in terms if term not in seen]
            seen.update(terms)
            weighted.append((word, max((float(row[column_of[term]]) for term in new), default=0.0)))
        return weighted

    return rank


def llmlingua2(model: str, device: Any) -> Rank:
    """Words by the probability that a token classifier keeps them: the mean over the word's tokens.

    model: folder or hub id. Raises `ModelNotFoundError` where it cannot be loaded. A text longer than the
    classifier's context is classified in windows.
    """
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    try:
        classifier = AutoModelForTokenClassification.from_pretrained(model, use_safetensors=True).eval().to(device)
        tokenizer = AutoTokenizer.from_pretrained(model)
    except Exception as error:  # transformers, the hub's client and safetensors each raise their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = re.sub(r"'?https?://\S+'?", "the hub", reason)
        raise ModelNotFoundError(f"the classifier {model} cannot be loaded: {reason}") from error
    if classifier.config.num_labels != 2 or not getattr(tokenizer, "is_fast", False):
        raise ModelNotFoundError(f"{model} is no LLMLingua-2 classifier: it needs two labels and a fast tokenizer")
    length = min(int(classifier.config.max_position_embeddings), 512)

    def rank(prompt: str) -> Weighted:
        split = prompt.split()
        windows = tokenizer(
            split, is_split_into_words=True, truncation=True, max_length=length, return_overflowing_tokens=True
        )
        found: list[list[float]] = [[] for _ in split]
        for number, ids in enumerate(windows["input_ids"]):
            with torch.no_grad():
                logits = classifier(torch.tensor([ids], device=device)).logits[0].float()  # [tokens, labels]
            for place, keep in zip(windows.word_ids(number), logits.softmax(-1)[:, _KEEP].tolist(), strict=True):
                if place is not None:
                    found[place].append(keep)
        return [(word, sum(each) / len(each) if each else 0.0) for word, each in zip(split, found, strict=True)]

    return rank
