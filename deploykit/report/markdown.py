"""The Markdown of a report, from the machine record alone: for a pull request or a terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deploykit.report import wording
from deploykit.report.summary import summary
from deploykit.report.tables import cell, provider_tables, tables_of

Record = Mapping[str, Any]


def markdown(record: Record) -> str:
    """Write the report as GitHub-flavoured Markdown; texts of the record cannot break out of their cells."""
    head, base = _safe(record["head"]["name"]), _safe(record["baseline"]["name"])
    parts = [
        f"# {wording.headline(record['verdict'])}: {head} against {base}",
        _safe(summary(record)),
        _table(("check", "verdict", "because"), [(g["name"], g["verdict"], g["reason"]) for g in record["gates"]]),
        *[f"- {_safe(warning)}" for warning in record["warnings"]],
        *_latency(record["latency"]),
        *_accuracy(record["accuracy"]),
        *_waterfall(record["waterfall"]),
        *_dropped(record["dropped"]),
        *_steps(record["steps"]),
        *_search(record["search"]),
        *_checks(record["checks"]),
        *_sources(record),
    ]
    return "\n\n".join(parts) + "\n"


def _latency(scenarios: Iterable[Record]) -> list[str]:
    parts = ["## Latency"]
    for scenario in scenarios:
        parts += [f"### {_safe(wording.scenario_title(scenario['scenario']))}", _safe(scenario["note"])]
        if scenario["percentiles"]:
            titles = ("", ">baseline", ">head", ">head / baseline", ">95% interval", "change", "verdict")
            parts.append(_table(titles, [_percentile(row) for row in scenario["percentiles"]]))
    return parts


def _percentile(row: Record) -> tuple[str, ...]:
    return (
        f"p{row['percentile']}",
        wording.milliseconds(row["baseline_ms"]),
        wording.milliseconds(row["head_ms"]),
        wording.ratio(row["ratio"]),
        wording.interval(row["low"], row["high"], wording.ratio),
        wording.pace(row["ratio"]),
        "not judged" if row["verdict"] == "none" else row["verdict"],
    )


def _accuracy(qualities: Iterable[Record]) -> list[str]:
    parts = ["## Accuracy"]
    for quality in qualities:
        parts += [f"### {_safe(quality['data'])}", _safe(quality["note"])]
        if quality["classes"]:
            titles = ("class", ">rows", ">F1 original", ">F1 baseline", ">F1 head")
            rows = [(row["label"], wording.count(row["support"]), *_scores(row)) for row in quality["classes"]]
            parts.append(_table(titles, rows))
        if quality["slices"]:
            titles = ("slice", ">rows", ">original", ">baseline", ">head")
            rows = [
                (f"{row['field']}: {row['value']}", wording.count(row["n"]), *_scores(row)) for row in quality["slices"]
            ]
            parts.append(_table(titles, rows))
    return parts


def _scores(row: Record) -> tuple[str, ...]:
    return tuple(wording.score(row[name]) for name in ("original", "baseline", "head"))


def _waterfall(rows: Sequence[Record]) -> list[str]:
    if not rows:
        return []
    titles = ("stage", "metric", ">value", ">95% interval", ">size", ">parameters")
    return ["## Compression", _table(titles, [_stage(row) for row in rows])]


def _dropped(rows: Sequence[Record]) -> list[str]:
    if not rows:
        return []
    titles = ("step", ">gain in metric", ">95% interval", ">x as near", ">x as fast", ">size before", ">size")
    return ["### Dropped: neither smaller, better nor faster", _table(titles, [_dropped_step(row) for row in rows])]


def _dropped_step(row: Record) -> tuple[str, ...]:
    gain, nearness = row["gain"], row.get("nearness")
    return (
        row["stage"],
        wording.points(gain["value"]),
        wording.interval(gain["low"], gain["high"], wording.points),
        wording.speedup(nearness) if nearness else "",
        wording.speedup(row["speedup"]),
        wording.size(row["num_bytes_before"]),
        wording.size(row["num_bytes"]),
    )


def _steps(rows: Sequence[Record]) -> list[str]:
    if not rows:
        return []
    titles = ("step", f">{rows[0]['metric']}", ">p50", ">x PyTorch", ">throughput", ">x PyTorch", ">size", ">memory")
    return ["### What each step gave, measured in turn", _table(titles, [_step(row) for row in rows])]


def _step(row: Record) -> tuple[str, ...]:
    return (
        row["stage"],
        wording.score(row["value"]),
        wording.milliseconds(row["p50_ms"]),
        wording.speedup(row["single_speedup"]),
        wording.per_second(row["throughput_per_s"]),
        wording.speedup(row["offline_speedup"]),
        wording.size(row["size_bytes"]),
        wording.size(row["memory_bytes"]),
    )


def _stage(row: Record) -> tuple[str, ...]:
    return (
        row["stage"],
        row["metric"],
        wording.score(row["value"]),
        wording.interval(row.get("low"), row.get("high"), wording.score),
        wording.size(row["num_bytes"]),
        wording.count(row["parameters"]),
    )


def _search(found: Record | None) -> list[str]:
    if found is None:
        return []
    titles = (">trial", f">{found['metric']}", ">lost, points", ">a row", ">size", "recipe")
    shown = sorted((point for point in found["points"] if point["front"]), key=lambda point: float(point["ms"]))
    return ["## Search", _safe(f"{found['best']['reason']}."), _table(titles, map(_point, shown))]


def _point(point: Record) -> tuple[str, ...]:
    return (
        str(point["trial"]),
        wording.score(point["metric"]),
        wording.points(point["drop"]),
        wording.milliseconds(point["ms"]),
        wording.size(point["num_bytes"]),
        point["words"],
    )


def _checks(checks: Iterable[Record]) -> list[str]:
    parts = ["## What each validation found by itself"]
    for check in checks:
        parts.append(f"### {check['side']}: {_safe(check['data'])}")
        parts.append(
            _table(("gate", "verdict", "because"), [(g["name"], g["verdict"], g["reason"]) for g in check["gates"]])
        )
        tables = [table for title in ("parity", "invariance") for table in tables_of(title, check[title])]
        for table in [*tables, *provider_tables(check["provider"])]:
            titles = [(">" if column.style == "num" else "") + column.name for column in table.columns]
            parts += [f"**{_safe(table.title)}**", _table(titles, table.rows)]
    return parts


def _sources(record: Record) -> list[str]:
    rows = [
        (
            side,
            piece["measure"],
            piece["digest"][:12],
            piece["subject"]["name"],
            piece["environment_key"],
            "measured" if piece["measure"] == "latency" else piece["verdict"],
        )
        for side in ("head", "baseline")
        for piece in record[side]["evidence"]
    ]
    titles = ("side", "evidence", "digest", "of the model", "conditions", "verdict")
    machines = [f"- `{found['key']}`: {_safe(cell(found['facts']))}" for found in record["environments"]]
    return ["## Where it comes from", _table(titles, rows), *machines]


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a table; a title that starts with > makes its column right-aligned."""
    rules = ["---:" if title.startswith(">") else "---" for title in titles]
    lines = [[_safe(title.removeprefix(">")) for title in titles], rules, *[map(_safe, row) for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _safe(text: object) -> str:
    """Keep a text within its cell, and from being read as HTML or as a link."""
    flat = " ".join(str(text).split())
    for mark, written in (
        ("\\", "\\\\"),
        ("&", "&amp;"),
        ("<", "&lt;"),
        ("|", "\\|"),
        ("[", "\\["),
        ("`", "\\`"),
        ("*", "\\*"),
    ):
        flat = flat.replace(mark, written)
    return flat
