"""The same rows as two models with different vocabularies read them.

What a row's outputs say does not depend on how the row is cut into tokens: a text has one, and a word's stands at the
word's first token. So a student of another vocabulary learns from its teacher's logits, only not from its hidden
states, which are the tokens' own.

    L tokens of a row   C labels
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.checkpoint import Checkpoint
from deploykit.runtime.token_classification import word_starts
from deploykit.runtime.tokenizer import Encoding
from deploykit.tasks import task_named
from deploykit.tasks.task import IGNORED
from deploykit.train.labelled import Labelled


def reread(rows: Labelled, reader: Checkpoint) -> Labelled:
    """Return the same rows and targets in another checkpoint's tokens; a word that it cuts off has no target."""
    encodings = task_named(reader.spec.task).encode(reader.tokenizer, rows.rows)
    return replace(rows, encodings=encodings, targets=moved(rows, encodings, rows.targets, IGNORED))


def moved(
    rows: Labelled, encodings: Sequence[Encoding], values: Sequence[NDArray[Any]], fill: int
) -> Sequence[NDArray[Any]]:
    """Move what stands at the words' first tokens, row by row, to the same words' first tokens in other encodings.

    Args:
        rows: as the values count their tokens.
        encodings: of the same rows, by another tokenizer.
        values: of each row, one for each token, (L,) or (L,C). Where a row has one target, they stay as they are.
        fill: what stands at all other tokens.
    """
    if not any(target.ndim for target in rows.targets):
        return values
    return [_moved(*row, fill) for row in zip(values, rows.encodings, encodings, strict=True)]


def _moved(value: NDArray[Any], old: Encoding, new: Encoding, fill: int) -> NDArray[Any]:
    own, theirs = word_starts(new), word_starts(old)
    shared = [word for word in own if word in theirs]
    found = np.full((len(new.ids), *value.shape[1:]), fill, value.dtype)
    found[[own[word] for word in shared]] = value[[theirs[word] for word in shared]]
    return found
