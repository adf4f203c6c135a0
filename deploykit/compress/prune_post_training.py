"""Prune to a latency without training: minutes, and not one gradient step on a weight (Kwon et al. 2022).

A latency table says what heads and neurons cost where the model will be served; Fisher information says what they are
worth; a search finds the least loss within the target, layer by layer as uneven as that asks for; a least-squares fit
then brings every layer's output back to what it was.
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from deploykit import families
from deploykit.artifact import Artifact, Kind
from deploykit.checkpoint import Checkpoint
from deploykit.compress import latency_probes, waterfall
from deploykit.compress.calibrate import FEWEST_ROWS
from deploykit.compress.fisher import MaskGradients, mask_gradients
from deploykit.compress.fisher_rows import Labels, batches, calibration_rows, inputs_of, row_loss
from deploykit.compress.latency_probes import Conditions
from deploykit.compress.latency_table import TOLERANCE, LatencyTable, smallest
from deploykit.compress.mask_search import Group, most_valuable, rearranged, search
from deploykit.compress.mask_tuning import tune
from deploykit.compress.slicing import Kept, slice_parts
from deploykit.compress.source import load_float
from deploykit.errors import GateFailed, UsageError
from deploykit.families import Structure
from deploykit.train.labelled import Labelled, read_labelled

Parts = tuple[list[Kept], list[Kept]]
"""The heads and the neurons kept, layer by layer."""


@dataclass(frozen=True)
class PrunePostTraining:
    """Remove the least valuable heads and neurons until the model is as fast as asked."""

    speedup: float | None = None
    """How many times faster than the checkpoint at the same precision, one row at a time; above 1."""
    target_ms: float | None = None
    """Instead: the mean latency of one row over the lengths of the training rows, in milliseconds."""
    precision: Literal["fp32", "int8"] = "int8"
    """In which the model will be served, and so is measured."""
    threads: int | None = None
    """With which it will be served; all cores if not given."""
    labels: Labels = "given"
    """`own`: the model's own predictions take the place of the training rows' labels, which are not looked at."""
    tuning: Literal["none", "masks", "weights"] = "weights"
    """What is fitted afterwards by least squares: nothing, a mask for each head and neuron, or the output matrices."""
    calibration_rows: int = 1024
    """Training rows that importance is measured on and outputs are fitted on."""
    multiple: int = 32
    """Feed-forward widths stay multiples of this, which is what the matrix kernels like."""
    seed: int = 0

    verb: ClassVar[str] = "prune-post-training"
    reads: ClassVar[tuple[Kind, ...]] = ("checkpoint", "dataset")
    makes: ClassVar[Kind] = "checkpoint"
    resumes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: one is out of range, or not exactly one target is given.
        """
        if (self.speedup is None) == (self.target_ms is None):
            raise ValueError("exactly one of speedup and target_ms must be given")
        if self.speedup is not None and not (isfinite(self.speedup) and self.speedup > 1):
            raise ValueError(f"speedup must be above 1, not {self.speedup}")
        if self.target_ms is not None and not (isfinite(self.target_ms) and self.target_ms > 0):
            raise ValueError(f"target_ms must be above 0, not {self.target_ms}")
        for name, least in (("threads", 1), ("multiple", 1), ("calibration_rows", FEWEST_ROWS)):
            number = getattr(self, name)
            if number is not None and number < least:
                raise ValueError(f"{name} must be at least {least}, not {number}")

    def __call__(self, *sources: Artifact, scratch: Path) -> Mapping[str, Any]:
        """Write the pruned checkpoint.

        Raises:
            DataError: there are too few rows to calibrate on.
            GateFailed: even the smallest structure is slower than the target; the nearest point is named.
            UsageError: the model is as fast already, or the checkpoint is quantized.
        """
        source, data = sources
        before = load_float(source, self.verb)
        rows = calibration_rows(before, data, self.calibration_rows, self.labels, self.seed)
        validation = read_labelled(before, data, "validation")
        under = latency_probes.conditions(rows.encodings, self.precision, self.threads)
        table = latency_probes.latency_table(before, under, self.multiple)
        full = families.structure_of(before.model)
        budget_ms = self._budget(table, full)
        gradients = mask_gradients(before.model, batches(before, rows), row_loss(before))
        made = _sliced(before, parts_within(budget_ms, table, gradients, self.multiple))
        fits = self._tuned(made, before, rows)
        latency = measured(before, made, under, table)
        facts = waterfall.finish(made, (source, before), validation, self, scratch)
        return {
            **facts,
            "fits": fits,
            "latency": latency,
            "warnings": warnings(table, table.predict(full) / budget_ms, latency["speedup"]),
        }

    def _budget(self, table: LatencyTable, full: Structure) -> float:
        """Return the target in milliseconds by the table.

        Raises:
            GateFailed: no structure is that fast.
            UsageError: the model is.
        """
        now, least = table.predict(full), table.predict(smallest(full, self.multiple))
        name, asked = ("speedup", self.speedup) if self.speedup else ("target_ms", self.target_ms)
        budget_ms = self.target_ms or now / (self.speedup or 1.0)
        if budget_ms >= now:
            raise UsageError(
                f"{self.verb}.{name}",
                expected=f"less than the {now:.3g} ms that the checkpoint takes",
                found=f"{asked:g}",
                next_step="ask for more speed, or leave the stage out",
            )
        if budget_ms < least:
            raise GateFailed(
                f"{self.verb}.{name}",
                expected=f"a model of {budget_ms:.3g} ms ({name} {asked:g})",
                found=f"at best {least:.3g} ms, {now / least:.3g} times as fast, one head a layer",
                next_step="ask for at most that, or distil to fewer layers first",
            )
        return budget_ms

    def _tuned(self, made: Checkpoint, before: Checkpoint, rows: Labelled) -> list[dict[str, Any]]:
        """Fit the pruned model's outputs, in place."""
        if self.tuning == "none":
            return []
        size = min(len(rows.encodings) // 4, 32)
        inputs = [inputs_of(batch) for batch in batches(before, rows, size)]
        return [asdict(fit) for fit in tune(made.model, before.model, inputs, self.tuning)]


def parts_within(budget_ms: float, table: LatencyTable, gradients: MaskGradients, multiple: int) -> Parts:
    """Choose the parts that stay: how many in each layer, then which.

    Args:
        budget_ms: at least the table's prediction for the smallest structure.
        table: the costs.
        gradients: of the unpruned model's masks.
        multiple: of the feed-forward widths.
    """
    scores = gradients.importance()
    costs = table.costs(len(scores.heads))
    groups = []
    for cost, heads, neurons in zip(costs, scores.heads, scores.neurons, strict=True):
        for curve, worth, step in ((cost.heads, heads, 1), (cost.ffn, neurons, multiple)):
            widths = allowed(len(worth), step)
            groups.append(Group(worth, widths, np.array([curve.at(int(width)) for width in widths])))
    chosen = search(groups, budget_ms - table.base_ms - sum(cost.fixed_ms for cost in costs))
    if chosen is None:  # a budget of the smallest structure, less what rounding its costs up takes
        chosen = [int(group.widths[0]) for group in groups]
    kept = [most_valuable(group.scores, width) for group, width in zip(groups, chosen, strict=True)]
    rearranged_heads = [rearranged(*each) for each in zip(gradients.heads, kept[0::2], strict=True)]
    return rearranged_heads, [rearranged(*each) for each in zip(gradients.neurons, kept[1::2], strict=True)]


def allowed(width: int, multiple: int) -> NDArray[np.int64]:
    """Return the widths that a group may end with, ascending: multiples, and its full one."""
    return np.unique([*range(multiple, width + 1, multiple), width])


def measured(before: Checkpoint, made: Checkpoint, under: Conditions, table: LatencyTable) -> dict[str, Any]:
    """Time the result beside the checkpoint it was made from, and say what the table had promised."""
    structures = [families.structure_of(each.model) for each in (before, made)]
    found = latency_probes.latencies(before, structures, under)
    before_ms, after_ms = (found[structure] for structure in structures)
    return {
        "before_ms": before_ms,
        "after_ms": after_ms,
        "speedup": before_ms / after_ms,
        "predicted_ms": table.predict(structures[1]),
        "predicted_speedup": table.predict(structures[0]) / table.predict(structures[1]),
        "structure": asdict(structures[1]),
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


def _sliced(before: Checkpoint, parts: Parts) -> Checkpoint:
    model = copy.deepcopy(before.model)
    structure = slice_parts(model, *parts)
    return replace(before, model=model, spec=replace(before.spec, structure=structure))
