"""Read the fields of one JSON record, each of the kind it must have; knows no format of rows.

A field whose value is null counts as absent. Every function raises `DataError`, which names the record's place.
"""

from __future__ import annotations

import re
from typing import Any

from gistlm.errors import DataError


def mapping(value: object, where: str, what: str) -> dict[str, Any]:
    """The fields of an object that are not null."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: {what} is a JSON {kind(value)}; it must be an object with named fields")
    return {key: item for key, item in value.items() if item is not None}


def items(fields: dict[str, Any], key: str, where: str) -> list[object]:
    """The items of a field; none when it is absent."""
    value = fields.get(key, [])
    if not isinstance(value, list):
        raise DataError(f"{where}: {key!r} is a JSON {kind(value)}; it must be a list")
    return value


def text(fields: dict[str, Any], key: str, where: str) -> str:
    """The text of a field; empty when it is absent."""
    value = fields.get(key, "")
    if not isinstance(value, str):
        advice = "" if isinstance(value, dict | list) else ", so put it in quotes"
        raise DataError(f"{where}: {key!r} is a JSON {kind(value)}; it must be text{advice}")
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise DataError(f"{where}: {key!r} holds half of a surrogate pair, which is no character; remove it")
    return value


def kind(value: object) -> str:
    """JSON's name for a value's kind."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
