"""What `run` and `demo` print at the end: the original and the new model side by side, and where the report is."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from deploykit.cli.output import Result, gates_table, steps_table, waterfall_table
from deploykit.evidence import Evidence
from deploykit.pipeline import Line


def result_of(line: Line) -> Result:
    """Make the one object of `--json`: the Bento, or the model where none was packaged."""
    made = line.bento or line.model
    found = [line.validation, *(piece for piece in (line.latency, line.served) if piece)]
    metrics = tuple(dataclasses.asdict(metric) for piece in found for metric in piece.metrics)
    return Result(str(made.path), made.digest, line.verdict, metrics, line.validation.warnings)


def tables(line: Line, out: Path) -> list[RenderableType]:
    """Draw the waterfall, the comparison with the original, the report's gates and its place."""
    shown: list[RenderableType] = []
    if waterfall := line.validation.details["waterfall"]:
        shown += [waterfall_table(waterfall, line.validation.details.get("dropped", ())), ""]
    if line.steps:
        shown += [steps_table(line.steps.details["steps"]), ""]
    shown += [_comparison(line), ""]
    if line.report:
        shown += [gates_table(line.report.gates), "", f"report: {(out / 'report' / 'report.html').resolve()}"]
    return shown


def _comparison(line: Line) -> Table:
    table = Table("", "original", "now", "", box=None, pad_edge=False, header_style="dim")
    accuracy = line.validation.details["accuracy"]
    kept = f"{100 * accuracy['candidate'] / accuracy['reference']:.1f}% kept" if accuracy["reference"] else ""
    table.add_row(f"{accuracy['metric']} (test)", f"{accuracy['reference']:.4f}", f"{accuracy['candidate']:.4f}", kept)
    for scenario, found in _scenarios(line.latency).items():
        _add_speed(table, scenario, found)
    for found in _scenarios(line.served).values():
        head = found["systems"]["head"]
        table.add_row("served, p50 / p99", "", f"{head['p50_ms']:.2f} / {head['p99_ms']:.2f} ms", f"n = {head['n']}")
    return table


def _add_speed(table: Table, scenario: str, found: Mapping[str, Any]) -> None:
    systems = found["systems"]
    if "against" not in systems:
        return
    name, unit = ("throughput_per_s", "rows/s") if scenario == "offline" else ("p50_ms", "ms")
    before, now = systems["against"][name], systems["head"][name]
    faster = now / before if scenario == "offline" else before / now
    table.add_row(f"{scenario}, {unit}", f"{before:.2f}", f"{now:.2f}", f"{faster:.1f}x faster")


def _scenarios(found: Evidence | None) -> Mapping[str, Any]:
    return found.details["scenarios"] if found else {}
