from pathlib import Path

import pytest

from deploykit.compress.words import apart, row_of, texts_of
from deploykit.runtime.tokenizer import Tokenizer
from deploykit.tasks import task_named
from tests.models import write_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    write_tokenizer(tmp_path)
    return Tokenizer.open(tmp_path, max_length=64, pad_id=0)


def in_words(tokenizer, row, task="text-classification"):
    found = task_named(task)
    (encoding,) = found.encode(tokenizer, [row])
    return texts_of(found, row, encoding)


def test_words_are_the_texts_own_characters_each_with_the_space_before_it(tokenizer: Tokenizer):
    (words,) = in_words(tokenizer, {"text": "The  Films. were\tXÜ"})
    assert [word.text for word in words] == [" The", " Films", ".", " were", " XÜ"]
    assert [len(word.ids) for word in words] == [1, 2, 1, 1, 1]


@pytest.mark.parametrize(
    "row", [{"text": "good. A film"}, {"text": "good film", "text_pair": "bad, was it"}, {"text": "XÜ (was) bad"}]
)
def test_the_words_of_a_row_say_the_same_row(tokenizer: Tokenizer, row):
    task = task_named("text-classification")
    assert row_of(task, in_words(tokenizer, row)) == row


def test_a_row_of_words_is_made_of_its_words(tokenizer: Tokenizer):
    task, row = "token-classification", {"tokens": ["Anna", "saw", "Paris.", "films"]}
    (words,) = in_words(tokenizer, row, task)
    assert [word.text for word in words] == [" Anna", " saw", " Paris.", " films"]
    assert row_of(task_named(task), [words]) == row
    (found,) = in_words(tokenizer, {"text": "Anna saw."}, task)
    assert row_of(task_named(task), [found]) == {"tokens": ["Anna", "saw", "."]}


def test_a_text_without_a_token_leaves_the_row_without_words(tokenizer: Tokenizer):
    assert in_words(tokenizer, {"text": "\u200b"}) == []
    assert in_words(tokenizer, {"text": "good", "text_pair": "\u200b"}) == []


def test_what_follows_another_word_than_before_stands_apart(tokenizer: Tokenizer):
    (words,) = in_words(tokenizer, {"text": "good.film"})
    assert [word.text for word in apart(words[1:])] == [" .", "film"]
    assert apart([]) == []
