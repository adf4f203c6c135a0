"""Render results of `benchmarks.peers` as Markdown, and any rows as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]


def markdown(result: Json) -> str:
    """Render one result: a heading and a table for each number of threads."""
    return "\n\n".join(_section(result, run) for run in result["runs"])


def _section(result: Json, run: Json) -> str:
    return f"{heading(result['checkpoint']['name'], result, run['threads'])}\n\n{system_rows(run)}"


def system_rows(run: Json) -> str:
    """Draw a table of the systems of one run, those that did not run last, and name the best int8 peer."""
    metric = next((system["metric"]["name"] for system in run["systems"]), "metric").replace("_", " ")
    header = (
        "system",
        metric,
        "kept",
        "MB",
        "batch 1, ms",
        "model alone, ms",
        "x PyTorch",
        "x best int8 peer",
        "offline, rows/s",
        "x PyTorch",
        "x best int8 peer",
    )
    rows = [_row(system) for system in run["systems"]]
    rows += [(failed["name"], f"not run: {failed['reason']}", *[""] * (len(header) - 2)) for failed in run["failed"]]
    return f"{grid([header, *rows])}\n\n{_footer(run)}"


def heading(name: str, result: Json, threads: int) -> str:
    """Name what was run, on which rows and where; of the result its `data` and `environment`."""
    data = result["data"]
    return f"**{name}, {data['name']} ({data['rows']} test rows)**, {machine_of(result, threads)}"


def machine_of(result: Json, threads: int) -> str:
    """Say on how many threads of what something was run."""
    machine = result["environment"]
    isa = f", {', '.join(machine['isa'])}" if machine["isa"] else ""
    counted = f"{threads} thread{'s' if threads > 1 else ''}"
    return f"{counted} on {machine['processor']} ({machine['cores']} cores{isa})"


def _row(system: Json) -> tuple[str, ...]:
    single, offline = system["single"], system["offline"]
    name = f"**{system['name']}**" if system["kind"] == "deploykit" else system["name"]
    return (
        name,
        f"{system['metric']['value']:.4f}",
        f"{system['kept']:.1%}" if system["kept"] is not None else "",
        f"{system['size_bytes'] / 1e6:.1f}",
        f"{single['p50_ms']:.2f}",
        f"{single['model_p50_ms']:.2f}",
        ratio(single["over_baseline"]),
        ratio(single["over_best_int8_peer"]),
        f"{offline['rows_per_s']:.0f}",
        ratio(offline["over_baseline"]),
        ratio(offline["over_best_int8_peer"]),
    )


def ratio(estimate: Json | None) -> str:
    """Draw an estimate with its interval, where it has one."""
    if estimate is None:
        return ""
    if estimate["low"] is None or estimate["high"] is None:
        return f"{estimate['value']:.2f}"
    return f"{estimate['value']:.2f} ({estimate['low']:.2f} to {estimate['high']:.2f})"


def _footer(run: Json) -> str:
    best = run["best_int8_peer"]
    if best["single"] is None:
        return "No int8 peer ran."
    return f"Best int8 peer: {best['single']} at batch 1, {best['offline']} offline."


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Draw a Markdown table, header first; columns line up in a terminal too, where a failure's reason may overhang."""
    header, *body = rows
    widths = [max(len(row[column]) for row in rows if _fits(row, column)) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *body]
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def _fits(row: Sequence[str], column: int) -> bool:
    return not (column == 1 and row[column].startswith("not run"))
