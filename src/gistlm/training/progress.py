"""A training run's progress on a terminal or in a log: step, loss, tokens a second, time left; knows no loss."""

from __future__ import annotations

import time
from collections import deque
from datetime import timedelta
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from transformers import TrainerCallback

_RECENT = 20
"""Steps over which tokens a second are averaged."""
_DECAY = 0.9
"""Weight of the past in the smoothed loss."""
_LOG_SECONDS = 15.0
"""Between two lines where the output is no terminal."""


class TrainingProgress(TrainerCallback):
    """Shows a run; use it as a context manager, so that an error leaves the terminal in order."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.loss = 0.0
        """Smoothed over steps, without the bias of an average that starts at zero."""
        self.tokens_per_second = 0.0
        self._weight = 0.0
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RECENT + 1)
        """Time and tokens seen after recent steps."""
        self._began = self._printed = 0.0
        self._first_step = 0
        self._task = TaskID(0)
        self._bar = Progress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"), console=console
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar.live.is_started:  # stopping what never began would print an empty line
            self._bar.stop()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Trainer's hook; ``state.global_step`` is above zero when a run is resumed."""
        self._began = self._printed = time.monotonic()
        self._first_step = state.global_step
        self._recent.append((self._began, model.tokens))
        if state.global_step:
            self.console.print(f"resuming after step {state.global_step:,} of {state.max_steps:,}")
        if self.console.is_terminal:
            self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step)
            self._bar.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **kwargs: Any) -> None:
        """Trainer's hook, called after every step with its loss."""
        if "loss" not in (logs or {}):
            return
        now = time.monotonic()
        self._smooth(float(logs["loss"]))
        self._recent.append((now, model.tokens))
        (begin, before), (end, after) = self._recent[0], self._recent[-1]
        self.tokens_per_second = (after - before) / max(end - begin, 1e-9)
        left = (now - self._began) / (state.global_step - self._first_step) * (state.max_steps - state.global_step)
        text = f"loss {self.loss:.4f}  {self.tokens_per_second:,.0f} tokens/s  {timedelta(seconds=round(left))} left"
        if self.console.is_terminal:
            self._bar.update(self._task, completed=state.global_step, description=text)
        elif now - self._printed >= _LOG_SECONDS or state.global_step == state.max_steps:
            self._printed = now
            self.console.print(f"step {state.global_step:,}/{state.max_steps:,}  {text}", soft_wrap=True)

    def _smooth(self, loss: float) -> None:
        weight = _DECAY * self._weight + 1 - _DECAY
        self.loss = (_DECAY * self._weight * self.loss + (1 - _DECAY) * loss) / weight
        self._weight = weight
