"""Token classification (NER): a label in IOB2 for every word. Scored by whole entities, strictly.

A word's first sub-word carries its target; other sub-words, special tokens, padding, and words
that were cut off never count.

    N rows   L tokens of a row   W words of a row that count   C labels
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.data import Row, Split
from deploykit.errors import DataError
from deploykit.evidence import Metric
from deploykit.runtime import token_classification as runtime
from deploykit.runtime.token_classification import entities_of, word_starts
from deploykit.runtime.tokenizer import Encoding
from deploykit.tasks.task import IGNORED, UNLABELED, Logits, Score, Targets, Task, label_index, require_names, table_row
from deploykit.tasks.text_classification import class_table

TAGS = "ner_tags"
OUTSIDE = "O"

Tags = list[str]


def check(row: Row, where: str) -> None:
    """Check that a labelled row has words, and one tag for each.

    Raises:
        DataError: it has not.
    """
    runtime.check(row, where)
    tags = row[TAGS]
    found = f"{len(tags)} of them" if isinstance(tags, list) else type(tags).__name__
    if not isinstance(tags, list) or len(tags) != len(row["tokens"]):
        raise DataError(
            where,
            expected=f"{len(row['tokens'])} tags in the field {TAGS!r}, one a word",
            found=found,
            next_step="repair the row",
        )


def labels_of(split: Split) -> list[str]:
    """List the tags of a split: O, then B- and I- of each entity type in alphabetical order.

    Raises:
        DataError: a tag is not a name in IOB2.
    """
    for index, row in enumerate(split.rows):
        require_names(row[TAGS], split.where(index))
        _require_iob2(row[TAGS], split.where(index))
    found = {tag for row in split.rows for tag in row[TAGS]} | {OUTSIDE}
    return sorted(found, key=lambda tag: (tag != OUTSIDE, tag[2:], tag))


def targets(split: Split, encodings: Sequence[Encoding], labels: Sequence[str]) -> list[Targets]:
    """Return each row's label indices, int64 (L,): a word's at its first sub-word, `IGNORED` elsewhere.

    Raises:
        DataError: a label is unknown, or the labels are not IOB2.
    """
    _require_iob2(labels, "labels")
    rows = enumerate(zip(split.rows, encodings, strict=True))
    return [_targets(row[TAGS], encoding, labels, split.where(index)) for index, (row, encoding) in rows]


def _targets(tags: Sequence[object], encoding: Encoding, labels: Sequence[str], where: str) -> Targets:
    indices = [label_index(tag, labels, where) for tag in tags]
    aligned = np.full(len(encoding.ids), IGNORED, np.int64)
    for word, position in word_starts(encoding).items():
        aligned[position] = indices[word]
    return aligned


def unlabeled(encoding: Encoding) -> Targets:
    """Return the target of a row without tags, int64 (L,): `UNLABELED` at each word's first sub-word."""
    aligned = np.full(len(encoding.ids), IGNORED, np.int64)
    aligned[list(word_starts(encoding).values())] = UNLABELED
    return aligned


def texts_of(row: Row) -> list[str]:
    """Return the text that a row's words make."""
    return [runtime.text_of(row)]


def row_of(texts: Sequence[Sequence[str]]) -> Row:
    """Return the row of these words, without the spaces between them."""
    return {"tokens": [word.strip() for words in texts for word in words]}


def entity_f1(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return F1 from entities found rightly, found at all, and there: sums (...,3) to (...); 0 where there are none."""
    either = sums[..., 1] + sums[..., 2]
    return np.asarray(2 * sums[..., 0] / np.maximum(either, 1))


def score(logits: Sequence[Logits], targets: Sequence[Targets], labels: Sequence[str]) -> Score:
    """Score logits (L,C) per row: entity F1, precision and recall (seqeval, strict IOB2), word accuracy, two tables."""
    found = [_counted(row.argmax(axis=-1), target) for row, target in zip(logits, targets, strict=True)]
    truth = [_counted(target, target) for target in targets]
    found_tags, true_tags = _names(found, labels), _names(truth, labels)
    row_stats = np.array([_entity_counts(*pair) for pair in zip(true_tags, found_tags, strict=True)], np.float64)
    flat_truth, flat_found = np.concatenate(truth), np.concatenate(found)
    values, table = _entity_report(true_tags, found_tags)
    words = Metric("token_accuracy", float((flat_truth == flat_found).mean()), n=len(flat_truth))
    return Score(
        metrics=(*(Metric(name, value, n=len(targets)) for name, value in values.items()), words),
        table=table,
        predictions=tuple(found_tags),
        row_stats=row_stats,
        statistic=entity_f1,
        token_table=class_table(flat_truth, flat_found, labels),
    )


def _counted(indices: NDArray[Any], target: Targets) -> Targets:
    """Keep the indices of the words that count: (L,) to (W,)."""
    return np.asarray(indices[target != IGNORED], np.int64)


def _names(rows: Sequence[Targets], labels: Sequence[str]) -> list[Tags]:
    return [[labels[index] for index in row] for row in rows]


def _entity_counts(truth: Tags, found: Tags) -> tuple[int, int, int]:
    """Count a row's entities: found rightly, found, there."""
    true_entities, found_entities = set(entities_of(truth)), set(entities_of(found))
    return len(true_entities & found_entities), len(found_entities), len(true_entities)


def _entity_report(truth: list[Tags], found: list[Tags]) -> tuple[dict[str, float], tuple[dict[str, Any], ...]]:
    """Return the metrics over all entities, and the table per entity type."""
    from seqeval.metrics import classification_report
    from seqeval.scheme import IOB2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, on types that have no entity
        report = classification_report(truth, found, mode="strict", scheme=IOB2, output_dict=True, zero_division=0)
    averages = ("micro avg", "macro avg", "weighted avg")
    rows = _table_rows({name: row for name, row in report.items() if name not in averages})
    micro = report["micro avg"]
    return {
        "entity_f1": float(micro["f1-score"]),
        "entity_precision": float(micro["precision"]),
        "entity_recall": float(micro["recall"]),
    }, tuple(rows)


def _table_rows(report: dict[str, dict[str, float]]) -> Iterator[dict[str, Any]]:
    for name, row in report.items():
        yield table_row(name, row["precision"], row["recall"], row["f1-score"], int(row["support"]))


def _require_iob2(tags: Sequence[str], where: str) -> None:
    for tag in tags:
        if tag != OUTSIDE and not (tag.startswith(("B-", "I-")) and len(tag) > 2):
            raise DataError(
                where, expected="tags in IOB2: O, B-type, I-type", found=repr(tag), next_step="convert the tags"
            )


TOKEN_CLASSIFICATION = Task(
    name="token-classification",
    auto_class="AutoModelForTokenClassification",
    fields=("tokens", TAGS),
    primary="entity_f1",
    check=check,
    labels_of=labels_of,
    encode=runtime.encode,
    targets=targets,
    unlabeled=unlabeled,
    texts_of=texts_of,
    row_of=row_of,
    score=score,
)
