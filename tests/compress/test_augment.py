import numpy as np
import pytest

from deploykit.compress.augment import augmented, neighbours, single_token_words
from deploykit.compress.words import Word


def word(*ids):
    return Word(f" w{ids[0]}", ids)


ROW = [[word(10), word(11, 12), word(13)]]
"""A word of one token, one of two, one of one."""
MANY = [[[word(10 + index % 30)]] for index in range(600)]
TABLE = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)


def made(rows, copies, seed):
    return list(augmented(rows, TABLE, copies, seed))


def numbers(row):
    """Return what each word was made the number of."""
    return [int(each.text.strip().removeprefix("w")) for text in row for each in text]


def test_only_words_of_one_token_may_be_replaced_also_those_of_a_pair():
    assert single_token_words(ROW) == [word(10), word(13)]
    assert single_token_words([[word(10)], [word(11)]]) == [word(10), word(11)]
    assert single_token_words([]) == []


def test_neighbours_are_the_nearest_by_angle_and_never_the_word_itself():
    vectors = np.array([[1, 0], [9, 1], [0, 2], [0.1, 5], [0, 0]], np.float32)
    assert neighbours(vectors, 1)[:4, 0].tolist() == [1, 0, 3, 2]
    slow = np.array([[a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for b in TABLE] for a in TABLE])
    np.fill_diagonal(slow, -np.inf)
    assert np.array_equal(neighbours(TABLE, 15), np.argsort(-slow, axis=1, kind="stable")[:, :15])


def test_a_copy_differs_in_some_words_alone_and_is_decided_by_the_seed():
    rows = made([ROW, *MANY], 3, seed=0)
    assert len(rows) == 3 * 601
    assert all(numbers(row)[1] == 11 for row in rows[::601])
    assert rows == made([ROW, *MANY], 3, seed=0)
    assert rows != made([ROW, *MANY], 3, seed=1)
    words = {numbers(row)[0] for row in MANY} | {13}
    assert {numbers(row)[0] for row in rows} <= words, "the training rows' own words"


def test_words_are_replaced_as_often_as_said_by_one_of_the_nearest_said():
    copies = made(MANY, 5, seed=0)
    pairs = [(numbers(old)[0], numbers(new)[0]) for old, new in zip(MANY * 5, copies, strict=True)]
    assert np.mean([old != new for old, new in pairs]) == pytest.approx(0.4, abs=0.03)
    near = neighbours(TABLE[10:40], 15) + 10
    assert all(old == new or new in near[old - 10] for old, new in pairs)


def test_a_word_takes_the_place_of_another_with_the_space_that_was_there():
    tight = [[Word(" a", (1,)), Word("b", (2,)), Word(" c", (3,))]]
    rows = made([tight], 200, seed=0)
    assert len({str(row) for row in rows}) > 5
    assert {tuple(each.text[0] == " " for each in row[0]) for row in rows} == {(True, False, True)}


@pytest.mark.parametrize("rows", [[], [[[word(10), word(11, 12)]]], [[]]])
def test_rows_with_fewer_than_two_words_are_copied_as_they_are(rows):
    assert made(rows, 2, seed=0) == rows * 2
