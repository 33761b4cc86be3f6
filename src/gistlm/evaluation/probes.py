"""Probes: prompts that a program writes, with a question whose answer is in the prompt alone, and an exact check.

Ten kinds of content, see `KINDS`. Names, words, questions, marks and sentences come in two splits with no item in
common: "eval" for `probe_rows`, "train" for `training_rows`, so that training on these kinds never shows an item of
the probe. Codes and numbers are random. Knows nothing of models, gists or scores.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random

from gistlm.errors import InputError
from gistlm.evaluation.probe_words import LANGUAGES, SPLITS, Vocabulary, language_of, vocabulary

CODE_LENGTHS = (4, 8, 16, 32)
CODE_CHARACTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
"""Without the look-alikes I, O, 0 and 1."""
ATTEMPTS = 100
"""Draws for one more probe before a kind counts as used up."""


@dataclass(frozen=True)
class Probe:
    """One question to a prompt, and what counts as its answer."""

    kind: str
    """One of `KINDS`."""
    prompt: str
    """The system message, which is compressed."""
    input: str
    """The user's message; it says nothing about the answer."""
    expected: str
    """A right answer: for a language or a format, one of many."""
    check: Callable[[str], bool] = field(compare=False, repr=False)

    def correct(self, answer: str) -> bool:
        """Whether an answer is right; the same for the same answer, always."""
        return self.check(answer)


def probe_rows(seed: int, n_per_kind: int, split: str = "eval") -> list[Probe]:
    """Probes of every kind, no two alike, in the order of `KINDS`; the same for the same seed.

    Raises `InputError` for a wrong number, an unknown split, or more probes than a kind has.
    """
    _check_arguments(n_per_kind, split)
    streams = (_stream(kind, seed, split) for kind in KINDS)
    return [next(stream) for stream in streams for _ in range(n_per_kind)]


