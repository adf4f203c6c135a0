"""Rows in, labels and scores out."""

import json
from typing import Any

import numpy as np
import pytest

from deploykit.errors import DataError
from deploykit.runtime import text_classification as task
from deploykit.runtime.tokenizer import Tokenizer

LABELS = ("negative", "positive")


@pytest.mark.parametrize("row", [{"text": "a"}, {"text": "a", "text_pair": None}, {"text": "a", "text_pair": "b"}])
def test_a_row_with_text_is_accepted(row: dict[str, Any]) -> None:
    task.check(row, "row 0")


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"text": None},
        {"text": 3},
        {"text": ["a"]},
        {"text": ""},
        {"text": " \n"},
        {"text": "\ud800"},
        {"text": "a", "text_pair": 1},
        {"text": "a", "text_pair": ""},
    ],
)
def test_any_other_row_is_refused_by_place_and_field(row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"^rows.jsonl:7: .*'text(_pair)?'"):
        task.check(row, "rows.jsonl:7")


def test_pairs_are_encoded_as_pairs(wordpiece: Tokenizer) -> None:
    one, two = task.encode(wordpiece, [{"text": "the film"}, {"text": "the film", "text_pair": "a story"}])
    assert (len(one.ids), len(two.ids)) == (4, 7)


def test_a_prediction_is_the_most_probable_label_ready_for_json(wordpiece: Tokenizer) -> None:
    rows = [{"text": "the film"}, {"text": "film " * 40}]
    encodings = task.encode(wordpiece, rows)
    logits = task.unpad(np.array([[0, np.log(3)], [0, 0]], np.float32), encodings)
    first, second = json.loads(json.dumps(task.decode(logits, encodings, rows, LABELS)))
    assert first == {"label": "positive", "score": pytest.approx(0.75)}
    assert second == {"label": "negative", "score": 0.5, "truncated": True}


def test_many_rows_are_answered_as_each_alone_is(wordpiece: Tokenizer) -> None:
    rows = [{"text": "the film"}, {"text": "a story"}, {"text": "film " * 40}]
    encodings = task.encode(wordpiece, rows)
    logits = list(np.random.default_rng(0).normal(0, 2, (3, 2)).astype(np.float32))
    alone = [task.decode([logits[i]], [encodings[i]], [rows[i]], LABELS)[0] for i in range(3)]
    together = task.decode(logits, encodings, rows, LABELS)
    assert [{**row, "score": pytest.approx(row["score"], rel=1e-12)} for row in alone] == together
    assert task.decode([], [], [], LABELS) == []


def test_half_precision_answers_become_float32(wordpiece: Tokenizer) -> None:
    (row,) = task.unpad(np.zeros((1, 2), np.float16), wordpiece.encode(["a"]))
    assert row.dtype == np.float32
    assert row.shape == (2,)
