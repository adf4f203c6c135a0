"""The page of a report, from the machine record alone: one file, no script, nothing fetched."""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from deploykit.report import charts, wording
from deploykit.report.summary import before_of, summary, tiles
from deploykit.report.tables import cell, provider_tables, tables_of

Record = Mapping[str, Any]
MAX_CHANGES = 16
"""Rows of a chart of classes or slices: those that changed most; the table beside it holds all."""


def page(record: Record) -> str:
    """Draw the page; every text of the record is escaped."""
    files = resources.files("deploykit.report")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= _FILTERS
    template = environment.from_string((files / "report.html.jinja").read_text(encoding="utf-8"))
    style = Markup((files / "report.css").read_text(encoding="utf-8"))  # noqa: S704 - our own file
    return template.render(record=record, style=style, tiles=tiles(record), charts=_charts(record))


def _charts(record: Record) -> dict[str, Any]:
    measured = [scenario for scenario in record["latency"] if scenario["method"]]
    return {
        "distribution": {scenario["scenario"]: _distribution(scenario) for scenario in measured},
        "ratios": {scenario["scenario"]: _ratios(scenario) for scenario in measured},
        "changes": [_changes(quality) for quality in record["accuracy"]],
        "waterfall": _waterfall(record["waterfall"]),
        "steps": _steps(record["steps"]),
        "search": _search(record["search"]) if record["search"] else None,
    }


def _distribution(scenario: Record) -> Markup:
    if scenario["distribution"] is None:
        return Markup()
    median = next(row for row in scenario["percentiles"] if row["percentile"] == 50)
    medians = {"baseline": median["baseline_ms"], "head": median["head_ms"]}
    return _drawn(charts.latency_distribution(scenario["distribution"], medians))


def _ratios(scenario: Record) -> Markup:
    rows = [
        {
            "name": f"p{row['percentile']}",
            **{key: row[key] for key in ("low", "high", "verdict")},
            "value": row["ratio"],
        }
        for row in scenario["percentiles"]
    ]
    return _drawn(charts.ratios(rows, scenario["budget"]))


def _changes(quality: Record) -> list[dict[str, Any]]:
    before = before_of(quality)
    drawn = []
    for rows, name, title in (
        (quality["classes"], lambda row: row["label"], "F1 by class"),
        (quality["slices"], lambda row: f"{row['field']}: {row['value']}", f"{quality['metric']} by slice"),
    ):
        changes = [{"name": name(row), "before": row[before], "after": row["head"]} for row in rows]
        shown = sorted(changes, key=_moved, reverse=True)[:MAX_CHANGES]
        if shown:
            kept = f"; the {MAX_CHANGES} that changed most" if len(changes) > MAX_CHANGES else ""
            drawn.append({"svg": _drawn(charts.changes(shown, title)), "caption": f"{title}: before and after{kept}."})
    return drawn


def _moved(row: Record) -> float:
    return 0.0 if row["before"] is None or row["after"] is None else abs(row["after"] - row["before"])


def _waterfall(rows: Sequence[Record]) -> list[dict[str, Any]]:
    if not rows:
        return []
    steps = [
        {
            **row,
            "step": f"{index}. {row['stage']}",
            "megabytes": row["num_bytes"] / 1e6,
            "millions": row["parameters"] / 1e6,
        }
        for index, row in enumerate(rows)
    ]
    return [
        {"svg": _drawn(charts.waterfall(steps, "value", rows[-1]["metric"], "interval")), "caption": "The metric."},
        {"svg": _drawn(charts.waterfall(steps, "megabytes", "MB", "bar")), "caption": "The size of the weights."},
        {"svg": _drawn(charts.waterfall(steps, "millions", "millions", "bar")), "caption": "The parameters."},
    ]


def _steps(rows: Sequence[Record]) -> list[dict[str, Any]]:
    """Draw latency and throughput apart: a step can win one and lose the other."""
    if not rows:
        return []
    steps = [{**row, "step": f"{index}. {row['stage']}"} for index, row in enumerate(rows)]
    latencies = [{**step, "low": step["p50_ms_low"], "high": step["p50_ms_high"]} for step in steps]
    return [
        {"svg": _drawn(charts.waterfall(latencies, "p50_ms", "ms a row, median", "bar")), "caption": "One row a call."},
        {"svg": _drawn(charts.waterfall(steps, "throughput_per_s", "rows/s", "bar")), "caption": "Many rows a pass."},
    ]


def _search(found: Record) -> Markup:
    """Draw the recipes that were tried; the edge is what no recipe beats in both latency and metric."""
    best, original = found["best"]["trial"], found["original"]
    points = [
        {
            **_place(point),
            "kind": "best" if point["trial"] == best else _kind(point),
            "label": str(point["trial"]) if point["front"] else "",
            "edge": not any(_beats(other, point) for other in found["points"]),
        }
        for point in found["points"]
    ]
    limits = {
        "title": f"{found['metric']} ({found['split']})",
        "metric": original["metric"] - found["budget"]["max_drop"],
        "ms": found["budget"]["target_ms"],
    }
    return _drawn(charts.pareto(points, {**_place(original), "label": "original"}, limits))


def _place(point: Record) -> dict[str, Any]:
    return {"ms": point["ms"], "metric": point["metric"], "megabytes": point["num_bytes"] / 1e6}


def _kind(point: Record) -> str:
    if not point["within"]:
        return "beyond"
    return "front" if point["front"] else "within"


def _beats(one: Record, other: Record) -> bool:
    better = one["ms"] < other["ms"] or one["metric"] > other["metric"]
    return bool(better and one["ms"] <= other["ms"] and one["metric"] >= other["metric"])


def _drawn(svg: str) -> Markup:
    return Markup(svg)  # noqa: S704 - vega escapes the texts of a drawing


def _facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(str(name).replace("_", " "), cell(value)) for name, value in facts.items()]


def _settings(value: object) -> str:
    return cell(value) if value else ""


_FILTERS = {
    "headline": wording.headline,
    "summary": summary,
    "before": before_of,
    "scenario_title": wording.scenario_title,
    "milliseconds": wording.milliseconds,
    "rows_per_second": wording.rows_per_second,
    "pace": wording.pace,
    "ratio": wording.ratio,
    "ratio_interval": lambda row: wording.interval(row["low"], row["high"], wording.ratio),
    "score": wording.score,
    "score_interval": lambda row: wording.interval(row.get("low"), row.get("high"), wording.score),
    "points": wording.points,
    "budget": wording.unsigned_points,
    "points_interval": lambda row: wording.interval(row["low"], row["high"], wording.points),
    "drop_interval": lambda row: wording.interval(row["drop_low"], row["drop_high"], wording.points),
    "count": wording.count,
    "size": wording.size,
    "settings": _settings,
    "per_second": wording.per_second,
    "speedup": wording.speedup,
    "facts": _facts,
    "provider_tables": provider_tables,
    "tables": lambda value, title: tables_of(title, value),
    "short": lambda digest: str(digest)[:12],
}
