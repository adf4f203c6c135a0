"""The thread count fitted to the work: one thread for a short input, and for each of several small batches.

Threads that share a product must be woken for it, tens of microseconds an operator where they do not spin (see
`session`). A narrow model's products of a short text are over sooner: three layers of 192-wide attention and 384
neurons in int8 take 26 tokens 0.83 ms alone and 1.21 ms on two threads; six whole ones in float32 gain from the second
thread at 8 tokens. Answers do not depend on it, bit for bit.

Many rows are better cut into small batches of which every thread runs its own: nothing waits for another thread, and
what a batch of few rows computes stays in a core's cache. On two threads (AVX-512 with VNNI) that narrow model takes
250 us a row in batches of 32 shared between the threads, and 186 us in halves of them, one a thread; on one thread
alone, 474 us a row in batches of 32 and 380 in batches of 8 (another run, beside other work).

What holds on the machine at hand is measured when a model is opened, and then on the rows that it answers, by inputs of
about one length: a virtual machine's idle core may take long to wake for seconds on end, and of a narrow model opened
right after an export, one in twelve was taken for faster on all threads and went on taking 1.85 times as long. The
session that seemed slower is tried with the second, fourth, eighth and so on call of a length and, where that was not
by much, with every 256th.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

MOST_BYTES = 64_000_000
"""Of a small model's weights: a second session costs as much memory again, and a model of more is not narrow."""
ROWS_TOGETHER = 8
"""Of a small model's batches, whether a thread runs each or all threads share it: so answers do not depend on that."""

Feeds = Mapping[str, NDArray[np.int64]]
Clock = Callable[[], float]
"""Seconds from any fixed point."""

_LENGTHS = (12, 24, 48, 96)
"""Tokens of the rows that are timed when a model is opened; each stands for those up to a third longer."""
_ALIKE = 8
"""Inputs of fewer tokens are of one class; of fewer than twice as many, of the next, and so on."""
_KEPT = 5
"""Last calls of either session by whose median a class is decided."""
_ENOUGH = 3
"""Calls of either session without which nothing is decided."""
_AGAIN = 256
"""How often the session that seemed slower is tried again, once a class has had as many calls."""
_CLOSE = 1.5
"""Times as long: a session that takes more is tried ever more rarely."""
_TURNS, _CALLS = 5, 3
"""Each session has so many turns at each length, of one untimed call and so many timed ones."""
_TOKENS_OF_MANY = 32
"""Of each of the rows with which small batches are timed."""


class Choice:
    """Which of two sessions is faster for inputs of about one length, by the last calls of each; safe between threads.

    Args:
        ratio: how many times as long as on one thread a call takes that all threads share, as timed at first.
    """

    def __init__(self, ratio: float) -> None:
        self._seconds: list[tuple[float, ...]] = [(), ()]
        self._calls = 0
        self._set(ratio)

    def next(self) -> bool:
        """Return whether one thread is to answer the next call: where that is faster, but for a call now and then."""
        self._calls += 1
        doubled = self._calls > 1 and self._calls & (self._calls - 1) == 0
        return self.alone != (doubled or (self._is_close and self._calls % _AGAIN == 0))

    def add(self, seconds_a_token: float, *, alone: bool) -> None:
        """Learn what a call took."""
        self._seconds[alone] = (*self._seconds[alone], seconds_a_token)[-_KEPT:]
        if alone != self.alone and min(map(len, self._seconds)) >= _ENOUGH:
            shared_s, alone_s = map(median, self._seconds)
            self._set(shared_s / alone_s)

    def _set(self, ratio: float) -> None:
        self.alone = ratio > 1
        self._is_close = _are_close(ratio)


