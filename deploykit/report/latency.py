"""Whether the head is slower than the baseline, scenario by scenario and percentile by percentile.

Two ways to know, the better one first: both models measured in turn in one run (`interleaved`), or
two runs under the same conditions (`separate`). Anything else is inconclusive, never a number.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from deploykit.check.ratio import percentile as percentile_of
from deploykit.check.ratio import ratio_of_independent, ratio_of_interleaved, samples_needed
from deploykit.check.statistics import Floats, Interval
from deploykit.evidence import Gate, Verdict
from deploykit.report import wording
from deploykit.report.collect import Piece, Side, samples
from deploykit.report.finding import Finding, unknown, within
from deploykit.report.settings import ReportSettings

OFFLINE = "offline"
"""Its samples are milliseconds a row, and throughput is what is judged."""
PERCENTILES = (50, 90, 95, 99)
Method = Literal["interleaved", "separate"]


@dataclass(frozen=True)
class Measured:
    """Raw samples of both sides in one scenario, and how they were taken."""

    method: Method
    head: Floats
    base: Floats
    systems: Mapping[str, Mapping[str, Any]]
    """`head` and `baseline`: what the evidence says of each, for display."""
    null_ms: float | None = None


@dataclass(frozen=True)
class Scenario:
    """The comparison in one scenario; without `measured`, the finding says why there is none."""

    name: str
    findings: tuple[Finding, ...]
    ratios: Mapping[int, Interval] = field(default_factory=dict)
    """Percentile to head time / baseline time."""
    judged: tuple[int, ...] = ()
    """The percentiles that `findings` judge, in that order."""
    measured: Measured | None = None
    own: Mapping[str, Any] = field(default_factory=dict)
    """What the head's evidence says of the head alone, where there is no comparison."""


def compare_latency(head: Side, base: Side, settings: ReportSettings) -> list[Scenario]:
    """Compare every scenario that either side has; at least one entry."""
    names = sorted({*head.scenarios(), *base.scenarios()}, key=_order)
    if not names:
        reason = f"There is no latency evidence in {head.root.name} or {base.root.name}."
        return [Scenario("latency", (unknown("latency", 1 + settings.max_slowdown, reason),))]
    return [_compare(name, head, base, settings) for name in names]


def _order(name: str) -> tuple[int, str]:
    known = list(wording.SCENARIOS)
    return (known.index(name) if name in known else len(known), name)


def _compare(name: str, head: Side, base: Side, settings: ReportSettings) -> Scenario:
    measured = _measured(name, head, base)
    if isinstance(measured, str):
        return Scenario(name, (unknown(f"{name} latency", 1 + settings.max_slowdown, measured),), own=_own(name, head))
    shown, judged = ((50,), (50,)) if name == OFFLINE else (PERCENTILES, settings.percentiles)
    compare = ratio_of_interleaved if measured.method == "interleaved" else ratio_of_independent
    ratios = {q: compare(measured.head, measured.base, q / 100) for q in sorted({*shown, *judged})}
    findings = tuple(_judge(name, q, ratios[q], measured, settings.max_slowdown) for q in judged)
    return Scenario(name, findings, ratios, judged, measured)


def _measured(name: str, head: Side, base: Side) -> Measured | str:
    """Pair the samples of both sides, or say in a sentence why they cannot be compared."""
    piece = head.with_scenario(name)
    if piece is None:
        return f"The head was not measured in the scenario {name}."
    reference = piece.evidence.reference
    if reference is not None and reference.digest in base.models:
        return _interleaved(name, piece)
    other = base.with_scenario(name)
    if other is None:
        return f"The baseline was not measured in the scenario {name}, neither by itself nor in turn with the head."
    return _conditions_differ(piece, other) or _separate(name, piece, other)


def _conditions_differ(head: Piece, base: Piece) -> str:
    """Say in a sentence why two runs cannot be compared; empty where they can."""
    if head.evidence.environment_key != base.evidence.environment_key:
        return (
            "The two were measured under different conditions (another machine, or another version of ONNX Runtime), "
            "so their times cannot be compared; measure both here with bench --against."
        )
    if head.topic != base.topic:
        return "The two were measured on different texts, so their times cannot be compared."
    ours, theirs = (_load_of(piece) for piece in (head, base))
    changed = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
    return f"The two were measured with different settings ({', '.join(changed)})." if changed else ""


def _load_of(piece: Piece) -> dict[str, Any]:
    """Return the settings that decide what was asked of a model: not which scenarios, nor at which address."""
    settings = piece.settings.get("settings", piece.settings)
    return {name: value for name, value in settings.items() if name not in ("scenarios", "url")}


def _own(name: str, head: Side) -> Mapping[str, Any]:
    piece = head.with_scenario(name)
    own: Mapping[str, Any] = piece.evidence.details["scenarios"][name]["systems"]["head"] if piece else {}
    return own


def _interleaved(name: str, piece: Piece) -> Measured | str:
    head, against = samples(piece, name, "head"), samples(piece, name, "against")
    if head is None or against is None or not len(head) or len(head) != len(against):
        return f"The raw samples of the scenario {name} are missing or do not pair up."
    table = piece.evidence.details["scenarios"][name]
    systems = {"head": table["systems"]["head"], "baseline": table["systems"]["against"]}
    return Measured("interleaved", head, against, systems, table.get("null_ms"))


def _separate(name: str, piece: Piece, other: Piece) -> Measured | str:
    head, base = samples(piece, name, "head"), samples(other, name, "head")
    if head is None or base is None or not len(head) or not len(base):
        return f"The raw samples of the scenario {name} are missing."
    tables = [found.evidence.details["scenarios"][name] for found in (piece, other)]
    systems = {"head": tables[0]["systems"]["head"], "baseline": tables[1]["systems"]["head"]}
    return Measured("separate", head, base, systems, tables[0].get("null_ms"))


def _judge(name: str, percentile: int, found: Interval, measured: Measured, max_slowdown: float) -> Finding:
    verdict = within(found.low, found.high, 1 + max_slowdown)
    what = "throughput" if name == OFFLINE else f"p{percentile}"
    reason = (
        f"{_numbers(name, percentile, found, measured)} {_because(percentile, found, measured, verdict, max_slowdown)}"
    )
    return Finding(
        Gate(f"{name} {what}", found.value, 1 + max_slowdown, "lower", verdict, reason), found.low, found.high
    )


def _numbers(name: str, percentile: int, found: Interval, measured: Measured) -> str:
    head, base = (percentile_of(samples_N, percentile / 100) for samples_N in (measured.head, measured.base))
    write = wording.rows_per_second if name == OFFLINE else wording.milliseconds
    ends = wording.pace_interval(found.low, found.high)
    return (
        f"{write(head)} against {write(base)}: {wording.pace(found.value)}{f' (95% interval: {ends})' if ends else ''}."
    )


def _because(percentile: int, found: Interval, measured: Measured, verdict: Verdict, max_slowdown: float) -> str:
    budget = f"the budget of {wording.percent(max_slowdown)} slower"
    if verdict == "pass":
        return f"Within {budget}."
    if verdict == "fail":
        return f"Beyond {budget}."
    size, needed = min(len(measured.head), len(measured.base)), samples_needed(percentile / 100)
    if found.high is None and size >= needed:
        return "Too many requests were never answered by either."
    if found.high is None:
        return f"{size} samples cannot bound this percentile; {needed} are needed."
    return f"The interval reaches across {budget}: more samples, or a quieter machine, are needed to tell."
