"""`gistlm chat`: a conversation in the terminal over a gist; works over pipes too."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gistlm.cli import options as opt
from gistlm.cli.outcome import say
from gistlm.cli.text import check_unicode, read_line
from gistlm.errors import InputError

if TYPE_CHECKING:
    from gistlm.engines.base import Engine
    from gistlm.engines.sampling import Sampling
    from gistlm.gist import Gist
    from gistlm.messages import Message

HELP = "/new starts over, /exit or Ctrl-D ends, Ctrl-C stops an answer"


def chat(
    gist: Annotated[Path, typer.Option("--gist", "-g", help="The gist that stands before the conversation.")],
    max_new_tokens: opt.MaxNewTokens = 512, temperature: opt.Temperature = 0.0, top_p: opt.TopP = 1.0,
    top_k: opt.TopK = 0, stop: opt.Stop = None, seed: opt.Seed = None, model: opt.Model = opt.DEFAULT_MODEL,
    base: opt.Base = None, device: opt.Device = None, dtype: opt.Dtype = None, engine: opt.Engine = "transformers",
) -> None:  # fmt: skip
    """Talk to a model over a gist, one line a turn.

    /exit or Ctrl-D ends, /new starts over, Ctrl-C stops the current answer. When stdin is a pipe, every line
    of it is a turn, and stdout holds the answers only.

    \b
    Example:
      gistlm chat --gist system.gist
    """
    from gistlm.gist_file import GistFile

    sampling = opt.sampling(max_new_tokens, temperature, top_p, top_k, stop, seed)
    file = GistFile.load(gist)
    options = opt.EngineOptions(engine, model, base, device, dtype)
    options.preflight(file)
    loaded = options.load(file)
    from gistlm.gist import Gist

    Conversation(loaded, Gist.from_file(file), sampling, interactive=sys.stdin.isatty()).run()
    loaded.close()


@dataclass
class Conversation:
    """Turns over one gist."""

    engine: Engine
    gist: Gist
    sampling: Sampling
    interactive: bool
    """Whether a person types: then there is a prompt sign, and a mistake does not end the conversation."""
    messages: list[Message] = field(default_factory=list)

    def run(self) -> None:
        """Answer line by line until the user ends it."""
        if self.interactive:
            say(HELP)
        while (line := self._next_line()) is not None:
            if line.strip() == "/exit":
                return
            if line.strip() == "/new":
                self.messages = []
            elif line.strip():
                self._turn(line)

    def _next_line(self) -> str | None:
        if not self.interactive:
            return read_line()
        while True:
            try:
                return check_unicode(input("> "), "the input")
            except EOFError:
                print()
                return None
            except KeyboardInterrupt:
                print()
                say(HELP)
            except (InputError, UnicodeDecodeError) as error:
                say(f"error: {error}")

    def _turn(self, line: str) -> None:
        """One question and its answer; an answer cut short by Ctrl-C stays in the conversation as it is."""
        question: Message = {"role": "user", "content": line}
        try:
            text = self._answer([*self.messages, question])
        except InputError as error:
            if not self.interactive:
                raise
            say(f"error: {error}; /new starts over")
            return
        if text:
            self.messages += [question, {"role": "assistant", "content": text}]

    def _answer(self, messages: list[Message]) -> str:
        said: list[str] = []
        from gistlm.engines.base import Request

        pieces = self.engine.stream_request(Request(messages, self.gist, sampling=self.sampling))
        try:
            with contextlib.closing(pieces):  # type: ignore[type-var]  # an engine's iterator is a generator
                for piece in pieces:
                    said.append(piece)
                    sys.stdout.write(piece)
                    sys.stdout.flush()
        except KeyboardInterrupt:
            say(" (stopped)")
        print(flush=True)
        return "".join(said)
