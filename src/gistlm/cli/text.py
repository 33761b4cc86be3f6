"""Reading a user's text from a file, an argument or stdin; knows nothing of what it is for."""

from __future__ import annotations

import sys
from pathlib import Path

from gistlm.errors import InputError
from gistlm.files import reason

STDIN = "-"
MAX_BYTES = 64 << 20


def read_prompt(source: str) -> str:
    """A prompt file's text as it stands, or stdin's for "-". Raises `InputError` in one sentence."""
    text = _decode(_read(source), "stdin" if source == STDIN else source)
    if not text.strip():
        raise InputError(f"the prompt {_name(source)} is empty; give the text that is to be compressed")
    return text


def read_input(argument: str) -> str:
    """An argument as it stands, or stdin's text without its last newline for "-"."""
    if argument == STDIN:
        return _decode(_read(STDIN), "stdin").removesuffix("\n").removesuffix("\r")
    return check_unicode(argument, "the input")


def read_line() -> str | None:
    """The next line of stdin, or None at its end. Raises `InputError` for wrong UTF-8."""
    line = sys.stdin.buffer.readline(MAX_BYTES)
    return _decode(line, "stdin").rstrip("\r\n") if line else None


def check_unicode(text: str, what: str) -> str:
    """The text itself; raises `InputError` where the terminal's bytes were no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{what} is not valid UTF-8; convert it to UTF-8 first") from None
    return text


def _read(source: str) -> bytes:
    try:
        if source == STDIN:
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(source).open("rb") as file:
                data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"there is no file {source}; give the path of a text file, or - for stdin") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {source}: {reason(error)}") from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{_name(source)} has more than {MAX_BYTES >> 20} MiB; no model has room for that much text")
    return data


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")  # a byte-order mark is no part of the text
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not valid UTF-8 (byte {error.start:,}); save it as UTF-8, for example with: "
            f"iconv -f latin1 -t utf-8"
        ) from None


def _name(source: str) -> str:
    return "from stdin" if source == STDIN else source
