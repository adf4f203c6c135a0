"""Whether the head lost more of the task's metric than its budget, on every data set that either side was judged on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploykit.evidence import Gate, Verdict
from deploykit.report import wording
from deploykit.report.collect import Piece, Side, predictions
from deploykit.report.finding import Finding, unknown
from deploykit.report.paired import paired_drop
from deploykit.report.settings import ReportSettings


@dataclass(frozen=True)
class Loss:
    """How much of a metric was lost, with its 95% interval where the rows were paired."""

    metric: str
    before: float
    after: float
    low: float | None = None
    high: float | None = None

    @property
    def value(self) -> float:
        """Positive where something was lost."""
        return self.before - self.after


@dataclass(frozen=True)
class Quality:
    """One data set's comparison: the head's validation and the baseline's, where they are there."""

    finding: Finding
    head: Piece | None = None
    base: Piece | None = None
    drop: Loss | None = None


def compare_accuracy(head: Side, base: Side, settings: ReportSettings) -> list[Quality]:
    """Compare on every data set and split; at least one entry."""
    found = [_compare(piece, base, settings.max_drop) for piece in head.validations]
    judged = {piece.topic for piece in head.validations}
    for piece in base.validations:
        if piece.topic not in judged:
            reason = f"The head was not validated on {data_name(piece)}, as the baseline was."
            found.append(Quality(unknown(_name(piece), settings.max_drop, reason), base=piece))
    if not found:
        reason = f"There is no accuracy evidence in {head.root.name} or {base.root.name}."
        found.append(Quality(unknown("accuracy", settings.max_drop, reason)))
    return found


def accuracy_of(piece: Piece) -> Mapping[str, Any]:
    """Return what a validation found on accuracy; empty where it measured none."""
    table: Mapping[str, Any] = piece.evidence.details.get("accuracy") or {}
    return table


def data_name(piece: Piece) -> str:
    """Name the data and split of a piece."""
    name = piece.evidence.data.name if piece.evidence.data else "unnamed data"
    return f"{name} ({piece.evidence.split})" if piece.evidence.split else name


def _compare(piece: Piece, base: Side, max_drop: float) -> Quality:
    other = base.validated_on(piece.topic)
    drop = _drop(piece, other, base)
    if isinstance(drop, str):
        return Quality(unknown(_name(piece), max_drop, drop), piece, other)
    return Quality(_judge(_name(piece), drop, max_drop), piece, other, drop)


def _drop(piece: Piece, other: Piece | None, base: Side) -> Loss | str:
    """Measure the loss against the baseline, or say in a sentence why it cannot be told."""
    table, reference = accuracy_of(piece), piece.evidence.reference
    if not table or table["candidate"] is None:
        return f"The head's validation on {data_name(piece)} measured no accuracy."
    if other is None and reference is not None and reference.digest in base.models:
        return Loss(table["metric"], table["reference"], table["candidate"], table["low"], table["high"])
    if other is None:
        return f"The baseline was not validated on {data_name(piece)}: scores on other texts cannot be compared."
    against = accuracy_of(other)
    if not against or against["candidate"] is None or against["metric"] != table["metric"]:
        return f"The baseline's validation on {data_name(piece)} holds no {table['metric']}."
    before, after = against["candidate"], table["candidate"]
    paired = paired_drop(table["metric"], predictions(piece), predictions(other), (after, before))
    ends = (paired.low, paired.high) if paired else (None, None)
    return Loss(table["metric"], before, after, *ends)


def _judge(name: str, drop: Loss, max_drop: float) -> Finding:
    verdict = _verdict(drop, max_drop)
    ends = wording.interval(drop.low, drop.high, wording.points)
    numbers = f"{drop.metric} {wording.score(drop.after)} against {wording.score(drop.before)}"
    moved = f"{wording.unsigned_points(abs(drop.value))} points {'lost' if drop.value >= 0 else 'gained'}"
    interval = f" (95% interval of the loss: {ends})" if ends else ""
    reason = f"{numbers}: {moved}{interval}. {_because(drop, verdict, max_drop)}"
    return Finding(Gate(name, drop.value, max_drop, "lower", verdict, reason), drop.low, drop.high)


def _because(drop: Loss, verdict: Verdict, max_drop: float) -> str:
    budget = f"the budget ({wording.unsigned_points(max_drop)} points)"
    if verdict == "fail":
        return f"Beyond {budget}."
    doubt = drop.high is not None and drop.high > max_drop
    return f"Within {budget}{', though so few rows cannot rule out a larger loss' if doubt else ''}."


def _verdict(drop: Loss, max_drop: float) -> Verdict:
    return "fail" if drop.value > max_drop + 1e-12 else "pass"


def _name(piece: Piece) -> str:
    metric = accuracy_of(piece).get("metric", "accuracy")
    return f"{metric} on {data_name(piece)}"