def training_rows(seed: int, n: int, kinds: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rows of these kinds, all by default, one kind after another in turn, from words that no probe has.

    Each has instruction (the prompt), input and output. Raises as `probe_rows` does, and for an unknown kind.
    """
    _check_arguments(n, "train")
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"there is no kind {kind!r}; there are {', '.join(KINDS)}")
    streams = [_stream(kind, seed, "train") for kind in dict.fromkeys(kinds or KINDS)]
    probes = [next(streams[row % len(streams)]) for row in range(n)]
    return [{"instruction": probe.prompt, "input": probe.input, "output": probe.expected} for probe in probes]


# The kinds


def _name(draw: Random, words: Vocabulary, _: int) -> Probe:
    fact, question = draw.choice(words.name_facts)
    name, subject = draw.choice(words.names), draw.choice(words.people)
    rivals = tuple(other for other in words.names if other != name)
    prompt = _with_manner(draw, words, fact.format(x=name, subject=subject))
    return Probe("name", prompt, question.format(subject=subject), name, partial(says, name, rivals))


def _number(draw: Random, words: Vocabulary, _: int) -> Probe:
    fact, question = draw.choice(words.number_facts)
    number, subject = str(draw.randrange(11, 10 ** draw.randint(2, 4))), draw.choice(words.numbered)
    prompt = _with_manner(draw, words, fact.format(x=number, subject=subject))
    return Probe("number", prompt, question.format(subject=subject), number, partial(only_number, number))


def _code(length: int, draw: Random, words: Vocabulary, _: int) -> Probe:
    fact, question = draw.choice(words.code_facts)
    code, subject = "".join(draw.choices(CODE_CHARACTERS, k=length)), draw.choice(words.coded)
    prompt = _with_manner(draw, words, fact.format(x=code, subject=subject))
    return Probe(f"code-{length}", prompt, question.format(subject=subject), code, partial(says_verbatim, code))


def _language(draw: Random, words: Vocabulary, turn: int) -> Probe:
    language = LANGUAGES[turn % len(LANGUAGES)]
    question, *answers = draw.choice(words.small_talk)
    prompt = draw.choice(words.language_rules).format(language=language, manner=draw.choice(words.manners))
    answer = answers[LANGUAGES.index(language)]
    return Probe("language", prompt, question, answer, partial(in_language, language))


def _format(draw: Random, words: Vocabulary, turn: int) -> Probe:
    how, form = words.formats[turn % len(words.formats)]
    *shown, word = draw.sample(words.words, 6)
    prompt = _with_examples(draw.choice(words.format_rules).format(how=how), form, shown)
    return Probe("format", prompt, f"Q: {word}\nA:", form.replace("{}", word), partial(has_form, form))


def _rule(draw: Random, words: Vocabulary, turn: int) -> Probe:
    clause, question = draw.choice(words.rules)
    exception, *others = draw.sample(words.groups, 4)
    usual, special = (str(number) for number in draw.sample(range(2, 100), 2))
    introduction = draw.choice(words.rule_introductions).format(usual=clause.format(usual))
    cases = [f"The {other} {clause.format(usual)}." for other in others]
    prompt = " ".join([introduction, *cases, f"The {exception} {clause.format(special)}."])
    who, expected = (exception, special) if turn % 2 else (draw.choice(others), usual)
    return Probe("rule", prompt, question.format(who), expected, partial(only_number, expected))


def _pattern(draw: Random, words: Vocabulary, turn: int) -> Probe:
    form = words.patterns[turn % len(words.patterns)]
    *shown, word = draw.sample(words.words, 7)
    answer = form.replace("{}", word)
    prompt = _with_examples(draw.choice(words.pattern_introductions), form, shown)
    return Probe("pattern", prompt, f"Q: {word}\nA:", answer, partial(is_line, answer))


KINDS: dict[str, Callable[[Random, Vocabulary, int], Probe]] = {
    "name": _name,
    "number": _number,
    **{f"code-{length}": partial(_code, length) for length in CODE_LENGTHS},
    "language": _language,
    "format": _format,
    "rule": _rule,
    "pattern": _pattern,
}
"""name -> what writes one probe, given its place in the series: places take closed choices in turn."""


# The checks


def says(word: str, rivals: tuple[str, ...], answer: str) -> bool:
    """The answer has the word, in any case, and none of its rivals."""
    found = set(re.findall(r"\w+", answer.casefold()))
    return word.casefold() in found and not any(rival.casefold() in found for rival in rivals)


def says_verbatim(code: str, answer: str) -> bool:
    """The answer has the code as a word of its own, in the same case."""
    return re.search(rf"(?<!\w){re.escape(code)}(?!\w)", answer) is not None


def only_number(number: str, answer: str) -> bool:
    """The first line has this number and no other; a comma between thousands is no part of it."""
    return set(re.findall(r"\d+", re.sub(r"(?<=\d),(?=\d{3}\b)", "", _first_line(answer)))) == {number}


def in_language(language: str, answer: str) -> bool:
    """The answer has more function words of the language than of any other."""
    return language_of(answer) == language


def is_line(text: str, answer: str) -> bool:
    """The answer's first line is the text; a full stop after it does not count."""
    return _first_line(answer) in (text, f"{text}.")


def has_form(form: str, answer: str) -> bool:
    """The answer's first line has a form such as "[{}]": something stands for the braces."""
    before, after = (part.strip() for part in form.split("{}"))
    line = _first_line(answer)
    inner = line.removeprefix(before).removesuffix(after)
    return line == f"{before}{inner}{after}" and any(character.isalnum() for character in inner)


def _first_line(answer: str) -> str:
    """The first line that says something, without the "A:" that a model may repeat from its examples."""
    return answer.strip().removeprefix("A:").strip().partition("\n")[0].strip()


def _with_examples(rule: str, form: str, shown: Sequence[str]) -> str:
    return "\n".join([rule, *(f"Q: {word}\nA: {form.replace('{}', word)}" for word in shown)])


def _with_manner(draw: Random, words: Vocabulary, fact: str) -> str:
    before = draw.choice(("", f"You are a {draw.choice(words.manners)} assistant."))
    return f"{before} {fact}".strip()


def _stream(kind: str, seed: int, split: str) -> Iterator[Probe]:
    """Probes of one kind without end; its draws depend on nothing but kind, seed and split."""
    draw, words, seen = Random(f"{split}:{kind}:{seed}"), vocabulary(split), set[tuple[str, str]]()
    while True:
        for _ in range(ATTEMPTS):
            probe = KINDS[kind](draw, words, len(seen))
            if (probe.prompt, probe.input) not in seen:
                break
        else:
            raise InputError(f"there are no more than {len(seen)} different probes of the kind {kind!r}; ask for fewer")
        seen.add((probe.prompt, probe.input))
        yield probe


def _check_arguments(count: int, split: str) -> None:
    if count < 1:
        raise InputError(f"the number of probes must be 1 or more, got {count}")
    if split not in SPLITS:
        raise InputError(f"there is no split {split!r}; there are {', '.join(SPLITS)}")
