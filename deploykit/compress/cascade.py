"""Cascade: a smaller model answers what it is sure of, the checkpoint the rest.

The confidence from which the small model's answer stands is decided on the validation rows: the fewest rows are handed
on with which the metric stays within the budget. Complete models in a cascade, by confidence, are those of Li et al.
2021 (CascadeBERT, abstract), without their training for calibration. Both models stay as they are, and answer with the
arithmetic that will be exported.

    N rows   K sums that the metric is made of
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from deploykit import checkpoint, stage
from deploykit.artifact import Artifact, Kind
from deploykit.checkpoint import Checkpoint
from deploykit.compress import waterfall
from deploykit.errors import UsageError
from deploykit.runtime.tasks import decoder_of
from deploykit.tasks import Score, task_named
from deploykit.train.labelled import Labelled, read_labelled


@dataclass(frozen=True)
class Cascade:
    """Put a smaller model before a checkpoint: it answers what it is sure of, the checkpoint the rest."""

    first: str = field(metadata=stage.FURTHER_CHECKPOINT)
    """The smaller model, of the same task, labels and tokenizer: a folder that `compress` wrote from the same original.
    Its content enters the digest."""
    max_drop: float | None = None
    """How much of the task's primary metric this may cost on the validation rows, absolute, against the checkpoint
    alone. This or `share`."""
    share: float | None = None
    """Of the validation rows, the part to hand on: those that the smaller model is least sure of."""

    verb: ClassVar[str] = "cascade"
    reads: ClassVar[tuple[Kind, ...]] = ("checkpoint", "dataset")
    makes: ClassVar[Kind] = "checkpoint"
    resumes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: one is out of range, or both are given, or neither.
        """
        if (self.max_drop is None) == (self.share is None):
            raise ValueError("give either max_drop or share")
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise ValueError(f"max_drop must be a share from 0 to 1, not {self.max_drop}")
        if self.share is not None and not 0 < self.share < 1:
            raise ValueError(f"share must be between 0 and 1, not {self.share}")

    def __call__(self, *sources: Artifact, scratch: Path) -> Mapping[str, Any]:
        """Write both models and the threshold.

        Raises:
            UsageError: the checkpoint is a cascade itself, or the smaller model answers or reads something else.
        """
        source, data, *further = sources
        if len(further) != 1:
            raise UsageError(
                "cascade.first",
                expected="its checkpoint among the sources",
                found=f"{len(further)}",
                next_step="give it after the rows",
            )
        last, first = checkpoint.load(source), checkpoint.load(further[0])
        _require_kindred(first, last)
        validation = read_labelled(last, data, "validation")
        first_score, confidences_N = _answered(first, validation)
        metrics = metrics_by_rows_handed_on(first_score, _answered(last, validation)[0], confidences_N)
        threshold = threshold_of(confidences_N, self._count(metrics))
        made = replace(last, first=first, spec=replace(last.spec, threshold=threshold))
        facts = waterfall.finish(made, (source, last), validation, self, scratch)
        handed_on = float(np.mean(confidences_N < threshold))
        return {**facts, "threshold": threshold, "handed_on": handed_on, "first_alone": float(metrics[0])}

    def _count(self, metrics: NDArray[np.float64]) -> int:
        """Choose how many rows to hand on, of which each number has its metric (N+1,)."""
        if self.share is not None:
            return round(self.share * (len(metrics) - 1))
        assert self.max_drop is not None
        return fewest_within(metrics, float(metrics[-1]) - self.max_drop)


def metrics_by_rows_handed_on(first: Score, last: Score, confidences_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the primary metric where the 0 to N rows of the lowest confidence are handed on (N+1,)."""
    order = np.argsort(confidences_N, kind="stable")
    kept_NK, handed_on_NK = (_cumulative(score.row_stats[order]) for score in (first, last))
    return first.statistic(handed_on_NK + kept_NK[-1] - kept_NK)


def fewest_within(metrics: NDArray[np.float64], least: float) -> int:
    """Return the fewest rows to hand on from which on the metric stays at least `least`; the last value always does.

    A metric that only touches the budget by chance, and falls below it again with more rows, is not within it.
    """
    below = np.flatnonzero(metrics[:-1] < least)
    return int(below[-1]) + 1 if len(below) else 0


def threshold_of(confidences_N: NDArray[np.float64], count: int) -> float:
    """Return a confidence that `count` rows lie below: midway to the next, so that rounding moves no row across.

    Rows of equal confidence stay together: where the border falls among them, all of them are handed on. With no row to
    hand on it is 0, with every row more than any confidence.
    """
    ordered = np.unique(confidences_N)
    rank = int(np.searchsorted(ordered, np.sort(confidences_N)[count - 1])) if count else -1
    if rank < 0:
        return 0.0
    return float((ordered[rank] + ordered[rank + 1]) / 2) if rank + 1 < len(ordered) else 2.0


def _cumulative(stats_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums over the first 0 to N rows (N+1,K)."""
    return np.concatenate([np.zeros((1, stats_NK.shape[1])), np.cumsum(stats_NK, axis=0)])


def _answered(model: Checkpoint, rows: Labelled) -> tuple[Score, NDArray[np.float64]]:
    """Return the score and the confidences (N,) of a model's answers, with the arithmetic that will be exported."""
    logits = checkpoint.logits(waterfall.as_exported(model), rows.encodings)
    confidence = decoder_of(model.spec.task).confidence
    confidences = [confidence(*pair) for pair in zip(logits, rows.encodings, strict=True)]
    return task_named(model.spec.task).score(logits, rows.targets, model.labels), np.array(confidences)


def _require_kindred(first: Checkpoint, last: Checkpoint) -> None:
    """Check that two checkpoints read and answer alike."""
    if last.first is not None:
        raise UsageError(
            "cascade",
            expected="one model to hand on to",
            found=f"a cascade ({last.path})",
            next_step="give the larger model, and the cascade as `first`",
        )
    for name, own, its in (
        ("task", last.spec.task, first.spec.task),
        ("labels", last.labels, first.labels),
        ("max_length", last.spec.max_length, first.spec.max_length),
        ("tokenizer", checkpoint.tokenizer_json(last), checkpoint.tokenizer_json(first)),
    ):
        if own != its:
            raise UsageError(
                "cascade.first",
                expected=f"a model of the same {name}",
                found=f"another ({first.path})",
                next_step="compress it from the same original",
            )
