"""The judge against an endpoint on this machine that answers as each test wants."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import pytest

from gistlm.errors import InputError
from gistlm.evaluation import judge
from gistlm.evaluation.judge import AnswerPair, JudgeError, compare, outcome, parse_verdict

KEY = "sk-test-0123456789-secret"
PAIRS = [AnswerPair(f"Count to {i}.", "Quickly.", "the better one", "the worse one") for i in range(4)]

Reply = Callable[[dict[str, Any]], "str | int | bytes | None"]


class Endpoint:
    """An OpenAI-compatible server: ``reply`` gives a verdict, a status, or a whole body."""

    def __init__(self) -> None:
        self.reply: Reply = lambda request: "A"
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append(request)
                endpoint.headers.append({name.lower(): value for name, value in self.headers.items()})
                endpoint.paths.append(self.path)
                reply = endpoint.reply(request)
                status, body = 200, b""
                if isinstance(reply, int):
                    status, body = reply, f"your key was {self.headers['Authorization']}".encode()
                elif isinstance(reply, bytes):
                    body = reply
                else:
                    message = {"role": "assistant", "content": reply}
                    body = json.dumps({"choices": [{"index": 0, "message": message}]}).encode()
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", "/elsewhere/chat/completions")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hung up
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setattr(judge, "RETRIES", 0)
    started = Endpoint()
    yield started
    started.server.shutdown()
    started.server.server_close()


def first_is_better(request: dict[str, Any]) -> bool:
    question = request["messages"][-1]["content"]
    return bool(question.index("the better one") < question.index("the worse one"))


def honest(request: dict[str, Any]) -> str:
    return "A" if first_is_better(request) else "B"


def judged(endpoint: Endpoint, pairs: list[AnswerPair] = PAIRS) -> dict[str, Any]:
    return compare(pairs, endpoint.url, "a-model", "JUDGE_KEY", seed=3)


# Verdicts


def test_an_honest_judge_gives_wins(endpoint: Endpoint) -> None:
    endpoint.reply = honest
    result = judged(endpoint)
    assert (result["wins"], result["ties"], result["losses"], result["win_rate"]) == (4, 0, 0, 1.0)


def test_swapped_pairs_turn_wins_into_losses(endpoint: Endpoint) -> None:
    endpoint.reply = honest
    result = judged(endpoint, [AnswerPair(pair.instruction, pair.input, pair.b, pair.a) for pair in PAIRS])
    assert (result["wins"], result["ties"], result["losses"], result["win_rate"]) == (0, 0, 4, 0.0)


@pytest.mark.parametrize("always", ["A", "B", "tie"])
def test_a_judge_with_a_fixed_opinion_gives_ties_only(endpoint: Endpoint, always: str) -> None:
    endpoint.reply = lambda request: always
    result = judged(endpoint)
    assert (result["wins"], result["ties"], result["losses"], result["win_rate"]) == (0, 4, 0, 0.5)
    assert result["nonsense"] == 0


def test_nonsense_is_a_tie_and_is_counted(endpoint: Endpoint) -> None:
    endpoint.reply = lambda request: "A" if first_is_better(request) else "I like them both"
    result = judged(endpoint)
    assert (result["ties"], result["nonsense"]) == (4, 4)


def test_a_reply_without_text_is_nonsense(endpoint: Endpoint) -> None:
    endpoint.reply = lambda request: None
    assert judged(endpoint)["nonsense"] == 8


def test_the_win_rate_has_an_interval_around_it(endpoint: Endpoint) -> None:
    endpoint.reply = lambda request: honest(request) if "Count to 0." in str(request["messages"]) else "tie"
    result = judged(endpoint)
    low, high = result["win_rate_95"]
    assert result["win_rate"] == 0.625
    assert 0 < low < 0.625 < high < 1


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [("A", "a"), (" b.\n", "b"), ("Tie", "tie"), ("A B", None), ("A is better", None), ("", None), ("C", None)],
)
def test_a_verdict_is_one_word_and_nothing_else(reply: str, verdict: str | None) -> None:
    assert parse_verdict(reply) == verdict


def test_only_agreement_of_both_orders_decides() -> None:
    verdicts = ("a", "b", "tie", None)
    decided = {(one, two): outcome(one, two) for one in verdicts for two in verdicts if outcome(one, two) != "tie"}
    assert decided == {("a", "a"): "win", ("b", "b"): "loss"}


# Requests


def test_both_orders_are_asked_with_temperature_zero_and_the_seed(endpoint: Endpoint) -> None:
    judged(endpoint, PAIRS[:1])
    assert [first_is_better(request) for request in endpoint.requests] == [True, False]
    for request in endpoint.requests:
        assert (request["model"], request["temperature"], request["seed"]) == ("a-model", 0, 3)
        assert request["max_tokens"] == judge.MAX_TOKENS
        assert "Count to 0.\n\nQuickly." in request["messages"][-1]["content"]


def test_braces_in_an_answer_stay_as_they_are(endpoint: Endpoint) -> None:
    judged(endpoint, [AnswerPair("{second}", "{}", "the better one {first}", "the worse one {0}")])
    assert "the worse one {0}" in endpoint.requests[0]["messages"][-1]["content"]
    assert "[Request]\n{second}\n\n{}" in endpoint.requests[0]["messages"][-1]["content"]


def test_the_key_arrives_in_the_header(endpoint: Endpoint) -> None:
    judged(endpoint, PAIRS[:1])
    assert {headers["authorization"] for headers in endpoint.headers} == {f"Bearer {KEY}"}


def test_without_a_key_variable_no_key_is_sent(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    compare(PAIRS[:1], endpoint.url, "a-model")
    assert KEY not in str(endpoint.headers)


def test_progress_counts_pairs(endpoint: Endpoint) -> None:
    seen: list[tuple[int, int]] = []
    compare(PAIRS[:2], endpoint.url, "a-model", on_progress=lambda *at: seen.append(at))
    assert seen == [(1, 2), (2, 2)]


# Failures


@pytest.mark.parametrize(
    ("status", "advice"), [(400, "own log"), (401, "check the key"), (404, "/v1"), (429, "later"), (500, "own log")]
)
def test_a_refusal_is_one_sentence_without_the_key(
    endpoint: Endpoint, status: int, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.reply = lambda request: status
    with caplog.at_level(logging.DEBUG), pytest.raises(JudgeError, match=rf"status {status}; .*{advice}") as caught:
        judged(endpoint)
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert KEY not in caplog.text


def test_a_lost_request_is_tried_again_but_not_forever(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "RETRIES", 1)
    endpoint.reply = lambda request: 503 if len(endpoint.requests) == 1 else honest(request)
    assert judged(endpoint, PAIRS[:1])["wins"] == 1
    endpoint.requests.clear()
    endpoint.reply = lambda request: 503
    with pytest.raises(JudgeError, match="status 503"):
        judged(endpoint)
    assert len(endpoint.requests) == 2


def test_a_redirect_is_not_followed(endpoint: Endpoint) -> None:
    endpoint.reply = lambda request: 307
    with pytest.raises(JudgeError, match="status 307"):
        judged(endpoint)
    assert endpoint.paths == ["/v1/chat/completions"]


def test_an_endpoint_that_is_not_there_is_one_sentence(endpoint: Endpoint) -> None:
    endpoint.server.shutdown()
    endpoint.server.server_close()
    with pytest.raises(JudgeError, match=r"cannot be reached \(APIConnectionError\)"):
        judged(endpoint)


def test_an_endpoint_that_is_too_slow_is_given_up(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "TIMEOUT", 0.2)
    release = Event()
    endpoint.reply = lambda request: str(release.wait(5))
    with pytest.raises(JudgeError, match="cannot be reached"):
        judged(endpoint)
    release.set()


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[]", b'{"choices": []}', b"\xff", b"null"])
def test_what_is_no_chat_completion_is_refused(endpoint: Endpoint, body: bytes) -> None:
    endpoint.reply = lambda request: body
    with pytest.raises(JudgeError, match="did not answer with a chat completion"):
        judged(endpoint)


def test_an_endless_response_is_cut_off(endpoint: Endpoint) -> None:
    endpoint.reply = lambda request: b" " * (judge.MAX_BYTES + 1)
    with pytest.raises(JudgeError, match="sent over 64 KiB"):
        judged(endpoint)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://host/v1", "http://", "http://me:pw@host/v1", "http://host/v1?key=1", "http://h:x"]
)
def test_an_address_that_cannot_be_one_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="must be http"):
        compare(PAIRS, url, "a-model")


def test_a_key_in_place_of_a_variables_name_is_not_repeated() -> None:
    with pytest.raises(InputError, match="name of the environment variable") as caught:
        compare(PAIRS, "http://127.0.0.1:1/v1", "a-model", KEY)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("value", [None, "", "two words", "new\nline", "schlüssel"])
def test_a_variable_without_a_key_is_refused(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(InputError, match="JUDGE_KEY") as caught:
        compare(PAIRS, "http://127.0.0.1:1/v1", "a-model", "JUDGE_KEY")
    assert not value or value not in str(caught.value)


def test_nothing_to_judge_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to judge"):
        compare([], "http://127.0.0.1:1/v1", "a-model")
