"""More text for small sets: copies of rows with some words replaced by words that the model holds to be near.

As TinyBERT's data augmentation (Jiao et al. 2020, section 3.3 and appendix A): every word of one token is replaced with
probability 0.4 by one of its 15 nearest neighbours. There a language model or GloVe names them; here it is the model's
own embedding table, over the words of the training rows. Near is not alike (good and bad are near): the label may
change, so the copies have none, and the teacher says what they are.

    V tokens of the vocabulary   W words of the rows   H hidden size   K neighbours
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from deploykit import families
from deploykit.checkpoint import Checkpoint
from deploykit.compress.words import Texts, Word, in_words, row_of
from deploykit.tasks import task_named
from deploykit.train.labelled import Labelled, without_labels

PROBABILITY = 0.4
NEIGHBOURS = 15

_CHUNK = 1024
"""Words whose similarities are held at once, which bounds the memory."""


def augmented(rows: Sequence[Texts], embeddings_VH: NDArray[np.float32], copies: int, seed: int) -> Iterator[Texts]:
    """Make `copies` of every row, word by word the same or a near word; decided by the seed.

    Args:
        rows: in words.
        embeddings_VH: the model's word embeddings.
        copies: of each row, at least 1.
        seed: of the draws.
    """
    spelled = {word.ids[0]: word.text.strip() for row in reversed(rows) for word in single_token_words(row)}
    words = np.unique([*spelled])
    if len(words) < 2:
        yield from list(rows) * copies
        return
    near_WK = words[neighbours(embeddings_VH[words], min(NEIGHBOURS, len(words) - 1))]
    rng = np.random.default_rng(seed)
    near = {
        word: [spelled[other] for other in others]
        for word, others in zip(words.tolist(), near_WK.tolist(), strict=True)
    }
    for _ in range(copies):
        for row in rows:
            yield _copy(row, near, rng)


def augmented_rows(teacher: Checkpoint, rows: Labelled, copies: int, seed: int) -> list[Labelled]:
    """Return the copies of some rows as a set of rows without labels; no set where there are to be none."""
    if not copies:
        return []
    task = task_named(teacher.spec.task)
    table_VH = families.word_embeddings(teacher.model).numpy()
    texts = [in_words(task, *row) for row in zip(rows.rows, rows.encodings, strict=True)]
    made = (row_of(task, row) for row in augmented([row for row in texts if row], table_VH, copies, seed))
    return [without_labels(teacher, list(made), rows.file)]


def single_token_words(row: Texts) -> list[Word]:
    """Return the words that are one token."""
    return [word for text in row for word in text if len(word.ids) == 1]


def neighbours(vectors_WH: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return each word's `count` nearest others by cosine, (W,count), nearest first."""
    unit_WH = vectors_WH / np.maximum(np.linalg.norm(vectors_WH, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    found = []
    for start in range(0, len(unit_WH), _CHUNK):
        likeness = unit_WH[start : start + _CHUNK] @ unit_WH.T
        own = np.arange(len(likeness))
        likeness[own, start + own] = -np.inf
        found.append(np.argsort(-likeness, axis=1, kind="stable")[:, :count])
    return np.concatenate(found)


def _copy(row: Texts, near: Mapping[int, Sequence[str]], rng: np.random.Generator) -> Texts:
    count = len(single_token_words(row))
    replaced = rng.random(count) < PROBABILITY
    chosen = rng.integers(0, len(next(iter(near.values()))), count)
    draws = zip(replaced.tolist(), chosen.tolist(), strict=True)

    def other(word: Word) -> Word:
        if len(word.ids) > 1:
            return word
        change, pick = next(draws)
        return word._replace(text=_like(word.text, near[word.ids[0]][pick])) if change else word

    return [[other(word) for word in text] for text in row]


def _like(old: str, new: str) -> str:
    return f" {new}" if old.startswith(" ") else new
