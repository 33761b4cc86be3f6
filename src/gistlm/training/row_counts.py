"""Count the rows that are dropped or used in part, by reason; knows no format of rows."""

from __future__ import annotations

import logging

from gistlm.errors import DataError

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
