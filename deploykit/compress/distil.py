"""Distil: a student with fewer of its teacher's layers learns to answer as the teacher does.

The student starts as the teacher without some layers (Sun et al. 2019, Patient Knowledge Distillation; Sanh et al.
2019) and learns from the teacher's soft labels (Hinton et al. 2015) and hidden states (Jiao et al. 2020), which are
computed once and kept in the cache.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from deploykit import families
from deploykit.artifact import Artifact, Kind
from deploykit.checkpoint import Checkpoint
from deploykit.compress import waterfall
from deploykit.compress.distillation import Objective, distil_from, matching_layers
from deploykit.compress.source import load_float
from deploykit.errors import UsageError
from deploykit.families import Structure
from deploykit.train.labelled import read_labelled
from deploykit.train.loop import Training


@dataclass(frozen=True)
class Distil:
    """Distil into a student of `layers` layers, started from the teacher's evenly spaced ones."""

    layers: int
    """Layers of the student, at most the teacher's."""
    epochs: int = 4
    learning_rate: float = 1e-4
    temperature: float = 2.0
    """Of the soft labels."""
    alpha: float = 0.3
    """The share of the labels' own cross-entropy; the soft labels have the rest."""
    hidden_weight: float = 1.0
    """The weight of the hidden states' distance; 0 leaves them out."""
    batch_size: int = 32
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    patience: int = 4
    """Stop after this many epochs without a better validation metric."""
    seed: int = 0
    max_train_samples: int | None = None
    """Train on this many rows, drawn by the seed."""

    verb: ClassVar[str] = "distil"
    reads: ClassVar[tuple[Kind, ...]] = ("checkpoint", "dataset")
    makes: ClassVar[Kind] = "checkpoint"
    resumes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: one is out of range.
        """
        if self.layers < 1:
            raise ValueError(f"layers must be at least 1, not {self.layers}")
        if self.max_train_samples is not None and self.max_train_samples < 1:
            raise ValueError(f"max_train_samples must be at least 1, not {self.max_train_samples}")
        self._objective(()), self._training(0)

    def __call__(self, *sources: Artifact, scratch: Path) -> Mapping[str, Any]:
        """Write the student.

        Raises:
            UsageError: the teacher has fewer layers, or is quantized.
        """
        source, data = sources
        teacher = load_float(source, self.verb)
        depth = len(families.blocks(teacher.model))
        self._require_depth(depth)
        train_rows = read_labelled(teacher, data, "train").trainable().sample(self.max_train_samples, self.seed)
        validation = read_labelled(teacher, data, "validation")
        student = keep_layers(teacher, spread(self.layers, depth))
        history = distil_from(
            (source, teacher),
            student,
            (train_rows, validation),
            self._objective(matching_layers(self.layers, depth)),
            (self._training(teacher.spec.pad_id), scratch / ".train"),
        )
        facts = waterfall.finish(student, (source, teacher), validation, self, scratch)
        return {**facts, "history": [asdict(epoch) for epoch in history.epochs]}

    def _objective(self, layers: tuple[tuple[int, int], ...]) -> Objective:
        return Objective(self.temperature, self.alpha, self.hidden_weight, layers)

    def _training(self, pad_id: int) -> Training:
        return Training(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            warmup_ratio=self.warmup_ratio,
            weight_decay=self.weight_decay,
            patience=self.patience,
            seed=self.seed,
            pad_id=pad_id,
        )

    def _require_depth(self, depth: int) -> None:
        if self.layers > depth:
            raise UsageError(
                "distil.layers",
                expected=f"at most {depth}, the teacher's",
                found=str(self.layers),
                next_step="ask for a smaller student",
            )


def spread(count: int, depth: int) -> list[int]:
    """Choose `count` of `depth` layers, evenly spaced, the first and the last among them; counted from 0."""
    return [round(index * (depth - 1) / max(count - 1, 1)) for index in range(count)]


def keep_layers(checkpoint: Checkpoint, kept: Sequence[int]) -> Checkpoint:
    """Copy a checkpoint with only some of its layers, in order."""
    model = copy.deepcopy(checkpoint.model)
    family = families.FAMILIES[model.config.model_type]
    layers = families.layer_list(model)
    getattr(model, family.backbone).set_submodule(family.layers, nn.ModuleList(layers[index] for index in kept))
    setattr(model.config, family.num_layers, len(kept))
    structure = checkpoint.spec.structure
    if structure is not None:
        structure = Structure(*(tuple(widths[i] for i in kept) for widths in (structure.heads, structure.ffn)))
    return replace(checkpoint, model=model, spec=replace(checkpoint.spec, structure=structure))
