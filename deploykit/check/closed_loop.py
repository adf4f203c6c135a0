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


def single_in_turns(
    systems: Mapping[str, Predict], rows: Sequence[Row], rounds: Rounds, turn: int
) -> dict[str, Milliseconds]:
    """Time systems in turn on `turn` rows, one row a call: milliseconds a row (N) each.

    Where a slow system takes part, a small one's calls right after its own find the processor's caches full of it,
    which nobody who serves one model meets: the first five take 1.6 times as long as later ones (three narrow layers,
    AMX). So `rounds` should have an untimed turn.
    """
    calls = {name: turn_of(predict, rows, turn) for name, predict in systems.items()}
    return {name: samples_N / turn for name, samples_N in latency.interleaved(calls, rounds).items()}


def offline(systems: Mapping[str, Predict], rows: Sequence[Row], rounds: Rounds) -> dict[str, Milliseconds]:
    """Time systems in turn on all rows a pass: milliseconds a row (N) each."""
    calls = {name: _on_all(predict, rows) for name, predict in systems.items()}
    return {name: samples_N / len(rows) for name, samples_N in latency.interleaved(calls, rounds).items()}


def _on_one(predict: Predict, rows: Sequence[Row]) -> latency.Call:
    return lambda index: predict([rows[index % len(rows)]])


def turn_of(predict: Predict, rows: Sequence[Row], turn: int) -> latency.Call:
    """Answer the next `turn` rows, one row a call."""

    def answered(index: int) -> None:
        for place in range(index * turn, (index + 1) * turn):
            predict([rows[place % len(rows)]])

    return answered


def _on_all(predict: Predict, rows: Sequence[Row]) -> latency.Call:
    return lambda _: predict(rows)
