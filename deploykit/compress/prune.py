"""Prune: the least valuable attention heads and feed-forward neurons go, and the matrices really get smaller.

Scores are the Fisher information of masks on calibration rows (`fisher`); parts are ranked over all layers, so layers
may end with different widths (`slicing`). With `epochs`, the pruned model is then distilled from the unpruned one.
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel

from deploykit import families
from deploykit.artifact import Artifact, Kind
from deploykit.checkpoint import Checkpoint
from deploykit.compress import waterfall
from deploykit.compress.distillation import Objective, distil_from, matching_layers
from deploykit.compress.fisher import Importance
from deploykit.compress.fisher_rows import score_parts
from deploykit.compress.slicing import require_reachable, select, slice_parts
from deploykit.compress.source import load_float
from deploykit.train.labelled import read_labelled
from deploykit.train.loop import Training


@dataclass(frozen=True)
class Prune:
    """Remove a share of all attention heads and of all feed-forward neurons."""

    heads: float | None = None
    """The share of heads to remove, between 0 and 1; every layer keeps at least one."""
    ffn: float | None = None
    """The share of feed-forward neurons to remove, between 0 and 1."""
    multiple: int = 32
    """Feed-forward widths stay multiples of this, which is what the matrix kernels like."""
    calibration_rows: int = 512
    """Training rows that the importance is measured on."""
    epochs: int = 0
    """Epochs of distillation from the unpruned model; 0 leaves the remaining weights as they are."""
    learning_rate: float = 5e-5
    temperature: float = 2.0
    alpha: float = 0.3
    hidden_weight: float = 1.0
    batch_size: int = 32
    seed: int = 0
    max_train_samples: int | None = None

    verb: ClassVar[str] = "prune"
    reads: ClassVar[tuple[Kind, ...]] = ("checkpoint", "dataset")
    makes: ClassVar[Kind] = "checkpoint"
    resumes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: one is out of range.
        """
        if self.heads is None and self.ffn is None:
            raise ValueError("heads or ffn must be given: the share to remove")
        for name in ("heads", "ffn"):
            share = getattr(self, name)
            if share is not None and not 0 < share < 1:
                raise ValueError(f"{name} must be a share between 0 and 1, not {share}")
        for name in ("multiple", "calibration_rows", "max_train_samples"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, not {number}")
        if self.epochs < 0:
            raise ValueError(f"epochs must not be negative, not {self.epochs}")
        self._objective(()), self._training(0)

    def __call__(self, *sources: Artifact, scratch: Path) -> Mapping[str, Any]:
        """Write the pruned checkpoint.

        Raises:
            UsageError: a share cannot be reached, or the checkpoint is quantized.
        """
        source, data = sources
        before = load_float(source, self.verb)
        self._require_reachable(before.model)
        rows = read_labelled(before, data, "train").trainable()
        validation = read_labelled(before, data, "validation")
        scores = score_parts(before, rows.sample(self.calibration_rows, self.seed))
        made = self._sliced(before, scores)
        history = []
        if self.epochs:
            depth = len(families.blocks(before.model))
            recovery = distil_from(
                (source, before),
                made,
                (rows.sample(self.max_train_samples, self.seed), validation),
                self._objective(matching_layers(depth, depth)),
                (self._training(before.spec.pad_id), scratch / ".train"),
            )
            history = [asdict(epoch) for epoch in recovery.epochs]
        return {**waterfall.finish(made, (source, before), validation, self, scratch), "history": history}

    def _require_reachable(self, model: PreTrainedModel) -> None:
        structure = families.structure_of(model)
        if self.heads is not None:
            require_reachable("prune.heads", self.heads, structure.heads, 1)
        if self.ffn is not None:
            require_reachable("prune.ffn", self.ffn, structure.ffn, self.multiple)

    def _sliced(self, before: Checkpoint, scores: Importance) -> Checkpoint:
        model = copy.deepcopy(before.model)
        heads = select(scores.heads, self.heads or 0.0, 1)
        neurons = select(scores.neurons, self.ffn or 0.0, self.multiple)
        structure = slice_parts(model, heads, neurons)
        return replace(before, model=model, spec=replace(before.spec, structure=structure))

    def _objective(self, layers: tuple[tuple[int, int], ...]) -> Objective:
        return Objective(self.temperature, self.alpha, self.hidden_weight, layers)

    def _training(self, pad_id: int) -> Training:
        return Training(
            epochs=max(self.epochs, 1),
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            patience=max(self.epochs, 1),
            seed=self.seed,
            pad_id=pad_id,
        )
