import random

import numpy as np
import pytest

from deploykit.check.accuracy import compare, judge, judge_labels, relation
from deploykit.tasks import task_named
from deploykit.tasks.task import IGNORED

LABELS = ["negative", "positive"]
TAGS = ["O", "B-place", "I-place"]
FIELDS = ("text", "label")


def classified(predicted, truth):
    logits = [np.eye(2, dtype=np.float32)[index] for index in predicted]
    return task_named("text-classification").score(logits, [np.array(index) for index in truth], LABELS)


def named(truth):
    return [LABELS[index] for index in truth]


def rows_of(truth):
    return [
        {"text": f"row {index}", "label": LABELS[one], "source": "ab"[index % 2]} for index, one in enumerate(truth)
    ]


def compared(reference, candidate, truth):
    return compare(classified(reference, truth), classified(candidate, truth), named(truth), rows_of(truth), FIELDS)


TRUTH = [0, 1] * 50


def with_errors(count):
    return [1 - one if index < count else one for index, one in enumerate(TRUTH)]


def test_a_drop_beyond_the_budget_fails_and_one_within_passes():
    assert judge(compared(TRUTH, with_errors(2), TRUTH), 0.01, require_significance=False).verdict == "fail"
    assert judge(compared(TRUTH, with_errors(1), TRUTH), 0.01, require_significance=False).verdict == "pass"


def test_the_reason_holds_the_interval_and_what_so_many_rows_can_show():
    gate = judge(compared(TRUTH, with_errors(1), TRUTH), 0.01, require_significance=False)
    assert "95% interval" in gate.reason
    assert "the drop may be as large as" in gate.reason
    assert "100 rows can show a drop of" in gate.reason


def test_required_significance_makes_a_small_set_inconclusive_and_a_large_one_pass():
    found = compared(TRUTH, TRUTH, TRUTH)
    assert judge(found, 0.01, require_significance=True).verdict == "inconclusive"
    assert judge(found, 0.1, require_significance=True).verdict == "pass"
    assert judge(compared(TRUTH, with_errors(20), TRUTH), 0.1, require_significance=True).verdict == "fail"
    many = compared(TRUTH * 20, TRUTH * 20, TRUTH * 20)
    assert judge(many, 0.01, require_significance=True).verdict == "pass"


def test_flips_are_listed_with_what_they_cost():
    found = compared(with_errors(3), [1 - TRUTH[0], *with_errors(0)[1:-1], 1 - TRUTH[-1]], TRUTH)
    assert (found.flips_total, found.flips_lost, found.flips_won) == (3, 1, 2)
    assert found.flips[0] == {
        "row": 1,
        "text": "row 1",
        "label": "positive",
        "reference": "negative",
        "candidate": "positive",
    }


def test_many_flips_are_counted_but_not_all_written():
    found = compared(TRUTH, with_errors(90), TRUTH)
    assert (found.flips_total, len(found.flips)) == (90, 50)


def test_classes_and_slices_show_where_it_was_lost():
    candidate = [0] * 100
    found = compared(TRUTH, candidate, TRUTH)
    assert {row["label"]: row["f1_candidate"] for row in found.classes}["positive"] == 0.0
    slices = {row["value"]: (row["reference"], row["candidate"], row["n"]) for row in found.slices}
    assert slices == {"a": (1.0, 1.0, 50), "b": (1.0, 0.0, 50)}


def test_texts_are_no_slices():
    assert {row["field"] for row in compared(TRUTH, TRUTH, TRUTH).slices} == {"source"}


def test_entities_are_compared_word_by_word():
    truth = [np.array([IGNORED, 1, 2, 0, IGNORED]), np.array([IGNORED, 0, 1, IGNORED])]
    logits = [np.eye(3, dtype=np.float32)[np.maximum(target, 0)] for target in truth]
    other = [logits[0].copy(), logits[1]]
    other[0][2] = [1, 0, 0]
    task = task_named("token-classification")
    scores = [task.score(one, truth, TAGS) for one in (logits, other)]
    rows = [{"tokens": ["New", "York", "is"]}, {"tokens": ["in", "Rome"]}]
    found = compare(scores[0], scores[1], [["B-place", "I-place", "O"], ["O", "B-place"]], rows, ("tokens", "ner_tags"))
    assert found.metric == "entity_f1"
    assert found.flips == ({"row": 0, "text": "York", "label": "I-place", "reference": "I-place", "candidate": "O"},)
    assert relation(scores[0], [["B-place", "I-place", "O"], ["O", "B-place"]]).kappa == pytest.approx(1.0)


def labels_gate(truth, predicted, reported=None):
    score = classified(predicted, truth)
    return judge_labels(relation(score, named(truth)), score.metrics[0], reported)


def test_labels_that_the_original_knows_pass_and_shuffled_ones_fail():
    shuffled = random.Random(0).sample(TRUTH, 100)
    assert labels_gate(TRUTH, with_errors(20)).verdict == "pass"
    assert labels_gate(shuffled, with_errors(20)).verdict == "fail"
    assert labels_gate(shuffled, with_errors(20), reported=0.8).verdict == "fail"


def test_an_original_at_chance_by_its_own_report_passes():
    constant = [0] * 100
    assert labels_gate(TRUTH, constant).verdict == "fail"
    assert labels_gate(TRUTH, constant, reported=0.52).verdict == "pass"


def test_a_handful_of_labels_is_inconclusive():
    assert labels_gate([0, 1], [0, 1]).verdict == "inconclusive"
