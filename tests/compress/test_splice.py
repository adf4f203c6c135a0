from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from deploykit import checkpoint
from deploykit.compress.splice import spliced, spliced_rows
from deploykit.compress.words import Word
from deploykit.data import open_dataset
from deploykit.tasks.task import UNLABELED
from deploykit.train.labelled import read_labelled, without_labels
from tests.models import make_checkpoint, make_dataset


def spelled(start, count):
    """Make words of one and of two tokens, all different."""
    return [
        Word(f" w{start + at}", (start + 2 * at,) if at % 3 else (start + 2 * at, start + 2 * at + 1))
        for at in range(count)
    ]


def made(rows, count, seed):
    return list(spliced(rows.__getitem__, len(rows), count, seed))


def num_tokens(row):
    return sum(len(word.ids) for text in row for word in text)


FIRST, SECOND = spelled(100, 8), spelled(200, 5)
TWO = [[FIRST], [SECOND]]


def test_a_row_is_whole_words_of_two_rows_in_their_order():
    for row in made(TWO, 400, seed=0):
        (words,) = row
        assert words
        assert all(word in FIRST or word in SECOND for word in words)
        assert num_tokens(row) <= max(map(num_tokens, TWO))


def test_what_is_made_is_a_cut_a_beginning_with_an_end_or_a_span_in_the_place_of_a_span_as_often_as_said():
    def kinds(words):
        """Name each word's row, runs of one as one letter: AB is a beginning of the first and a piece of the second."""
        letters = ["A" if word in FIRST else "B" for word in words]
        return "".join(letter for at, letter in enumerate(letters) if letters[at - 1 : at] != [letter])

    found = Counter(kinds(row[0]) for row in made(TWO, 4000, seed=0))
    assert set(found) == {"A", "B", "AB", "BA", "ABA", "BAB"}
    whole = [[spelled(0, 200)], [spelled(1000, 200)]]
    ends = [row[0] for row in made(whole, 4000, seed=0)]
    outer = {words[at] for (words,) in whole for at in (0, -1)}
    keeps_neither_end = np.mean([not ({text[0], text[-1]} & outer) for text in ends])
    assert keeps_neither_end == pytest.approx(0.2, abs=0.05), "a cut out of one row, and hardly anything else"


def test_each_text_of_a_pair_is_spliced_with_the_others_in_the_same_place():
    pairs = [[spelled(100, 6), spelled(200, 9)], [spelled(300, 12), spelled(400, 3)]]
    rows = made(pairs, 300, seed=0)
    for row in rows:
        assert all(row)
        assert num_tokens(row) <= max(map(num_tokens, pairs))
        assert [{token // 100 % 2 for word in text for token in word.ids} for text in row] == [{1}, {0}]
    assert any({word.ids[0] // 100 for text in row for word in text} >= {1, 2, 3, 4} for row in rows)


def test_rows_are_decided_by_the_seed_and_are_many():
    rows = made(TWO, 50, seed=0)
    assert rows == made(TWO, 50, seed=0)
    assert rows != made(TWO, 50, seed=1)
    many = made([[spelled(100 * at, 20)] for at in range(1, 20)], 2000, seed=0)
    assert len({str(row) for row in many}) > 1900


def test_a_pair_among_single_texts_lends_none_and_no_row_makes_none():
    assert made([], 3, seed=0) == []
    mixed = made([[FIRST], [FIRST, SECOND]], 200, seed=0)
    assert {len(row) for row in mixed} == {1, 2}


def test_pieces_stand_apart_where_they_did_not_in_their_own_text():
    tight = [Word(" don", (1,)), Word("'", (2,)), Word("t", (3,))]
    for ((*words,),) in made([[tight], [tight]], 300, seed=0):
        assert words[0].text.startswith(" ")
        for before, word in pairwise(words):
            assert word.text.startswith(" ") or word.ids[0] == before.ids[0] + 1


def test_a_set_of_spliced_rows_has_a_target_for_every_word_of_the_rows_that_have_words(tmp_path: Path):
    task = "token-classification"
    teacher = checkpoint.load(checkpoint.open_checkpoint(make_checkpoint(tmp_path / "model", task=task)))
    rows = read_labelled(teacher, open_dataset(make_dataset(tmp_path / "data", task=task, rows=8)), "train")
    (found,) = spliced_rows(teacher, [rows], 50, seed=0)
    words = {token for row in rows.rows for token in row["tokens"]}
    assert len(found) == 50
    assert {token for row in found.rows for token in row["tokens"]} <= words
    assert [int((target == UNLABELED).sum()) for target in found.targets] == [len(row["tokens"]) for row in found.rows]
    wordless = without_labels(teacher, [{"tokens": ["\u200b"]}], rows.file)
    assert len(spliced_rows(teacher, [wordless], 3, seed=0)[0]) == 0
