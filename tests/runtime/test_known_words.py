"""The table of words beside the tokenizer that it stands in for."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers, processors

from deploykit.runtime import known_words
from deploykit.runtime.known_words import KnownWords
from deploykit.runtime.tokenizer import Tokenizer
from tests.models import NEUTRAL, POSITIVE, VOCABULARY, tiny_tokenizer

PLAIN = ["Film", "films!", "[SEP]", "[sep", "a.b", "\t", "x" * 101]
OTHER = [
    "café Fílm’s",
    "İ",
    "ΑΣ",
    "日本film",
    "e\u0301",
    "\u0301",
    "a\u200bb\xa0",
    "\x85",
    "\ufffd",
    "\ufb01lm",
    "é" * 101,
]
WORDS = st.sampled_from([*NEUTRAL, *POSITIVE, *PLAIN, *OTHER])
TEXTS = st.one_of(
    st.text(st.characters(max_codepoint=0x7F), max_size=30),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.lists(WORDS, max_size=8).map(" ".join),
    st.lists(WORDS, max_size=8).map("".join),
)


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def backend(request: pytest.FixtureRequest) -> tokenizers.Tokenizer:
    made = tiny_tokenizer()
    made.normalizer = normalizers.BertNormalizer(lowercase=request.param)
    return made


@given(TEXTS)
def test_the_table_says_what_the_tokenizer_says(backend: tokenizers.Tokenizer, text: str) -> None:
    known = KnownWords.of(backend)
    assert known is not None
    for _ in range(2):  # words met for the first time, and again
        ids = known.ids(text)
        if ids is None:
            assert "[" in text
            return
        theirs, places = backend.encode(text), known.places(text)
        assert (ids, places.offsets, places.words) == (theirs.ids, theirs.offsets, theirs.word_ids)


@given(TEXTS, st.lists(st.integers(0, 30), unique=True, max_size=12).map(sorted))
def test_a_token_is_in_the_span_that_holds_its_last_character(
    backend: tokenizers.Tokenizer, text: str, cuts: list[int]
) -> None:
    known = KnownWords.of(backend)
    assert known is not None
    if known.ids(text) is None:
        return
    spans = list(zip(cuts[::2], cuts[1::2], strict=False))
    holders = [
        [at for at, (first, last) in enumerate(spans) if first < end <= last] for _, end in known.places(text).offsets
    ]
    assert known.words_within(text, spans) == [held[0] if held else None for held in holders]


@pytest.mark.parametrize(
    "text",
    [
        "the film .",
        "Unheard-of\nfilm",
        "",
        "  ",
        "x" * 101,
        "café",
        "日本",
        "a\x00b",
        "a\x1cb",
        "“film”",
        "\u200b",
        "é" * 101,
    ],
)
def test_plain_text_needs_no_tokenizer(backend: tokenizers.Tokenizer, text: str) -> None:
    known = KnownWords.of(backend)
    assert known is not None
    assert known.ids(text) == backend.encode(text).ids


@pytest.mark.parametrize("text", ["a [SEP] b", "é[SEP]", "é [MASK] b"])
def test_added_tokens_are_left_to_the_tokenizer(backend: tokenizers.Tokenizer, text: str) -> None:
    known = KnownWords.of(backend)
    assert known is not None
    assert known.ids(text) is None


def test_an_added_word_is_seen_in_either_case_and_across_words() -> None:
    backend = tiny_tokenizer()
    backend.add_tokens([AddedToken("The Film", normalized=True), AddedToken("good", single_word=True)])
    known = KnownWords.of(backend)
    assert known is not None
    assert [known.ids(text) for text in ("the film", "The Film", "a goods", "thé film", "é")] == [None] * 5
    assert known.ids("the story") == backend.encode("the story").ids


def _byte_level(backend: tokenizers.Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()


def _no_normalizer(backend: tokenizers.Tokenizer) -> None:
    backend.normalizer = normalizers.NFKC()


def _keeps_controls(backend: tokenizers.Tokenizer) -> None:
    backend.normalizer = normalizers.BertNormalizer(clean_text=False)


def _typed(backend: tokenizers.Tokenizer) -> None:
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )


@pytest.mark.parametrize("change", [_byte_level, _no_normalizer, _keeps_controls, _typed])
def test_another_kind_of_tokenizer_has_no_table(change: Callable[[tokenizers.Tokenizer], None]) -> None:
    backend = tiny_tokenizer()
    change(backend)
    assert KnownWords.of(backend) is None


def test_a_tokenizer_that_puts_nothing_around_a_text_has_one() -> None:
    backend = tiny_tokenizer()
    backend.post_processor = processors.TemplateProcessing(single="$A:0", special_tokens=[])
    known = KnownWords.of(backend)
    assert known is not None
    assert known.ids("the film") == backend.encode("the film").ids


def test_so_many_words_are_learned_and_none_too_long_to_have_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_words, "_MOST_LEARNED", 2)
    backend = tiny_tokenizer()
    known = KnownWords.of(backend)
    assert known is not None
    before = len(known)
    for text in ("x" * 101, "é" * 33, "films filmed xyz", "xyz xyw"):
        assert known.ids(text) == backend.encode(text).ids
    assert len(known) == before + 2


def test_the_vocabularys_words_are_known_at_once() -> None:
    known = KnownWords.of(tiny_tokenizer())
    assert known is not None
    assert len(known) == sum(word.isalnum() or len(word) == 1 for word in VOCABULARY)


def test_text_that_does_not_fit_is_cut_by_the_tokenizer(tmp_path: Path) -> None:
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.open(tmp_path, max_length=8, pad_id=0)
    fits, cut = tokenizer.encode([" ".join(["film"] * count) for count in (6, 7)])
    assert (len(fits.ids), fits.truncated) == (8, False)
    assert (len(cut.ids), cut.truncated) == (8, True)


def test_rows_keep_their_order_whoever_encodes_them(wordpiece: Tokenizer) -> None:
    texts = ["the film", "café", "a story", "film " * 40, "good ."]
    together = wordpiece.encode(texts)
    assert [row.ids for row in together] == [wordpiece.encode([text])[0].ids for text in texts]
