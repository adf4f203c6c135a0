from pathlib import Path

import pytest

from deploykit.compress.words import apart, in_words, row_of
from deploykit.runtime.tokenizer import Tokenizer
from deploykit.tasks import task_named
from tests.compress.trained_tokenizers import as_json, from_json, texts, trained
from tests.models import write_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    write_tokenizer(tmp_path)
    return Tokenizer.open(tmp_path, max_length=64, pad_id=0)


def opened(kind):
    return Tokenizer(from_json(as_json(trained(kind))), max_length=64, pad_id=0)


def cut(tokenizer, row, task="text-classification"):
    found = task_named(task)
    (encoding,) = found.encode(tokenizer, [row])
    return in_words(found, row, encoding)


def test_words_are_the_texts_own_characters_each_with_the_space_before_it(tokenizer: Tokenizer):
    (words,) = cut(tokenizer, {"text": "The  Films. were\tXÜ"})
    assert [word.text for word in words] == [" The", " Films", ".", " were", " XÜ"]
    assert [len(word.ids) for word in words] == [1, 2, 1, 1, 1]


@pytest.mark.parametrize(
    "row", [{"text": "good. A film"}, {"text": "good film", "text_pair": "bad, was it"}, {"text": "XÜ (was) bad"}]
)
def test_the_words_of_a_row_say_the_same_row(tokenizer: Tokenizer, row):
    task = task_named("text-classification")
    assert row_of(task, cut(tokenizer, row)) == row


def test_a_row_of_words_is_made_of_its_words(tokenizer: Tokenizer):
    task, row = "token-classification", {"tokens": ["Anna", "saw", "Paris.", "films"]}
    (words,) = cut(tokenizer, row, task)
    assert [word.text for word in words] == [" Anna", " saw", " Paris.", " films"]
    assert row_of(task_named(task), [words]) == row
    (found,) = cut(tokenizer, {"text": "Anna saw."}, task)
    assert row_of(task_named(task), [found]) == {"tokens": ["Anna", "saw", "."]}


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_real_texts_in_words_are_read_as_before(kind: str):
    task, tokenizer = task_named("text-classification"), opened(kind)
    for text in texts()[:300]:
        words = cut(tokenizer, {"text": text})
        again = row_of(task, words)["text"]
        (before,) = tokenizer.encode([" ".join(text.split())])
        if not before.truncated:
            assert again == " ".join(text.split())
            assert tokenizer.encode([again])[0].ids == before.ids
        assert all(word.text.strip() for word in words[0])


def test_a_token_of_space_alone_is_no_word():
    tokenizer = opened("roberta")
    (words,) = cut(tokenizer, {"text": "good   film  "})
    assert [word.text for word in words] == [" good", " film"]
    assert cut(tokenizer, {"text": "good", "text_pair": "   "}) == []


def test_a_text_without_a_token_leaves_the_row_without_words(tokenizer: Tokenizer):
    assert cut(tokenizer, {"text": "\u200b"}) == []
    assert cut(tokenizer, {"text": "good", "text_pair": "\u200b"}) == []


def test_what_follows_another_word_than_before_stands_apart(tokenizer: Tokenizer):
    (words,) = cut(tokenizer, {"text": "good.film"})
    assert [word.text for word in apart(words[1:])] == [" .", "film"]
    assert apart([]) == []
