"""Read the evidence of two sides, judge, and write `report.html`, `report.md` and `report.json`."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit import artifact
from deploykit.errors import OutputExists, resources_mapped
from deploykit.evidence import Gate, Verdict
from deploykit.report.collect import collect
from deploykit.report.compare import compare
from deploykit.report.html import page
from deploykit.report.markdown import markdown
from deploykit.report.record import record_of
from deploykit.report.settings import ReportSettings


@dataclass(frozen=True)
class Report:
    """What came of the comparison, and where it is written."""

    path: Path
    verdict: Verdict
    gates: tuple[Gate, ...]
    metrics: tuple[Mapping[str, Any], ...]
    warnings: tuple[str, ...]


def report(head: Path, baseline: Path, out: Path, settings: ReportSettings, *, force: bool = False) -> Report:
    """Compare the evidence in two folders and write the report, in one step.

    Raises:
        OutputExists: `out` is there and `force` is false.
        ArtifactError: a folder is missing, or a piece of evidence is changed.
        UsageError: two pieces of evidence speak of the same thing.
    """
    if out.exists() and not force:
        raise OutputExists(
            out, expected="a new folder", found="an existing one", next_step="choose another --out or pass --force"
        )
    sides = collect(head, "head"), collect(baseline, "baseline")
    compared = compare(*sides, settings)
    record = record_of(*sides, compared, settings)
    _publish(record, out, force=force)
    gates = tuple(finding.gate for finding in compared.findings())
    return Report(out, record["verdict"], gates, tuple(record["metrics"]), tuple(record["warnings"]))


def _publish(record: Mapping[str, Any], out: Path, *, force: bool) -> None:
    scratch = artifact.scratch_path(out, artifact.digest_of(record))
    with resources_mapped(out):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            artifact.write_json(scratch / "report.json", record)
            (scratch / "report.md").write_text(markdown(record), encoding="utf-8")
            (scratch / "report.html").write_text(page(record), encoding="utf-8")
            artifact.publish(scratch, out, replace=force)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
