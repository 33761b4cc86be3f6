"""Plain values as strict pydantic models whose mistakes are one sentence; knows no option itself and loads no torch.

Strict: `True` is no number and "3" no whole number. Only a `Number` may be text, for YAML 1.1 reads 1e-4 as one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from gistlm.errors import GistlmError, InputError


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
                raise cls._failure(cls._sentence(error)) from None

    class _Model(BaseModel, metaclass=_InOneSentence):
        pass


class Options(_Model):
    """Base of a set of options, checked when it is made. Raises `InputError`, or its own kind, in one sentence."""

    model_config = ConfigDict(frozen=True, strict=True)
    _failure: ClassVar[type[GistlmError]] = InputError

    @classmethod
    def parse(cls, values: object, name: str = "") -> Self:
        """Plain values, checked; ``name`` of where they come from begins the sentence of an error."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise cls._failure(": ".join(filter(None, [name, cls._sentence(error)]))) from None

    def replace(self, **changes: Any) -> Self:
        """The same with some options changed, checked again."""
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
        return first_mistake(error, cls) + "; give it" * (error.errors()[0]["type"] == "missing")


def first_mistake(error: ValidationError, model: type[BaseModel]) -> str:
    """Where a model's first mistake is, what must be there, and the beginning of what was given."""
    first = error.errors()[0]
    place = ".".join(repr(str(part))[1:-1] for part in first["loc"])
    if first["type"] == "value_error":
        return ": ".join(filter(None, [place, str(first["ctx"]["error"])]))
    if first["type"] == "missing":
        return f"{place} is missing"
    must = re.sub(r"^\w+ should", "must", first["msg"])
    field = model.model_fields.get(place)
    null = ", or null" if field and NoneType in get_args(field.annotation) else ""
    return f"{place or 'options'} {must}{null}, got {first['input']!r:.60}"
