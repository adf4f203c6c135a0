"""What a model is trained and judged for: rows to inputs and targets, logits to a score.

N rows   L tokens of a row   C labels   K sums that the primary metric is made of
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit import data
from deploykit.data import Row, Split
from deploykit.errors import DataError
from deploykit.evidence import Metric
from deploykit.runtime.tokenizer import Encoding, Tokenizer

Logits = NDArray[np.float32]
Targets = NDArray[np.int64]
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]

IGNORED = -100
"""The target of a token that neither the loss nor a metric counts; PyTorch's default `ignore_index`."""


UNLABELED = -101
"""The target of an output that counts, but whose label nobody knows: only a teacher can say what it should be."""


@dataclass(frozen=True)
class Score:
    """How well a model did on labelled rows."""

    metrics: tuple[Metric, ...]
    """The primary one first."""
    table: tuple[Mapping[str, Any], ...]
    """Per class: label, precision, recall, f1, support. For entities, the classes are the entity types."""
    predictions: tuple[Any, ...]
    """Per row: the predicted label, or the list of its words' labels."""
    row_stats: NDArray[np.float64]
    """(N,K): what each row adds to the primary metric, so that rows can be resampled in pairs."""
    statistic: Statistic
    """Sums (...,K) of `row_stats` to values (...) of the primary metric."""
    token_table: tuple[Mapping[str, Any], ...] = ()
    """The same per word label, for tasks that are scored by entity."""


@dataclass(frozen=True)
class Task:
    """The functions of one task, each pure."""

    name: str
    auto_class: str
    """The transformers class that puts the task's head on a backbone."""
    fields: tuple[str, ...]
    """The fields that every labelled row has."""
    primary: str
    """The metric that training maximizes and gates judge; higher is better."""
    check: Callable[[Row, str], None]
    """Raise DataError at `where` (the second argument) for a row whose input cannot be used."""
    labels_of: Callable[[Split], list[str]]
    """The labels found in a split, in the order in which a model numbers them."""
    encode: Callable[[Tokenizer, Sequence[Row]], list[Encoding]]
    """Encode rows that `read` has checked, exactly as the service does."""
    targets: Callable[[Split, Sequence[Encoding], Sequence[str]], list[Targets]]
    """Per row: the label's index (), or (L,) with `IGNORED` where nothing counts."""
    unlabeled: Callable[[Encoding], Targets]
    """The target of a row without labels, of the same shape: `UNLABELED` where a label would stand."""
    texts_of: Callable[[Row], list[str]]
    """A row's input: its text, or the two of a pair, as its encoding's offsets count them."""
    row_of: Callable[[Sequence[Sequence[str]]], Row]
    """The row of such texts in words, each with the space before it, if any; without a label."""
    score: Callable[[Sequence[Logits], Sequence[Targets], Sequence[str]], Score]
    """Per row logits (C,) or (L,C), with the targets."""

    def read(self, folder: Path, split: str) -> Split:
        """Read a labelled split and check every row.

        Raises:
            DataError: the split is missing, or a row cannot be used; file and line are named.
        """
        found = data.read_split(folder, split)
        data.require_fields(found, self.fields)
        for index, row in enumerate(found.rows):
            self.check(row, found.where(index))
        return found


def label_index(label: object, labels: Sequence[str], where: str) -> int:
    """Return a label's index; data sets from the hub hold the index itself.

    Raises:
        DataError: it is none of the labels.
    """
    if isinstance(label, str) and label in labels:
        return labels.index(label)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(labels):
        return label
    shown = ", ".join(labels[:8]) + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")
    raise DataError(
        where, expected=f"a label of {shown}", found=repr(label), next_step="repair the row or the list of labels"
    )


def require_names(labels: Sequence[object], where: str) -> None:
    """Check that labels are names, which a set without `labels.json` needs.

    Raises:
        DataError: one is not.
    """
    for label in labels:
        if not isinstance(label, str) or not label:
            raise DataError(
                where, expected="a label's name", found=repr(label), next_step="write names, or add labels.json"
            )


def table_row(label: str, precision: float, recall: float, f1: float, support: int) -> dict[str, Any]:
    """Build one row of a per-class table."""
    return {
        "label": label,
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "support": int(support),
    }
