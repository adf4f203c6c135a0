"""Systems that answer rows, timed in turn: one row a call, or many rows a pass.

N calls or passes
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.check import latency
from deploykit.check.latency import Milliseconds, Rounds
from deploykit.data import Split
from deploykit.runtime.model import Model

Row = Mapping[str, Any]
Predict = Callable[[Sequence[Row]], object]
"""Answer rows, start to end."""
UNTIMED = 5
"""Calls of one row that begin a turn where systems are compared. Right after another system's calls a small one finds
the processor's caches full of that, which nobody who serves one model meets: its first five take 1.6 times as long as
later ones (three narrow layers, AMX)."""
TURN = 10
"""Timed calls of one row after them, before another system has its turn."""


def shuffled(split: Split, seed: int) -> list[Row]:
    """Draw an order of the rows, so that their lengths come as they do in use."""
    return [split.rows[index] for index in np.random.default_rng(seed).permutation(len(split.rows))]


def opened(folder: Path, split: Split, threads: int | None) -> Model:
    """Load an exported model and check that it can answer every row.

    Raises:
        DataError: it cannot.
    """
    model = Model.open(folder, threads=threads)
    for index, row in enumerate(split.rows):
        model.task.check(row, split.where(index))
    return model


def single(systems: Mapping[str, Predict], rows: Sequence[Row], rounds: Rounds) -> dict[str, Milliseconds]:
    """Time systems in turn on one row a call: milliseconds (N) each."""
    return latency.interleaved({name: _on_one(predict, rows) for name, predict in systems.items()}, rounds)


def means_of_turns(systems: Mapping[str, Predict], rows: Sequence[Row], rounds: Rounds) -> dict[str, Milliseconds]:
    """Time systems in turn on one row a call: milliseconds a row (N turns) each. The turns must be whole."""
    found = single(systems, rows, rounds)
    return {name: samples.reshape(-1, rounds.turn).mean(axis=1) for name, samples in found.items()}


def offline(systems: Mapping[str, Predict], rows: Sequence[Row], rounds: Rounds) -> dict[str, Milliseconds]:
    """Time systems in turn on all rows a pass: milliseconds a row (N) each."""
    calls = {name: _on_all(predict, rows) for name, predict in systems.items()}
    return {name: samples_N / len(rows) for name, samples_N in latency.interleaved(calls, rounds).items()}


def _on_one(predict: Predict, rows: Sequence[Row]) -> latency.Call:
    return lambda index: predict([rows[index % len(rows)]])


def _on_all(predict: Predict, rows: Sequence[Row]) -> latency.Call:
    return lambda _: predict(rows)
