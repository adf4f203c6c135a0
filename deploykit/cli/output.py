"""What a command prints: the result on stdout, as text or as one JSON object; everything else on stderr."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

from deploykit import artifact
from deploykit.artifact import Artifact
from deploykit.evidence import Evidence, Gate, Metric, Verdict

EXIT = {"pass": 0, "fail": 1, "inconclusive": 6}
_STYLE = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


@dataclass(frozen=True)
class Result:
    """The one object of `--json`."""

    artifact: str | None = None
    digest: str | None = None
    verdict: Verdict | None = None
    metrics: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()


def result_of(found: Artifact, evidence: Evidence | None = None) -> Result:
    """Make a command's result from the artifact it made, and the evidence in it."""
    if evidence is not None:
        metrics = tuple(dataclasses.asdict(metric) for metric in evidence.metrics)
        verdict = evidence.verdict if evidence.gates else None
        return Result(str(found.path), found.digest, verdict, metrics, evidence.warnings)
    return Result(
        str(found.path),
        found.digest,
        metrics=tuple(found.facts.get("metrics", ())),
        warnings=tuple(found.facts.get("warnings", ())),
    )


def emit(result: Result, shown: Iterable[RenderableType], *, as_json: bool) -> int:
    """Print a result and return the exit code of its verdict."""
    if as_json:
        print(json.dumps(artifact.finite(dataclasses.asdict(result)), allow_nan=False))
    else:
        console = Console()
        for item in shown:
            console.print(item, highlight=False)
        if result.artifact:
            console.print(f"{result.artifact}  [dim]{(result.digest or '')[:12]}[/]", soft_wrap=True, highlight=False)
        if result.verdict:
            console.print(f"[{_STYLE[result.verdict]}]{result.verdict}[/]", highlight=False)
    for warning in result.warnings:
        print(f"deploykit: warning: {warning}", file=sys.stderr)
    return EXIT[result.verdict] if result.verdict else 0


def metrics_table(metrics: Iterable[Mapping[str, Any]]) -> Table:
    """Draw metrics with their intervals."""
    table = Table("metric", box=None, pad_edge=False, header_style="dim")
    for title in ("value", "95% interval", "n"):
        table.add_column(title, justify="right")
    for metric in metrics:
        table.add_row(
            metric["name"], _number(metric["value"], metric["unit"]), _interval(metric), str(metric["n"] or "")
        )
    return table


def gates_table(gates: Iterable[Gate]) -> Table:
    """Draw gates: verdict, and the sentence with the numbers."""
    table = Table("gate", "verdict", "because", box=None, pad_edge=False, header_style="dim")
    for gate in gates:
        table.add_row(gate.name, f"[{_STYLE[gate.verdict]}]{gate.verdict}[/]", gate.reason)
    return table


def waterfall_table(rows: Iterable[Mapping[str, Any]], dropped: Iterable[Mapping[str, Any]] = ()) -> Table:
    """Draw the waterfall: metric, parameters and bytes after each stage; last the stages that were dropped."""
    table = Table("stage", box=None, pad_edge=False, header_style="dim")
    for title in ("metric", "value", "95% interval", "parameters", "size"):
        table.add_column(title, justify="right")
    for row in [*rows, *({**row, "stage": f"{row['stage']}, dropped"} for row in dropped)]:
        size, count = f"{row['num_bytes'] / 1e6:.1f} MB", f"{row['parameters'] / 1e6:.1f} M"
        table.add_row(row["stage"], row["metric"], f"{row['value']:.4f}", _interval(row), count, size)
    return table


def steps_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Draw what each step of compression gave: latency and throughput beside the metric, size and memory."""
    table = Table("step", box=None, pad_edge=False, header_style="dim")
    for title in (rows[0]["metric"], "p50, ms", "x PyTorch", "rows/s", "x PyTorch", "MB", "memory, MB"):
        table.add_column(title, justify="right")
    for row in rows:
        single, offline = (f"{row[name]['value']:.2f}" for name in ("single_speedup", "offline_speedup"))
        sizes = (f"{row[name] / 1e6:.1f}" for name in ("size_bytes", "memory_bytes"))
        speed = (f"{row['p50_ms']:.2f}", single, f"{row['throughput_per_s']:.0f}", offline)
        table.add_row(row["stage"], f"{row['value']:.4f}", *speed, *sizes)
    return table


def evidence_tables(found: Evidence) -> list[RenderableType]:
    """Draw what a piece of evidence says."""
    if found.measure == "steps":
        return [steps_table(found.details["steps"])]
    tables: list[RenderableType] = [metrics_table(map(_as_mapping, found.metrics))]
    return [*tables, gates_table(found.gates)] if found.gates else tables


def _as_mapping(metric: Metric) -> Mapping[str, Any]:
    return dataclasses.asdict(metric)


def _interval(value: Mapping[str, Any]) -> str:
    if value.get("low") is None or value.get("high") is None:
        return ""
    return f"{value['low']:.4g} to {value['high']:.4g}"


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "not finite"
    if unit == "bytes":
        return f"{value / 1e6:.2f} MB"
    return f"{value:.4g} {unit}".strip()
