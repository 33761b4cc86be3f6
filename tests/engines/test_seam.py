"""What every engine promises those who ask it, and what the seam itself does."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from fake_engine import FakeEngine
from tiny import tiny_checkpoint

from gistlm.engines.base import Engine, Piece, Request, load_engine, with_sampling
from gistlm.engines.sampling import Sampling
from gistlm.engines.transformers import GistModel
from gistlm.errors import InputError, PromptTooLongError

ENGINES = ["transformers", "fake"]
SAMPLING = Sampling(max_new_tokens=6)


def engine(name: str) -> Engine:
    return FakeEngine("m") if name == "fake" else GistModel(tiny_checkpoint("llama"), batch_size=2)


def requests(made: Engine) -> list[Request]:
    gist = made.compress("be brief and kind", 3)
    return [
        Request("hello there", gist, sampling=SAMPLING),
        Request("hm", prompt="be brief and kind", sampling=Sampling(max_new_tokens=2)),
        Request("and you?", [gist], sampling=Sampling(max_new_tokens=5, temperature=1.0, seed=4)),
    ]


async def pieces_of(made: Engine, asked: list[Request]) -> list[Piece]:
    return [piece async for piece in made.answer(asked)]


@pytest.mark.parametrize("name", ENGINES)
def test_pieces_together_are_the_answers_and_each_last_one_has_the_completion(name: str) -> None:
    made = engine(name)
    asked = requests(made)
    pieces, whole = asyncio.run(pieces_of(made, asked)), made.complete(asked)
    for row, completion in enumerate(whole):
        own = [piece for piece in pieces if piece.row == row]
        assert "".join(piece.text for piece in own) == completion.text
        assert [piece.completion for piece in own] == [None] * (len(own) - 1) + [completion]
        assert "".join(made.stream_request(asked[row])) == completion.text


@pytest.mark.parametrize("name", ENGINES)
def test_an_impossible_request_is_refused_before_anything_is_run(name: str) -> None:
    made = engine(name)
    with pytest.raises(PromptTooLongError):
        made.answer([Request("x " * 10_000, sampling=SAMPLING)])


@pytest.mark.parametrize("name", ENGINES)
def test_where_a_loop_runs_already_calls_that_wait_work_too(name: str) -> None:
    made = engine(name)
    asked = requests(made)

    async def inside() -> list[Any]:
        return [made.complete(asked), "".join(made.stream_request(asked[0]))]

    assert asyncio.run(inside()) == [made.complete(asked), made.complete(asked[:1])[0].text]


def test_a_task_that_is_cancelled_stops_the_generation() -> None:
    made = engine("transformers")
    begun: list[Piece] = []

    async def read() -> None:
        async for piece in made.answer([Request("hello", sampling=Sampling(max_new_tokens=400))]):
            begun.append(piece)

    async def cancel() -> None:
        task = asyncio.create_task(read())
        while len(begun) < 3:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert not any(piece.completion for piece in begun)
    assert made.generate("hello", max_new_tokens=2)  # and the model is free again


def test_two_streams_are_read_at_the_same_time() -> None:
    made = FakeEngine("m", delay=0.05)

    async def both() -> list[list[Piece]]:
        return await asyncio.gather(*(pieces_of(made, [Request("a b c", sampling=SAMPLING)]) for _ in range(4)))

    begin = time.monotonic()
    assert len(asyncio.run(both())) == 4
    assert time.monotonic() - begin < 4 * 6 * 0.05


def test_more_than_one_gist_is_refused_until_they_can_be_joined() -> None:
    made = engine("fake")
    one, other = made.compress(["a", "b"], 2)
    assert Request("hi", [one]).gist is one and Request("hi", []).gist is None
    with pytest.raises(InputError, match="gists cannot be joined yet, so a request takes one; got 2"):
        Request("hi", [one, other])


@pytest.mark.parametrize("call", ["compress", "score", "logits", "checkpoint"])
def test_an_engine_without_an_optional_part_says_so(call: str) -> None:
    class Bare(Engine):
        @classmethod
        def from_pretrained(cls, name: str, /, *args: Any, **options: Any) -> Engine:
            return cls()

        def answer(self, requests: Any) -> Any:
            raise NotImplementedError

    calls = {
        "compress": lambda: Bare().compress("x"),
        "score": lambda: Bare().score("x", "y"),
        "logits": lambda: Bare().logits([], []),
        "checkpoint": lambda: Bare().checkpoint,
    }
    with pytest.raises(InputError, match=r"Bare .*engine 'transformers'"):
        calls[call]()


def test_a_stream_goes_on_and_is_closed_inside_a_loop_that_began_after_it() -> None:
    made = engine("transformers")
    pieces: Any = made.stream("hello", max_new_tokens=40)
    said = next(pieces)

    async def inside() -> str:
        more = next(pieces)
        pieces.close()
        return more

    more = asyncio.run(inside())
    whole = made.generate("hello", max_new_tokens=40)
    assert whole.startswith(said + more)


def test_a_stream_leaves_the_threads_own_event_loop() -> None:
    own = asyncio.new_event_loop()
    asyncio.set_event_loop(own)
    try:
        list(engine("transformers").stream("hello", max_new_tokens=2))
        assert asyncio.get_event_loop() is own
    finally:
        asyncio.set_event_loop(None)
        own.close()


def test_what_is_no_engine_is_refused_in_a_sentence() -> None:
    for name in ("json:dumps", ".:x", "no_such_module:Engine", "nothing"):
        with pytest.raises(InputError, match=r"engine|Engine"):
            load_engine(name, "m")


def test_a_blank_system_message_is_no_obstacle_to_another_sampling() -> None:
    blank = Request([{"role": "system", "content": " "}, {"role": "user", "content": "hi"}])
    assert with_sampling([blank], SAMPLING)[0].sampling == SAMPLING
