"""The best so far, on disk after every trial.

    OUT/search.db      the trials
    OUT/trials/0007/   a trial's recipe.yaml, checkpoint (compressed) and model; kept while it may still be chosen
    OUT/best           a link to the best trial's folder, switched in one step
    OUT/pareto.json    every trial's numbers, the front, and which trial is the best and whether it is within the budget

pareto.json:
    format, metric, split, budget {max_drop, target_ms}, original {metric, ms, num_bytes}
    best     {trial, verdict (pass, fail or inconclusive), reason}
    points   [{trial, metric, drop, drop_low, drop_high, drop_upper, ms, ms_low, ms_high, num_bytes, front, within,
             recipe, words}]
    failed   [{trial, reason}]
    final    null, or [{trial, pace, pace_low, pace_high}]: the finalists' time over the original's, measured in turn
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploykit import artifact, evidence
from deploykit.evidence import Gate, Verdict
from deploykit.recipe import in_words, stages_of
from deploykit.search.choose import Budget, Point, candidates, front, ranked
from deploykit.search.study import Storage, Tried
from deploykit.search.trial import MODEL, Subject, carry_out

FORMAT = 2
FILE, BEST = "pareto.json", "best"


def publish(storage: Storage, subject: Subject, budget: Budget) -> Point:
    """Bring the front, the best and the kept folders up to date; return the best. To be called alone."""
    tried = storage.tried()
    points = [found.point for found in tried]
    best = ranked(points, budget)[0]
    restore(storage.out, subject, [found for found in tried if found.point == best])
    write(storage.out, record_of(storage, subject, budget, best), best)
    kept = {best.trial} | {point.trial for point in candidates(points, budget)}
    for point in points:
        if point.trial not in kept:
            shutil.rmtree(folder_of(storage.out, point.trial), ignore_errors=True)
    return best


def restore(out: Path, subject: Subject, wanted: Sequence[Tried]) -> None:
    """Make the models of trials anew whose folders are gone: another budget makes them of use again."""
    for found in wanted:
        folder = folder_of(out, found.point.trial)
        if not artifact.is_sealed(folder / MODEL):
            carry_out(subject, stages_of(found.recipe), folder)


def write(out: Path, record: Mapping[str, Any], best: Point) -> None:
    """Write pareto.json and point `best` at the best trial's folder, each in one step."""
    scratch = out / f".{FILE}.partial"
    artifact.write_json(scratch, artifact.finite(record))
    scratch.replace(out / FILE)
    link = out / f".{BEST}.partial"
    link.unlink(missing_ok=True)
    link.symlink_to(folder_of(out, best.trial).relative_to(out))
    link.replace(out / BEST)


def record_of(storage: Storage, subject: Subject, budget: Budget, best: Point) -> dict[str, Any]:
    """Make the content of pareto.json."""
    tried = storage.tried()
    shown = {point.trial for point in front([found.point for found in tried])}
    metric = subject.score.metrics[0]
    gates = gates_of(best, budget, metric.name)
    reasons = [gate.reason for gate in gates if gate.verdict != "pass"] or [gate.reason for gate in gates]
    return {
        "format": FORMAT,
        "metric": metric.name,
        "split": subject.split.file.stem,
        "budget": asdict(budget),
        "original": {"metric": metric.value, "ms": storage.original_ms, "num_bytes": _size_of(subject)},
        "best": {
            "trial": best.trial,
            "verdict": evidence.overall(gates),
            "reason": "; ".join(reasons),
        },
        "points": [_row(found, storage.original_ms, budget, front=found.point.trial in shown) for found in tried],
        "failed": [{"trial": trial, "reason": reason} for trial, reason in storage.failed().items()],
        "final": (storage.final() or {}).get("measured"),
    }


def gates_of(best: Point, budget: Budget, metric: str) -> list[Gate]:
    """Judge the best by the budget, on the validation rows; a drop whose bound alone is beyond is inconclusive."""
    lost, slow = budget.excess(best)
    nearest = f"trial {best.trial} is the nearest: " if lost or slow else f"trial {best.trial}: "
    drop = f"a drop of {best.drop:.4f}, below {best.drop_upper:.4f} with 95% confidence"
    reason = f"{nearest}{metric} {best.metric:.4f} on validation, {drop}, {budget.max_drop:g} is allowed"
    verdict: Verdict = "pass" if not lost else "fail" if budget.lost(best) else "inconclusive"
    gates = [Gate("budget", best.drop_upper, budget.max_drop, "lower", verdict, reason)]
    if budget.target_ms is not None:
        reason = f"{nearest}{best.ms:.3g} ms a row, {budget.target_ms:g} is allowed"
        gates.append(Gate("latency", best.ms, budget.target_ms, "lower", "fail" if slow else "pass", reason))
    return gates


def folder_of(out: Path, trial: int) -> Path:
    """Return where a trial's artifacts are."""
    return out / "trials" / f"{trial:04}"


def _row(found: Tried, original_ms: float, budget: Budget, *, front: bool) -> dict[str, Any]:
    outcome = found.outcome
    low, high = (None if end is None else end * original_ms for end in (outcome.pace_low, outcome.pace_high))
    return {
        **asdict(found.point),
        "drop_low": outcome.drop_low,
        "drop_high": outcome.drop_high,
        "ms_low": low,
        "ms_high": high,
        "front": front,
        "within": budget.met(found.point),
        "recipe": list(found.recipe),
        "words": in_words(found.recipe),
    }


def _size_of(subject: Subject) -> int:
    files = [name for name in subject.original.files if name.startswith(f"{MODEL}.onnx")]
    return sum((subject.original.path / name).stat().st_size for name in files)
