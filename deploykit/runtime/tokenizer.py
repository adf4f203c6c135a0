"""Text to token ids with the `tokenizers` wheel alone: what training, the checks and the service all run.

L tokens of a row, special ones included; W words of a row.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar, overload

import tokenizers

from deploykit.errors import CheckpointError, DataError
from deploykit.runtime.known_words import KnownWords, Places, Span

TOKENIZER = "tokenizer.json"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Encoding:
    """One row as the model reads it; every sequence has L elements."""

    ids: list[int]
    type_ids: list[int]
    offsets: Sequence[Span]
    """Characters of the text that the token stands in; (0, 0) for special tokens."""
    word_ids: Sequence[int | None]
    special: Sequence[bool]
    """True for the tokens that the tokenizer put around the text."""
    truncated: bool
    """Whether the text was cut to `max_length`."""


class Unread(Sequence[T], Generic[T]):
    """A list that is made when it is first read: a sentence classifier never asks where its tokens stand."""

    def __init__(self, read: Callable[[], list[T]]) -> None:
        self._read = read

    @cached_property
    def _list(self) -> list[T]:
        return self._read()

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: int | slice) -> T | list[T]:
        """Return an element, or a list of some."""
        return self._list[at]

    def __len__(self) -> int:
        """Count the elements."""
        return len(self._list)

    def __iter__(self) -> Iterator[T]:
        """Go through the elements."""
        return iter(self._list)

    def __eq__(self, other: object) -> bool:
        """Compare as lists do."""
        return self._list == (other._list if isinstance(other, Unread) else other)

    def __hash__(self) -> int:
        """Refuse, as lists do."""
        raise TypeError("unhashable")


@dataclass(frozen=True)
class _KnownRow:
    """A text whose words speak for themselves."""

    known: KnownWords
    text: str

    @cached_property
    def places(self) -> Places:
        """Where its tokens stand."""
        return self.known.places(self.text)


class Tokenizer:
    """A `tokenizer.json` with its own padding and truncation switched off. Safe to share between threads."""

    def __init__(self, backend: tokenizers.Tokenizer, max_length: int, pad_id: int) -> None:
        backend.no_padding()
        backend.no_truncation()
        backend.enable_truncation(max_length)
        self._backend = backend
        self._known = KnownWords.of(backend)
        self.max_length = max_length
        self.pad_id = pad_id
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)

    @classmethod
    def open(cls, folder: Path, *, max_length: int, pad_id: int) -> "Tokenizer":
        """Read a folder's `tokenizer.json`; rows will be cut to `max_length` tokens.

        Raises:
            CheckpointError: it is missing or broken, has no token `pad_id`, or `max_length` leaves no room for text.
        """
        backend = _backend(folder / TOKENIZER)
        _require(folder, backend.id_to_token(pad_id) is not None, f"a padding token {pad_id}", "none of that id")
        room = max_length - backend.num_special_tokens_to_add(is_pair=True)
        _require(folder, room > 0, "a max_length with room for text", f"{max_length} tokens")
        return cls(backend, max_length, pad_id)

    def pieces(self) -> dict[str, int]:
        """Return the id of every piece, added tokens included."""
        return self._backend.get_vocab(with_added_tokens=True)

    def encode(self, texts: Sequence[str], pairs: Sequence[str | None] | None = None) -> list[Encoding]:
        """Encode texts, each with its second text where `pairs` has one; of two, the longer is cut first.

        Raises:
            DataError: a text cannot be written as UTF-8 (half of a surrogate pair).
        """
        inputs = texts if pairs is None else [_input(text, pair) for text, pair in zip(texts, pairs, strict=True)]
        with _utf8_required():
            found = [self._from_known_words(each) if isinstance(each, str) else None for each in inputs]
            return self._filled(inputs, found)

    def encode_within(self, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[Encoding]:
        """Encode texts as `encode` does, with word ids that count the text's spans (W), such as a row's own words.

        The spans of a text are in order and do not overlap. A token is in the span that holds its last character,
        because byte-level tokens may begin with the space before their word; one that goes beyond it is in none.

        Raises:
            DataError: as `encode`.
        """
        with _utf8_required():
            found = [self._from_known_words(*row) for row in zip(texts, spans, strict=True)]
            rows = zip(found, self._filled(texts, found), spans, strict=True)
        return [own or _within(encoding, words) for own, encoding, words in rows]

    def _filled(self, inputs: Sequence[str | tuple[str, str]], found: Sequence[Encoding | None]) -> list[Encoding]:
        """Let the backend encode what was not found."""
        others = iter(self._encoded([each for each, own in zip(inputs, found, strict=True) if own is None]))
        return [own or _encoding(next(others)) for own in found]

    def _from_known_words(self, text: str, spans: Sequence[Span] | None = None) -> Encoding | None:
        """Encode a text without the backend, where its words speak for themselves and all fit, with room to spare.

        Where there is none a word of the text may have been cut, by the backend that was asked about it.
        """
        if (known := self._known) is None:
            return None
        ids = known.ids(text)
        if ids is None or len(ids) >= self.max_length:
            return None
        row = _KnownRow(known, text)
        return Encoding(
            ids,
            [0] * len(ids),
            Unread(lambda: row.places.offsets),
            Unread(lambda: row.places.words) if spans is None else known.words_within(text, spans),
            Unread(lambda: [word is None for word in row.places.words]),
            truncated=False,
        )

    def _encoded(self, inputs: Sequence[str | tuple[str, str]]) -> Sequence[tokenizers.Encoding]:
        """Run the backend; one row without the threads that a batch is spread over, in 0.7 of the time."""
        if not inputs:
            return []
        if len(inputs) == 1:
            (only,) = inputs
            return [self._backend.encode(only) if isinstance(only, str) else self._backend.encode(*only)]
        return self._backend.encode_batch(inputs)


def joined_spans(words: Sequence[str]) -> list[Span]:
    """Return where each word stands in `" ".join(words)`."""
    spans, start = [], 0
    for word in words:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    return spans


def _within(encoding: Encoding, spans: Sequence[Span]) -> Encoding:
    starts = [start for start, _ in spans]
    word_ids: list[int | None] = []
    for start, end in encoding.offsets:
        word = bisect_right(starts, end - 1) - 1
        inside = start < end and word >= 0 and end <= spans[word][1]
        word_ids.append(word if inside else None)
    return replace(encoding, word_ids=word_ids)


def _encoding(found: tokenizers.Encoding) -> Encoding:
    return Encoding(
        found.ids,
        found.type_ids,
        Unread(lambda: found.offsets),
        Unread(lambda: found.word_ids),
        Unread(lambda: [flag == 1 for flag in found.special_tokens_mask]),
        bool(found.overflowing),
    )


@contextmanager
def _utf8_required() -> Iterator[None]:
    try:
        yield
    except (UnicodeEncodeError, TypeError) as cause:
        raise DataError(
            "the text", expected="text that can be written as UTF-8", found=str(cause), next_step="repair the row"
        ) from cause


def _input(text: str, pair: str | None) -> str | tuple[str, str]:
    return text if pair is None else (text, pair)


def _backend(file: Path) -> tokenizers.Tokenizer:
    _require(file, file.is_file(), "a tokenizer", "no such file")
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as cause:  # the wheel raises nothing narrower
        raise CheckpointError(
            file, expected="a tokenizer", found=str(cause), next_step="restore the checkpoint's own tokenizer.json"
        ) from cause


def _require(where: Path, holds: object, expected: str, found: str) -> None:
    if not holds:
        raise CheckpointError(where, expected=expected, found=found, next_step="use the checkpoint's own tokenizer")
