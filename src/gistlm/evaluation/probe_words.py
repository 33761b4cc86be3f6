"""The words and sentences of probes, read from probe_words.toml, and a guess at an answer's language."""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

SPLITS = ("eval", "train")
"""The two vocabularies, which have no item in common."""
LANGUAGES = ("French", "Spanish", "German", "Italian")

Fact = tuple[str, str]
"""A statement about {x}, and the question whose answer {x} is; both may name a {subject}."""


@dataclass(frozen=True)
class Vocabulary:
    """What the probes of one split are made from."""

    names: tuple[str, ...]
    people: tuple[str, ...]
    """Who has a name."""
    numbered: tuple[str, ...]
    """What has a number."""
    coded: tuple[str, ...]
    """What has a code."""
    manners: tuple[str, ...]
    words: tuple[str, ...]
    """Nouns, lower case, that a format or pattern changes."""
    groups: tuple[str, ...]
    """To whom a rule applies."""
    name_facts: tuple[Fact, ...]
    number_facts: tuple[Fact, ...]
    code_facts: tuple[Fact, ...]
    language_rules: tuple[str, ...]
    format_rules: tuple[str, ...]
    formats: tuple[Fact, ...]
    """What a rule says of an answer, and the answer's form."""
    rule_introductions: tuple[str, ...]
    rules: tuple[Fact, ...]
    """What somebody does with a number, and the question for it."""
    pattern_introductions: tuple[str, ...]
    patterns: tuple[str, ...]
    """Forms of a word."""
    small_talk: tuple[tuple[str, ...], ...]
    """Inputs, each with an answer in every one of `LANGUAGES`."""


@functools.cache
def vocabulary(split: str) -> Vocabulary:
    """The vocabulary of one of `SPLITS`."""
    return Vocabulary(**{name: _tuples(items) for name, items in _file()[split].items()})


def language_of(text: str) -> str | None:
    """The language with most function words in a text; None where two have as many, or none has any."""
    words = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)?", text.casefold().replace("’", "'"))
    votes = {language: sum(word in known for word in words) for language, known in _function_words().items()}
    best, second = sorted(votes.values(), reverse=True)[:2]
    return max(votes, key=lambda language: votes[language]) if best > second else None


@functools.cache
def _function_words() -> dict[str, frozenset[str]]:
    """By language, English first."""
    return {language: frozenset(words) for language, words in _file()["function_words"].items()}


@functools.cache
def _file() -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath("probe_words.toml").read_text(encoding="utf-8"))


def _tuples(items: Any) -> Any:
    """Lists, nested ones too, as tuples."""
    return tuple(map(_tuples, items)) if isinstance(items, list) else items
