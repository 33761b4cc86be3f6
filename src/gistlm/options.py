"""Plain values as strict pydantic models whose mistakes are one sentence; knows no option itself and loads no torch.

Strict: `True` is no number and "3" no whole number. Only a `Number` may be text, for YAML 1.1 reads 1e-4 as one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from gistlm.errors import InputError


def _parse_number(value: object) -> object:
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return value


Text = Annotated[str, Field(min_length=1)]
Number = Annotated[float, BeforeValidator(_parse_number), Field(ge=0, allow_inf_nan=False)]
"""Finite, and 0 or more."""


if TYPE_CHECKING:
    _Model = BaseModel
else:  # type checkers would lose sight of the fields

    class _InOneSentence(type(BaseModel)):
        def __call__(cls, *args: Any, **values: Any) -> Any:
            try:
                return super().__call__(*args, **values)
            except ValidationError as error:
                raise InputError(cls._sentence(error)) from None

    class _Model(BaseModel, metaclass=_InOneSentence):
        pass


class Options(_Model):
    """Base of a set of options, checked when it is made. Raises `InputError` in one sentence."""

    model_config = ConfigDict(frozen=True, strict=True)

    @classmethod
    def parse(cls, values: object, name: str = "") -> Self:
        """Plain values, checked; ``name`` of where they come from begins the sentence of an `InputError`."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(": ".join(filter(None, [name, cls._sentence(error)]))) from None

    def replace(self, **changes: Any) -> Self:
        """The same with some options changed, checked again. Raises `InputError`."""
        return self.parse({**dict(self), **changes})

    @model_validator(mode="before")
    @classmethod
    def _has_no_other_option(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            unknown = [name for name in values if name not in cls.model_fields]
            if unknown:
                raise ValueError(f"no option {str(unknown[0])!r}; the options are {', '.join(cls.model_fields)}")
        return values

    @classmethod
    def _sentence(cls, error: ValidationError) -> str:
        """The first mistake: what must be, and what was given."""
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        if first["type"] == "value_error":
            return ": ".join(filter(None, [place, str(first["ctx"]["error"])]))
        if first["type"] == "missing":
            return f"{place} is missing; give it"
        must = re.sub(r"^\w+ should", "must", first["msg"])
        field = cls.model_fields.get(place)
        null = ", or null" if field and NoneType in get_args(field.annotation) else ""
        return f"{place or 'options'} {must}{null}, got {first['input']!r}"
