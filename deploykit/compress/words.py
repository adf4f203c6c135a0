"""A row in words, so that other rows can be made of it: what `augment` and `splice` work on.

A word is a tokenizer's, in the characters that the text has there: what is made is text again, for any tokenizer.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from deploykit.data import Row
from deploykit.runtime.tokenizer import Encoding
from deploykit.tasks.task import Task


class Word(NamedTuple):
    """A word where it stands in a text."""

    text: str
    """Its characters, after a space where it stands apart from the word before it, or is the first."""
    ids: tuple[int, ...]
    """Its tokens."""


Texts = list[list[Word]]
"""The words of a row's text, or of the two of a pair."""


def in_words(task: Task, row: Row, encoding: Encoding) -> Texts:
    """Cut a row into its words; what was cut off is left out, and there is no text where one has no word."""
    texts = task.texts_of(row)
    places = range(len(encoding.ids))
    runs = [list(run) for special, run in groupby(places, key=lambda at: encoding.special[at]) if not special]
    if len(runs) != len(texts):
        return []
    found = [_words(text, encoding, run) for text, run in zip(texts, runs, strict=True)]
    return found if all(found) else []


def row_of(task: Task, texts: Iterable[Sequence[Word]]) -> Row:
    """Return the row that these words say."""
    return task.row_of([[word.text for word in text] for text in texts])


def apart(words: Sequence[Word]) -> list[Word]:
    """Put a space before the first of some words, where they follow what they did not follow in their text."""
    return [word._replace(text=f" {word.text.lstrip()}") for word in words[:1]] + list(words[1:])


def _words(text: str, encoding: Encoding, run: Sequence[int]) -> list[Word]:
    words, stop = list[Word](), 0
    for _, tokens in groupby(run, key=lambda at: encoding.word_ids[at]):
        places = list(tokens)
        start, end = encoding.offsets[places[0]][0], encoding.offsets[places[-1]][1]
        characters = text[start:end].lstrip()  # a byte-level token may begin with the space before it
        between = text[stop : end - len(characters)]
        space = not words or between != between.strip()
        if characters:  # such a token may also be a space alone
            words.append(Word(f" {characters}" if space else characters, tuple(encoding.ids[at] for at in places)))
            stop = end
    return words
