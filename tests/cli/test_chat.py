"""`gistlm chat` over a pipe and at a terminal."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli.running import Run, Terminal
from fake_engine import FakeEngine

from gistlm.cli.chat import Conversation
from gistlm.engines.base import Request
from gistlm.engines.sampling import Sampling
from gistlm.gist import Gist


def test_every_line_of_a_pipe_is_a_turn_of_one_conversation(fake: Run, gist: Path) -> None:
    result = fake("chat", "--gist", gist, stdin="hello\n\nbye\n")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [
        "answer 1 over a gist of 4 tokens: hello",
        "answer 2 over a gist of 4 tokens: bye",
    ]
    assert result.stderr == ""


def test_exit_ends_and_new_starts_over(fake: Run, gist: Path) -> None:
    lines = fake("chat", "--gist", gist, stdin="one\n/new\ntwo\n/exit\nthree\n").stdout.splitlines()
    assert [line.split(":")[1] for line in lines] == [" one", " two"]
    assert lines[1].startswith("answer 1 ")


def test_a_line_in_wrong_utf8_is_one_sentence(fake: Run, gist: Path) -> None:
    result = fake("chat", "--gist", gist, stdin=b"good\nb\xe4d\n")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == ["answer 1 over a gist of 4 tokens: good"]
    assert result.stderr.startswith("error: stdin is not valid UTF-8") and result.stderr.count("\n") == 1


def test_a_conversation_that_outgrows_the_context_is_one_sentence(fake: Run, gist: Path) -> None:
    result = fake("chat", "--gist", gist, stdin="word " * 5000 + "\n")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: the request with room for its answer") and result.stderr.count("\n") == 1


class InterruptedEngine(FakeEngine):
    """Its first answer is interrupted after two words."""

    asked = 0
    stopped = False

    def stream_request(self, request: Request) -> Iterator[str]:
        self.asked += 1
        pieces = super().stream_request(request)
        return self._interrupted(pieces) if self.asked == 1 else pieces

    def _interrupted(self, pieces: Iterator[str]) -> Iterator[str]:
        try:
            yield next(pieces)
            yield next(pieces)
            raise KeyboardInterrupt
        finally:
            self.stopped = True


@pytest.fixture
def talk(gist: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Type lines at a terminal; an exception in their place is raised by the terminal."""

    def run(engine: FakeEngine, typed: list[Any], **options: Any) -> Conversation:
        lines = iter([*typed, EOFError()])

        def type_next(sign: str) -> str:
            line = next(lines)
            if isinstance(line, BaseException):
                raise line
            return str(line)

        monkeypatch.setattr("builtins.input", type_next)
        conversation = Conversation(engine, Gist.load(gist), Sampling(**options), interactive=True)
        conversation.run()
        return conversation

    return run


def test_ctrl_c_stops_the_answer_and_the_conversation_goes_on(talk: Any, capsys: pytest.CaptureFixture[str]) -> None:
    engine = InterruptedEngine("smollm2-135m")
    talk(engine, ["one", "two"])
    shown = capsys.readouterr()
    assert engine.stopped
    assert shown.out.splitlines() == ["answer 1", "answer 2 over a gist of 4 tokens: two", ""]
    assert "(stopped)" in shown.err


def test_ctrl_c_at_the_prompt_says_how_to_leave_and_goes_on(talk: Any, capsys: pytest.CaptureFixture[str]) -> None:
    talk(FakeEngine("smollm2-135m"), [KeyboardInterrupt(), "one"])
    shown = capsys.readouterr()
    assert "answer 1 over a gist of 4 tokens: one" in shown.out
    assert shown.err.count("/exit or Ctrl-D ends") == 2


def test_at_a_terminal_a_mistake_does_not_end_the_conversation(talk: Any, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = talk(FakeEngine("smollm2-135m"), ["word " * 5000, "b\udce4d", "one"])
    shown = capsys.readouterr()
    assert shown.err.count("error: ") == 2
    assert shown.out.startswith("answer 1 over a gist of 4 tokens: one")
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"]


def test_the_answer_appears_piece_by_piece(talk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    talk(FakeEngine("smollm2-135m"), ["one"])
    assert terminal.flushed[:2] == ["answer", "answer 1"]
