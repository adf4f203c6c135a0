"""A cascade keeps what its first model is sure of, and the order of the rows."""

from collections.abc import Sequence

import numpy as np
import pytest

from deploykit.errors import DeploykitError
from deploykit.runtime.cascade import cascaded
from deploykit.runtime.tasks import TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION
from deploykit.runtime.tokenizer import Encoding

FIRST_NC = np.array([[5.0, 0.0], [0.1, 0.0], [0.0, 4.0], [0.0, 0.2]], np.float32)


def encoding(*words: int | None) -> Encoding:
    spans = [(0, 0)] * len(words)
    special = [word is None for word in words]
    return Encoding([1] * len(words), [0] * len(words), spans, list(words), special, False)


ROWS = [encoding(None, index, None) for index in range(4)]
"""Row i is told by the number of its word."""


def by_first(encodings: Sequence[Encoding]) -> list[np.ndarray]:
    return [FIRST_NC[row.word_ids[1] or 0] for row in encodings]


def by_last(encodings: Sequence[Encoding]) -> list[np.ndarray]:
    return [np.array([-1.0, row.word_ids[1] or 0], np.float32) for row in encodings]


def test_what_the_first_is_not_sure_of_is_the_lasts_and_rows_keep_their_order():
    found = cascaded(ROWS, by_first, by_last, TEXT_CLASSIFICATION, 0.9)
    assert np.array_equal(found, [FIRST_NC[0], [-1, 1], FIRST_NC[2], [-1, 3]])


def test_a_confidence_that_equals_the_threshold_is_enough():
    own = TEXT_CLASSIFICATION.confidence(FIRST_NC[3], ROWS[3])
    assert np.array_equal(cascaded(ROWS[3:], by_first, by_last, TEXT_CLASSIFICATION, own), FIRST_NC[3:])


def test_the_last_is_not_asked_where_nothing_is_handed_on():
    def never(_encodings: Sequence[Encoding]) -> list[np.ndarray]:
        raise AssertionError("asked")

    assert np.array_equal(cascaded(ROWS, by_first, never, TEXT_CLASSIFICATION, 0.0), FIRST_NC)
    assert cascaded([], by_first, never, TEXT_CLASSIFICATION, 2.0) == []


def test_everything_is_handed_on_above_any_confidence():
    assert np.array_equal(cascaded(ROWS, by_first, by_last, TEXT_CLASSIFICATION, 2.0), by_last(ROWS))


def test_an_answer_that_is_not_a_number_is_never_sure():
    def broken(encodings: Sequence[Encoding]) -> list[np.ndarray]:
        return [np.array([np.nan, 0.0], np.float32) for _ in encodings]

    with pytest.raises(DeploykitError, match="finite"):
        cascaded(ROWS, broken, by_last, TEXT_CLASSIFICATION, 0.5)


def test_a_row_of_words_is_as_sure_as_its_least_sure_word():
    logits_LC = np.array([[0, 0], [9, 0], [0, 0], [0, 1], [0, 0]], np.float32)
    row = encoding(None, 0, 0, 1, None)  # the second sub-word of word 0 speaks for nobody
    assert TOKEN_CLASSIFICATION.confidence(logits_LC, row) == pytest.approx(1 / (1 + np.exp(-1)))


def test_a_row_without_words_is_sure():
    assert TOKEN_CLASSIFICATION.confidence(np.zeros((2, 3), np.float32), encoding(None, None)) == 1.0
