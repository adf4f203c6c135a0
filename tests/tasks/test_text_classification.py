from pathlib import Path

import numpy as np
import pytest

from deploykit.data import Split
from deploykit.errors import DataError
from deploykit.tasks.text_classification import TEXT_CLASSIFICATION as TASK

LABELS = ["bad", "good", "mixed"]


def one_hot(indices, classes=3):
    return [np.eye(classes, dtype=np.float32)[index] for index in indices]


def scored(found, truth, labels=LABELS):
    return TASK.score(one_hot(found, len(labels)), [np.array(index) for index in truth], labels)


def values(score):
    return {metric.name: metric.value for metric in score.metrics}


def f1_by_hand(found, truth, label):
    hits = sum(f == t == label for f, t in zip(found, truth, strict=True))
    return 2 * hits / (found.count(label) + truth.count(label))


def test_labels_come_in_alphabetical_order():
    split = Split(Path("f"), ({"text": "a", "label": "z"}, {"text": "b", "label": "a"}, {"text": "c", "label": "z"}))
    assert TASK.labels_of(split) == ["a", "z"]


def test_targets_are_label_indices_and_an_unknown_label_is_an_error():
    split = Split(Path("f.jsonl"), ({"text": "a", "label": "good"}, {"text": "b", "label": "nice"}))
    assert TASK.targets(Split(split.file, split.rows[:1]), [], LABELS) == [1]
    with pytest.raises(DataError, match=r"f\.jsonl:2"):
        TASK.targets(split, [], LABELS)


def test_the_primary_metric_is_first_and_equals_the_statistic_of_its_rows():
    score = scored([0, 1, 2, 1], [0, 1, 1, 1])
    assert score.metrics[0].name == TASK.primary
    assert score.metrics[0].value == score.statistic(score.row_stats.sum(0)) == 0.75


def test_the_statistic_takes_many_resamples_at_once():
    score = scored([0, 1, 2, 1], [0, 1, 1, 1])
    resamples = np.array([[0, 0, 0, 0], [2, 2, 2, 2], [0, 1, 2, 3]])
    assert score.statistic(score.row_stats[resamples].sum(1)).tolist() == [1.0, 0.0, 0.75]


def test_f1_equals_the_definition():
    found, truth = [0, 1, 2, 1, 0, 0], [0, 1, 1, 1, 2, 0]
    by_class = [f1_by_hand(found, truth, label) for label in range(3)]
    score = scored(found, truth)
    assert values(score)["macro_f1"] == pytest.approx(np.mean(by_class))
    assert values(score)["weighted_f1"] == pytest.approx(np.average(by_class, weights=np.bincount(truth)))
    assert [row["f1"] for row in score.table] == pytest.approx(by_class)
    assert [(row["label"], row["support"]) for row in score.table] == [("bad", 2), ("good", 3), ("mixed", 1)]


def test_a_class_in_neither_targets_nor_predictions_does_not_lower_macro_f1():
    score = scored([0, 1], [0, 1])
    assert values(score)["macro_f1"] == 1.0
    assert score.table[2] == {"label": "mixed", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}


def test_one_wrong_row_lowers_every_metric():
    right, wrong = scored([0, 1, 2], [0, 1, 2]), scored([0, 1, 1], [0, 1, 2])
    assert all(value == 1.0 for value in values(right).values())
    assert all(value < 1.0 for value in values(wrong).values())
    assert wrong.predictions == ("bad", "good", "good")
    assert wrong.row_stats[:, 0].tolist() == [1, 1, 0]


def test_one_row_can_be_scored():
    assert values(scored([1], [1])) == {"accuracy": 1.0, "macro_f1": 1.0, "weighted_f1": 1.0}
