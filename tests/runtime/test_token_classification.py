"""Words, tags and entities."""

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.scheme import IOB2, Entities

from deploykit.errors import DataError
from deploykit.runtime import token_classification as task
from deploykit.runtime.token_classification import Entity, entities_of, word_rows, word_spans, word_starts
from deploykit.runtime.tokenizer import Encoding, Tokenizer
from tests.models import ENTITY_LABELS, NEUTRAL

TAGS = st.lists(st.sampled_from(ENTITY_LABELS), max_size=12)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def slow_entities(tags: list[str]) -> list[Entity]:
    """Try every stretch of words: it is an entity if it reads B I I ... and does not go on."""
    found = []
    for first in range(len(tags)):
        for last in range(first, len(tags)):
            label = tags[first][2:]
            reads = tags[first] == f"B-{label}" and all(tag == f"I-{label}" for tag in tags[first + 1 : last + 1])
            ends = last + 1 == len(tags) or tags[last + 1] != f"I-{label}"
            if tags[first] != "O" and reads and ends:
                found.append(Entity(label, first, last))
    return found


def logits_for(encoding: Encoding, tags: dict[int, str], strength: float = 5.0) -> np.ndarray:
    """Give each word's first sub-word its tag, and everything else a loud wrong one."""
    logits = np.zeros((len(encoding.ids), len(ENTITY_LABELS)), np.float32)
    logits[:, ENTITY_LABELS.index("B-person")] = 9.0
    for word, position in word_starts(encoding).items():
        logits[position] = 0
        logits[position, ENTITY_LABELS.index(tags.get(word, "O"))] = strength
    return logits


def predict(tokenizer: Tokenizer, row: dict[str, Any], tags: dict[int, str]) -> dict[str, Any]:
    (encoding,) = task.encode(tokenizer, [row])
    (answer,) = task.decode([logits_for(encoding, tags)], [encoding], [row], ENTITY_LABELS)
    return dict(json.loads(json.dumps(answer)))


@given(TAGS)
def test_entities_agree_with_a_slow_obvious_reader(tags: list[str]) -> None:
    assert entities_of(tags) == slow_entities(tags)


@given(TAGS)
def test_entities_agree_with_the_strict_metric(tags: list[str]) -> None:
    theirs = Entities([tags], IOB2).entities[0]
    assert [(e.label, e.first, e.last + 1) for e in entities_of(tags)] == [(e.tag, e.start, e.end) for e in theirs]


def test_an_inside_tag_that_continues_nothing_is_no_entity() -> None:
    assert entities_of(["I-person", "O", "B-person", "I-location", "I-person"]) == [Entity("person", 2, 2)]


def test_a_label_may_hold_a_hyphen() -> None:
    assert entities_of(["B-creative-work", "I-creative-work"]) == [Entity("creative-work", 0, 1)]


def test_offsets_count_in_the_tokens_joined_by_one_space(wordpiece: Tokenizer) -> None:
    row = {"tokens": ["anna", "saw", "Pariser", "berlin", "."]}
    (person, place) = predict(wordpiece, row, {0: "B-person", 2: "B-location", 3: "I-location"})["entities"]
    assert (person["label"], person["start"], person["end"], person["text"]) == ("person", 0, 4, "anna")
    assert (place["label"], place["start"], place["end"], place["text"]) == ("location", 9, 23, "Pariser berlin")


@given(st.lists(st.sampled_from([*NEUTRAL, "Pariser", "日本"]), min_size=1, max_size=10), st.integers(0, 9))
def test_an_entitys_text_is_its_word(wordpiece: Tokenizer, words: list[str], chosen: int) -> None:
    chosen %= len(words)
    (entity,) = predict(wordpiece, {"tokens": words}, {chosen: "B-location"})["entities"]
    assert " ".join(words)[entity["start"] : entity["end"]] == entity["text"] == words[chosen]


def test_running_text_is_cut_at_its_marks(wordpiece: Tokenizer) -> None:
    (entity,) = predict(wordpiece, {"text": "Anna saw Paris, berlin."}, {2: "B-location"})["entities"]
    assert (entity["text"], entity["start"]) == ("Paris", 9)


def test_a_score_is_the_mean_of_its_words_probabilities(wordpiece: Tokenizer) -> None:
    row = {"tokens": ["paris", "berlin"]}
    (encoding,) = task.encode(wordpiece, [row])
    logits = logits_for(encoding, {0: "B-location", 1: "I-location"})
    logits[1, ENTITY_LABELS.index("B-location")] = np.log(12)
    logits[2, ENTITY_LABELS.index("I-location")] = np.log(4)
    ((answer,),) = (task.decode([logits], [encoding], [row], ENTITY_LABELS),)
    assert answer["entities"][0]["score"] == pytest.approx((12 / 16 + 4 / 8) / 2)


def test_a_word_speaks_through_its_first_sub_word_alone(wordpiece: Tokenizer) -> None:
    (encoding,) = task.encode(wordpiece, [{"tokens": ["parisers", "saw"]}])
    logits = np.arange(len(encoding.ids), dtype=np.float32)[:, None]
    assert word_starts(encoding) == {0: 1, 1: 4}
    assert word_rows(logits, encoding)[:, 0].tolist() == [1, 4]


def test_a_word_that_was_cut_off_has_no_row_and_truncation_is_told(wordpiece: Tokenizer) -> None:
    row = {"tokens": ["film"] * 40}
    (encoding,) = task.encode(wordpiece, [row])
    assert len(word_rows(np.zeros((len(encoding.ids), 5), np.float32), encoding)) == 14
    assert predict(wordpiece, row, {})["truncated"] is True
    assert "truncated" not in predict(wordpiece, {"tokens": ["film"]}, {})


def test_text_without_a_known_character_has_no_entity(wordpiece: Tokenizer) -> None:
    assert predict(wordpiece, {"text": "\u200b"}, {}) == {"entities": []}


@given(TEXTS)
def test_words_hold_every_character_but_spaces_once_and_in_order(text: str) -> None:
    spans = word_spans({"text": text})
    assert "".join(text[start:end] for start, end in spans) == "".join(text.split())
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("U.S. (Paris), can't e-mail!", ["U.S", ".", "(", "Paris", ")", ",", "can't", "e-mail", "!"]),
        ("@user_1 #tag 3,5", ["@user_1", "#tag", "3", ",", "5"]),
        ("東京 Tokyo駅", ["東", "京", "Tokyo", "駅"]),
        ("हिन्दी cafe\u0301", ["हिन्दी", "cafe\u0301"]),
    ],
)
def test_words_are_those_of_labelled_sets(text: str, words: list[str]) -> None:
    assert [text[start:end] for start, end in word_spans({"text": text})] == words


@pytest.mark.parametrize(
    "row", [{"text": "a"}, {"tokens": ["a", ""]}, {"tokens": ["a"], "text": None}, {"tokens": None, "text": "a"}]
)
def test_tokens_or_text_are_accepted(row: dict[str, Any]) -> None:
    task.check(row, "row 0")


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"text": ""},
        {"tokens": []},
        {"tokens": ["", " "]},
        {"tokens": "a b"},
        {"tokens": ["a", 1]},
        {"tokens": ["\ud800"]},
    ],
)
def test_any_other_row_is_refused_by_place(row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"^row 3: "):
        task.check(row, "row 3")
