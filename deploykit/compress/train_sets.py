"""The rows that a student learns from: those with labels, and others, made of them or not, that its teacher judges."""

from collections.abc import Sequence

from deploykit.checkpoint import Checkpoint
from deploykit.compress.augment import augmented_rows
from deploykit.compress.splice import spliced_rows
from deploykit.train.labelled import Labelled


def train_sets(
    teacher: Checkpoint, rows: Labelled, more: Sequence[Labelled], *, augment: int, splice: int, seed: int
) -> list[Labelled]:
    """Return sets of rows, each of which `distil_from` caches for itself.

    Args:
        teacher: whose words are near each other (`augment`).
        rows: with labels.
        more: sets without.
        augment: copies of each labelled row.
        splice: rows made of pieces of two of all the others.
        seed: of what is made.
    """
    return [
        rows,
        *more,
        *augmented_rows(teacher, rows, augment, seed),
        *spliced_rows(teacher, [rows, *more], splice, seed),
    ]
