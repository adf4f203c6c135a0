"""A split as a checkpoint reads it, and how well the checkpoint does on it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploykit import checkpoint as checkpoints
from deploykit.artifact import Artifact
from deploykit.checkpoint import Checkpoint
from deploykit.errors import UsageError
from deploykit.runtime.tokenizer import Encoding
from deploykit.tasks import Score, task_named
from deploykit.tasks.task import IGNORED, Targets


@dataclass(frozen=True)
class Labelled:
    """Encoded rows with their targets, in order."""

    encodings: Sequence[Encoding]
    targets: Sequence[Targets]

    def trainable(self) -> "Labelled":
        """Return the rows in which anything counts; a batch without any would have no loss."""
        return self._at([index for index, target in enumerate(self.targets) if (target != IGNORED).any()])

    def sample(self, size: int | None, seed: int) -> "Labelled":
        """Return `size` rows drawn without replacement, in their order; all of them where `size` is None or more."""
        if size is None or size >= len(self.encodings):
            return self
        return self._at(sorted(np.random.default_rng(seed).permutation(len(self.encodings))[:size].tolist()))

    def _at(self, indices: Sequence[int]) -> "Labelled":
        return Labelled([self.encodings[i] for i in indices], [self.targets[i] for i in indices])


def read_labelled(checkpoint: Checkpoint, data: Artifact, name: str) -> Labelled:
    """Read, check and encode a split with the checkpoint's own tokenizer and labels.

    Raises:
        DataError: naming file and line.
    """
    task = task_named(checkpoint.spec.task)
    split = task.read(data.path, name)
    encodings = task.encode(checkpoint.tokenizer, split.rows)
    return Labelled(encodings, task.targets(split, encodings, checkpoint.labels))


def score(checkpoint: Checkpoint, labelled: Labelled) -> Score:
    """Run a checkpoint on labelled rows and score it; the primary metric comes first."""
    logits = checkpoints.logits(checkpoint, labelled.encodings)
    return task_named(checkpoint.spec.task).score(logits, labelled.targets, checkpoint.labels)


def require_float(checkpoint: Checkpoint, verb: str) -> None:
    """Check that no quantization is decided yet: what changes weights comes before it.

    Raises:
        UsageError: it is.
    """
    if checkpoint.spec.quantization is not None:
        raise UsageError(
            verb,
            expected="a checkpoint in float",
            found=f"one that is decided to be {checkpoint.spec.quantization.scheme} ({checkpoint.path})",
            next_step="put quantize last in the recipe",
        )
