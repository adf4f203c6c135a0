from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.data import Split
from deploykit.errors import DataError
from deploykit.runtime.tokenizer import Tokenizer
from deploykit.tasks.task import IGNORED
from deploykit.tasks.token_classification import TOKEN_CLASSIFICATION as TASK
from tests.models import ENTITY_LABELS as LABELS

ROW = {"tokens": ["anna", "pins", "paris"], "ner_tags": ["B-person", "O", "B-location"]}


def logits_of(tags, target):
    """Logits of a model that says `tags` for the words that count, and something else everywhere else."""
    indices = np.full(len(target), LABELS.index("I-person"))
    indices[target != IGNORED] = [LABELS.index(tag) for tag in tags]
    return np.eye(len(LABELS), dtype=np.float32)[indices]


def scored(found, truth):
    """Score rows of tags whose words have a second sub-word, between special tokens."""
    targets = []
    for tags in truth:
        target = np.full(2 * len(tags) + 2, IGNORED)
        target[1:-1:2] = [LABELS.index(tag) for tag in tags]
        targets.append(target)
    return TASK.score([logits_of(*pair) for pair in zip(found, targets, strict=True)], targets, LABELS)


def values(score):
    return {metric.name: metric.value for metric in score.metrics}


def entities_by_hand(tags):
    """Strict IOB2: B-x and the unbroken I-x after it."""
    found = set()
    for start, tag in enumerate(tags):
        if tag.startswith("B-"):
            end = start + 1
            while end < len(tags) and tags[end] == f"I-{tag[2:]}":
                end += 1
            found.add((start, end, tag[2:]))
    return found


@pytest.fixture(scope="module")
def tokenizer(bert_ner):
    return Tokenizer.open(bert_ner, max_length=64, pad_id=0)


def test_labels_are_o_then_the_types_in_order():
    split = Split(Path("f"), ({"ner_tags": ["I-b", "B-b"]}, {"ner_tags": ["B-a", "O"]}))
    assert TASK.labels_of(split) == ["O", "B-a", "B-b", "I-b"]


def test_only_first_sub_words_have_a_target(tokenizer):
    (encoding,) = TASK.encode(tokenizer, [ROW])
    (target,) = TASK.targets(Split(Path("f"), (ROW,)), [encoding], LABELS)
    counted = [(encoding.word_ids[position], LABELS[index]) for position, index in enumerate(target) if index >= 0]
    assert counted == [(0, "B-person"), (1, "O"), (2, "B-location")]
    assert len(target) == len(encoding.ids) > len(counted) + 2


def test_words_that_are_cut_off_have_no_target(bert_ner):
    (encoding,) = TASK.encode(Tokenizer.open(bert_ner, max_length=4, pad_id=0), [ROW])
    (target,) = TASK.targets(Split(Path("f"), (ROW,)), [encoding], LABELS)
    assert encoding.truncated
    assert (target != IGNORED).sum() == 2


def test_an_unknown_tag_is_an_error_at_its_line(tokenizer):
    split = Split(Path("f.jsonl"), ({**ROW, "ner_tags": ["O", "O", "B-group"]},))
    with pytest.raises(DataError, match=r"f\.jsonl:1"):
        TASK.targets(split, TASK.encode(tokenizer, split.rows), LABELS)


def test_a_perfect_answer_scores_one_and_a_shifted_boundary_does_not():
    truth = [["B-person", "I-person", "O"], ["O", "B-location"]]
    assert set(values(scored(truth, truth)).values()) == {1.0}
    shorter = scored([["B-person", "O", "O"], ["O", "B-location"]], truth)
    assert values(shorter)["entity_f1"] == 0.5
    assert values(shorter)["token_accuracy"] == 0.8


def test_another_type_or_an_entity_without_a_beginning_is_no_match():
    truth = [["B-person", "I-person", "O"]]
    assert values(scored([["B-location", "I-location", "O"]], truth))["entity_f1"] == 0.0
    assert values(scored([["I-person", "I-person", "O"]], truth))["entity_f1"] == 0.0


def test_rows_without_any_entity_score_zero_and_have_no_entity_table():
    score = scored([["O", "O"]], [["O", "O"]])
    assert values(score) == {"entity_f1": 0.0, "entity_precision": 0.0, "entity_recall": 0.0, "token_accuracy": 1.0}
    assert score.table == ()


def test_the_tables_are_per_entity_type_and_per_tag():
    score = scored([["B-person", "O", "B-location"]], [["B-person", "I-person", "B-location"]])
    assert {row["label"]: row["f1"] for row in score.table} == {"location": 1.0, "person": 0.0}
    assert [row["label"] for row in score.token_table] == LABELS
    assert score.token_table[LABELS.index("I-person")]["support"] == 1


rows_of_tags = st.lists(
    st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=6),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=60)
@given(rows_of_tags)
def test_the_metric_equals_the_definition_and_the_statistic_of_its_rows(rows):
    truth, found = [[tag for tag, _ in row] for row in rows], [[tag for _, tag in row] for row in rows]
    score = scored(found, truth)
    pairs = [(entities_by_hand(t), entities_by_hand(f)) for t, f in zip(truth, found, strict=True)]
    hits = sum(len(t & f) for t, f in pairs)
    total = sum(len(t) + len(f) for t, f in pairs)
    assert score.metrics[0].name == TASK.primary
    assert score.metrics[0].value == pytest.approx(2 * hits / max(total, 1))
    assert score.metrics[0].value == pytest.approx(float(score.statistic(score.row_stats.sum(0))))
    assert list(score.predictions) == found
