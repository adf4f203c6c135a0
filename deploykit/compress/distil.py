"""Distil: a student with fewer of its teacher's layers, or a narrower one, learns to answer as the teacher does.

The student starts as some of the teacher's layers (Sun et al. 2019, Patient Knowledge Distillation; Sanh et al. 2019),
each with its most active parts (`student`), and learns from the teacher's soft labels (Hinton et al. 2015), hidden
states and attention scores (Jiao et al. 2020) and self-attention relations (Wang et al. 2021). What the teacher says is
computed once and kept in the cache. Rows without a label count too: `unlabeled` text, and `augment`ed copies.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from deploykit import families, stage
from deploykit.artifact import Artifact, Kind
from deploykit.checkpoint import Checkpoint
from deploykit.compress import waterfall
from deploykit.compress.augment import augmented
from deploykit.compress.distillation import Objective, distil_from, matching_layers
from deploykit.compress.source import load_float
from deploykit.compress.student import Widths, activity, keep_layers, keep_widths, spread
from deploykit.errors import UsageError
from deploykit.train.labelled import Labelled, read_labelled, unlabeled, without_labels
from deploykit.train.loop import Training

CALIBRATION_ROWS = 512
"""Training rows that a narrower student's parts are chosen on."""


@dataclass(frozen=True)
class Distil:
    """Distil into a shallower or narrower student that starts from the teacher's own weights."""

    layers: int | tuple[int, ...]
    """How many of the teacher's layers, evenly spaced; or which ones, counted from 1: [1, 3, 6]."""
    hidden_size: int | None = None
    """A multiple of the teacher's head size, which stays; None: the teacher's."""
    heads: int | None = None
    """Of each layer. None: the teacher's or, where `hidden_size` is given, as many as fill it."""
    ffn: int | None = None
    """Feed-forward neurons of each layer; None: the teacher's."""
    epochs: int = 4
    learning_rate: float = 1e-4
    temperature: float = 2.0
    """Of the soft labels."""
    alpha: float = 0.3
    """The share of the labels' own cross-entropy; the soft labels have the rest."""
    hidden_weight: float = 1.0
    """The weight of the hidden states' distance; 0 leaves them out. A narrower student learns a projection along."""
    attention_weight: float = 0.0
    """The weight of the attention scores' distance; needs as many heads as the teacher has."""
    relation_weight: float = 0.0
    """The weight of the self-attention relations' divergence."""
    relation_heads: int | None = None
    """Relation heads, dividing both widths; None: the student's heads."""
    relation_layer: int | None = None
    """The teacher's layer whose relations the student's last layer learns, counted from 1; None: the last."""
    unlabeled: str | None = field(default=None, metadata=stage.FURTHER_SOURCE)
    """A file or folder of rows without labels (`.jsonl`, `.csv`, `.parquet`, or `.txt` with a text a line), which learn
    from the teacher alone. A path relative to the recipe; its content, not its name, enters the digest."""
    augment: int = 0
    """Copies of each training row with some words replaced by near ones (`augment`), for the teacher to judge."""
    batch_size: int = 32
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    patience: int = 4
    """Stop after this many epochs without a better validation metric."""
    seed: int = 0
    max_train_samples: int | None = None
    """Train on this many labelled rows, drawn by the seed."""

    verb: ClassVar[str] = "distil"
    reads: ClassVar[tuple[Kind, ...]] = ("checkpoint", "dataset")
    makes: ClassVar[Kind] = "checkpoint"
    resumes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: one is out of range, or has no effect beside the others.
        """
        chosen = (self.layers,) if isinstance(self.layers, int) else self.layers
        if not chosen or min(chosen) < 1 or list(chosen) != sorted(set(chosen)):
            raise ValueError(f"layers must be at least 1, or layers counted from 1 in their order, not {self.layers}")
        for name in ("hidden_size", "heads", "ffn", "relation_heads", "relation_layer", "max_train_samples"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.augment < 0:
            raise ValueError(f"augment must not be negative, not {self.augment}")
        for name in ("relation_heads", "relation_layer"):
            if getattr(self, name) is not None and self.relation_weight == 0:
                raise ValueError(f"{name} has no effect without a relation_weight")
        objective = Objective(
            self.temperature, self.alpha, self.hidden_weight, ((1, 1),), self.attention_weight, self.relation_weight
        )
        if (self.augment or self.unlabeled) and not objective.asks_the_teacher():
            raise ValueError("augment and unlabeled have no effect where alpha is 1 and no other weight is above 0")
        self._training(0)

    def __call__(self, *sources: Artifact, scratch: Path) -> Mapping[str, Any]:
        """Write the student.

        Args:
            sources: the teacher, the labelled rows, and any number of sets of rows without labels.
            scratch: the payload.

        Raises:
            UsageError: the teacher is smaller or quantized, or a setting does not fit it.
        """
        source, data, *further = sources
        teacher = load_float(source, self.verb)
        kept, widths = self._layers(teacher), self._widths(teacher)
        objective = self._objective(teacher, len(kept), widths)
        rows = read_labelled(teacher, data, "train").trainable().sample(self.max_train_samples, self.seed)
        validation = read_labelled(teacher, data, "validation")
        train_sets = [rows, *self._without_labels(teacher, rows, further)]
        student = keep_layers(teacher, kept)
        if widths is not None:
            sample = rows.sample(CALIBRATION_ROWS, self.seed).encodings
            student = keep_widths(student, widths, activity(student, sample))
        history = distil_from(
            (source, teacher),
            student,
            (*train_sets, validation),
            objective,
            (self._training(teacher.spec.pad_id), scratch / ".train"),
        )
        facts = waterfall.finish(student, (source, teacher), validation, self, scratch)
        return {**facts, "history": [asdict(epoch) for epoch in history.epochs], "rows": list(map(len, train_sets))}

    def _layers(self, teacher: Checkpoint) -> list[int]:
        """Choose the layers to start from, counted from 0."""
        depth = len(families.blocks(teacher.model))
        most = self.layers if isinstance(self.layers, int) else max(self.layers)
        _require(most <= depth, "layers", f"at most {depth}, the teacher's", most)
        return spread(self.layers, depth) if isinstance(self.layers, int) else [layer - 1 for layer in self.layers]

    def _widths(self, teacher: Checkpoint) -> Widths | None:
        """Return how wide the student is; None where it is as wide as the teacher."""
        if (self.hidden_size, self.heads, self.ffn) == (None, None, None):
            return None
        structure, size = families.structure_of(teacher.model), families.head_size(teacher.model)
        most_hidden, most_heads, most_ffn = (
            families.hidden_size(teacher.model),
            min(structure.heads),
            min(structure.ffn),
        )
        hidden = self.hidden_size or most_hidden
        heads = self.heads or (min(hidden // size, most_heads) if self.hidden_size else most_heads)
        ffn = self.ffn or most_ffn
        fits = hidden <= most_hidden and hidden % size == 0
        _require(fits, "hidden_size", f"a multiple of {size}, the size of a head, up to {most_hidden}", hidden)
        _require(heads <= most_heads, "heads", f"at most {most_heads}, the teacher's", heads)
        _require(ffn <= most_ffn, "ffn", f"at most {most_ffn}, the teacher's", ffn)
        return Widths(hidden, heads, ffn)

    def _objective(self, teacher: Checkpoint, layers: int, widths: Widths | None) -> Objective:
        structure, size = families.structure_of(teacher.model), families.head_size(teacher.model)
        depth = len(structure.heads)
        matched, last = matching_layers(layers, depth), self.relation_layer or depth
        own_heads = widths.heads if widths else structure.heads[self._layers(teacher)[-1]]
        _require(last <= depth, "relation_layer", f"at most {depth}, the teacher's layers", last)
        relation_heads = self.relation_heads or own_heads
        if self.relation_weight > 0:
            narrow = f"a divisor of {own_heads * size} and {structure.heads[last - 1] * size}, both models' widths"
            divides = all(heads * size % relation_heads == 0 for heads in (own_heads, structure.heads[last - 1]))
            _require(divides, "relation_heads", narrow, relation_heads)
        if self.attention_weight > 0:
            self._require_same_heads(teacher, matched, own_heads if widths else None)
        return Objective(
            self.temperature,
            self.alpha,
            self.hidden_weight,
            matched,
            self.attention_weight,
            self.relation_weight,
            (layers, last),
            relation_heads,
        )

    def _require_same_heads(self, teacher: Checkpoint, matched: tuple[tuple[int, int], ...], own: int | None) -> None:
        theirs, kept = families.structure_of(teacher.model).heads, self._layers(teacher)
        for mine, layer in matched:
            heads = own or theirs[kept[mine - 1]]
            _require(
                heads == theirs[layer - 1],
                "attention_weight",
                f"{theirs[layer - 1]} heads in layer {mine}, as the teacher's layer {layer} has (or relation_weight)",
                f"{heads} heads",
            )

    def _without_labels(self, teacher: Checkpoint, rows: Labelled, further: list[Artifact]) -> list[Labelled]:
        """Return the rows that have no label: the user's own, and augmented ones."""
        _require(bool(further) >= bool(self.unlabeled), "unlabeled", "its rows among the sources", "none of them")
        found = [unlabeled(teacher, each) for each in further]
        if self.augment:
            table = families.word_embeddings(teacher.model).numpy()
            copies = augmented(rows.encodings, table, self.augment, self.seed)
            found.append(without_labels(teacher, copies, rows.file))
        return found

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


def _require(fits: bool, setting: str, expected: str, found: object) -> None:  # noqa: FBT001 - what was checked
    if not fits:
        raise UsageError(
            f"distil.{setting}",
            expected=expected,
            found=str(found),
            next_step="ask for a student that fits its teacher",
        )
