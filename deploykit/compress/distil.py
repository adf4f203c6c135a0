"""Distil: a student with fewer of its teacher's layers, or a narrower one, learns to answer as the teacher does.

The student starts as some of the teacher's layers (Sun et al. 2019, Patient Knowledge Distillation; Sanh et al. 2019),
or of another pretrained model's, each with its most active parts (`compress.student`), and learns from the teacher's
soft labels (Hinton et al. 2015), hidden states and attention scores (Jiao et al. 2020) and self-attention relations
(Wang et al. 2021). What the teacher says is computed once and kept in the cache. Rows without a label count too:
`unlabeled` text, `augment`ed copies, text that a language model writes (`generate`), and rows `splice`d of all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from deploykit import stage
from deploykit.artifact import Artifact, Kind
from deploykit.checkpoint import Checkpoint
from deploykit.compress import waterfall
from deploykit.compress.average import average
from deploykit.compress.distillation import Objective, distil_from, evaluation, reads_alike
from deploykit.compress.embeddings import word_embeddings
from deploykit.compress.generate import generated_rows
from deploykit.compress.reread import reread
from deploykit.compress.source import load_float
from deploykit.compress.student import activity, keep_layers, keep_widths
from deploykit.compress.student_asked import layers_of, objective_of, require, start_of, widths_of
from deploykit.compress.train_sets import train_sets
from deploykit.data import open_unlabeled
from deploykit.train.labelled import read_labelled, unlabeled
from deploykit.train.loop import training_of

CALIBRATION_ROWS = 512
"""Training rows that a narrower student's parts are chosen on."""


