"""The engine without a model: what tests that use it may rely on."""

import pytest
import torch
from fake_engine import FAKE, FakeEngine

from gistlm.engines.base import Request, load_engine, with_sampling
from gistlm.engines.sampling import Sampling
from gistlm.errors import GistMismatchError, InputError, PromptTooLongError


def test_it_is_found_by_its_name_and_ignores_other_engines_options() -> None:
    engine = load_engine(FAKE, "m", base="b", device="cuda:7", dtype="float16")
    assert isinstance(engine, FakeEngine) and engine.dtype == "float16"


def test_equal_prompts_give_equal_gists_and_others_do_not() -> None:
    engine = FakeEngine("m")
    one, same, other = engine.compress(["a b", "a b", "a c"], 2)
    assert one.id == same.id != other.id


def test_a_shortened_gist_is_the_gist_of_that_size() -> None:
    engine = FakeEngine("m")
    assert engine.compress("a b", 8).shorten(3).id == engine.compress("a b", 3).id


def test_stream_and_complete_say_the_same() -> None:
    engine = FakeEngine("m")
    for options in ({}, {"max_new_tokens": 3}, {"stop": "prompt of"}, {"temperature": 1.0, "seed": 4}):
        whole = engine.complete(with_sampling([Request("x y", prompt="p")], Sampling(**options)))[0].text
        assert "".join(engine.stream("x y", prompt="p", **options)) == whole


def test_a_batch_mixes_gists_prompts_and_neither() -> None:
    engine = FakeEngine("m")
    answers = engine.generate(["x", "x", "x"], [engine.compress("p q", 2), None, None], prompts=[None, "p q r", None])
    assert [answer.partition(": ")[0] for answer in answers] == [
        "answer 1 over a gist of 2 tokens", "answer 1 over a prompt of 3 tokens", "answer 1 over no prompt",
    ]  # fmt: skip


def test_scores_are_one_log_probability_a_word_and_one_for_the_end() -> None:
    engine = FakeEngine("m")
    with_gist, without = engine.score(["x", "x"], ["one two", "one two"], [engine.compress("p", 1), None])
    assert with_gist.shape == without.shape == (3,) and bool((with_gist <= 0).all())
    assert not torch.equal(with_gist, without)


def test_a_gist_of_another_model_is_refused_before_the_first_piece() -> None:
    gist = FakeEngine("m").compress("p", 1)
    with pytest.raises(GistMismatchError):
        FakeEngine("other").stream("x", gist)


def test_it_refuses_what_a_real_engine_refuses() -> None:
    engine = FakeEngine("m")
    for prompt, k in (("", 1), ("p", 0), ("p", 17)):
        with pytest.raises(InputError):
            engine.compress(prompt, k)
    with pytest.raises(PromptTooLongError):
        engine.compress("p " * 5000, 1)
    with pytest.raises(PromptTooLongError):
        engine.generate("p " * 5000)


def test_closing_is_remembered() -> None:
    engine = FakeEngine("m")
    engine.close()
    assert engine.closed
