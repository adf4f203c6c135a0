"""Token classification at run time: a row's `tokens`, or its `text`, to entities with character offsets.

A word speaks through its first sub-word; its other sub-words, padding and special tokens never count.

N rows   L tokens   W words that were not cut off   C labels
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import DataError
from deploykit.runtime.known_words import Span
from deploykit.runtime.probabilities import best_of_row, best_of_rows, require_finite
from deploykit.runtime.text_classification import check_text, is_unicode
from deploykit.runtime.tokenizer import Encoding, Tokenizer, joined_spans

FIELDS = ("tokens", "text")
"""The input fields of a row: one of them is enough, and `tokens` wins."""

_MARKS = r"!-/:-@\[-`{-~¡§«¶·»¿‐-‧‰-⁞、-〿"
_IDEOGRAPHS = r"぀-ヿ㐀-䶿一-鿿豈-﫿"
_LETTERS = rf"[^\s{_MARKS}{_IDEOGRAPHS}]+"
_WORD = re.compile(rf"[@#]?{_LETTERS}(?:['’.&_-]{_LETTERS})*|\S")
"""How running text is cut into the words that labelled sets have: marks stand alone, except inside a word (U.S, can't,
e-mail) and before a handle or hashtag; every ideograph stands alone."""


@dataclass(frozen=True)
class Entity:
    """Words `first` to `last`, inclusive, under one label."""

    label: str
    first: int
    last: int


def check(row: Mapping[str, Any], where: str) -> None:
    """Check that a row can be answered.

    Raises:
        DataError: it has neither tokens nor text, they are blank, or not text.
    """
    if row.get("tokens") is None:
        check_text(row, "text", where)
        return
    tokens = row["tokens"]
    if isinstance(tokens, list) and all(isinstance(token, str) for token in tokens):
        joined = " ".join(tokens)
        if joined.strip() and is_unicode(joined):
            return
        found = "half of a surrogate pair" if joined.strip() else "no word"
    else:
        found = "something else"
    raise DataError(where, expected="a list of words in the field 'tokens'", found=found, next_step="repair the row")


def text_of(row: Mapping[str, Any]) -> str:
    """Return the text that a row's offsets count in: its tokens joined by one space, or its text."""
    return " ".join(row["tokens"]) if row.get("tokens") is not None else row["text"]


def encode(tokenizer: Tokenizer, rows: Sequence[Mapping[str, Any]]) -> list[Encoding]:
    """Encode rows that passed `check`; word ids count the tokens, or the words found in the text."""
    return tokenizer.encode_within([text_of(row) for row in rows], [word_spans(row) for row in rows])


def word_spans(row: Mapping[str, Any]) -> list[Span]:
    """Return where each word of a row stands in `text_of(row)`."""
    if row.get("tokens") is not None:
        return joined_spans(row["tokens"])
    return [found.span() for found in _WORD.finditer(row["text"])]


def unpad(outputs: NDArray[np.float32], encodings: Sequence[Encoding]) -> list[NDArray[np.float32]]:
    """Split logits (N,L,C) into rows (L,C) float32, each without its padding."""
    rows = zip(outputs.astype(np.float32, copy=False), encodings, strict=True)
    return [row[: len(encoding.ids)] for row, encoding in rows]


def word_starts(encoding: Encoding) -> dict[int, int]:
    """Return where each word's first sub-word is, in order; a word that was cut off, or has none, is left out."""
    starts: dict[int, int] = {}
    for position, word in enumerate(encoding.word_ids):
        if word is not None and word not in starts:
            starts[word] = position
    return starts


def word_rows(logits: NDArray[np.float32], encoding: Encoding) -> NDArray[np.float32]:
    """Pick the logits of each word's first sub-word: (L,C) to (W,C)."""
    return logits[list(word_starts(encoding).values())]


def decode(
    logits: Sequence[NDArray[np.float32]],
    encodings: Sequence[Encoding],
    rows: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
) -> list[dict[str, Any]]:
    """Return each row's entities: label, where it stands, its text, and the mean probability of its words' labels.

    Raises:
        DeploykitError: a logit is not finite.
    """
    found = zip(logits, encodings, rows, strict=True)
    return [_prediction(row_logits, encoding, row, labels) for row_logits, encoding, row in found]


def confidence(logits: NDArray[np.float32], encoding: Encoding) -> float:
    """Return the least probability of a word's label; 1 for a row without words.

    Raises:
        DeploykitError: a logit is not finite.
    """
    return float(best_of_rows(word_rows(logits, encoding))[1].min(initial=1.0))


def entities_of(tags: Iterable[str]) -> list[Entity]:
    """Read whole entities from IOB2 tags, strictly: B- opens one, I- of the same label right after continues it.

    An I- that continues nothing is no entity, as in the metric (seqeval, strict mode), so that what is served is what
    was measured.
    """
    entities: list[Entity] = []
    is_open = False
    for word, tag in enumerate(tags):
        prefix, _, label = tag.partition("-")
        if prefix == "I" and is_open and entities[-1].label == label:
            entities[-1] = Entity(label, entities[-1].first, word)
        else:
            is_open = prefix == "B"
            if is_open:
                entities.append(Entity(label, word, word))
    return entities


def _prediction(
    logits: NDArray[np.float32], encoding: Encoding, row: Mapping[str, Any], labels: Sequence[str]
) -> dict[str, Any]:
    starts = word_starts(encoding)
    of_words = logits[list(starts.values())]
    require_finite(of_words)
    found = entities_of(labels[index] for index in of_words.argmax(axis=-1).tolist())
    entities = _entities(found, list(starts), of_words, row) if found else []
    return {"entities": entities} | ({"truncated": True} if encoding.truncated else {})


def _entities(
    found: Sequence[Entity], words: Sequence[int], logits: NDArray[np.float32], row: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Say where entities stand and how probable they are; `found` counts `words` (W), as the logits (W,C) do."""
    spans, text = word_spans(row), text_of(row)
    entities = []
    for entity in found:
        start, end = spans[words[entity.first]][0], spans[words[entity.last]][1]
        scores = [best_of_row(of_word)[1] for of_word in logits[entity.first : entity.last + 1]]
        score = sum(scores) / len(scores)
        entities.append({"label": entity.label, "start": start, "end": end, "text": text[start:end], "score": score})
    return entities
