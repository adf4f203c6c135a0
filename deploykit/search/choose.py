"""What to keep of the recipes that were tried, and which one to take. Pure.

A budget is met by points within `max_drop` and, where one is given, `target_ms`. A drop is within where its one-sided
95% bound is, rows resampled in pairs (the bound of `validate.require_significance`), and not the drop alone: the
fastest of many trials is easily one whose validation rows were kind to it. With as many rows to confirm on, a choice at
the very bound is within `max_drop` there in 88 of 100 cases, Phi(1.645 / sqrt 2); one taken by its drop in 50.
Without a target the fastest such point is the best; with one, the most accurate: speed beyond the target buys nothing.
Where no point meets the budget, the nearest one is named: accuracy comes first.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploykit.check.statistics import Interval

_ROUNDING = 1e-12
"""A drop of exactly the budget is within it, whatever the last bit of a float says; as `check.accuracy`."""


@dataclass(frozen=True)
class Budget:
    """What may be lost, and how fast it must be."""

    max_drop: float
    """Of the task's primary metric against the original, absolute."""
    target_ms: float | None = None
    """The median latency of one row."""

    def excess(self, point: "Point") -> tuple[float, float]:
        """Return how far a point is beyond the budget, 0 where it is not: the drop's bound, then milliseconds."""
        lost = point.drop_upper - self.max_drop
        slow = point.ms - self.target_ms if self.target_ms is not None else 0.0
        return lost if lost > _ROUNDING else 0.0, max(0.0, slow)

    def lost(self, point: "Point") -> bool:
        """Tell whether the drop itself, and not its bound alone, is beyond the budget."""
        return point.drop - self.max_drop > _ROUNDING

    def met(self, point: "Point") -> bool:
        """Tell whether a point is within the budget."""
        return self.excess(point) == (0.0, 0.0)


@dataclass(frozen=True)
class Point:
    """One tried recipe: what it gave on the validation rows."""

    trial: int
    metric: float
    drop: float
    """The original's metric less this one."""
    drop_upper: float
    """The one-sided 95% bound: the true drop is below this."""
    ms: float
    """Median latency of one row."""
    num_bytes: int

    @property
    def measured(self) -> bool:
        """Whether every number is one."""
        return all(math.isfinite(value) for value in (self.metric, self.drop, self.drop_upper, self.ms, self.num_bytes))


def dominates(one: Point, other: Point) -> bool:
    """Tell whether a point is nowhere worse than another and somewhere better: metric, latency, size."""
    mine, theirs = _costs(one), _costs(other)
    return mine != theirs and all(left <= right for left, right in zip(mine, theirs, strict=True))


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other dominates, fastest first; those that are not measured are left out."""
    measured = [point for point in points if point.measured]
    kept = [point for point in measured if not any(dominates(other, point) for other in measured)]
    return sorted(kept, key=lambda point: (point.ms, point.trial))


def ranked(points: Sequence[Point], budget: Budget) -> list[Point]:
    """Order points from the best to the worst under a budget; those that are not measured are left out."""

    def key(point: Point) -> tuple[float, ...]:
        wanted = (point.ms, -point.metric) if budget.target_ms is None else (-point.metric, point.ms)
        return *budget.excess(point), *wanted, point.num_bytes, point.trial

    return sorted((point for point in points if point.measured), key=key)


def candidates(points: Sequence[Point], budget: Budget) -> list[Point]:
    """Return the front of the points within `max_drop`, which a dominated one is on where those before it are not."""
    return front([point for point in points if budget.excess(point)[0] == 0])


def finalists(points: Sequence[Point], budget: Budget, count: int) -> list[Point]:
    """Return the few to be measured again: of the candidates the best first, or the nearest where there is none."""
    return ranked(candidates(points, budget), budget)[:count] or ranked(points, budget)[:1]


def chosen(final: Sequence[Point], paces: Mapping[int, Interval], budget: Budget) -> Point:
    """Choose among finalists that were measured together.

    The fastest is taken only where it can be told from the others: of those that may be as fast, the most accurate.

    Args:
        final: at least one; their latencies from one interleaved run.
        paces: by trial, its time over that of the best of `ranked(final, budget)`, with the 95% interval.
        budget: what may be lost, and how fast it must be.
    """
    best, *others = ranked(final, budget)
    if budget.target_ms is not None or not budget.met(best):
        return best
    close = [point for point in others if budget.met(point) and _may_be_as_fast(paces[point.trial])]
    return max([best, *close], key=lambda point: (point.metric, -point.ms))


def _may_be_as_fast(pace: Interval) -> bool:
    return pace.low is None or pace.low <= 1.0


def _costs(point: Point) -> tuple[float, float, float]:
    return -point.metric, point.ms, point.num_bytes
