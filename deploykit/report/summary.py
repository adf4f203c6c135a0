"""The few words and numbers that stand first in a report, from the machine record. Pure."""

from collections.abc import Mapping
from typing import Any

from deploykit.report import wording

Record = Mapping[str, Any]
Tile = dict[str, str]


def summary(record: Record) -> str:
    """Say in a sentence or two what came of the gates."""
    names: dict[str, list[str]] = {"pass": [], "fail": [], "inconclusive": []}
    for gate in record["gates"]:
        names[gate["verdict"]].append(gate["name"])
    total = len(record["gates"])
    said = [f"{len(names['pass'])} of {total} checks passed."]
    if names["fail"]:
        said.append(f"Failed: {', '.join(names['fail'])}.")
    if names["inconclusive"]:
        said.append(f"Could not be told: {', '.join(names['inconclusive'])}.")
    return " ".join(said)


def before_of(quality: Record) -> str:
    """Name the side that a data set's head is drawn against: the baseline, else the original."""
    rows = [*quality["classes"], *quality["slices"]]
    return "baseline" if any(row["baseline"] is not None for row in rows) else "original"


def tiles(record: Record) -> list[Tile]:
    """Return the key numbers: median latencies, metric, size."""
    found = [tile for scenario in record["latency"] for tile in _latency(scenario)]
    found += [_accuracy(quality) for quality in record["accuracy"] if quality["head"] is not None]
    sizes = {side: record[side]["size_bytes"] for side in ("head", "baseline")}
    if sizes["head"] is not None:
        gate = next(gate for gate in record["gates"] if gate["name"] == "size")
        found.append(_tile("size", wording.size(sizes["head"]), wording.growth(gate["value"]), gate["verdict"]))
    return found


def _latency(scenario: Record) -> list[Tile]:
    row = next((row for row in scenario["percentiles"] if row["percentile"] == 50), None)
    if row is None:
        return []
    name = scenario["scenario"]
    write = wording.rows_per_second if name == "offline" else wording.milliseconds
    return [_tile(f"{name}, median", write(row["head_ms"]), wording.pace(row["ratio"]), row["verdict"])]


def _accuracy(quality: Record) -> Tile:
    note = f"{wording.points(-quality['drop'])} points" if quality["drop"] is not None else wording.UNKNOWN
    return _tile(f"{quality['metric']}, {quality['data']}", wording.score(quality["head"]), note, quality["verdict"])


def _tile(label: str, value: str, note: str, verdict: str) -> Tile:
    return {"label": label, "value": value, "note": note, "verdict": verdict}
