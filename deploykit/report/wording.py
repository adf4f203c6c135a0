"""Numbers as a person reads them. Pure."""

import math
from collections.abc import Mapping
from typing import Any

from deploykit.evidence import Verdict

UNKNOWN = "–"
"""Stands where there is no number."""

SCENARIOS = {
    "single": ("one request at a time", "batch 1, closed loop: the next request starts when the last one is answered"),
    "offline": ("bulk work", "as many rows as the machine can take, in length-sorted batches"),
    "server": (
        "under load",
        "open loop: requests arrive at random (Poisson) whether or not the last ones are answered",
    ),
}
_UNANSWERED = "never answered"
"""A request that failed, or was dropped, took for ever."""
_HEADLINES: dict[Verdict, str] = {
    "pass": "No regression",
    "fail": "Regression found",
    "inconclusive": "Could not tell",
}


def headline(verdict: Verdict) -> str:
    """Say a verdict in three words."""
    return _HEADLINES[verdict]


def scenario_title(name: str) -> str:
    """Name a latency scenario in plain words."""
    return f"{SCENARIOS[name][0]} ({name})" if name in SCENARIOS else name


def milliseconds(value: float | None) -> str:
    """Write a latency with three digits: 41.0 µs, 0.912 ms, 3.14 ms, 128 ms, 2.31 s."""
    if value is None:
        return UNKNOWN
    if math.isinf(value):
        return _UNANSWERED
    if value < 0.1:
        return f"{_three_digits(value * 1000)} µs"
    return f"{_three_digits(value / 1000)} s" if value >= 1000 else f"{_three_digits(value)} ms"


def rows_per_second(ms_a_row: float | None) -> str:
    """Write a throughput from the milliseconds that a row takes."""
    return per_second(1000 / ms_a_row if ms_a_row else None)


def per_second(value: float | None) -> str:
    """Write a throughput."""
    return UNKNOWN if value is None else f"{_three_digits(value)} rows/s"


def size(num_bytes: float | None) -> str:
    """Write a size in decimal units, as file managers do."""
    if num_bytes is None:
        return UNKNOWN
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= limit:
            return f"{_three_digits(num_bytes / limit)} {unit}"
    return f"{num_bytes:.0f} B"


def count(value: float | None) -> str:
    """Write a count: 812, 22.7 M."""
    if value is None:
        return UNKNOWN
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{_three_digits(value / (1000 if unit == 'k' else limit))} {unit}"
    return f"{value:.0f}"


def score(value: float | None) -> str:
    """Write a metric of a task, a share from 0 to 1."""
    return UNKNOWN if value is None else f"{value:.4f}"


def points(value: float | None) -> str:
    """Write a difference of two scores in percentage points, signed."""
    return UNKNOWN if value is None else f"{value * 100 + 0.0:+.2f}".replace("-", "−")


def unsigned_points(value: float | None) -> str:
    """Write a budget or an amount in percentage points."""
    return points(value).lstrip("+")


def share(value: float | None) -> str:
    """Write a share in percent."""
    return UNKNOWN if value is None else f"{value:.1%}"


def percent(value: float) -> str:
    """Write a budget as it was given: 5%, 2.5%."""
    return f"{value * 100:g}%"


def interval(low: float | None, high: float | None, write: Any) -> str:
    """Write an interval with `write`, or nothing where one end is unknown."""
    return "" if low is None or high is None else f"{write(low)} to {write(high)}"


def pace(ratio: float | None) -> str:
    """Say how a time compares with another, from head time / baseline time."""
    if ratio is None or math.isnan(ratio):
        return UNKNOWN
    if math.isinf(ratio):
        return _UNANSWERED
    if ratio < 0.8:
        return f"{_three_digits(1 / ratio)}× faster"
    if ratio >= 2:
        return f"{_three_digits(ratio)}× slower"
    return _share(ratio - 1, "slower", "faster")


def ratio(value: float | None) -> str:
    """Write a ratio."""
    return UNKNOWN if value is None else _three_digits(value)


def speedup(found: Mapping[str, float | None]) -> str:
    """Write how many times faster, with its interval."""
    ends = interval(found["low"], found["high"], ratio)
    return f"{ratio(found['value'])}×" + (f" ({ends})" if ends else "")


def pace_interval(low: float | None, high: float | None) -> str:
    """Say an interval of head time / baseline time, nothing where an end is unknown."""
    if low is None or high is None:
        return ""
    ends = [pace(high), pace(low)] if high < 1 else [pace(low), pace(high)]
    if ends[0] == ends[1]:
        return ends[0]
    units = [end.lstrip("0123456789.,") for end in ends]
    return f"{ends[0].removesuffix(units[0])} to {ends[1]}" if units[0] == units[1] else " to ".join(ends)


def growth(ratio: float | None) -> str:
    """Say how a size compares with another, from head / baseline."""
    if ratio is None:
        return UNKNOWN
    return f"{_three_digits(1 / ratio)}× smaller" if 0 < ratio < 0.8 else _share(ratio - 1, "larger", "smaller")


def _share(change: float, more: str, less: str) -> str:
    percent = f"{abs(change) * 100:.1f}%"
    if percent == "0.0%":
        return "the same"
    return f"{percent} {more if change > 0 else less}"


def _three_digits(value: float) -> str:
    """Write a number with three significant digits and no exponent."""
    if value == 0:
        return "0"
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}" if abs(value) >= 0.9995 else f"{value:.3f}"
