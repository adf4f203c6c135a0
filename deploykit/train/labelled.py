"""A split as a checkpoint reads it, and how well the checkpoint does on it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deploykit import checkpoint as checkpoints
from deploykit.artifact import Artifact
from deploykit.checkpoint import Checkpoint
from deploykit.data import Row, Split, read_unlabeled
from deploykit.errors import DataError
from deploykit.runtime.tasks import decoder_of
from deploykit.runtime.tokenizer import Encoding
from deploykit.tasks import Score, task_named
from deploykit.tasks.task import IGNORED, Targets


@dataclass(frozen=True)
class Labelled:
    """Rows with their encodings and targets, in order."""

    rows: Sequence[Row]
    encodings: Sequence[Encoding]
    targets: Sequence[Targets]
    file: Path
    """Where the rows stand."""

    def trainable(self) -> "Labelled":
        """Return the rows in which anything counts; a batch without any would have no loss.

        Raises:
            DataError: there is none.
        """
        kept = [index for index, target in enumerate(self.targets) if (target != IGNORED).any()]
        if not kept:
            raise DataError(
                self.file,
                expected="a row with a labelled word within the model's length",
                found="none",
                next_step="check the rows, and that max_length leaves room for a word",
            )
        return self._at(kept)

    def sample(self, size: int | None, seed: int) -> "Labelled":
        """Return `size` rows drawn without replacement, in their order; all of them where `size` is None or more."""
        if size is None or size >= len(self.encodings):
            return self
        return self._at(sorted(np.random.default_rng(seed).permutation(len(self.encodings))[:size].tolist()))

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.encodings)

    def _at(self, indices: Sequence[int]) -> "Labelled":
        return replace(
            self,
            rows=[self.rows[i] for i in indices],
            encodings=[self.encodings[i] for i in indices],
            targets=[self.targets[i] for i in indices],
        )


def read_labelled(checkpoint: Checkpoint, data: Artifact, name: str) -> Labelled:
    """Read, check and encode a split with the checkpoint's own tokenizer and labels.

    Raises:
        DataError: naming file and line.
    """
    return labelled(checkpoint, task_named(checkpoint.spec.task).read(data.path, name))


def labelled(checkpoint: Checkpoint, split: Split) -> Labelled:
    """Encode a split that its task has read, with the checkpoint's own tokenizer and labels.

    Raises:
        DataError: a label is unknown.
    """
    task = task_named(checkpoint.spec.task)
    encodings = task.encode(checkpoint.tokenizer, split.rows)
    return Labelled(split.rows, encodings, task.targets(split, encodings, checkpoint.labels), split.file)


def unlabeled(checkpoint: Checkpoint, data: Artifact) -> Labelled:
    """Read and encode rows that need no label, as the service does; their targets say that nobody knows them.

    Raises:
        DataError: naming file and line.
    """
    task, rows = decoder_of(checkpoint.spec.task), list[Row]()
    for split in read_unlabeled(data):
        for index, row in enumerate(split.rows):
            task.check(row, split.where(index))
        rows += split.rows
    return without_labels(checkpoint, rows, data.path)


def without_labels(checkpoint: Checkpoint, rows: Sequence[Row], file: Path) -> Labelled:
    """Encode rows that were checked, and give them the targets of rows without labels."""
    task = task_named(checkpoint.spec.task)
    encodings = task.encode(checkpoint.tokenizer, rows)
    return Labelled(rows, encodings, [task.unlabeled(encoding) for encoding in encodings], file)


def score(checkpoint: Checkpoint, labelled: Labelled) -> Score:
    """Run a checkpoint on labelled rows and score it; the primary metric comes first."""
    logits = checkpoints.logits(checkpoint, labelled.encodings)
    return task_named(checkpoint.spec.task).score(logits, labelled.targets, checkpoint.labels)
