"""One judged quantity of a report, with its interval. Pure."""

import math
from dataclasses import dataclass

from deploykit.evidence import Better, Gate, Verdict


@dataclass(frozen=True)
class Finding:
    """A gate of the report and the 95% interval of its value, where one was computed."""

    gate: Gate
    low: float | None = None
    high: float | None = None


def unknown(name: str, budget: float, reason: str, better: Better = "lower") -> Finding:
    """Say that a quantity could not be judged, and why. Its value is not a number."""
    return Finding(Gate(name, math.nan, budget, better, "inconclusive", reason))


def within(low: float | None, high: float | None, budget: float) -> Verdict:
    """Judge a quantity that may be at most `budget` by its whole interval: what straddles it is inconclusive."""
    if low is not None and low > budget:
        return "fail"
    return "pass" if high is not None and high <= budget else "inconclusive"
