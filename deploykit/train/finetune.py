"""Fine-tuning: a backbone with a new head learns a task; every weight is trained.

N rows   L tokens   C labels
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit import artifact, checkpoint
from deploykit.artifact import Artifact, Kind
from deploykit.checkpoint import Checkpoint
from deploykit.data import Split, read_labels
from deploykit.runtime.tokenizer import Encoding
from deploykit.tasks import Score, Task, task_named
from deploykit.tasks.task import IGNORED, Targets
from deploykit.train.batch import LABELS, Batch, Example, examples_of
from deploykit.train.loop import Training, train

TASK_REPORT = "task-report.json"
WORKDIR = ".train"


@dataclass(frozen=True)
class Finetune:
    """Fine-tune a checkpoint's backbone on labelled data."""

    verb: ClassVar[str] = "finetune"
    reads: ClassVar[tuple[Kind, ...]] = ("checkpoint", "dataset")
    makes: ClassVar[Kind] = "checkpoint"
    resumes: ClassVar[bool] = True

    task: str
    epochs: int = 3
    learning_rate: float = 1e-4
    """The highest, reached when warm-up ends."""
    batch_size: int = 32
    warmup_ratio: float = 0.1
    """The share of steps in which the learning rate rises."""
    weight_decay: float = 0.01
    patience: int = 2
    """Stop after this many epochs without a better validation metric."""
    seed: int = 0
    max_length: int | None = None
    """Cut rows to this many tokens; None: what the model takes."""
    max_train_samples: int | None = None
    """Train on this many rows, drawn at random; None: on all."""
    method: Literal["full"] = "full"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: one is out of range.
            UsageError: there is no such task.
        """
        task_named(self.task)
        self.training(pad_id=0)
        for name in ("max_length", "max_train_samples"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")

    def training(self, pad_id: int) -> Training:
        """Return the settings of the loop."""
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

    def __call__(self, *sources: Artifact, scratch: Path) -> Mapping[str, Any]:
        """Write the checkpoint and `task-report.json`; return metrics and history."""
        base, data = sources
        task = task_named(self.task)
        training_split, validation_split = task.read(data.path, "train"), task.read(data.path, "validation")
        labels = read_labels(data.path) or task.labels_of(training_split)
        started = checkpoint.load_base(base, task.name, labels, self.seed)
        if self.max_length is not None:
            started = checkpoint.shortened(started, self.max_length)
        encodings, targets = _encoded(started, task, training_split)
        validation = _encoded(started, task, validation_split)
        examples = _trainable(examples_of(encodings, targets, checkpoint.input_names(started.model)))
        history = train(
            started.model,
            _drawn(examples, self.max_train_samples, self.seed),
            cross_entropy,
            lambda: evaluated(started, task, *validation).metrics[0].value,
            self.training(started.spec.pad_id),
            scratch / WORKDIR,
        )
        score = evaluated(started, task, *validation)
        checkpoint.save(started, scratch)
        artifact.write_json(scratch / TASK_REPORT, _report(task, score))
        cut = sum(encoding.truncated for encoding in (*encodings, *validation[0]))
        return {
            "metrics": [asdict(metric) for metric in score.metrics],
            "history": [asdict(epoch) for epoch in history.epochs],
            "warnings": [f"{cut} rows were cut to {started.spec.max_length} tokens"] if cut else [],
        }


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of a batch's labels, (N,) or (N,L) with `IGNORED` where none counts."""
    logits = model(**{name: tensor for name, tensor in batch.items() if name != LABELS}).logits
    return F.cross_entropy(logits.flatten(0, -2).float(), batch[LABELS].flatten(), ignore_index=IGNORED)


def evaluated(subject: Checkpoint, task: Task, encodings: Sequence[Encoding], targets: Sequence[Targets]) -> Score:
    """Score a checkpoint on encoded rows."""
    return task.score(checkpoint.logits(subject, encodings), targets, subject.labels)


def _encoded(subject: Checkpoint, task: Task, split: Split) -> tuple[list[Encoding], list[Targets]]:
    encodings = task.encode(subject.tokenizer, split.rows)
    return encodings, task.targets(split, encodings, subject.labels)


def _trainable(examples: Sequence[Example]) -> list[Example]:
    """Leave out examples in which no word is left to learn from; a batch of them alone would have no loss."""
    return [example for example in examples if (example[LABELS] != IGNORED).any()]


def _drawn(examples: Sequence[Example], count: int | None, seed: int) -> list[Example]:
    """Draw `count` examples at random, or all."""
    order = np.random.default_rng(seed).permutation(len(examples))
    return [examples[index] for index in order[:count]]


def _report(task: Task, score: Score) -> dict[str, Any]:
    """Build the task report: validation metrics and tables."""
    return {
        "task": task.name,
        "split": "validation",
        "metrics": [asdict(metric) for metric in score.metrics],
        "table": score.table,
        "token_table": score.token_table,
    }
