"""What `search` prints at the end: the front it found, the gates, and where things are."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from deploykit.cli.output import Result, gates_table, metrics_table
from deploykit.search.front import BEST
from deploykit.search.search import Found
from deploykit.search.study import FILE as STUDY


def result_of(found: Found, out: Path) -> Result:
    """Make the one object of `--json`: the best model; one that did not pass says in the warnings what is nearest."""
    metrics = tuple(dataclasses.asdict(metric) for metric in found.metrics)
    failed = tuple(gate.reason for gate in found.gates if gate.verdict != "pass")
    path = str(out / BEST / found.model.path.name)
    return Result(path, found.model.digest, found.verdict, metrics, (*failed, *found.warnings))


def tables(found: Found, out: Path) -> list[RenderableType]:
    """Draw the front, the metrics and the gates, and say how the trials are looked at."""
    shown: list[RenderableType] = [_front(found.record), ""]
    shown += [metrics_table(map(dataclasses.asdict, found.metrics)), "", gates_table(found.gates), ""]
    if found.report:
        shown.append(f"report: {(found.report / 'report.html').resolve()}")
    return [*shown, f"all trials: optuna-dashboard sqlite:///{(out / STUDY).resolve()}"]


def _front(record: Mapping[str, Any]) -> Table:
    table = Table("trial", box=None, pad_edge=False, header_style="dim")
    for title in (record["metric"], "drop", "ms", "MB", "x faster"):
        table.add_column(title, justify="right")
    table.add_column("recipe")
    original = record["original"]
    table.add_row("original", f"{original['metric']:.4f}", "", *_numbers(original), "", "")
    for point in sorted((point for point in record["points"] if point["front"]), key=lambda point: -point["ms"]):
        mark = " best" if point["trial"] == record["best"]["trial"] else "" if point["within"] else " beyond"
        numbers = (f"{point['metric']:.4f}", f"{point['drop']:+.4f}", *_numbers(point))
        faster = f"{original['ms'] / point['ms']:.1f}"
        table.add_row(f"{point['trial']}{mark}", *numbers, faster, point["words"])
    return table


def _numbers(row: Mapping[str, Any]) -> tuple[str, str]:
    return f"{row['ms']:.2f}", f"{row['num_bytes'] / 1e6:.1f}"
