"""The served token classifier answers as the runtime does, for words and for running text."""

from typing import Any

import httpx
import pytest

from deploykit.artifact import Artifact
from deploykit.package import MODEL
from deploykit.runtime.model import Model


def test_entities_have_their_place_in_the_text(served_ner: str, bento_ner: Artifact):
    rows: list[dict[str, Any]] = [
        {"text": "Anna saw  Paris."},
        {"tokens": ["anna", "saw", "paris"]},
        {"text": "a film"},
    ]
    answer = httpx.post(f"{served_ner}/predict", json={"rows": rows})
    assert answer.json() == {"predictions": Model.open(bento_ner.path / MODEL).predict(rows)}
    places = [[(found["label"], found["start"], found["text"]) for found in row["entities"]] for row in _of(answer)]
    assert places == [
        [("person", 0, "Anna"), ("location", 10, "Paris")],
        [("person", 0, "anna"), ("location", 9, "paris")],
        [],
    ]


def test_a_row_longer_than_the_model_takes_says_so(served_ner: str):
    answer = httpx.post(f"{served_ner}/predict", json={"rows": [{"tokens": ["anna"] * 100}, {"text": "anna"}]})
    cut, whole = _of(answer)
    assert cut["truncated"] is True
    assert "truncated" not in whole


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({}, "found no such field"),
        ({"tokens": []}, "found no word"),
        ({"tokens": "anna"}, "expected a list of words"),
        ({"tokens": ["anna", 1]}, "expected a list of words"),
        ({"tokens": [["anna"]]}, "expected a list of words"),
        ({"tokens": ["", " "]}, "found no word"),
        ({"text": ["anna"]}, "expected text"),
    ],
)
def test_a_bad_row_gets_one_line(served_ner: str, row: dict[str, object], line: str):
    answer = httpx.post(f"{served_ner}/predict", json={"rows": [row]})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("rows[0]: ")
    assert line in answer.json()["error"]


def _of(answer: httpx.Response) -> Any:
    return answer.json()["predictions"]
