"""Time several systems side by side, so that what disturbs the machine disturbs all of them alike.

Systems take turns, in an order drawn anew for every turn, each over the same few batches. A turn begins with a pause,
in which threads of the system before it (ONNX Runtime's and OpenMP's wait busily for some milliseconds) come to rest,
and with untimed rows, after which the caches hold its weights and its code again, as they do in a process that serves
one model. With AMX, three narrow layers answer the first rows of a turn in 1.31, 0.74, 0.62, 0.56, 0.50 and 0.47 ms,
and those that follow in 0.46; PyTorch, eager, in 12.4, 9.7, 9.1, 9.2, 9.3 and 9.0, and in 8.7.

    B batches
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from benchmarks.systems import Logits, Row, System
from deploykit.check.closed_loop import UNTIMED
from deploykit.check.latency import Clock
from deploykit.check.statistics import CONFIDENCE, REPETITIONS, Interval

PAUSE_S = 0.02

Seconds = Sequence[float]
Batch = Sequence[int]
"""Indices of rows."""


@dataclass
class Samples:
    """What one system took for each batch, in seconds, and what it answered."""

    total_s: list[float] = field(default_factory=list)
    """Tokenizing, running and decoding."""
    model_s: list[float] = field(default_factory=list)
    """Padding and running."""
    logits: dict[int, Logits] = field(default_factory=dict)
    """By row index."""


@dataclass(frozen=True)
class Schedule:
    """What is timed, and in what turns."""

    rows: Sequence[Row]
    batches: Sequence[Batch]
    turn: int
    """How many batches a system runs before the next one's turn."""
    seed: int = 0
    pause_s: float = PAUSE_S


def interleave(systems: Sequence[System], schedule: Schedule, clock: Clock = time.perf_counter) -> dict[str, Samples]:
    """Time every batch once on every system, and return the samples by the system's name."""
    samples = {system.name: Samples() for system in systems}
    rng = random.Random(schedule.seed)  # noqa: S311 - an order, not a secret
    for start in range(0, len(schedule.batches), schedule.turn):
        batches = schedule.batches[start : start + schedule.turn]
        for system in rng.sample(systems, len(systems)):
            time.sleep(schedule.pause_s)
            for before in range(start - UNTIMED, start):  # the first of each batch before, not what is timed next
                _time(system, schedule.rows, schedule.batches[before % len(schedule.batches)][:1], clock, Samples())
            for batch in batches:
                _time(system, schedule.rows, batch, clock, samples[system.name])
    return samples


def warm_up(system: System, rows: Sequence[Row], batches: Sequence[Batch]) -> None:
    """Answer one batch of every padded shape: compilers and caches by shape have then done their work."""
    seen = set()
    for batch in batches:
        asked = [rows[index] for index in batch]
        encodings = system.encode(asked)
        shape = (len(encodings), max(len(encoding.ids) for encoding in encodings))
        if shape not in seen:
            seen.add(shape)
            system.decode(system.run(encodings), encodings, asked)


def total(seconds: Seconds) -> Interval:
    """Add up batches, with a bootstrap interval; one batch alone bounds nothing."""
    if len(seconds) == 1:
        return Interval(seconds[0], None, None)
    found = stats.bootstrap(
        (seconds,), np.sum, n_resamples=REPETITIONS, confidence_level=CONFIDENCE, method="percentile", rng=0
    ).confidence_interval
    return Interval(sum(seconds), float(found.low), float(found.high))


def _time(system: System, rows: Sequence[Row], batch: Batch, clock: Clock, samples: Samples) -> None:
    asked = [rows[index] for index in batch]
    started = clock()
    encodings = system.encode(asked)
    before = clock()
    logits = system.run(encodings)
    after = clock()
    system.decode(logits, encodings, asked)
    samples.total_s.append(clock() - started)
    samples.model_s.append(after - before)
    samples.logits.update(zip(batch, logits, strict=True))
