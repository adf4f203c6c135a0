"""Every judgement of a report: latency, accuracy, size, and whether the head's own evidence passed."""

from dataclasses import dataclass

from deploykit.evidence import Gate, Verdict
from deploykit.report import wording
from deploykit.report.accuracy import Quality, compare_accuracy, data_name
from deploykit.report.collect import Side
from deploykit.report.finding import Finding, unknown, within
from deploykit.report.latency import Scenario, compare_latency
from deploykit.report.settings import ReportSettings


@dataclass(frozen=True)
class Comparison:
    """The head against the baseline."""

    latency: tuple[Scenario, ...]
    accuracy: tuple[Quality, ...]
    size: Finding
    proof: Finding

    def findings(self) -> tuple[Finding, ...]:
        """Return every judgement, in the order of the report."""
        speed = [finding for scenario in self.latency for finding in scenario.findings]
        return (*speed, *(quality.finding for quality in self.accuracy), self.size, self.proof)


def compare(head: Side, base: Side, settings: ReportSettings) -> Comparison:
    """Judge the head against the baseline; what is missing is inconclusive."""
    return Comparison(
        tuple(compare_latency(head, base, settings)),
        tuple(compare_accuracy(head, base, settings)),
        compare_size(head, base, settings),
        judge_proof(head),
    )


def compare_size(head: Side, base: Side, settings: ReportSettings) -> Finding:
    """Judge the bytes of the exported model."""
    sizes = {side.role: size_of(side) for side in (head, base)}
    before, after = sizes["baseline"], sizes["head"]
    budget = 1 + settings.max_growth
    if before is None or after is None or before <= 0:
        missing = "head" if after is None else "baseline"
        return unknown("size", budget, f"The evidence of the {missing} does not say how large the model is.")
    ratio = after / before
    verdict = within(ratio, ratio, budget)
    side = "Within" if verdict == "pass" else "Beyond"
    numbers = f"{wording.size(after)} against {wording.size(before)}: {wording.growth(ratio)}."
    return Finding(
        Gate(
            "size",
            ratio,
            budget,
            "lower",
            verdict,
            f"{numbers} {side} the budget of {wording.percent(settings.max_growth)} larger.",
        )
    )


def size_of(side: Side) -> float | None:
    """Find the size of a side's exported model in bytes."""
    for piece in side.pieces:
        for metric in piece.evidence.metrics:
            if metric.name == "size_bytes":
                return metric.value
    return None


def judge_proof(head: Side) -> Finding:
    """Judge whether the head's own validation (parity, accuracy against the original) passed."""
    if not head.validations:
        return unknown("proof", 0, "The head was never validated: nothing shows that it does its job.")
    verdicts = {piece.evidence.verdict for piece in head.validations}
    verdict: Verdict = "fail" if "fail" in verdicts else "pass" if verdicts == {"pass"} else "inconclusive"
    judged = [(piece, gate) for piece in head.validations for gate in piece.evidence.gates]
    bad = [f"{gate.name} on {data_name(piece)}" for piece, gate in judged if gate.verdict != "pass"]
    if verdict == "pass":
        reason = f"The head passed all {len(judged)} gates of its own validation."
    else:
        reason = f"The head did not pass its own validation: {', '.join(bad) or 'no gate was judged'}."
    return Finding(Gate("proof", float(len(bad)), 0, "lower", verdict, reason))
