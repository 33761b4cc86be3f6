"""Counts work for whoever shows it."""

from __future__ import annotations

from collections.abc import Callable

OnProgress = Callable[[int, int], None]
"""Called with the units of work that are done, and with all of them."""


class Progress:
    """Units of work that are done, told to a callback if there is one."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self.done, self.total, self.on_progress = -1, total, on_progress
        self.reach(0)

    def __call__(self, units: int) -> None:
        self.reach(self.done + units)

    def reach(self, done: int) -> None:
        """So many units are done, counted from the beginning."""
        told, self.done = self.done, done
        if self.on_progress is not None and done != told:
            self.on_progress(self.done, self.total)
