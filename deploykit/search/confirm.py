"""The end of a search: the finalists measured together, one chosen, and confirmed on rows the search never saw."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from deploykit import artifact, commands, environment, evidence
from deploykit.artifact import Artifact, Node
from deploykit.check.closed_loop import TURN, UNTIMED
from deploykit.check.latency import Rounds
from deploykit.check.ratio import ratio_of_interleaved
from deploykit.check.statistics import Interval
from deploykit.check.validate import Validate
from deploykit.evidence import Evidence, Gate, subject_of
from deploykit.search.choose import Budget, Point, chosen, finalists, ranked
from deploykit.search.front import BEST, folder_of, restore
from deploykit.search.study import PACE, Storage
from deploykit.search.trial import COMPRESSED, MEDIAN, MODEL, ORIGINAL, Subject, timed

FINALISTS = 4
VALIDATION, BENCH, EVIDENCE = "validation", "bench", "search"
_ROUNDS = Rounds(count=1000, warm_up=20, seconds=20.0, untimed=UNTIMED, turn=TURN)


def settle(storage: Storage, subject: Subject, budget: Budget) -> Point:
    """Measure the finalists together and choose one. To be called alone.

    The same trials under the same budget are not measured twice: the choice is what it was.
    """
    tried = storage.tried()
    points = [found.point for found in tried]
    asked = {"tried": [point.trial for point in points], "budget": asdict(budget)}
    known = storage.final()
    if known is None or {name: known[name] for name in asked} != asked:
        few = finalists(points, budget, FINALISTS)
        restore(storage.out, subject, [found for found in tried if found.point in few])
        known = {**asked, **_measured(storage, subject, few, budget)}
        storage.set_final(known)
    return next(found.point for found in storage.tried() if found.point.trial == known["chosen"])


def confirm(out: Path, subject: Subject, settings: Validate) -> Evidence:
    """Validate the best on the split that the search never saw; the evidence is sealed at `out/validation`."""
    best = (out / BEST).resolve()
    source = best / COMPRESSED
    made = commands.validate(
        best / MODEL,
        settings,
        reference=subject.checkpoint.path,
        data=subject.data.path,
        out=out / VALIDATION,
        source=source if source.is_dir() else subject.checkpoint.path,
        force=True,
    )
    return evidence.load(made.path)


def seal(out: Path, model: Artifact, subject: Subject, record: Mapping[str, Any], gates: Sequence[Gate]) -> None:
    """Seal what the search found as evidence at `out/search`, which the report reads."""
    found = Evidence(
        measure="search",
        subject=subject_of(model),
        verdict=evidence.overall(gates),
        gates=tuple(gates),
        metrics=(),
        environment=environment.describe(),
        environment_key=environment.key(),
        data=subject_of(subject.data),
        split=record["split"],
        details=record,
    )
    asked = Node("evidence", "search", dict(record["budget"]), (model.node, subject.data.node), "")
    scratch = artifact.scratch_path(out / EVIDENCE, asked.origin)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    evidence.write(found, scratch)
    artifact.seal(scratch, out / EVIDENCE, asked, {}, replace=True)


def discard_others(out: Path, model: Artifact) -> None:
    """Remove the evidence about a model that was chosen earlier and is no longer."""
    for name in (VALIDATION, BENCH):
        if artifact.is_sealed(out / name) and evidence.load(out / name).subject.digest != model.digest:
            shutil.rmtree(out / name)


def _measured(storage: Storage, subject: Subject, few: Sequence[Point], budget: Budget) -> dict[str, Any]:
    """Time the finalists in turn with the original and with each other; return their paces and the choice."""
    models = {str(point.trial): folder_of(storage.out, point.trial) / MODEL for point in few}
    samples = timed({**models, ORIGINAL: subject.original.path}, subject.split, subject.threads, _ROUNDS)

    def pace(point: Point, other: str) -> Interval:
        return ratio_of_interleaved(samples[str(point.trial)], samples[other], MEDIAN)

    paces = [pace(point, ORIGINAL) for point in few]
    rows = [{"trial": point.trial, **_named(found)} for point, found in zip(few, paces, strict=True)]
    final = [replace(point, ms=found.value * storage.original_ms) for point, found in zip(few, paces, strict=True)]
    first = ranked(final, budget)[0]
    best = chosen(final, {point.trial: pace(point, str(first.trial)) for point in final}, budget)
    return {"chosen": best.trial, "measured": rows}


def _named(pace: Interval) -> dict[str, float | None]:
    return dict(zip(PACE, (pace.value, pace.low, pace.high), strict=True))
