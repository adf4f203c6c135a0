"""More text for small sets: copies of rows with some words replaced by words that the model holds to be near.

As TinyBERT's data augmentation (Jiao et al. 2020, section 3.3 and appendix A): every word of one token is replaced with
probability 0.4 by one of its 15 nearest neighbours. There a language model or GloVe names them; here it is the model's
own embedding table, over the words of the training rows. Near is not alike (good and bad are near): the label may
change, so the copies have none, and the teacher says what they are.

    V tokens of the vocabulary   W words of the rows   H hidden size   K neighbours
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from deploykit import families
from deploykit.checkpoint import Checkpoint
from deploykit.runtime.tokenizer import Encoding
from deploykit.train.labelled import Labelled, without_labels

PROBABILITY = 0.4
NEIGHBOURS = 15

_CHUNK = 1024
"""Words whose similarities are held at once, which bounds the memory."""


def augmented(
    encodings: Sequence[Encoding], embeddings_VH: NDArray[np.float32], copies: int, seed: int
) -> list[Encoding]:
    """Make `copies` of every row, word by word the same or a near word; decided by the seed.

    Args:
        encodings: the rows.
        embeddings_VH: the model's word embeddings.
        copies: of each row, at least 1.
        seed: of the draws.
    """
    words = np.unique([encoding.ids[at] for encoding in encodings for at in single_token_words(encoding)])
    if len(words) < 2:
        return list(encodings) * copies
    near_WK = words[neighbours(embeddings_VH[words], min(NEIGHBOURS, len(words) - 1))]
    rng = np.random.default_rng(seed)
    index_of = {word: index for index, word in enumerate(words.tolist())}
    return [_copy(encoding, near_WK, index_of, rng) for _ in range(copies) for encoding in encodings]


def augmented_rows(teacher: Checkpoint, rows: Labelled, copies: int, seed: int) -> list[Labelled]:
    """Return the copies of some rows as a set of rows without labels; no set where there are to be none."""
    if not copies:
        return []
    table_VH = families.word_embeddings(teacher.model).numpy()
    return [without_labels(teacher, augmented(rows.encodings, table_VH, copies, seed), rows.file)]


def single_token_words(encoding: Encoding) -> list[int]:
    """Return the positions of words that are one token."""
    words = [None, *encoding.word_ids, None]
    return [
        at for at, word in enumerate(encoding.word_ids) if word is not None and word not in (words[at], words[at + 2])
    ]


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


def _copy(
    encoding: Encoding, near_WK: NDArray[np.int64], index_of: dict[int, int], rng: np.random.Generator
) -> Encoding:
    positions = single_token_words(encoding)
    replaced = rng.random(len(positions)) < PROBABILITY
    chosen = rng.integers(0, near_WK.shape[1], len(positions))
    ids = list(encoding.ids)
    for at, change, pick in zip(positions, replaced, chosen, strict=True):
        if change:
            ids[at] = int(near_WK[index_of[ids[at]], pick])
    return replace(encoding, ids=ids)
