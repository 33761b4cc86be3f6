"""What the values of a recipe may be, as one table a class; knows nothing of what they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gistlm.errors import InputError


@dataclass(frozen=True)
class Allowed:
    """The kind of a value, and its range where it is a number."""

    kind: type
    least: float = -math.inf
    most: float = math.inf
    optional: bool = False
    """Whether null will do."""

    def __str__(self) -> str:
        names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        bounded = {
            (True, True): f" from {self.least:g} to {self.most:g}",
            (True, False): f" of {self.least:g} or more",
            (False, False): "",
        }[self.least > -math.inf, self.most < math.inf]
        return names[self.kind] + bounded + (", or null" if self.optional else "")

    def holds(self, value: Any) -> bool:
        """Whether a value will do. A text must not be empty, a number not infinite."""
        if value is None:
            return self.optional
        if isinstance(value, str) and self.kind is str:
            return bool(value.strip())
        if isinstance(value, bool) or not isinstance(value, int | float):
            return self.kind is bool and isinstance(value, bool)
        whole = isinstance(value, int) or self.kind is float
        return self.kind in (int, float) and whole and math.isfinite(value) and self.least <= value <= self.most


def check_fields(options: object, table: Mapping[str, Allowed], owner: str = "") -> None:
    """Raise `InputError` for the first field of ``options`` that is not as the table says."""
    for name, allowed in table.items():
        value = getattr(options, name)
        if not allowed.holds(value):
            raise InputError(f"{owner}{name} must be {allowed}, got {value!r}")
