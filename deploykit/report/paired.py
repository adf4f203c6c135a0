"""How sure a loss is, from both models' predictions on the same rows. Pure.

N rows   K additive statistics of a row
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from deploykit.check.statistics import Drop, Floats, metric_drop
from deploykit.runtime.token_classification import entities_of

Row = Mapping[str, Any]
"""A line of a validation's `predictions.jsonl`: `label`, `reference` and `candidate`, a name or a list of tags."""


def paired_drop(metric: str, head: Sequence[Row], base: Sequence[Row], values: tuple[float, float]) -> Drop | None:
    """Bound how much of a metric the head lost against the baseline, by resampling rows in pairs.

    Args:
        metric: its name.
        head: the head's predictions.
        base: the baseline's.
        values: the metric of both as their evidence has it.

    Returns:
        None where it cannot be told: the rows do not pair up, or the metric is not one that they give again.
    """
    if metric not in _METRICS or not head or [row["label"] for row in head] != [row["label"] for row in base]:
        return None
    counted, statistic = _METRICS[metric]
    head_NK, base_NK = (np.array([counted(row) for row in rows], np.float64) for rows in (head, base))
    again = [float(statistic(stats_NK.sum(axis=0))) for stats_NK in (head_NK, base_NK)]
    if not all(math.isclose(*pair, abs_tol=1e-9) for pair in zip(again, values, strict=True)):
        return None
    return metric_drop(base_NK, head_NK, statistic)


def _right(row: Row) -> tuple[int, ...]:
    return int(row["candidate"] == row["label"]), 1


def _share(sums: Floats) -> Floats:
    return np.asarray(sums[..., 0] / sums[..., 1])


def _entities(row: Row) -> tuple[int, ...]:
    """Count entities found rightly, found at all, and there."""
    there, found = set(entities_of(row["label"])), set(entities_of(row["candidate"]))
    return len(there & found), len(found), len(there)


def _f1(sums: Floats) -> Floats:
    return np.asarray(2 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1))


_METRICS: Mapping[str, tuple[Callable[[Row], tuple[int, ...]], Callable[[Floats], Floats]]] = {
    "accuracy": (_right, _share),
    "entity_f1": (_entities, _f1),
}
"""Metric to the statistics of a row, and what it is of their sums."""