@dataclass(frozen=True)
class Distil:
    """Distil into a shallower or narrower student, cut from the teacher or from another pretrained model."""

    layers: int | tuple[int, ...]
    """How many of the start's layers, evenly spaced; or which ones, counted from 1: [1, 3, 6]."""
    student: str | None = field(default=None, metadata=stage.FURTHER_CHECKPOINT)
    """Another model to start from, by folder or hub name: a pretrained smaller one, or a student of the same labels,
    which goes on learning with its widths and its head. Its content enters the digest. One of another vocabulary keeps
    its tokenizer, and learns from labels and logits alone. None: the teacher itself."""
    hidden_size: int | None = None
    """A multiple of the start's head size, which stays; None: the start's."""
    heads: int | None = None
    """Of each layer. None: the start's or, where `hidden_size` is given, as many as fill it."""
    ffn: int | None = None
    """Feed-forward neurons of each layer; None: the start's."""
    epochs: int = 4
    learning_rate: float = 1e-4
    temperature: float = 2.0
    """Of the soft labels."""
    alpha: float = 0.3
    """The share of the labels' own cross-entropy; the soft labels have the rest."""
    hidden_weight: float = 1.0
    """The weight of the hidden states' distance; 0 leaves them out. A student of another width, or of other
    embeddings, learns a projection along."""
    attention_weight: float = 0.0
    """The weight of the attention scores' distance; needs as many heads as the teacher has."""
    relation_weight: float = 0.0
    """The weight of the self-attention relations' divergence."""
    relation_heads: int | None = None
    """Relation heads, dividing both widths; None: the student's heads."""
    relation_layer: int | None = None
    """The teacher's layer whose relations the student's last layer learns, counted from 1; None: the last."""
    unlabeled: str | None = field(default=None, metadata=stage.FURTHER_ROWS)
    """A file or folder of rows without labels (`.jsonl`, `.csv`, `.parquet`, or `.txt` with a text a line), which learn
    from the teacher alone. A path relative to the recipe; its content, not its name, enters the digest."""
    augment: int = 0
    """Copies of each training row with some words replaced by near ones (`augment`), for the teacher to judge."""
    generator: str | None = field(default=None, metadata=stage.FURTHER_CHECKPOINT)
    """A causal language model, by folder or hub name, that writes rows like the training rows (`generate`)."""
    generate: int = 0
    """How many rows it writes, for the teacher to judge."""
    splice: int = 0
    """How many rows are made of pieces of two of all the others (`splice`), for the teacher to judge."""
    freeze_embeddings: bool = False
    """Leave the word embeddings as they are: a step of a small student takes half as long, and words that the training
    rows do not have stay where the student's other words are."""
    average: bool = False
    """Of a `student` that goes on learning: keep the weights between where it began and where it ended that diverge
    least from the teacher's answers on the validation rows (`compress.average`)."""
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
        for name in ("augment", "generate", "splice"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        self._require_effects()
        training_of(self, 0)

    def _require_effects(self) -> None:
        """Check that no setting is without effect beside the others.

        Raises:
            ValueError: one is, or a loss's weight is out of range.
        """
        if bool(self.generate) != bool(self.generator):
            raise ValueError("generator and generate need each other: who writes rows, and how many")
        if self.average and not self.student:
            raise ValueError("average needs a student that goes on learning: a start that was taught already")
        for name in ("relation_heads", "relation_layer"):
            if getattr(self, name) is not None and self.relation_weight == 0:
                raise ValueError(f"{name} has no effect without a relation_weight")
        objective = Objective(
            self.temperature, self.alpha, self.hidden_weight, ((1, 1),), self.attention_weight, self.relation_weight
        )
        if (self.augment or self.unlabeled or self.generate or self.splice) and not objective.asks_the_teacher():
            raise ValueError(
                "augment, unlabeled, generate and splice have no effect where alpha is 1 and no other weight is above 0"
            )

    def __call__(self, *sources: Artifact, scratch: Path) -> Mapping[str, Any]:
        """Write the student.

        Args:
            sources: the teacher, the labelled rows, any number of sets of rows without labels, and the checkpoints that
                `student` and `generator` name, in this order.
            scratch: the payload.

        Raises:
            CheckpointError: the model to start from, or the one that writes rows, cannot be used.
            UsageError: the start is smaller or quantized, or a setting does not fit it or the teacher.
        """
        source, data, *further = sources
        teacher = load_float(source, self.verb)
        start, generator = self._named(teacher, [each for each in further if each.kind == "checkpoint"])
        alike = reads_alike(start, teacher)
        kept, widths = layers_of(self, start), widths_of(self, start)
        objective = objective_of(self, teacher, start, widths)
        rows = read_labelled(teacher, data, "train").trainable().sample(self.max_train_samples, self.seed)
        judged = read_labelled(teacher, data, "validation")
        validation = judged if alike else read_labelled(start, data, "validation")
        more = [each for each in further if each.kind == "dataset"]
        require(bool(more) >= bool(self.unlabeled), "unlabeled", "its rows among the sources", "none of them")
        if generator is not None:
            more.append(open_unlabeled(generated_rows(generator, teacher, data, self.generate, self.seed)))
        made_of = [unlabeled(teacher, each) for each in more]
        learned = train_sets(teacher, rows, made_of, augment=self.augment, splice=self.splice, seed=self.seed)
        student = keep_layers(start, kept)
        if widths is not None:
            sample = rows.sample(CALIBRATION_ROWS, self.seed)
            sample = sample if alike else reread(sample, start)
            student = keep_widths(student, widths, activity(student, sample.encodings))
        if self.freeze_embeddings:
            word_embeddings(student.model).weight.requires_grad = False
        began = {name: tensor.clone() for name, tensor in student.model.state_dict().items()}
        history = distil_from(
            (source, teacher),
            student,
            (*learned, judged),
            objective,
            (training_of(self, student.spec.pad_id), scratch / ".train"),
        )
        shares = {}
        if self.average:
            evaluate = evaluation((source, teacher), student, judged)
            shares = average(began, student.model, lambda: -evaluate().rank)
        row = waterfall.measure(student, validation, self.verb, stage.settings_of(self))
        facts = waterfall.add(student, waterfall.begun((source, teacher), judged), row, scratch)
        return {
            **facts,
            "history": [asdict(epoch) for epoch in history.epochs],
            "rows": list(map(len, learned)),
            "divergence_by_share": {str(share): value for share, value in shares.items()},
        }

    def _named(self, teacher: Checkpoint, found: Sequence[Artifact]) -> tuple[Checkpoint, Artifact | None]:
        """Return what the student is cut from, and who writes rows."""
        expected = [name for name in ("student", "generator") if getattr(self, name)]
        given = len(found) == len(expected)
        require(given, " and ".join(expected) or "student", "its checkpoint among the sources", len(found))
        named = dict(zip(expected, found, strict=True))
        start = start_of(self, teacher, named["student"]) if "student" in named else teacher
        return start, named.get("generator")
