"""Properties of the tokenizer, for word pieces and for bytes."""

import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from deploykit.errors import CheckpointError, DataError
from deploykit.runtime.tokenizer import Encoding, Tokenizer, joined_spans
from tests.models import NEUTRAL, POSITIVE, VOCABULARY, tiny_tokenizer, write_tokenizer

PIECES = st.sampled_from(
    [*NEUTRAL, *POSITIVE, "Paris", "pariser", "é", "E\u0301", "😀", "日本", "\u200b", ".", "\x00", "ß"]
)
WORDS = st.lists(PIECES, min_size=1, max_size=9)
TEXTS = st.lists(st.one_of(PIECES, st.text(st.characters(exclude_categories=["Cs"]), max_size=4)), max_size=9).map(
    " ".join
)


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A byte-level tokenizer as RoBERTa's, whose tokens keep the space before their word."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([" ".join(NEUTRAL)] * 5, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
    folder = tmp_path_factory.mktemp("bytes")
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer.open(folder, max_length=64, pad_id=1)


def plain(text: str) -> str:
    """Lower-case, without accents and characters that are not drawn, as the tiny tokenizer's normalizer does."""
    letters = unicodedata.normalize("NFD", text.lower())
    return "".join(letter for letter in letters if unicodedata.category(letter) not in ("Mn", "Cc", "Cf"))


@given(TEXTS)
def test_offsets_slice_the_text_to_the_token(wordpiece: Tokenizer, text: str) -> None:
    (encoding,) = wordpiece.encode([text])
    for token, (start, end), special in zip(encoding.ids, encoding.offsets, encoding.special, strict=True):
        surface = VOCABULARY[token].removeprefix("##")
        if special:
            assert (start, end) == (0, 0)
        elif surface != "[UNK]":
            assert plain(text[start:end]) == surface
        else:
            assert 0 <= start < end <= len(text)


@given(TEXTS)
def test_every_list_is_as_long_as_the_row_and_no_row_is_longer_than_allowed(wordpiece: Tokenizer, text: str) -> None:
    (encoding,) = wordpiece.encode([text])
    lengths = {
        len(values)
        for values in (encoding.ids, encoding.type_ids, encoding.offsets, encoding.word_ids, encoding.special)
    }
    assert lengths == {len(encoding.ids)}
    assert len(encoding.ids) <= wordpiece.max_length


@pytest.mark.parametrize(("num_words", "truncated"), [(0, False), (13, False), (14, False), (15, True), (500, True)])
def test_truncation_is_told_exactly_when_text_was_cut(wordpiece: Tokenizer, num_words: int, truncated: bool) -> None:
    (encoding,) = wordpiece.encode([" ".join(["film"] * num_words)])
    assert encoding.truncated is truncated
    assert len(encoding.ids) == min(num_words + 2, 16)


def test_truncation_is_told_per_row(wordpiece: Tokenizer) -> None:
    flags = [encoding.truncated for encoding in wordpiece.encode(["the film", "film " * 40, ""])]
    assert flags == [False, True, False]


def test_the_files_own_padding_and_truncation_are_switched_off(tmp_path: Path) -> None:
    backend = tiny_tokenizer()
    backend.enable_padding(length=32)
    backend.enable_truncation(4)
    backend.save(str(tmp_path / "tokenizer.json"))
    (encoding,) = Tokenizer.open(tmp_path, max_length=64, pad_id=0).encode(["the film was good ."])
    assert len(encoding.ids) == 7
    assert not encoding.truncated


def test_pairs_have_their_own_type_and_the_longer_text_is_cut_first(wordpiece: Tokenizer) -> None:
    plain, pair, long = wordpiece.encode(["the film", "the film", "film " * 40], [None, "a story", "a story"])
    assert set(plain.type_ids) == {0}
    assert pair.type_ids == [0, 0, 0, 0, 1, 1, 1]
    assert long.truncated
    assert long.type_ids.count(1) == 3


