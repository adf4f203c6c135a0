"""Text classification: one label for a text, or for a pair of texts. Scored by accuracy.

N rows   C labels
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.data import Row, Split
from deploykit.evidence import Metric
from deploykit.runtime import text_classification as runtime
from deploykit.runtime.tokenizer import Encoding
from deploykit.tasks.task import UNLABELED, Logits, Score, Targets, Task, label_index, require_names, table_row

LABEL = "label"


def labels_of(split: Split) -> list[str]:
    """List the labels of a split in alphabetical order.

    Raises:
        DataError: a label is not a name.
    """
    for index, row in enumerate(split.rows):
        require_names([row[LABEL]], split.where(index))
    return sorted({row[LABEL] for row in split.rows})


def targets(split: Split, _encodings: Sequence[Encoding], labels: Sequence[str]) -> list[Targets]:
    """Return each row's label index, an int64 array ().

    Raises:
        DataError: a label is unknown.
    """
    return [np.array(label_index(row[LABEL], labels, split.where(i)), np.int64) for i, row in enumerate(split.rows)]


def unlabeled(_encoding: Encoding) -> Targets:
    """Return the target of a row without a label, int64 ()."""
    return np.array(UNLABELED, np.int64)


def texts_of(row: Row) -> list[str]:
    """Return a row's text, and its second one, where it has one."""
    return [row[name] for name in runtime.FIELDS if row.get(name) is not None]


def row_of(texts: Sequence[Sequence[str]]) -> Row:
    """Return the row of one or two texts in words."""
    return dict(zip(runtime.FIELDS, ("".join(words).strip() for words in texts), strict=False))


def accuracy(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return right answers by rows: sums (...,2) to (...)."""
    return np.asarray(sums[..., 0] / sums[..., 1])


def score(logits: Sequence[Logits], targets: Sequence[Targets], labels: Sequence[str]) -> Score:
    """Score logits (C,) per row: accuracy, macro and weighted F1, and a table per class.

    F1 is averaged over the classes that are among the targets or the predictions.
    """
    from sklearn.metrics import f1_score

    truth, found = np.array(targets, np.int64), np.argmax(np.array(logits), axis=-1)
    row_stats = np.stack([truth == found, np.ones(len(truth))], axis=-1).astype(np.float64)
    averaged = {f"{name}_f1": f1_score(truth, found, average=name, zero_division=0) for name in ("macro", "weighted")}
    values = {"accuracy": float(accuracy(row_stats.sum(0))), **averaged}
    return Score(
        metrics=tuple(Metric(name, float(value), n=len(truth)) for name, value in values.items()),
        table=class_table(truth, found, labels),
        predictions=tuple(labels[index] for index in found),
        row_stats=row_stats,
        statistic=accuracy,
    )


def class_table(
    truth: NDArray[np.int64], found: NDArray[np.int64], labels: Sequence[str]
) -> tuple[dict[str, Any], ...]:
    """Return precision, recall, F1 and support of every label, from indices (N,)."""
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(truth, found, labels=range(len(labels)), zero_division=0)
    return tuple(table_row(label, *row) for label, *row in zip(labels, *columns, strict=True))


TEXT_CLASSIFICATION = Task(
    name="text-classification",
    auto_class="AutoModelForSequenceClassification",
    fields=("text", LABEL),
    primary="accuracy",
    check=runtime.check,
    labels_of=labels_of,
    encode=runtime.encode,
    targets=targets,
    unlabeled=unlabeled,
    texts_of=texts_of,
    row_of=row_of,
    score=score,
)
