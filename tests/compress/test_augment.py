import numpy as np
import pytest

from deploykit.compress.augment import augmented, neighbours, single_token_words
from deploykit.runtime.tokenizer import Encoding


def encoding_of(ids, words):
    special = [word is None for word in words]
    return Encoding(ids, [0] * len(ids), [(0, 1)] * len(ids), words, special, False)


ROW = encoding_of([2, 10, 11, 12, 13, 3], [None, 0, 1, 1, 2, None])
"""A word of one token, one of two, one of one, between special tokens."""
MANY = [encoding_of([2, 10 + index % 30, 3], [None, 0, None]) for index in range(600)]
TABLE = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)


def test_only_words_of_one_token_may_be_replaced_also_where_a_pair_counts_its_words_anew():
    assert single_token_words(ROW) == [1, 4]
    assert single_token_words(encoding_of([2, 10, 3, 11, 3], [None, 0, None, 0, None])) == [1, 3]
    assert single_token_words(encoding_of([2, 3], [None, None])) == []


def test_neighbours_are_the_nearest_by_angle_and_never_the_word_itself():
    vectors = np.array([[1, 0], [9, 1], [0, 2], [0.1, 5], [0, 0]], np.float32)
    assert neighbours(vectors, 1)[:4, 0].tolist() == [1, 0, 3, 2]
    slow = np.array([[a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for b in TABLE] for a in TABLE])
    np.fill_diagonal(slow, -np.inf)
    assert np.array_equal(neighbours(TABLE, 15), np.argsort(-slow, axis=1, kind="stable")[:, :15])


def test_a_copy_differs_in_some_words_alone_and_is_decided_by_the_seed():
    rows = augmented([ROW, *MANY], TABLE, 3, seed=0)
    assert len(rows) == 3 * 601
    assert all([row.ids[at] for at in (0, 2, 3, 5)] == [2, 11, 12, 3] for row in rows[::601])
    assert rows == augmented([ROW, *MANY], TABLE, 3, seed=0)
    assert rows != augmented([ROW, *MANY], TABLE, 3, seed=1)
    words = {row.ids[1] for row in MANY} | {13}
    assert {row.ids[1] for row in rows} <= words, "the training rows' own words"


def test_words_are_replaced_as_often_as_said_by_one_of_the_nearest_said():
    copies = augmented(MANY, TABLE, 5, seed=0)
    pairs = [(old.ids[1], new.ids[1]) for old, new in zip(MANY * 5, copies, strict=True)]
    assert np.mean([old != new for old, new in pairs]) == pytest.approx(0.4, abs=0.03)
    near = neighbours(TABLE[10:40], 15) + 10
    assert all(old == new or new in near[old - 10] for old, new in pairs)


@pytest.mark.parametrize("rows", [[], [ROW], [encoding_of([2, 3], [None, None])]])
def test_rows_with_fewer_than_two_words_are_copied_as_they_are(rows):
    assert [row.ids for row in augmented(rows, TABLE, 2, seed=0)] == [row.ids for row in rows * 2] or rows == [ROW]
