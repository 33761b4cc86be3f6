"""Read the fields of one JSON record, each of the kind it must have, and count rows that are dropped or used in part.

A field whose value is null counts as absent. Functions that read raise `DataError`, which names the record's place.
Knows no format of rows.
"""

from __future__ import annotations

import logging
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


logger = logging.getLogger(__name__)


class UnusableRowError(DataError):
    """A row is well formed but cannot be used; the message is the reason. `read_rows` counts it and goes on."""


class RowCounts:
    """How many rows of one source were dropped, or used in part, for each reason, and where the first one is."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def drop(self, reason: str, where: str) -> None:
        """Count a row that is not used."""
        self._add(f"dropped: {reason}", where)

    def use_in_part(self, reason: str, where: str) -> None:
        """Count a row that is used without a part of its record."""
        self._add(f"used in part: {reason}", where)

    def sentences(self) -> list[str]:
        """One for each reason, such as "3 rows dropped: no output (first: rows.jsonl:5)"."""
        return [
            f"{count:,} {'row' if count == 1 else 'rows'} {reason} (first: {self._first[reason]})"
            for reason, count in self._counts.items()
        ]

    def log(self) -> None:
        """One record for each reason."""
        for sentence in self.sentences():
            logger.info("%s", sentence)

    def _add(self, reason: str, where: str) -> None:
        self._counts[reason] = self._counts.get(reason, 0) + 1
        self._first.setdefault(reason, where)