@dataclass(frozen=True)
class OneThread:
    """A session on one thread, and what it is faster for."""

    session: ort.InferenceSession
    choices: tuple[Choice, ...]
    """Of inputs of fewer than `_ALIKE` tokens, padding included; of fewer than twice as many; and so on."""
    pool: ThreadPoolExecutor | None = None
    """As many threads as a call may take, each for small batches of its own; None where sharing a batch is faster."""

    def choice_for(self, tokens: int) -> Choice | None:
        """Return the choice for inputs of so many tokens; None where all threads are always faster."""
        index = tokens // _ALIKE
        return self.choices[index] if index < len(self.choices) else None

    @property
    def most_tokens(self) -> int:
        """The most tokens of an input for which one thread seems faster now, as every smaller number's."""
        classes = next((i for i, choice in enumerate(self.choices) if not choice.alone), len(self.choices))
        return max(classes * _ALIKE - 1, 0)


def fitted(
    shared: ort.InferenceSession,
    alone: ort.InferenceSession,
    feeds_of: Callable[[int], Feeds],
    limits: tuple[int, int],
    *,
    many: bool = True,
    clock: Clock = time.perf_counter,
) -> OneThread | None:
    """Time two sessions of one model in turn, on ever longer inputs and on many rows.

    None where one thread is far from paying. No length is timed after the first for which one thread is slower.

    Args:
        shared: the session on all threads.
        alone: the session on one.
        feeds_of: makes one row of so many tokens.
        limits: the most tokens of a row, and all threads.
        many: whether many rows are timed too.
        clock: for tests.
    """
    longest, threads = limits
    ratios: list[float] = []
    choices: list[Choice] = []
    for length in _LENGTHS:
        feeds = feeds_of(min(length, longest))
        ratios.append(_ratio(partial(shared.run, None, feeds), partial(alone.run, None, feeds), clock))
        choices += [Choice(ratios[-1]) for _ in range(len(choices) * _ALIKE, 4 * length // 3, _ALIKE)]
        if ratios[-1] <= 1 or length >= longest:
            break
    pool = _pool(shared, alone, feeds_of(min(_TOKENS_OF_MANY, longest)), threads, clock) if many else None
    return OneThread(alone, tuple(choices), pool) if pool or ratios[0] > 1 or _are_close(ratios[0]) else None


def _pool(
    shared: ort.InferenceSession, alone: ort.InferenceSession, row: Feeds, threads: int, clock: Clock
) -> ThreadPoolExecutor | None:
    """Return a pool where small batches, one a thread, are faster than one that is shared."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="batch")
    part, whole = (_rows(row, count) for count in (ROWS_TOGETHER, ROWS_TOGETHER * threads))
    apart = partial(side_by_side, pool, partial(alone.run, None), [part] * threads)
    if _ratio(partial(shared.run, None, whole), apart, clock) > 1:
        return pool
    pool.shutdown()
    return None


def side_by_side(pool: ThreadPoolExecutor, run: Callable[[Any], Any], batches: Sequence[Any]) -> list[Any]:
    """Run batches on the threads of a pool, each as soon as a thread is free; answers are in the order given."""
    return list(pool.map(run, batches))


def tokens_of(feeds: Mapping[str, Any]) -> int:
    """Count the tokens of an input, padding included."""
    return int(next(iter(feeds.values())).size)


def _are_close(ratio: float) -> bool:
    return max(ratio, 1 / ratio) < _CLOSE


def _ratio(one: Callable[[], object], other: Callable[[], object], clock: Clock) -> float:
    """Time two calls in turn; return how many times as long the first takes, the median over the turns."""
    found = []
    for _ in range(_TURNS):
        taken = [_seconds(call, clock) for call in (one, other)]
        found.append(taken[0] / taken[1])
    return median(found)


def _seconds(call: Callable[[], object], clock: Clock) -> float:
    """Return the median seconds of one turn's calls."""
    call()
    taken = []
    for _ in range(_CALLS):
        started = clock()
        call()
        taken.append(clock() - started)
    return median(taken)


def _rows(row: Feeds, count: int) -> Feeds:
    return {name: np.repeat(value, count, axis=0) for name, value in row.items()}