def test_a_pair_for_each_text_is_required(wordpiece: Tokenizer) -> None:
    with pytest.raises(ValueError, match="zip"):
        wordpiece.encode(["a", "b"], ["c"])


def encode_words(tokenizer: Tokenizer, words: list[str]) -> Encoding:
    """Encode words as the text that they make."""
    (encoding,) = tokenizer.encode_within([" ".join(words)], [joined_spans(words)])
    return encoding


@given(WORDS)
def test_words_give_the_same_tokens_as_their_text(wordpiece: Tokenizer, words: list[str]) -> None:
    from_words, from_text = encode_words(wordpiece, words), wordpiece.encode([" ".join(words)])[0]
    assert (from_words.ids, from_words.offsets) == (from_text.ids, from_text.offsets)


@given(WORDS)
@pytest.mark.parametrize("name", ["wordpiece", "byte_level"])
def test_a_tokens_characters_lie_in_its_word(request: pytest.FixtureRequest, name: str, words: list[str]) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    encoding = encode_words(tokenizer, words)
    text, spans = " ".join(words), joined_spans(words)
    for word, (start, end), special in zip(encoding.word_ids, encoding.offsets, encoding.special, strict=True):
        if word is None:
            assert special or not text[start:end].strip()
        else:
            assert text[start:end].strip() in words[word]
            assert spans[word][0] <= end - 1 < spans[word][1]


def test_every_word_of_bytes_is_reached_and_counted_once(byte_level: Tokenizer) -> None:
    encoding = encode_words(byte_level, ["paris", "日本", "😀", "saw", "anna"])
    counted = [word for word in encoding.word_ids if word is not None]
    assert sorted(set(counted)) == [0, 1, 2, 3, 4]
    assert counted == sorted(counted)


def test_a_word_of_no_character_has_no_token(wordpiece: Tokenizer) -> None:
    encoding = encode_words(wordpiece, ["paris", "", "\u200b", "saw"])
    assert encoding.word_ids == [None, 0, 3, None]


def test_a_token_that_crosses_two_spans_has_no_word(wordpiece: Tokenizer) -> None:
    for text in ("paris", "pâris"):
        (encoding,) = wordpiece.encode_within([text], [[(0, 2), (2, 4)]])
        assert encoding.word_ids == [None, None, None]


def test_ids_are_those_of_transformers(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    texts = ["The film was good.", "Pariser story", "unknown日 words", ""]
    theirs = AutoTokenizer.from_pretrained(tmp_path)(texts)["input_ids"]
    ours = Tokenizer.open(tmp_path, max_length=64, pad_id=0).encode(texts)
    assert [encoding.ids for encoding in ours] == theirs


def test_threads_share_a_tokenizer(wordpiece: Tokenizer) -> None:
    texts = ["the film " * (index % 9) for index in range(64)]
    alone = [wordpiece.encode([text])[0] for text in texts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda text: wordpiece.encode([text])[0], texts)) == alone


def test_no_text_gives_no_encoding(wordpiece: Tokenizer) -> None:
    assert wordpiece.encode([]) == wordpiece.encode_within([], []) == []


def test_half_a_surrogate_pair_is_bad_data(wordpiece: Tokenizer) -> None:
    with pytest.raises(DataError, match="UTF-8"):
        wordpiece.encode(["the \ud800 film"])


def test_the_vocabulary_counts_every_token(wordpiece: Tokenizer) -> None:
    assert wordpiece.vocab_size == len(VOCABULARY)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer.json.*no such file"):
        Tokenizer.open(tmp_path, max_length=16, pad_id=0)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(CheckpointError, match=r"tokenizer.json"):
        Tokenizer.open(tmp_path, max_length=16, pad_id=0)


@pytest.mark.parametrize(("max_length", "pad_id"), [(3, 0), (16, 999)])
def test_settings_that_the_tokenizer_cannot_keep_are_refused(tmp_path: Path, max_length: int, pad_id: int) -> None:
    write_tokenizer(tmp_path)
    with pytest.raises(CheckpointError):
        Tokenizer.open(tmp_path, max_length=max_length, pad_id=pad_id)
