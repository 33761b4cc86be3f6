"""The retention probe: its rows, its checks, and the measurement on engines that answer as each test wants."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine

from gistlm.engines.base import Completion, Request
from gistlm.engines.sampling import Sampling
from gistlm.errors import InputError
from gistlm.evaluation.probe_words import LANGUAGES, SPLITS, language_of, vocabulary
from gistlm.evaluation.probes import (
    CODE_LENGTHS,
    KINDS,
    Probe,
    has_form,
    in_language,
    is_line,
    only_number,
    probe_rows,
    says,
    says_verbatim,
    training_rows,
)
from gistlm.evaluation.results import Retention, is_of
from gistlm.evaluation.resume_log import ResumeLog
from gistlm.evaluation.retention import LONG_ANSWERS, PER_KIND, measure
from gistlm.evaluation.statistics import wilson

EVAL, TRAIN = map(vocabulary, SPLITS)
EACH_SPLIT = pytest.mark.parametrize("split", SPLITS)


def of_kind(kind: str, n: int, split: str = "eval") -> list[Probe]:
    return [probe for probe in probe_rows(0, n, split) if probe.kind == kind]


# Rows


@EACH_SPLIT
def test_there_are_hundreds_of_different_probes_of_every_kind(split: str) -> None:
    probes = probe_rows(0, 400, split)
    assert len({(probe.kind, probe.prompt, probe.input) for probe in probes}) == 400 * len(KINDS)


@EACH_SPLIT
def test_the_expected_answer_is_right(split: str) -> None:
    assert [probe for probe in probe_rows(1, 200, split) if not probe.correct(probe.expected)] == []


@EACH_SPLIT
def test_the_input_does_not_answer_itself(split: str) -> None:
    assert [probe for probe in probe_rows(2, 200, split) if probe.correct(probe.input)] == []


@EACH_SPLIT
def test_another_probes_answer_to_the_same_input_is_mostly_wrong(split: str) -> None:
    for kind in KINDS:
        probes = of_kind(kind, 100, split)
        pairs = [(one, two) for one in probes for two in probes if one is not two and one.input == two.input]
        hits = sum(one.correct(two.expected) for one, two in pairs)
        assert hits <= 0.34 * len(pairs), kind


def test_the_same_seed_gives_the_same_probes_and_another_seed_others() -> None:
    assert probe_rows(3, 20) == probe_rows(3, 20)
    assert len(set(probe_rows(3, 20)) & set(probe_rows(4, 20))) < 10


def test_fewer_probes_are_the_first_of_more() -> None:
    assert of_kind("rule", 5) == of_kind("rule", 9)[:5]


def test_codes_have_the_length_that_their_kind_names() -> None:
    for length in CODE_LENGTHS:
        assert {len(probe.expected) for probe in of_kind(f"code-{length}", 30)} == {length}


def test_languages_and_formats_and_exceptions_take_turns() -> None:
    languages = [language_of(probe.expected) for probe in of_kind("language", 40)]
    assert {language: languages.count(language) for language in LANGUAGES} == dict.fromkeys(LANGUAGES, 10)
    exceptions = [
        probe.prompt.endswith(f" {probe.expected} {probe.prompt.split()[-1]}") for probe in of_kind("rule", 40)
    ]
    assert exceptions.count(True) == 20


@pytest.mark.parametrize("field", [field.name for field in fields(EVAL)])
def test_training_and_evaluation_have_nothing_in_common(field: str) -> None:
    def plain(items: Sequence[Any]) -> set[str]:
        return {text.casefold() for item in items for text in ([item] if isinstance(item, str) else item)}

    assert not plain(getattr(EVAL, field)) & plain(getattr(TRAIN, field))


def test_no_word_of_a_probe_plays_another_part_in_training() -> None:
    def nouns(half: Any) -> set[str]:
        return {
            noun for name in ("names", "people", "numbered", "coded", "words", "groups") for noun in getattr(half, name)
        }

    assert not nouns(EVAL) & nouns(TRAIN)


def test_training_rows_are_of_every_kind_and_no_probe() -> None:
    rows = training_rows(0, 400)
    assert all(row.keys() == {"instruction", "input", "output"} and all(row.values()) for row in rows)
    assert [row["output"] for row in rows[:: len(KINDS)]] == [probe.expected for probe in of_kind("name", 40, "train")]
    probes = {(probe.prompt, probe.input) for probe in probe_rows(0, 400)}
    assert not probes & {(row["instruction"], row["input"]) for row in rows}


def test_training_rows_may_be_of_some_kinds_only() -> None:
    rows = training_rows(0, 6, ["rule", "number"])
    of_all = training_rows(0, 3 * len(KINDS))
    place = list(KINDS).index
    assert rows[::2] == of_all[place("rule") :: len(KINDS)]
    assert rows[1::2] == of_all[place("number") :: len(KINDS)]
    with pytest.raises(InputError, match="there is no kind 'rhyme'; there are name, number"):
        training_rows(0, 6, ["rule", "rhyme"])


def test_a_half_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match=r"no split 'test'; there are eval, train"):
        probe_rows(0, 1, "test")


@pytest.mark.parametrize("n", [0, -1])
def test_no_probes_at_all_are_refused(n: int) -> None:
    with pytest.raises(InputError, match="1 or more"):
        probe_rows(0, n)
    with pytest.raises(InputError, match="1 or more"):
        training_rows(0, n)


def test_more_probes_than_there_are_is_an_error_and_no_endless_search() -> None:
    with pytest.raises(InputError, match="different probes of the kind"):
        probe_rows(0, 3000)


# Checks


@pytest.mark.parametrize(
    ("answer", "right"),
    [("Odette", True), ("Your name is ODETTE!", True), ("Odettes", False), ("Odette or Ragnar", False), ("", False)],
)
def test_a_name_is_said_alone(answer: str, right: bool) -> None:
    assert says("Odette", ("Ragnar", "Odile"), answer) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("K7QZ", True),
        ("The code is K7QZ.", True),
        ("k7qz", False),
        ("K7QZ8", False),
        ("K7 QZ", False),
        ("AK7QZ", False),
    ],
)
def test_a_code_is_said_to_the_letter(answer: str, right: bool) -> None:
    assert says_verbatim("K7QZ", answer) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("1417", True),
        ("There are 1,417 sheep.", True),
        ("1417\nThe next one is 3.", True),
        ("14170", False),
        ("1417 or 1418", False),
        ("14,17", False),
        ("none", False),
    ],
)
def test_a_number_is_the_only_one_in_the_line(answer: str, right: bool) -> None:
    assert only_number("1417", answer) is right


@pytest.mark.parametrize(
    ("answer", "language"),
    [
        ("La mer est belle.", "French"),
        ("El mar es azul.", "Spanish"),
        ("Ich bin ein Assistent.", "German"),
        ("Il mare è bello.", "Italian"),
        ("The sea is blue, la mer!", None),
        ("The sea is blue.", None),
        ("Xyzzy", None),
        ("", None),
    ],
)
def test_a_language_is_told_by_its_function_words(answer: str, language: str | None) -> None:
    assert [name for name in LANGUAGES if in_language(name, answer)] == ([language] if language else [])


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("[cloud]", True),
        ("A: [cloud]\nQ: hill", True),
        ("[a cloud]", True),
        ("cloud", False),
        ("[]", False),
        ("[", False),
    ],
)
def test_a_form_has_something_between_its_marks(answer: str, right: bool) -> None:
    assert has_form("[{}]", answer) is right


def test_one_mark_is_not_two() -> None:
    assert not has_form("*{}*", "*")
    assert has_form("-> {}", "-> cloud")
    assert has_form("{}...", "cloud...")


@pytest.mark.parametrize(
    ("answer", "right"),
    [("clouds", True), ("A: clouds.\n\nQ:", True), ("Clouds", False), ("cloud", False), ("A:", False)],
)
def test_a_pattern_is_met_exactly(answer: str, right: bool) -> None:
    assert is_line("clouds", answer) is right


# Measurement


class Obedient(FakeEngine):
    """Answers rightly with the full prompt and over gists of 2 tokens or more, wrongly otherwise."""

    def __init__(self) -> None:
        super().__init__("obedient")
        self.answers = {(probe.prompt, probe.input): probe.expected for probe in probe_rows(5, 20)}
        self.known: dict[str, str] = {}
        self.samplings: list[Sampling] = []

    def compress(self, prompt: str | Sequence[str], k: int = 4) -> Any:
        gists = super().compress(prompt, k)
        self.known |= {gist.provenance.prompt_sha256: text for gist, text in zip(gists, prompt, strict=True)}
        return gists

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        self.samplings.append(requests[0].sampling)
        return [Completion(self._said(request), "stop", 1, 0, 1) for request in requests]

    def _said(self, request: Request) -> str:
        prompt = request.prompt
        if request.gist is not None and request.gist.k >= 2:
            prompt = self.known[request.gist.provenance.prompt_sha256]
        return self.answers[prompt, str(request.input)] if prompt else "I do not know."


def test_every_kind_is_scored_under_every_condition() -> None:
    results = measure(Obedient(), [4, 1, 2], seed=5, limit=20)
    assert [(entry["kind"], entry["condition"]) for entry in results] == [
        (kind, condition) for kind in KINDS for condition in ("full", "none", "gist@1", "gist@2", "gist@4")
    ]
    right = {entry["condition"] for entry in results if entry["correct"] == 20}
    wrong = {entry["condition"] for entry in results if entry["correct"] == 0}
    assert (right, wrong) == ({"full", "gist@2", "gist@4"}, {"none", "gist@1"})
    assert all(entry["n"] == 20 and entry["score"] == entry["correct"] / 20 for entry in results)


def test_the_results_fit_the_files_schema() -> None:
    assert is_of(measure(Obedient(), [2], seed=5, limit=3), list[Retention])


def test_answers_are_greedy_and_long_codes_have_room() -> None:
    engine = Obedient()
    measure(engine, [], seed=5, limit=1)
    assert {sampling.temperature for sampling in engine.samplings} == {0.0}
    assert max(sampling.max_new_tokens for sampling in engine.samplings) == LONG_ANSWERS["code-32"]


def test_progress_counts_answers_up_to_all_of_them() -> None:
    seen: list[tuple[int, int]] = []
    measure(Obedient(), [2], seed=5, limit=20, on_progress=lambda *at: seen.append(at))
    assert seen[-1] == (600, 600)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_a_stopped_probe_goes_on_with_the_kinds_that_are_missing(tmp_path: Path) -> None:
    whole = measure(Obedient(), [2], seed=5, limit=20)

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept(Obedient(), tmp_path / "x", 20, stop)
    engine, seen = Obedient(), list[tuple[int, int]]()
    assert kept(engine, tmp_path / "x", 20, lambda *at: seen.append(at)) == whole
    assert seen[-1] == (600, 600)
    assert len(engine.samplings) == (len(KINDS) - 5) * 3 * 2  # three conditions, two batches a kind
    other = Obedient()
    kept(other, tmp_path / "x", 19)
    assert len(other.samplings) == len(KINDS) * 3 * 2


def kept(engine: Obedient, path: Path, limit: int, on_progress: Any = None) -> list[dict[str, Any]]:
    """What `measure` gives when the scores of every kind are kept in that file."""
    resume_log = ResumeLog(path, {})
    try:
        return measure(engine, [2], 5, limit, on_progress, resume_log)
    finally:
        resume_log.close()


def test_kept_counts_that_cannot_be_are_counted_again(tmp_path: Path) -> None:
    whole = kept(Obedient(), tmp_path / "x", 20)
    database = sqlite3.connect(tmp_path / "x")
    with database:
        database.execute("""UPDATE pieces SET value = replace(value, '"full": 20', '"full": 21') WHERE rowid = 1""")
    database.close()
    assert kept(Obedient(), tmp_path / "x", 20) == whole


@pytest.mark.parametrize(("limit", "n"), [(1, 1), (None, PER_KIND), (10_000, PER_KIND)])
def test_a_limit_for_rows_makes_the_probe_no_longer(limit: int | None, n: int) -> None:
    assert {entry["n"] for entry in measure(FakeEngine("any"), [], limit=limit)} == {n}


@pytest.mark.parametrize("k", [0, 17])
def test_a_k_that_no_gist_has_is_refused(k: int) -> None:
    with pytest.raises(InputError, match="number of gist tokens"):
        measure(FakeEngine("any"), [k], limit=1)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"), [(0, 50, 0.0, 0.0713), (25, 50, 0.3664, 0.6336), (50, 50, 0.9287, 1)]
)
def test_the_interval_is_wilsons(right: int, n: int, low: float, high: float) -> None:
    assert wilson(right, n) == pytest.approx([low, high], abs=1e-4)
