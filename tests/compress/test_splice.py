from collections import Counter

import numpy as np
import pytest

from deploykit.compress.splice import spliced
from deploykit.runtime.tokenizer import Encoding

CLS, SEP = 2, 3


def encoding_of(*texts):
    """Encode texts, given as the token ids of each word."""
    ids, types = [CLS], [0]
    words: list[int | None] = [None]
    for kind, text in enumerate(texts):
        ids += [token for word in text for token in word] + [SEP]
        words += [number for number, word in enumerate(text) for _ in word] + [None]
        types += [kind] * (len(ids) - len(types))
    return Encoding(ids, types, [(0, 0)] * len(ids), words, [word is None for word in words], False)


def words_of(encoding):
    """Return the words of each text: what `encoding_of` was given."""
    texts: list[list[list[int]]] = [[]]
    last = None
    for token, word, special in zip(encoding.ids[1:-1], encoding.word_ids[1:-1], encoding.special[1:-1], strict=True):
        if special:
            texts.append([])
        elif word == last:
            texts[-1][-1].append(token)
        else:
            texts[-1].append([token])
        last = word
    return texts


def numbered(start, count):
    """Make words of one and of two tokens, all different."""
    return [[start + 2 * at] if at % 3 else [start + 2 * at, start + 2 * at + 1] for at in range(count)]


FIRST, SECOND = numbered(100, 8), numbered(200, 5)
TWO = [encoding_of(FIRST), encoding_of(SECOND)]


def test_a_row_is_whole_words_of_two_rows_in_their_order_in_the_form_of_a_row():
    for row in spliced(TWO, 400, seed=0):
        (words,) = words_of(row)
        assert row == encoding_of(words), "the special tokens, types and word numbers are those of a row"
        assert words
        assert all(word in FIRST or word in SECOND for word in words)
        assert len(row.ids) <= max(len(each.ids) for each in TWO)


def test_what_is_made_is_a_cut_a_beginning_with_an_end_or_a_span_in_the_place_of_a_span_as_often_as_said():
    def kinds(words):
        """Name each word's row, runs of one as one letter: AB is a beginning of the first and a piece of the second."""
        letters = ["A" if word in FIRST else "B" for word in words]
        return "".join(letter for at, letter in enumerate(letters) if letters[at - 1 : at] != [letter])

    found = Counter(kinds(words_of(row)[0]) for row in spliced(TWO, 4000, seed=0))
    assert set(found) == {"A", "B", "AB", "BA", "ABA", "BAB"}
    whole = [numbered(0, 200), numbered(1000, 200)]
    ends = [words_of(row)[0] for row in spliced([encoding_of(text) for text in whole], 4000, seed=0)]
    keeps_neither_end = np.mean([not ({text[0][0], text[-1][0]} & {0, 1000, 398, 1398}) for text in ends])
    assert keeps_neither_end == pytest.approx(0.2, abs=0.05), "a cut out of one row, and hardly anything else"


def test_each_text_of_a_pair_is_spliced_with_the_others_in_the_same_place():
    pairs = [encoding_of(numbered(100, 6), numbered(200, 9)), encoding_of(numbered(300, 12), numbered(400, 3))]
    rows = spliced(pairs, 300, seed=0)
    for row in rows:
        texts = words_of(row)
        assert row == encoding_of(*texts)
        assert all(texts)
        assert len(row.ids) <= max(len(each.ids) for each in pairs)
        assert [{token // 100 % 2 for word in text for token in word} for text in texts] == [{1}, {0}]
    assert any({token // 100 for token in row.ids} >= {1, 2, 3, 4} for row in rows)


def test_rows_are_decided_by_the_seed_and_are_many():
    rows = spliced(TWO, 50, seed=0)
    assert rows == spliced(TWO, 50, seed=0)
    assert rows != spliced(TWO, 50, seed=1)
    many = spliced([encoding_of(numbered(100 * at, 20)) for at in range(1, 20)], 2000, seed=0)
    assert len({tuple(row.ids) for row in many}) > 1900


def test_rows_without_words_are_left_out_and_pairs_among_single_texts_lend_none():
    empty, pair = encoding_of([]), encoding_of(FIRST, SECOND)
    assert spliced([empty], 3, seed=0) == []
    assert all(words_of(row) != [[]] for row in spliced([empty, TWO[0]], 50, seed=0))
    mixed = spliced([TWO[0], pair], 200, seed=0)
    assert {len(words_of(row)) for row in mixed} == {1, 2}
    assert all(row == encoding_of(*words_of(row)) for row in mixed)
