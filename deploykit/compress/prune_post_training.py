"""Prune to a latency without training: minutes, and not one gradient step on a weight (Kwon et al. 2022).

A latency table says what heads and neurons cost where the model will be served; `brain_surgeon` says what is lost
without them once the others make up for them, or Fisher information what they are worth as they are; a search finds the
least loss within the target, layer by layer as uneven as that asks for. What it finds is timed, and searched for again
where the table had promised too much. A least-squares fit then brings every layer's output back to what it was.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from deploykit import families
from deploykit.artifact import Artifact, Kind
from deploykit.checkpoint import Checkpoint
from deploykit.compress import brain_surgeon, latency_probes, waterfall
from deploykit.compress.budget import Served, budget, latency_costs, measured, parts_within, require_targets, warnings
from deploykit.compress.calibrate import FEWEST_ROWS
from deploykit.compress.fisher import mask_gradients
from deploykit.compress.fisher_rows import Labels, batches, calibration_rows, fitting_inputs, row_loss
from deploykit.compress.latency_table import smallest
from deploykit.compress.mask_search import Removals, by_fisher
from deploykit.compress.mask_tuning import tune
from deploykit.compress.slicing import sliced
from deploykit.compress.source import load_float
from deploykit.stage import settings_of
from deploykit.train.labelled import Labelled, read_labelled

_CHOOSING_ROWS = 1024
"""Of the calibration rows, that parts are chosen on where the output matrices are fitted. More gave nothing: half of
MiniLM-L6 on sentiment, chosen on 1024 rows and on 4096, ended 0.0113 and 0.0110 from the original where 4096 rows were
fitted, 0.0112 and 0.0113 where 2048 were, and 0.0121 and 0.0123 where 1024 were (divergence)."""
_TRIES = 3
"""Searches, each with the limit that the time of the one before asks for."""
_NEAR = 1.02
"""How much slower than asked is near enough: timings differ by as much."""


@dataclass(frozen=True)
class PrunePostTraining:
    """Remove the least valuable heads and neurons until the model is as fast as asked."""

    speedup: float | None = None
    """How many times faster than the checkpoint at the same precision, one row at a time; above 1."""
    target_ms: float | None = None
    """Instead: the mean latency of one row over the lengths of the training rows, in milliseconds."""
    precision: Served = "int8"
    """In which the model will be served, and so is measured."""
    threads: int | None = None
    """With which it will be served; all cores if not given."""
    labels: Labels = "given"
    """`own`: the model's own predictions take the place of the training rows' labels, which are not looked at."""
    tuning: Literal["none", "masks", "weights"] = "weights"
    """What is fitted afterwards by least squares: nothing, a mask for each head and neuron, or the output matrices,
    for which parts are chosen by what the others cannot make up for (`brain_surgeon`)."""
    calibration_rows: int = 1024
    """Training rows that outputs are fitted on, and that importance is measured on (with `weights` on 1024 of them at
    most). More are better, and take longer: with 3072 in the place of 1024 MiniLM-L6 on sentiment was 0.0230 from the
    original and not 0.0258 (divergence)."""
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
        require_targets({"speedup": self.speedup, "target_ms": self.target_ms})
        for name, least in (("threads", 1), ("multiple", 1), ("calibration_rows", FEWEST_ROWS)):
            number = getattr(self, name)
            if number is not None and number < least:
                raise ValueError(f"{name} must be at least {least}, not {number}")

    def __call__(self, *sources: Artifact, scratch: Path) -> Mapping[str, Any]:
        """Write the pruned checkpoint; where even the smallest structure is slower than the target, that one.

        Its row of the waterfall then says so, and names the nearest point.

        Raises:
            DataError: there are too few rows to calibrate on.
            UsageError: the model is as fast already, or the checkpoint is quantized.
        """
        source, data = sources
        before = load_float(source, self.verb)
        rows = calibration_rows(before, data, self.calibration_rows, self.labels, self.seed)
        validation = read_labelled(before, data, "validation")
        under = latency_probes.conditions(rows.encodings, self.precision, self.threads)
        table = latency_probes.latency_table(before, under, self.multiple)
        full = families.structure_of(before.model)
        costs = latency_costs(table, len(full.heads))
        target = ("speedup", self.speedup) if self.speedup else ("target_ms", self.target_ms or 0.0)
        asked, least = budget(self.verb, target, costs.of(full)), costs.of(smallest(full, self.multiple))
        removals = self._removals(before, rows)
        made, latency = self._timed(
            (asked.limit, least),
            lambda limit: sliced(before, parts_within(limit, costs, removals)),
            lambda found: measured(before, found, under, table),
        )
        fits = self._tuned(made, before, rows)
        row = waterfall.measure(made, validation, self.verb, settings_of(self))
        row = replace(row, missed=asked.missed(least))
        facts = waterfall.add(made, waterfall.begun((source, before), validation), row, scratch)
        said = warnings(table, asked.now / max(asked.limit, least), latency["speedup"])
        return {**facts, "fits": fits, "latency": latency, "warnings": [*facts["warnings"], *said]}

    def _timed(
        self,
        limits: tuple[float, float],
        pruned: Callable[[float], Checkpoint],
        measured: Callable[[Checkpoint], dict[str, Any]],
    ) -> tuple[Checkpoint, dict[str, Any]]:
        """Prune to the first of two limits in milliseconds; while that is slower than asked, to a lower one.

        Not below the second, what the smallest structure takes. Returns the facts of the last, with all `tries`.
        """
        limit, least = limits
        tries: list[dict[str, float]] = []
        while True:
            made = pruned(limit)
            latency = measured(made)
            tries.append({"limit_ms": limit, "speedup": latency["speedup"], "after_ms": latency["after_ms"]})
            wanted = self.speedup or latency["before_ms"] / (self.target_ms or latency["before_ms"])
            short = wanted / latency["speedup"]
            if short <= _NEAR or limit <= least or len(tries) == _TRIES:
                return made, {**latency, "tries": tries}
            limit = max(limit / short, least)

    def _removals(self, before: Checkpoint, rows: Labelled) -> Removals:
        """Return what losing parts costs: where the output matrices are fitted anew, what is left after that."""
        model, loss = before.model, row_loss(before)
        if self.tuning == "weights":
            rows = rows.sample(_CHOOSING_ROWS, self.seed)
            return brain_surgeon.removals(model, batches(before, rows), loss, self.multiple)
        return by_fisher(mask_gradients(model, batches(before, rows), loss), self.multiple)

    def _tuned(self, made: Checkpoint, before: Checkpoint, rows: Labelled) -> list[dict[str, Any]]:
        """Fit the pruned model's outputs, in place."""
        if self.tuning == "none":
            return []
        return [asdict(fit) for fit in tune(made.model, before.model, fitting_inputs(before, rows), self.tuning)]
