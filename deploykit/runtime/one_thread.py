"""The thread count fitted to the work: one thread for a short input, and for each of several small batches.

Threads that share a product must be woken for it, tens of microseconds an operator where they do not spin (see
`session`). A narrow model's products of a short text are over sooner: three layers of 192-wide attention and 384
neurons in int8 take 26 tokens 0.83 ms alone and 1.21 ms on two threads; six whole ones in float32 gain from the second
thread at 8 tokens. Answers do not depend on it, bit for bit.

Many rows are better cut into small batches of which every thread runs its own: nothing waits for another thread, and
what a batch of few rows computes stays in a core's cache. On two threads (AVX-512 with VNNI) that narrow model takes
250 us a row in batches of 32 shared between the threads, and 186 us in halves of them, one a thread; on one thread
alone, 474 us a row in batches of 32 and 380 in batches of 8 (another run, beside other work).

What holds on the machine at hand is measured when a model is opened.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
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

_SHORTEST, _LONGEST = 8, 128
"""Tokens of the inputs that are timed."""
_TURNS, _CALLS = 3, 3
"""Each session has so many turns at each length, of one untimed call and so many timed ones."""
_TOKENS_OF_MANY = 32
"""Of each of the rows with which small batches are timed."""


@dataclass(frozen=True)
class OneThread:
    """A session on one thread, and what it is faster for."""

    session: ort.InferenceSession
    most_tokens: int
    """Of one input, padding included."""
    pool: ThreadPoolExecutor | None = None
    """As many threads as a call may take, each for small batches of its own; None where sharing a batch is faster."""


def fitted(
    shared: ort.InferenceSession,
    alone: ort.InferenceSession,
    feeds_of: Callable[[int], Feeds],
    limits: tuple[int, int],
    *,
    many: bool = True,
    clock: Clock = time.perf_counter,
) -> OneThread | None:
    """Time two sessions of one model in turn, on ever longer inputs and on many rows; None where one never pays.

    Args:
        shared: the session on all threads.
        alone: the session on one.
        feeds_of: makes one row of so many tokens.
        limits: the most tokens of a row, and all threads.
        many: whether many rows are timed too.
        clock: for tests.
    """
    longest, threads = limits

    def saved_s(tokens: int) -> float:
        feeds = feeds_of(tokens)
        return _saved_s(partial(shared.run, None, feeds), partial(alone.run, None, feeds), clock)

    most = break_even(saved_s, min(_SHORTEST, longest), min(_LONGEST, longest))
    pool = _pool(shared, alone, feeds_of(min(_TOKENS_OF_MANY, longest)), threads, clock) if many else None
    return OneThread(alone, most, pool) if pool or most else None


def _pool(
    shared: ort.InferenceSession, alone: ort.InferenceSession, row: Feeds, threads: int, clock: Clock
) -> ThreadPoolExecutor | None:
    """Return a pool where small batches, one a thread, are faster than one that is shared."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="batch")
    part, whole = (_rows(row, count) for count in (ROWS_TOGETHER, ROWS_TOGETHER * threads))
    apart = partial(side_by_side, pool, partial(alone.run, None), [part] * threads)
    if _saved_s(partial(shared.run, None, whole), apart, clock) > 0:
        return pool
    pool.shutdown()
    return None


def break_even(saved: Callable[[int], float], shortest: int, longest: int) -> int:
    """Return the most tokens for which one thread is faster, by doubling; 0 where it is not even for the fewest.

    Args:
        saved: what one thread saves at so many tokens; negative where it costs.
        shortest: the fewest tokens that are asked about.
        longest: the most.
    """
    before, gain = 0, 0.0
    tokens = shortest
    while (found := saved(tokens)) > 0:
        if tokens == longest:
            return longest
        before, gain, tokens = tokens, found, min(2 * tokens, longest)
    return before + int((tokens - before) * gain / (gain - found)) if before else 0


def side_by_side(pool: ThreadPoolExecutor, run: Callable[[Any], Any], batches: Sequence[Any]) -> list[Any]:
    """Run batches on the threads of a pool, each as soon as a thread is free; answers are in the order given."""
    return list(pool.map(run, batches))


def tokens_of(feeds: Mapping[str, Any]) -> int:
    """Count the tokens of an input, padding included."""
    return int(next(iter(feeds.values())).size)


def _saved_s(one: Callable[[], object], other: Callable[[], object], clock: Clock) -> float:
    """Time two calls in turn; return by how much the other's median is less."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(_TURNS):
        for call, found in zip((one, other), seconds, strict=True):
            call()
            for _ in range(_CALLS):
                started = clock()
                call()
                found.append(clock() - started)
    return float(np.median(seconds[0]) - np.median(seconds[1]))


def _rows(row: Feeds, count: int) -> Feeds:
    return {name: np.repeat(value, count, axis=0) for name, value in row.items()}
