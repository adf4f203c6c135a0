"""The machine record of a report (`report.json`); the page and the Markdown are drawn from it alone.

format      1; a reader refuses another number
verdict     pass, fail or inconclusive: the worst of the gates
gates       [{name, value, budget, better, verdict, reason, low, high}]; value is null where nothing can be told;
            latency: head time / baseline time; accuracy: what was lost; size: head / baseline
metrics     the head's own: [{name, value, unit, better, low, high, n}]
warnings    what the reader of a verdict should know
settings    the budgets (`ReportSettings`)
head, baseline
            {name, size_bytes, evidence: [{path, digest, measure, verdict, subject, data, split, environment_key}]}
environments [{key, facts}]: the machines
latency     [{scenario, method (interleaved, separate or null), note, null_ms, budget, systems: {head, baseline},
            percentiles: [{percentile, head_ms, baseline_ms, ratio, low, high, verdict (or none)}],
            distribution: {ms: grid, head, baseline: density, 0 to 1}}]; the last two are empty without a method
accuracy    [{data, metric, n, original, baseline, head, drop, low, high, max_drop, mdd, verdict, note, flips_total,
            flips, classes: [{label, support, original, baseline, head}],
            slices: [{field, value, n, original, baseline, head}]}]
checks      [{side, data, gates, parity, invariance, provider}]: what each validation found by itself
waterfall   [{stage, metric, value, low, high, n, parameters, num_bytes, settings}] of the head
dropped     [{as in waterfall, num_bytes_before, gain, nearness (or null), speedup: {value, low, high} against the step
            before, origin, environment_key, processor, reason}]: stages of the head that were not worth it
steps       [{as in waterfall, p50_ms, throughput_per_s (each with _low, _high), single_speedup, offline_speedup:
            {value, low, high} against the first, size_bytes, memory_bytes}]: PyTorch, the original, every stage
search      null, or what the search that chose the head found: {metric, split, budget: {max_drop, target_ms},
            original: {metric, ms, num_bytes}, best: {trial, verdict, reason}, failed: [{trial, reason}], points:
            [{trial, metric, drop, drop_low, drop_high, drop_upper, ms, ms_low, ms_high, num_bytes, front,
            within, recipe, words}]}
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploykit import artifact, evidence
from deploykit.check.ratio import percentile
from deploykit.report.accuracy import Quality, accuracy_of, data_name
from deploykit.report.collect import Piece, Side
from deploykit.report.compare import Comparison, size_of
from deploykit.report.density import distribution
from deploykit.report.finding import Finding
from deploykit.report.latency import Scenario
from deploykit.report.settings import ReportSettings

FORMAT = 1
Record = dict[str, Any]
_SEPARATE = (
    "The two were measured in separate runs: how much the machine itself drifted between them is not in the interval. "
    "bench --against measures both in turn."
)
_METHODS = {
    "interleaved": "Both models were measured in turn in one run, so whatever slowed the machine slowed both.",
    "separate": _SEPARATE,
}


def record_of(head: Side, base: Side, compared: Comparison, settings: ReportSettings) -> dict[str, Any]:
    """Build the record; every number in it is finite or null."""
    findings, names = compared.findings(), _names(head, base)
    record = {
        "format": FORMAT,
        "verdict": evidence.overall(finding.gate for finding in findings),
        "gates": [_gate(finding) for finding in findings],
        "metrics": [dataclasses.asdict(metric) for piece in head.pieces for metric in piece.evidence.metrics],
        "warnings": _warnings(head, base, compared),
        "settings": dataclasses.asdict(settings),
        "head": {"name": names[0], **_side(head)},
        "baseline": {"name": names[1], **_side(base)},
        "environments": _environments(head, base),
        "latency": [_scenario(scenario) for scenario in compared.latency],
        "accuracy": [_quality(quality) for quality in compared.accuracy],
        "checks": [_checks(side.role, piece) for side in (head, base) for piece in side.validations],
        "waterfall": next(
            (rows for piece in head.validations if (rows := piece.evidence.details.get("waterfall"))), []
        ),
        "dropped": next((rows for piece in head.validations if (rows := piece.evidence.details.get("dropped"))), []),
        "steps": list(head.steps),
        "search": head.search.evidence.details if head.search else None,
    }
    finite: dict[str, Any] = artifact.finite(record)
    return finite


def _gate(finding: Finding) -> dict[str, Any]:
    return {**dataclasses.asdict(finding.gate), "low": finding.low, "high": finding.high}


def _warnings(head: Side, base: Side, compared: Comparison) -> list[str]:
    found = [
        f"{side.role}: {text}" for side in (head, base) for piece in side.pieces for text in piece.evidence.warnings
    ]
    if any(scenario.measured and scenario.measured.method == "separate" for scenario in compared.latency):
        found.append(_SEPARATE)
    return list(dict.fromkeys(found))


def _names(head: Side, base: Side) -> tuple[str, str]:
    """Name both sides by their models, or by their folders where the models bear the same name."""
    folders = head.root.resolve().name, base.root.resolve().name
    subjects = [
        list(dict.fromkeys(piece.evidence.subject.name for piece in side.pieces if piece.evidence.measure != "steps"))
        for side in (head, base)
    ]
    models = ", ".join(subjects[0]) or folders[0], ", ".join(subjects[1]) or folders[1]
    return folders if models[0] == models[1] else models


def _side(side: Side) -> dict[str, Any]:
    return {
        "size_bytes": size_of(side),
        "evidence": [_piece(piece, side.root) for piece in side.pieces],
    }


def _piece(piece: Piece, root: Path) -> dict[str, Any]:
    found = piece.evidence
    return {
        "path": piece.path.relative_to(root).as_posix(),
        "digest": piece.digest,
        "measure": found.measure,
        "verdict": found.verdict,
        "subject": dataclasses.asdict(found.subject),
        "data": dataclasses.asdict(found.data) if found.data else None,
        "split": found.split,
        "environment_key": found.environment_key,
    }


def _environments(head: Side, base: Side) -> list[dict[str, Any]]:
    found = {p.evidence.environment_key: p.evidence.environment for side in (head, base) for p in side.pieces}
    return [{"key": key, "facts": facts} for key, facts in found.items()]


def _scenario(scenario: Scenario) -> dict[str, Any]:
    measured = scenario.measured
    gates = [finding.gate for finding in scenario.findings]
    shared = {"scenario": scenario.name, "budget": gates[0].budget}
    if measured is None:
        empty: Record = {"systems": {"head": scenario.own}, "percentiles": [], "distribution": None, "null_ms": None}
        return {**shared, "method": None, "note": gates[0].reason, **empty}
    verdicts = {share: gate.verdict for share, gate in zip(scenario.judged, gates, strict=True)}
    rows = [
        {
            "percentile": share,
            "head_ms": percentile(measured.head, share / 100),
            "baseline_ms": percentile(measured.base, share / 100),
            "ratio": found.value,
            "low": found.low,
            "high": found.high,
            "verdict": verdicts.get(share, "none"),
        }
        for share, found in scenario.ratios.items()
    ]
    return {
        **shared,
        "method": measured.method,
        "note": _METHODS[measured.method],
        "null_ms": measured.null_ms,
        "systems": measured.systems,
        "percentiles": rows,
        "distribution": distribution(measured.head, measured.base),
    }


def _quality(quality: Quality) -> dict[str, Any]:
    head, base = (accuracy_of(piece) if piece else {} for piece in (quality.head, quality.base))
    piece, drop, gate = quality.head or quality.base, quality.drop, quality.finding.gate
    return {
        "data": data_name(piece) if piece else gate.name,
        "metric": head.get("metric") or base.get("metric"),
        "n": head.get("n"),
        "original": head.get("reference"),
        "baseline": drop.before if drop else base.get("candidate"),
        "head": head.get("candidate"),
        "drop": drop.value if drop else None,
        "low": quality.finding.low,
        "high": quality.finding.high,
        "max_drop": gate.budget,
        "mdd": head.get("mdd"),
        "verdict": gate.verdict,
        "note": gate.reason,
        "flips_total": head.get("flips_total", 0),
        "flips": head.get("flips", []),
        "classes": _matched(head.get("classes", []), base.get("classes", []), ("label",), "f1_"),
        "slices": _matched(head.get("slices", []), base.get("slices", []), ("field", "value"), ""),
    }


def _matched(
    head: list[Mapping[str, Any]], base: list[Mapping[str, Any]], keys: tuple[str, ...], prefix: str
) -> list[dict[str, Any]]:
    """Set the rows of both sides beside each other: original, baseline, head."""
    others = {tuple(row[key] for key in keys): row for row in base}
    scores = {f"{prefix}reference", f"{prefix}candidate"}
    rows = []
    for row in head:
        other = others.get(tuple(row[key] for key in keys), {})
        rows.append(
            {name: value for name, value in row.items() if name not in scores}
            | {
                "original": row[f"{prefix}reference"],
                "baseline": other.get(f"{prefix}candidate"),
                "head": row[f"{prefix}candidate"],
            }
        )
    return rows


def _checks(role: str, piece: Piece) -> dict[str, Any]:
    details = piece.evidence.details
    return {
        "side": role,
        "data": data_name(piece),
        "gates": [dataclasses.asdict(gate) for gate in piece.evidence.gates],
        **{name: details.get(name) or {} for name in ("parity", "invariance", "provider")},
    }
