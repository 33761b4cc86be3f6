"""Tells a command's options from its input, which may begin with a dash; knows no command."""

from __future__ import annotations

import re
from typing import Any

from typer import BadParameter
from typer.core import TyperCommand

_UsageError: type[Any] = BadParameter.__mro__[1]
_HINT = "an input that begins with a dash goes behind two dashes: gistlm {name} [OPTIONS] -- INPUT"


class Command(TyperCommand):
    """A command that takes "-5 + 3 = ?" for its input: a word of a dash and a digit, or with white space in it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words as they stand; where that fails, once more with such words after "--"."""
        try:
            return super().parse_args(ctx, list(args))
        except _UsageError as error:
            reordered = self._with_inputs_last(args)
            if reordered is None:
                raise self._with_hint(error) from None
        ctx.params.clear()
        try:
            return super().parse_args(ctx, reordered)
        except _UsageError as error:
            raise self._with_hint(error) from None

    def _with_inputs_last(self, args: list[str]) -> list[str] | None:
        """Words that look like an input after "--"; None if there is none before it."""
        options: list[str] = []
        inputs: list[str] = []
        is_value = False
        rest = iter(args)
        for word in rest:
            if word == "--" and not is_value:
                break
            looks_like_input = re.match(r"-\d|-.*\s", word, re.DOTALL) and word.partition("=")[0] not in self._options
            (inputs if looks_like_input and not is_value else options).append(word)
            is_value = not is_value and word in self._options
        return [*options, "--", *inputs, *rest] if inputs else None

    def _with_hint(self, error: Any) -> Any:
        """The error; where there is no such option, and the command takes an input, it names the two dashes."""
        if hasattr(error, "possibilities") and any(param.param_type_name == "argument" for param in self.params):
            error.message += "; " + _HINT.format(name=self.name)
        return error

    @property
    def _options(self) -> set[str]:
        """Names of options that take a value."""
        return {name for param in self.params if not getattr(param, "is_flag", False) for name in param.opts}
