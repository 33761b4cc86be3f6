"""Metrics against values worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gistlm.evaluation import metrics, statistics


def log_of(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows).log()


def test_the_likelihood_is_summed_over_the_targets() -> None:
    table = log_of([0.5, 0.25, 0.25], [0.1, 0.1, 0.8])
    assert metrics.negative_log_likelihood(table, torch.tensor([1, 2])) == pytest.approx(-math.log(0.25 * 0.8))


def test_the_divergence_is_the_teachers_expectation_summed_over_tokens() -> None:
    teacher, student = log_of([0.5, 0.5], [0.9, 0.1]), log_of([0.25, 0.75], [0.9, 0.1])
    by_hand = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert metrics.divergence(teacher, student) == pytest.approx(by_hand, abs=1e-6)
    assert metrics.divergence(student, teacher) != pytest.approx(by_hand, abs=1e-2)


def test_agreement_counts_the_positions_with_the_same_likeliest_token() -> None:
    assert metrics.agreement(log_of([0.6, 0.4], [0.6, 0.4]), log_of([0.9, 0.1], [0.1, 0.9])) == 1


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(2, 9))
def test_a_model_is_no_distance_from_itself_and_never_a_negative_one_from_another(
    seed: int, tokens: int, vocabulary: int
) -> None:
    source = torch.Generator().manual_seed(seed)
    one, other = (metrics.log_probabilities(3 * torch.randn(tokens, vocabulary, generator=source)) for _ in range(2))
    assert metrics.divergence(one, one) == 0
    assert metrics.agreement(one, one) == tokens
    assert metrics.divergence(one, other) >= -1e-5


def test_rouge_is_the_overlap_of_stemmed_words() -> None:
    found = metrics.rouge("the cats sat", "a cat sat on the mat")
    precision, recall = 3 / 3, 3 / 6
    assert found["rouge1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert found["rouge2"] == pytest.approx(2 * (1 / 2) * (1 / 5) / (1 / 2 + 1 / 5))
    assert found["rougeL"] == pytest.approx(2 * (2 / 3) * (2 / 6) / (2 / 3 + 2 / 6))


@pytest.mark.parametrize("text", ["", "42 ✓", "你好", "yes"])
def test_equal_texts_score_one_even_without_a_word_that_rouge_knows(text: str) -> None:
    assert set(metrics.rouge(f" {text}", text).values()) == {1.0}


def test_an_exact_match_is_blind_to_case_and_outer_space() -> None:
    assert metrics.exact_match(" Paris\n", "paris") == 1
    assert metrics.exact_match("Paris.", "paris") == 0


def test_only_references_of_at_most_five_words_are_matched_exactly() -> None:
    assert metrics.short_references(["one", "one two three four five"])
    assert not metrics.short_references(["one", "one two three four five six"])


def test_no_prompt_closes_nothing_of_a_gap_and_the_full_prompt_all() -> None:
    assert [statistics.gap_closed(3.0, 1.0, value) for value in (3.0, 2.0, 1.0, 4.0)] == [0, 0.5, 1, -0.5]
    assert statistics.gap_closed(0.2, 0.8, 0.5) == pytest.approx(0.5)
    assert statistics.gap_closed(1.0, 1.0 + 1e-10, 2.0) is None


def test_a_resample_draws_as_many_rows_as_there_are_and_the_seed_fixes_it() -> None:
    counts = statistics.bootstrap_counts(7, 50, seed=3)
    assert counts.shape == (50, 7) and set(counts.sum(1)) == {7}
    assert np.array_equal(counts, statistics.bootstrap_counts(7, 50, seed=3))
    assert not np.array_equal(counts, statistics.bootstrap_counts(7, 50, seed=4))


def test_the_interval_is_that_of_resampled_gaps_closed() -> None:
    source = np.random.default_rng(5)
    tokens = source.integers(1, 9, 30).astype(float)
    none, full, mine = (tokens * source.uniform(low, low + 1, 30) for low in (3, 1, 2))
    counts = statistics.bootstrap_counts(30, 400, seed=0)
    closed = []
    for count in counts:
        rows = np.repeat(np.arange(30), count.astype(int))
        a, b, x = (sums[rows].sum() / tokens[rows].sum() for sums in (none, full, mine))
        closed.append((a - x) / (a - b))
    assert statistics.gap_interval(counts, tokens, none, full, mine) == pytest.approx(
        tuple(np.percentile(closed, [2.5, 97.5]))
    )


def test_rows_that_all_close_as_much_of_the_gap_have_an_interval_of_one_point() -> None:
    tokens, none = np.array([1.0, 2.0, 3.0]), np.array([3.0, 6.0, 9.0])
    found = statistics.gap_interval(statistics.bootstrap_counts(3, 100, 0), tokens, none, none / 3, none / 2)
    assert found == pytest.approx((0.75, 0.75))


def test_without_a_gap_there_is_no_interval() -> None:
    same = np.ones(4)
    assert statistics.gap_interval(statistics.bootstrap_counts(4, 100, 0), same, same, same, same) is None


def test_rows_without_tokens_do_not_spoil_the_interval() -> None:
    tokens = np.array([0.0, 4.0])
    none, full, mine = tokens * 2, tokens * 1, tokens * 1.5
    found = statistics.gap_interval(statistics.bootstrap_counts(2, 200, 0), tokens, none, full, mine)
    assert found == pytest.approx((0.5, 0.5))
