"""Latency samples as the tables, metrics and warnings of evidence. Pure.

N calls, passes or requests
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from deploykit.check import latency
from deploykit.check.latency import NULL, Milliseconds
from deploykit.check.ratio import ratio_of_interleaved
from deploykit.evidence import Metric

HEAD, AGAINST = "head", "against"
"""The names of the model that is measured, and of the other one."""
Samples = Mapping[str, Milliseconds]
"""Per system (N). Of `offline`: milliseconds a row."""
_NOTICEABLE = 0.1


def table_of(scenario: str, samples: Samples) -> dict[str, Any]:
    """Lay a scenario out: per system the percentiles, the ratio of the two systems' medians, the harness's cost."""
    systems = {name: latency.summary(values_N) for name, values_N in samples.items() if name != NULL}
    for name, found in systems.items():
        if scenario == "offline":
            found.update(throughput_of(found))
        if scenario == "server":
            found["failed"] = int(np.isinf(samples[name]).sum())
    table: dict[str, Any] = {"systems": systems, "null_ms": float(np.median(samples[NULL]))}
    if AGAINST in samples:
        table["ratio"] = asdict(ratio_of_interleaved(samples[HEAD], samples[AGAINST], 0.5))
    return table


def metrics_of(tables: Mapping[str, Any]) -> list[Metric]:
    """List the head's numbers by the field's names; a second scenario's latencies bear its name too."""
    found: list[Metric] = []
    for scenario, table in tables.items():
        head = table["systems"][HEAD]
        if scenario == "offline":
            found.append(_metric(head, "throughput_per_s", "rows/s"))
            continue
        taken = {metric.name for metric in found}
        latencies = [_metric(head, f"p{share}_ms", "ms") for share in latency.PERCENTILES]
        found += [replace(one, name=f"{scenario}_{one.name}") if one.name in taken else one for one in latencies]
    return found


def warnings_of(tables: Mapping[str, Any]) -> list[str]:
    """Say what limits the numbers."""
    found = []
    for scenario, table in tables.items():
        head = table["systems"][HEAD]
        if table["null_ms"] > _NOTICEABLE * head["p50_ms"]:
            found.append(f"{scenario}: the harness itself takes {table['null_ms']:.3g} of {head['p50_ms']:.3g} ms")
        if head.get("failed"):
            found.append(f"{scenario}: {head['failed']} of {head['n']} requests were not answered")
        if scenario != "offline" and head["p99_ms_high"] is None:
            found.append(f"{scenario}: {head['n']} calls cannot bound the 99th percentile")
    return found


def throughput_of(found: Mapping[str, Any]) -> dict[str, float | None]:
    """Turn a summary of milliseconds a row into rows a second, `throughput_per_s` with its ends."""
    ends = {"": found["p50_ms"], "_low": found["p50_ms_high"], "_high": found["p50_ms_low"]}
    return {f"throughput_per_s{end}": 1e3 / value if value else None for end, value in ends.items()}


def _metric(head: Mapping[str, Any], name: str, unit: str) -> Metric:
    low, high = head[f"{name}_low"], head[f"{name}_high"]
    return Metric(name, head[name], unit, "lower" if unit == "ms" else "higher", low, high, head["n"])
