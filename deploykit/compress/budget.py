"""A target of speed or size: what a model's parts cost towards it, and the parts that fit within it."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from math import isfinite
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from deploykit import families
from deploykit.checkpoint import Checkpoint
from deploykit.compress import latency_probes
from deploykit.compress.fake_quant import decide
from deploykit.compress.latency_probes import Conditions
from deploykit.compress.latency_table import TOLERANCE, Curve, LatencyTable
from deploykit.compress.mask_search import Group, Removal, Removals, search
from deploykit.compress.slicing import Parts
from deploykit.compress.waterfall import exported_bytes
from deploykit.errors import UsageError
from deploykit.families import Structure

Served = Literal["fp32", "int8"]
"""The precision in which a model will be served."""
_UNITS: Mapping[str, str] = MappingProxyType({"speedup": "ms", "target_ms": "ms", "size_mb": "MB"})


@dataclass(frozen=True)
class Costs:
    """What a model's parts cost, in one unit: milliseconds where it will be served, or megabytes as exported."""

    fixed: float
    """What stays, whatever heads and neurons go."""
    heads: tuple[Curve, ...]
    """Of each layer."""
    ffn: tuple[Curve, ...]
    """Of each layer."""

    def of(self, structure: Structure) -> float:
        """Return what a structure costs."""
        curves, parts = (*self.heads, *self.ffn), (*structure.heads, *structure.ffn)
        return self.fixed + sum(curve.at(count) for curve, count in zip(curves, parts, strict=True))


@dataclass(frozen=True)
class Budget:
    """A target, and what it means for one model."""

    where: str
    """The setting: prune.speedup."""
    asked: float
    now: float
    """What the unpruned model costs."""
    limit: float
    """What the pruned one may cost."""
    unit: str

    def after(self, share: float) -> float:
        """Return what the model may cost after a share of the way."""
        return self.now - share * (self.now - self.limit)

    def missed(self, least: float) -> str | None:
        """Say what was asked and what the nearest point is, where even the smallest structure costs more."""
        if self.limit >= least:
            return None
        asked = f"{self.where} {self.asked:g} ({self.limit:.3g} {self.unit})"
        less = "times as fast" if self.unit == "ms" else "times smaller"
        reached = f"{least:.3g} {self.unit}, {self.now / least:.3g} {less}, with one head a layer"
        return f"{asked} is out of reach: at best {reached}; ask for at most that, or for fewer layers"


def require_targets(given: Mapping[str, float | None]) -> None:
    """Check the values of `speedup`, `target_ms` and `size_mb`, where they are given.

    Raises:
        ValueError: one asks for nothing, or for everything.
    """
    for name, value in given.items():
        least = 1 if name == "speedup" else 0
        if value is not None and not (isfinite(value) and value > least):
            raise ValueError(f"{name} must be above {least}, not {value}")


def budget(verb: str, target: tuple[str, float], now: float) -> Budget:
    """Return what a target means for a model that costs `now`.

    Raises:
        UsageError: the model costs less already.
    """
    name, asked = target
    found = Budget(f"{verb}.{name}", asked, now, now / asked if name == "speedup" else asked, _UNITS[name])
    if found.limit >= now:
        raise UsageError(
            found.where,
            expected=f"less than the {now:.3g} {found.unit} of the checkpoint",
            found=f"{asked:g}",
            next_step="ask for more, or leave the stage out",
        )
    return found


def latency_costs(table: LatencyTable, depth: int) -> Costs:
    """Return the costs of a model of `depth` layers in milliseconds."""
    layers = table.costs(depth)
    fixed = table.base_ms + sum(layer.fixed_ms for layer in layers)
    return Costs(fixed, tuple(layer.heads for layer in layers), tuple(layer.ffn for layer in layers))


def size_costs(model: PreTrainedModel, precision: Served) -> Costs:
    """Return what a model's parts weigh as exported, in megabytes (10^6); int8 is what `quantize` decides by default.

    Every part weighs the same wherever it is, so one more of each, in the first layer, tells it.
    """
    full, shapes = families.structure_of(model), copy.deepcopy(model)
    nn.Module.to(shapes, "meta")  # without values; in place

    def weight(structure: Structure) -> float:
        families.resize(shapes, structure)
        return exported_bytes(shapes, decide(shapes) if precision == "int8" else None) / 1e6

    whole = weight(full)
    head = weight(Structure((full.heads[0] + 1, *full.heads[1:]), full.ffn)) - whole
    neuron = weight(Structure(full.heads, (full.ffn[0] + 1, *full.ffn[1:]))) - whole
    fixed, depth = whole - head * sum(full.heads) - neuron * sum(full.ffn), len(full.heads)
    return Costs(fixed, (Curve((1,), (head,)),) * depth, (Curve((1,), (neuron,)),) * depth)


def parts_within(limit: float, costs: Costs, removals: Removals) -> Parts:
    """Choose the parts that stay: how many in each layer, then which.

    Args:
        limit: in the unit of the costs; the smallest structure is chosen where even that costs more.
        costs: of the model's parts.
        removals: what is lost in each layer as its parts become fewer.
    """
    groups = []
    for heads, ffn, *parts in zip(costs.heads, costs.ffn, *removals, strict=True):
        groups += [_group(*each) for each in zip((heads, ffn), parts, strict=True)]
    chosen = search(groups, limit - costs.fixed)
    if chosen is None:  # a limit below the smallest structure, or above by less than rounding its costs up takes
        chosen = [int(group.widths[0]) for group in groups]
    heads_kept, neurons_kept = (
        [removal.kept(width) for removal, width in zip(part, widths, strict=True)]
        for part, widths in zip(removals, (chosen[0::2], chosen[1::2]), strict=True)
    )
    return heads_kept, neurons_kept


def _group(curve: Curve, removal: Removal) -> Group:
    widths = removal.widths
    return Group(widths, np.array([curve.at(int(width)) for width in widths]), removal.losses)


def measured(before: Checkpoint, made: Checkpoint, under: Conditions, table: LatencyTable) -> dict[str, Any]:
    """Time the result beside the checkpoint it was made from, and say what the table had promised.

    Something else may have run on the machine: where the two disagree, it is timed twice more, and the median of the
    three speed-ups counts.
    """
    was, now = (families.structure_of(each.model) for each in (before, made))
    promised = table.predict(was) / table.predict(now)

    def faster(found: Mapping[Structure, float]) -> float:
        return found[was] / found[now]

    measurements = latency_probes.measurements(before, (was, now), under)
    found = next(measurements)
    if abs(faster(found) / promised - 1) > TOLERANCE:
        found = sorted([found, *islice(measurements, 2)], key=faster)[1]
    return {
        "before_ms": found[was],
        "after_ms": found[now],
        "speedup": faster(found),
        "predicted_ms": table.predict(now),
        "predicted_speedup": promised,
        "structure": asdict(now),
        "conditions": asdict(under),
        "table_error": table.error,
    }


def warnings(table: LatencyTable, asked: float, found: float) -> list[str]:
    """Say where the table was found to be wrong, and where the result is slower than asked for.

    Args:
        table: with its checks.
        asked: the speed-up that was searched for.
        found: the one that was measured.
    """
    said = []
    if not table.error <= TOLERANCE:
        said.append(
            f"the latency table is off by up to {table.error:.0%} on structures that checked it, "
            "so it is not kept: run again on an idle machine"
        )
    if found < asked / (1 + TOLERANCE):
        said.append(f"{found:.3g} times as fast when measured, and not {asked:.3g}")
    return said
