"""Timing of callables. It knows nothing of models, and its clock can be replaced.

Times are milliseconds. A round calls every system once, with the same work, and systems take turns of one or more
rounds, in an order drawn anew, so that what changes on the machine changes for all of them.

    N calls
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.check.statistics import Interval, percentile

Clock = Callable[[], float]
"""Seconds from any fixed point."""
Call = Callable[[int], object]
"""Do the work of round i, start to end."""
Milliseconds = NDArray[np.float64]

PERCENTILES = (50, 90, 95, 99)
LEAST_ROUNDS = 6
"""Fewer samples cannot bound a median on both sides: all six lie above it once in 64 times."""
NULL = "null"
"""The name of the system that does nothing: what it takes is the harness's own cost."""


@dataclass(frozen=True)
class Rounds:
    """How often to call."""

    count: int
    warm_up: int
    """Rounds before the first that counts."""
    seconds: float
    """No turn starts later than this after the first that counts, but for the first `LEAST_ROUNDS` turns."""
    seed: int = 0
    untimed: int = 0
    """Calls at the beginning of a turn, or a system would find the processor's caches full of another one; with the
    numbers of the rounds before, so that nothing is timed that was just answered."""
    turn: int = 1
    """Rounds of a turn: so many timed calls a system makes, one after the other."""


@dataclass(frozen=True)
class AsyncClock:
    """Time for open loops: now, in seconds, and a way to wait."""

    now: Clock
    sleep: Callable[[float], Awaitable[None]]


WALL = AsyncClock(time.perf_counter, asyncio.sleep)


def interleaved(
    calls: Mapping[str, Call], rounds: Rounds, *, clock: Clock = time.perf_counter
) -> dict[str, Milliseconds]:
    """Time systems in turn, in a closed loop: a call starts when the last one has ended.

    `calls` are named; each gets the number of the round, warm-up rounds from 0 too; untimed calls below 0 at first.

    Returns:
        per system (N): sample i of every system comes from the same round.
    """
    generator = np.random.default_rng(rounds.seed)
    names = list(calls)
    for index in range(rounds.warm_up):
        for name in names:
            calls[name](index)
    samples: dict[str, list[float]] = {name: [] for name in names}
    first = clock()
    for start in range(0, rounds.count, rounds.turn):
        if start >= LEAST_ROUNDS * rounds.turn and clock() - first > rounds.seconds:
            break
        for name in generator.permutation(names).tolist():
            for before in range(start - rounds.untimed, start):
                calls[name](before)
            for index in range(start, min(start + rounds.turn, rounds.count)):
                started = clock()
                calls[name](index)
                samples[name].append((clock() - started) * 1e3)
    return {name: np.array(values) for name, values in samples.items()}


def poisson_arrivals(rate_per_s: float, count: int, seed: int) -> NDArray[np.float64]:
    """Draw when requests arrive at random: seconds from the start, rising (N)."""
    gaps_N = np.random.default_rng(seed).exponential(1 / rate_per_s, count)
    return np.cumsum(gaps_N)


async def open_loop(
    call: Callable[[int], Awaitable[bool]],
    arrivals_s_N: Sequence[float] | NDArray[np.float64],
    clock: AsyncClock = WALL,
) -> Milliseconds:
    """Send requests when they arrive, whether or not the last ones are answered.

    A latency counts from the scheduled arrival, so that a stall of the server, or of this client, is in every request
    it held up (no coordinated omission). A request that failed was never answered: its latency is infinite.

    Args:
        call: send request i; tells whether it was answered.
        arrivals_s_N: when each request arrives, in seconds from the start.
        clock: for tests.
    """
    latencies_N = np.full(len(arrivals_s_N), np.inf)
    start = clock.now()

    async def one(index: int) -> None:
        if await call(index):
            latencies_N[index] = (clock.now() - start - float(arrivals_s_N[index])) * 1e3

    async with asyncio.TaskGroup() as tasks:
        for index, arrival in enumerate(arrivals_s_N):
            if (wait := start + float(arrival) - clock.now()) > 0:
                await clock.sleep(wait)
            tasks.create_task(one(index))
    return latencies_N


def summary(samples_N: Milliseconds) -> dict[str, Any]:
    """Summarize: `p50_ms`, `p50_ms_low`, `p50_ms_high` and so on, `mean_ms`, `n`; an open end is None."""
    found: dict[str, Any] = {}
    for name, interval in percentiles(samples_N).items():
        found |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return found | {"mean_ms": float(samples_N.mean()), "n": len(samples_N)}


def percentiles(samples_N: Milliseconds) -> dict[str, Interval]:
    """Return `p50_ms`, `p90_ms`, `p95_ms` and `p99_ms` with their intervals."""
    return {f"p{share}_ms": percentile(samples_N, share / 100) for share in PERCENTILES}
