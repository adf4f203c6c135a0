"""Progress of long work on stderr: a bar on a terminal, else a plain line now and then."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
Advance = Callable[[int, str], None]
"""Called after each step with the number of steps done and what is to be said beside it: that step's loss."""

_SECONDS_BETWEEN_LINES = 15.0


@contextmanager
def shown(total: int, done: int, *, work: str = "training: step") -> Iterator[Advance]:
    """Show the way from `done` to `total` steps of some work."""
    if sys.stderr.isatty():
        with _bar() as bar:
            task = bar.add_task(work, total=total, completed=done, beside="")
            yield lambda step, beside: bar.update(task, completed=step, beside=beside)
    else:
        yield _Lines(total, done, work)


def through(items: Iterable[T], total: int, work: str) -> Iterator[T]:
    """Yield `total` items and show how many are done with, where that takes long; nothing where it does not."""
    with shown(total, 0, work=work) as advance:
        for done, item in enumerate(items, 1):
            yield item
            advance(done, "")


def unseen(_step: int, _beside: str) -> None:
    """Show nothing."""


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[beside]}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


class _Lines:
    """Prints a line when the last one is long ago; what has something to say beside it prints its end too."""

    def __init__(self, total: int, done: int, work: str) -> None:
        self._total, self._first, self._work = total, done, work
        self._started = self._latest = time.monotonic()

    def __call__(self, step: int, beside: str) -> None:
        now = time.monotonic()
        if now - self._latest < _SECONDS_BETWEEN_LINES and not (beside and step == self._total):
            return
        self._latest = now
        left = (now - self._started) / max(step - self._first, 1) * (self._total - step)
        told = ", ".join(filter(None, [f"{self._work} {step}/{self._total}", beside, f"{left:.0f} s left"]))
        print(told, file=sys.stderr, flush=True)
