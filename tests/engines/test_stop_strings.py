"""Stop strings end an answer by its own text, alone and in a batch, at once and in a stream."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from tiny import tiny_checkpoint

from gistlm.engines.answers import Answer
from gistlm.engines.base import Completion, Request, with_sampling
from gistlm.engines.sampling import Sampling
from gistlm.engines.transformers import GistModel
from gistlm.errors import InputError

KINDS = ["llama", "mistral", "t5"]
NEW_TOKENS = 12
INPUTS = ["hello there", "go on", "what is it?", "x", "tell me more of that"]


@cache
def model(kind: str) -> GistModel:
    return GistModel(tiny_checkpoint(kind))


@cache
def requests(kind: str) -> tuple[Request, ...]:
    """With gists, full prompts and neither."""
    one, other = model(kind).compress(["be brief", "be kind to all who ask"], 3)
    return tuple(
        Request(text, gist, prompt)
        for text, gist, prompt in zip(
            INPUTS, [one, None, other, None, one], [None, "be brief", None, None, None], strict=True
        )
    )


@cache
def growing(kind: str, row: int) -> list[str]:
    """The answer's text after each token, no stop string asked for."""
    return [
        model(kind).complete(with_sampling(requests(kind)[row : row + 1], Sampling(max_new_tokens=n)))[0].text
        for n in range(1, NEW_TOKENS + 1)
    ]


def expected(kind: str, row: int, stop: str) -> tuple[str, str, int]:
    """Text, reason and tokens, from how the answer grows without a stop string."""
    for tokens, text in enumerate(growing(kind, row), 1):
        if stop in text:
            return text[: text.index(stop)], "stop", tokens
    [whole] = model(kind).complete(with_sampling(requests(kind)[row : row + 1], Sampling(max_new_tokens=NEW_TOKENS)))
    return whole.text, whole.finish_reason, whole.new_tokens


def said(done: Completion) -> tuple[str, str, int]:
    return done.text, done.finish_reason, done.new_tokens


def stops_of(kind: str) -> list[str]:
    """Strings of 1 to 4 characters that answers contain, in several places."""
    texts = [growing(kind, row)[-1] for row in range(len(INPUTS))]
    pieces = [text[at : at + size] for text in texts for size in (1, 2, 4) for at in range(0, len(text), 3)]
    return sorted({piece for piece in pieces if piece and "\ufffd" not in piece})


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_ends_where_its_own_text_first_holds_the_stop_string(kind: str) -> None:
    for stop in stops_of(kind)[::2]:
        sampling = Sampling(max_new_tokens=NEW_TOKENS, stop=stop)
        for row, together in enumerate(model(kind).complete(with_sampling(requests(kind), sampling))):
            wanted = expected(kind, row, stop)
            assert said(together) == wanted, (stop, row)
            [alone] = model(kind).complete(with_sampling(requests(kind)[row : row + 1], sampling))
            assert said(alone) == wanted, (stop, row)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_ends_where_the_answer_ends(kind: str) -> None:
    for stop in stops_of(kind)[::4]:
        for row, request in enumerate(requests(kind)[:3]):
            options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "stop": stop}
            pieces = model(kind).stream(request.input, request.gist, prompt=request.prompt, **options)
            assert "".join(pieces) == expected(kind, row, stop)[0], (stop, row)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_what_stands_before_the_answer_completes_no_stop_string(kind: str) -> None:
    """The template ends with a newline, and prompt and input with their own letters."""
    for row, request in enumerate(requests(kind)):
        whole = expected(kind, row, "\n\n")
        first = whole[0][0]
        for stop in ("\n" + first, "assistant\n" + first, "t\n" + first):
            assert stop not in whole[0]
            [alone] = model(kind).complete(with_sampling([request], Sampling(max_new_tokens=NEW_TOKENS, stop=stop)))
            assert said(alone) == whole, stop
            pieces = model(kind).stream(
                request.input, request.gist, prompt=request.prompt, max_new_tokens=NEW_TOKENS, stop=stop
            )
            assert "".join(pieces) == whole[0]


def test_the_earliest_of_several_stop_strings_ends_the_answer() -> None:
    text = growing("llama", 0)[-1]
    early, late = text[2:4], text[-2:]
    [done] = model("llama").complete(
        with_sampling(requests("llama")[:1], Sampling(max_new_tokens=NEW_TOKENS, stop=[late, early]))
    )
    assert said(done) == expected("llama", 0, early)


def test_a_stop_string_that_the_last_token_completes_is_a_stop() -> None:
    text, before = growing("llama", 0)[5], growing("llama", 0)[4]
    stop = text[len(before) - 1 :]
    assert stop not in before
    [done] = model("llama").complete(with_sampling(requests("llama")[:1], Sampling(max_new_tokens=6, stop=stop)))
    assert said(done) == (text[: text.index(stop)], "stop", 6)


def test_a_stop_string_that_begins_and_is_not_completed_is_part_of_the_answer() -> None:
    text = growing("llama", 0)[-1]
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "stop": text[-1] + "\n\n\n"}
    assert "".join(model("llama").stream(requests("llama")[0].input, requests("llama")[0].gist, **options)) == text


def test_half_a_character_is_no_piece_of_a_stream() -> None:
    text = "a é 世 🎉\ufffd b"
    tokens = (*text.encode(), 0xE4)  # the last is half a character, and the answer's own
    answer = Answer(lambda ids: bytes(ids).decode(errors="replace"), (), Sampling(max_new_tokens=len(tokens)))
    said = []
    for token in tokens:
        answer.take(token)
        said.append(answer.news())
    assert "".join(said) == text + "\ufffd"
    assert [piece for piece in said if "\ufffd" in piece] == ["\ufffd ", "\ufffd"]


def test_tokens_behind_an_answers_end_are_padding() -> None:
    answer = Answer(lambda tokens: " ".join(map(str, tokens)), {9}, Sampling(stop=["2 3"]))
    for token in (1, 2, 3, 4, 9):
        answer.take(token)
    assert (answer.tokens, answer.text, answer.is_over, answer.ended) == ([1, 2, 3], "1 ", True, False)
    other = Answer(lambda tokens: " ".join(map(str, tokens)), {9}, Sampling(stop=["2 3"]))
    for token in (1, 9, 2, 3):
        other.take(token)
    assert (other.tokens, other.text, other.is_over, other.ended) == ([1], "1", True, True)


def test_a_stream_that_is_closed_early_stops_the_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Answer] = []
    own = Answer.__init__
    monkeypatch.setattr(Answer, "__init__", lambda self, *given: made.append(self) or own(self, *given))
    pieces: Any = model("llama").stream("hello", max_new_tokens=400)
    next(pieces)
    pieces.close()
    assert 0 < len(made[0].tokens) < 400
    assert model("llama").generate("hello", max_new_tokens=2)  # and the model is free again


def test_what_goes_wrong_while_a_stream_is_made_is_raised_where_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise InputError("no")

    monkeypatch.setattr(model("llama"), "_generate", fail)
    with pytest.raises(InputError, match="no"):
        list(model("llama").stream("hello"))


def test_half_a_character_is_no_stop_string_yet() -> None:
    answer = Answer(lambda ids: bytes(ids).decode(errors="replace"), [], Sampling(stop=["\ufffd"]))
    for byte in "aé".encode():
        answer.take(byte)
    assert (answer.text, answer.stopped) == ("aé", False)
