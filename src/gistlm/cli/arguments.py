"""Tells a command's options from its input, which may begin with a dash; knows no command."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from typer import BadParameter
from typer.core import TyperCommand

_UsageError: type[Any] = BadParameter.__mro__[1]
_HINT = "an input that begins with a dash goes behind two dashes: gistlm {name} [OPTIONS] -- INPUT"


class Command(TyperCommand):
    """A command that takes "-5 + 3 = ?" for its input: a word of a dash and a digit, or with white space in it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put such words behind "--", where none is an option; name that way to who mistypes an option."""
        end = args.index("--") if "--" in args else len(args)
        options: list[str] = []
        inputs: list[str] = []
        for word, is_value in self._words(args[:end]):
            (inputs if not is_value and self._is_input(word) else options).append(word)
        behind = [*inputs, *args[end + 1 :]]
        try:
            return super().parse_args(ctx, [*options, "--", *behind] if behind else args)
        except _UsageError as error:
            if hasattr(error, "possibilities") and self._takes_input:  # there is no such option
                error.message += "; " + _HINT.format(name=self.name)
            raise

    def _words(self, args: list[str]) -> Iterator[tuple[str, bool]]:
        """Every word, and whether it is the value of the option before it."""
        is_value = False
        for word in args:
            yield word, is_value
            is_value = not is_value and word in self._options_with_values

    def _is_input(self, word: str) -> bool:
        if not word.startswith("-") or word.partition("=")[0] in self._options_with_values:
            return False
        return bool(re.match(r"-\d|-.*\s", word, re.DOTALL))

    @property
    def _options_with_values(self) -> set[str]:
        return {name for param in self.params if not getattr(param, "is_flag", False) for name in param.opts}

    @property
    def _takes_input(self) -> bool:
        return any(param.param_type_name == "argument" for param in self.params)
