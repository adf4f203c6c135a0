"""The tokens of plain text, word by word from a table: what a BERT tokenizer would say, in a fifth of its time.

For a model of a few narrow layers the tokenizer is a fifth of a call, and nearly all of that is spent on words that it
has seen a thousand times. A BERT tokenizer (`BertNormalizer`, `BertPreTokenizer`, WordPiece) cuts ASCII text into runs
of letters and digits and into single marks, and says what each is whatever stands beside it. Of other characters that
holds for what stands between two blanks: the tokenizer says what it is, once. So a table from word to pieces, filled
with the vocabulary's own words and then as words are met, gives the same tokens. Text that spells out an added token
like `[SEP]` is left to the tokenizer.

L tokens of a row, special ones included.   W spans of it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import tokenizers
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

Span = tuple[int, int]
"""Where something stands in a text, in characters: `text[start:end]`."""

_WORD = re.compile(r"[0-9A-Za-z]+|[^0-9A-Za-z ]")
"""The words of printable ASCII text."""
_RUN = re.compile(r"[^ \t\n\r]+")
"""What stands between two blanks."""
_MOST_LEARNED = 2**15
"""Words that the table takes up beside those of the vocabulary: some 5 MB."""
_LONGEST_RUN = 32
"""Characters of what is not ASCII and is learned: a sentence without blanks will not come again."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """One word."""

    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    """Where each piece stands in the word."""
    words: tuple[int, ...]
    """The word of each piece, counted from 0: what is not ASCII may be several."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the tokens of a row stand, as the tokenizer's own `Encoding` has it: (L) each."""

    offsets: list[Span]
    words: list[int | None]
    """Which word of the text, counted from 0."""


class KnownWords:
    """The pieces of every word that was met. Safe to share between threads."""

    def __init__(self, backend: tokenizers.Tokenizer, around: tuple[list[int], list[int]]) -> None:
        self._backend = backend
        self._model = backend.model
        self._longest: int = backend.model.max_input_chars_per_word
        self._is_lower = bool(backend.normalizer.lowercase)
        self._around = around
        tokens = backend.get_added_tokens_decoder().values()
        self._normalized = any(token.normalized for token in tokens)
        added = {token.content for token in tokens}
        self._added = re.compile("|".join(map(re.escape, added | {content.lower() for content in added})) or "(?!)")
        self._pieces = {
            word: Pieces((token,), ((0, len(word)),), (0,))
            for word, token in backend.get_vocab(with_added_tokens=False).items()
            if word.isascii() and _WORD.fullmatch(word) and (word == word.lower() or not self._is_lower)
            if len(word) <= self._longest
        }
        self._most = len(self._pieces) + _MOST_LEARNED

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer) -> "KnownWords | None":
        """Return the table of a tokenizer; None where it is not one of whose words each speaks for itself."""
        normalizer, model = backend.normalizer, backend.model
        words_alone = (
            isinstance(normalizer, BertNormalizer)
            and normalizer.clean_text
            and isinstance(backend.pre_tokenizer, BertPreTokenizer)
            and isinstance(model, WordPiece)
        )
        if not words_alone:
            return None
        text, special = backend.encode("a"), backend.encode("")
        inner = backend.encode("a", add_special_tokens=False)
        before = text.special_tokens_mask.index(0)
        around = text.ids[:before], text.ids[before + len(inner.ids) :]
        is_plain = [*around[0], *around[1]] == special.ids and not any(text.type_ids)
        return cls(backend, around) if is_plain else None

    def __len__(self) -> int:
        """Count the words."""
        return len(self._pieces)

    def ids(self, text: str) -> list[int] | None:
        """Return a text's token ids (L), not cut; None where the tokenizer must be asked."""
        if self._has_added(text):
            return None
        before, after = self._around
        ids, known = [*before], self._pieces
        for word in self._words(text):
            ids += (known.get(word) or self._learn(word)).ids
        ids += after
        return ids

    def places(self, text: str) -> Places:
        """Return where the tokens of a text stand whose `ids` are not None; special ones at (0, 0), in no word."""
        before, after = self._around
        offsets, words, count = [(0, 0)] * len(before), list[int | None]([None] * len(before)), 0
        for start, pieces in self._placed(text):
            offsets += [(start + first, start + last) for first, last in pieces.spans]
            words += [count + word for word in pieces.words]
            count += pieces.words[-1] + 1 if pieces.words else 0
        return Places(offsets + [(0, 0)] * len(after), words + [None] * len(after))

    def words_within(self, text: str, spans: Sequence[Span]) -> list[int | None]:
        """Return which span (W) holds the end of each token (L) of a text with `ids`; None where none does.

        The spans are in order and do not overlap.
        """
        before, after = self._around
        words, begun, count = list[int | None]([None] * len(before)), 0, len(spans)
        for start, pieces in self._placed(text):
            for _, last in pieces.spans:
                end = start + last
                while begun < count and spans[begun][0] < end:
                    begun += 1
                words.append(begun - 1 if begun and end <= spans[begun - 1][1] else None)
        return words + [None] * len(after)

    def _placed(self, text: str) -> Iterator[tuple[int, Pieces]]:
        """Go through the words of a text, each with where it begins."""
        runs = [(0, text)] if _is_plain(text) else [(found.start(), found.group()) for found in _RUN.finditer(text)]
        for start, run in runs:
            if _is_plain(run):
                for found in _WORD.finditer(run.lower() if self._is_lower else run):
                    yield start + found.start(), self._pieces.get(found.group()) or self._learn(found.group())
            else:
                yield start, self._pieces.get(run) or self._learn(run)

    def _words(self, text: str) -> list[str]:
        """Cut a text into words, ASCII as the tokenizer's normalizer leaves it."""
        if _is_plain(text):
            return _WORD.findall(text.lower() if self._is_lower else text)
        return [word for run in _RUN.findall(text) for word in (self._words(run) if _is_plain(run) else [run])]

    def _has_added(self, text: str) -> bool:
        """Whether an added token may be in a text, or in what the normalizer makes of it."""
        if self._added.search(text):
            return True
        return self._normalized and (not _is_plain(text) or bool(self._added.search(text.lower())))

    def _learn(self, word: str) -> Pieces:
        if _is_plain(word):
            found = self._model.tokenize(word)
            ids, spans = [token.id for token in found], [token.offsets for token in found]
            pieces, longest = Pieces(tuple(ids), tuple(spans), (0,) * len(ids)), self._longest
        else:
            run = self._backend.encode(word, add_special_tokens=False)
            pieces, longest = (
                Pieces(tuple(run.ids), tuple(run.offsets), tuple(word or 0 for word in run.word_ids)),
                _LONGEST_RUN,
            )
        if len(self._pieces) < self._most and len(word) <= longest:
            self._pieces[word] = pieces
        return pieces


def _is_plain(text: str) -> bool:
    """Whether a text is printable ASCII."""
    return text.isascii() and text.isprintable()
