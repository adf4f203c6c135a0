"""Fine-tuning: a backbone with a new head learns a task; every weight is trained.

N rows   L tokens   C labels
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from deploykit import artifact, checkpoint
from deploykit.artifact import Artifact, Kind
from deploykit.data import read_labels
from deploykit.tasks import Score, Task, task_named
from deploykit.tasks.task import IGNORED
from deploykit.train.batch import LABELS, Batch, examples_of
from deploykit.train.labelled import labelled, score
from deploykit.train.loop import Evaluation, train, training_of

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
        training_of(self, 0)
        for name in ("max_length", "max_train_samples"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")

    def __call__(self, *sources: Artifact, scratch: Path) -> Mapping[str, Any]:
        """Write the checkpoint and `task-report.json`; return metrics and history."""
        base, data = sources
        task = task_named(self.task)
        training_split, validation_split = task.read(data.path, "train"), task.read(data.path, "validation")
        labels = read_labels(data.path) or task.labels_of(training_split)
        started = checkpoint.load_base(base, task.name, labels, self.seed)
        if self.max_length is not None:
            started = checkpoint.shortened(started, self.max_length)
        rows, validation = labelled(started, training_split), labelled(started, validation_split)
        drawn = rows.trainable().sample(self.max_train_samples, self.seed)
        with checkpoint.kept_when_stopped(started, scratch):
            history = train(
                started.model,
                examples_of(drawn.encodings, drawn.targets, checkpoint.input_names(started.model)),
                cross_entropy,
                lambda: Evaluation(score(started, validation).metrics[0].value),
                training_of(self, started.spec.pad_id),
                scratch / WORKDIR,
            )
        found = score(started, validation)
        checkpoint.save(started, scratch)
        artifact.write_json(scratch / TASK_REPORT, _report(task, found))
        cut = sum(encoding.truncated for encoding in (*rows.encodings, *validation.encodings))
        return {
            "metrics": [asdict(metric) for metric in found.metrics],
            "history": [asdict(epoch) for epoch in history.epochs],
            "warnings": [f"{cut} rows were cut to {started.spec.max_length} tokens"] if cut else [],
        }


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of a batch's labels, (N,) or (N,L) with `IGNORED` where none counts."""
    logits = model(**{name: tensor for name, tensor in batch.items() if name != LABELS}).logits
    return F.cross_entropy(logits.flatten(0, -2).float(), batch[LABELS].flatten(), ignore_index=IGNORED)


def _report(task: Task, score: Score) -> dict[str, Any]:
    """Build the task report: validation metrics and tables."""
    return {
        "task": task.name,
        "split": "validation",
        "metrics": [asdict(metric) for metric in score.metrics],
        "table": score.table,
        "token_table": score.token_table,
    }
