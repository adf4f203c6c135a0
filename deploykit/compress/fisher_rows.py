"""The rows that heads and neurons are judged on, labelled by people or by the model itself, and their loss.

N rows   L tokens of a row   C labels
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from deploykit import checkpoint as checkpoints
from deploykit import data
from deploykit.artifact import Artifact
from deploykit.checkpoint import Checkpoint, input_names
from deploykit.compress.calibrate import require_enough
from deploykit.runtime.batching import length_sorted_batches
from deploykit.runtime.tokenizer import Encoding
from deploykit.tasks import task_named
from deploykit.tasks.task import IGNORED, Targets
from deploykit.train import progress
from deploykit.train.batch import LABELS, Batch, collate, examples_of
from deploykit.train.labelled import Labelled, read_labelled

Labels = Literal["given", "own"]


def calibration_rows(checkpoint: Checkpoint, source: Artifact, size: int, labels: Labels, seed: int) -> Labelled:
    """Draw training rows, with the labels given there or the model's own predictions.

    The model's own are drawn from its probabilities, not the likeliest ones: only so are the gradients' squares the
    Fisher information, and a sure answer still has a gradient in the mean.

    Raises:
        DataError: there are too few rows.
    """
    if labels == "given":
        rows = read_labelled(checkpoint, source, "train").trainable()
    else:
        rows = _unlabelled(checkpoint, source)
    require_enough(rows)
    rows = rows.sample(size, seed)
    return rows if labels == "given" else _self_labelled(checkpoint, rows, seed)


def batches(checkpoint: Checkpoint, rows: Labelled, batch_size: int = 32) -> Iterator[Batch]:
    """Yield padded batches of rows of similar length, the longest first; on stderr, how many are done with."""
    examples = examples_of(rows.encodings, rows.targets, input_names(checkpoint.model))
    sorted_by_length = length_sorted_batches([len(encoding.ids) for encoding in rows.encodings], batch_size)
    for indices in progress.through(sorted_by_length, len(sorted_by_length), "calibration: batch"):
        yield collate([examples[index] for index in indices], checkpoint.spec.pad_id)


def row_loss(checkpoint: Checkpoint) -> Callable[[Batch], Tensor]:
    """Return the sum of the rows' cross entropies as a function of a batch."""

    def loss(batch: Batch) -> Tensor:
        logits = checkpoint.model(**inputs_of(batch)).logits
        return F.cross_entropy(logits.flatten(0, -2), batch[LABELS].flatten(), ignore_index=IGNORED, reduction="sum")

    return loss


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """Return what the model takes of a batch."""
    return {name: tensor for name, tensor in batch.items() if name != LABELS}


def fitting_inputs(checkpoint: Checkpoint, rows: Labelled) -> list[dict[str, Tensor]]:
    """Return batches for a fit, at least four of them where there are as many rows: some are held out."""
    size = min(max(len(rows.encodings) // 4, 1), 32)
    return [inputs_of(batch) for batch in batches(checkpoint, rows, size)]


def _unlabelled(checkpoint: Checkpoint, source: Artifact) -> Labelled:
    """Read the training rows' inputs; no label is looked at, and none needs to be there."""
    task = task_named(checkpoint.spec.task)
    split = data.read_split(source.path, "train")
    for index, row in enumerate(split.rows):
        task.check(row, split.where(index))
    encodings = task.encode(checkpoint.tokenizer, split.rows)
    return Labelled(split.rows, encodings, [np.array(IGNORED)] * len(encodings), split.file)


def _self_labelled(checkpoint: Checkpoint, rows: Labelled, seed: int) -> Labelled:
    rng = np.random.default_rng(seed)
    logits = checkpoints.logits(checkpoint, rows.encodings)
    drawn = [_drawn(row, encoding, rng) for row, encoding in zip(logits, rows.encodings, strict=True)]
    return replace(rows, targets=drawn)


def _drawn(logits: NDArray[np.float32], encoding: Encoding, rng: np.random.Generator) -> Targets:
    """Draw labels from a row's probabilities: () from (C,), or (L,) from (L,C), where special tokens do not count.

    The largest of the logits with Gumbel noise is such a draw.
    """
    labels = np.asarray((logits + rng.gumbel(size=logits.shape)).argmax(axis=-1), np.int64)
    return np.where(encoding.special, IGNORED, labels) if logits.ndim == 2 else labels
