"""Progress of a training on stderr: a bar on a terminal, else a plain line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[int, float], None]
"""Called after each step with the number of steps done and that step's loss."""

_SECONDS_BETWEEN_LINES = 15.0


@contextmanager
def shown(total: int, done: int) -> Iterator[Advance]:
    """Show the way from `done` to `total` steps."""
    if sys.stderr.isatty():
        with _bar() as bar:
            task = bar.add_task("training", total=total, completed=done, loss=float("nan"))
            yield lambda step, loss: bar.update(task, completed=step, loss=loss)
    else:
        yield _Lines(total, done)


def unseen(_step: int, _loss: float) -> None:
    """Show nothing."""


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


class _Lines:
    """Prints a line when the last one is long ago, and at the end."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._first = total, done
        self._started = self._latest = time.monotonic()

    def __call__(self, step: int, loss: float) -> None:
        now = time.monotonic()
        if step < self._total and now - self._latest < _SECONDS_BETWEEN_LINES:
            return
        self._latest = now
        left = (now - self._started) / (step - self._first) * (self._total - step)
        print(f"training: step {step}/{self._total}, loss {loss:.4f}, {left:.0f} s left", file=sys.stderr, flush=True)
