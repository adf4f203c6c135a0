"""The thread count fitted to the work: short inputs run on one thread, where that is faster on this machine.

Threads that share a product must be woken for it, tens of microseconds an operator where they do not spin (see
`session`). A narrow model's products of a short text are over sooner: three layers of 192-wide attention and 384
neurons in int8 take 26 tokens 0.83 ms alone and 1.21 ms on two threads; six whole ones in float32 gain from the second
thread at 8 tokens. Up to which length is measured when a model is opened. Answers do not depend on it, bit for bit.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

MOST_BYTES = 64_000_000
"""Of weights: a second session costs as much memory again, and a model of more is not narrow."""

Feeds = Mapping[str, NDArray[np.int64]]
Clock = Callable[[], float]
"""Seconds from any fixed point."""

_SHORTEST, _LONGEST = 8, 128
"""Tokens of the inputs that are timed."""
_TURNS, _CALLS = 3, 3
"""Each session has so many turns at each length, of one untimed call and so many timed ones."""


@dataclass(frozen=True)
class OneThread:
    """A session on one thread, and how many tokens, padding included, it is faster for."""

    session: ort.InferenceSession
    most_tokens: int


def fitted(
    shared: ort.InferenceSession,
    alone: ort.InferenceSession,
    feeds_of: Callable[[int], Feeds],
    longest: int,
    clock: Clock = time.perf_counter,
) -> OneThread | None:
    """Time two sessions of one model in turn, on inputs of more and more tokens; None where one thread never pays.

    Args:
        shared: the session on all threads.
        alone: the session on one.
        feeds_of: makes an input of so many tokens.
        longest: the most tokens of an input.
        clock: for tests.
    """

    def saved_s(tokens: int) -> float:
        feeds = feeds_of(tokens)
        seconds: dict[ort.InferenceSession, list[float]] = {shared: [], alone: []}
        for _ in range(_TURNS):
            for session, found in seconds.items():
                session.run(None, feeds)
                for _ in range(_CALLS):
                    started = clock()
                    session.run(None, feeds)
                    found.append(clock() - started)
        return float(np.median(seconds[shared]) - np.median(seconds[alone]))

    most = break_even(saved_s, min(_SHORTEST, longest), min(_LONGEST, longest))
    return OneThread(alone, most) if most else None


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


def tokens_of(feeds: Mapping[str, Any]) -> int:
    """Count the tokens of an input, padding included."""
    return int(next(iter(feeds.values())).size)
