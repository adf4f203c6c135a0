"""Text classification at run time: a row's `text`, with `text_pair` where it has one, to a label and a score.

N rows   C labels
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import DataError
from deploykit.runtime.probabilities import best_of_row, best_of_rows
from deploykit.runtime.tokenizer import Encoding, Tokenizer

FIELDS = ("text", "text_pair")
"""The input fields of a row; `text_pair` may be absent or null."""


def check(row: Mapping[str, Any], where: str) -> None:
    """Check that a row can be answered.

    Raises:
        DataError: `text` is missing or blank, or a field is not text.
    """
    check_text(row, "text", where)
    if row.get("text_pair") is not None:
        check_text(row, "text_pair", where)


def check_text(row: Mapping[str, Any], field: str, where: str) -> None:
    """Check that a field holds text that is not blank and can be written as UTF-8.

    Raises:
        DataError: it does not.
    """
    value = row.get(field)
    if isinstance(value, str) and value.strip() and is_unicode(value):
        return
    if not isinstance(value, str):
        found = type(value).__name__ if field in row else "no such field"
    else:
        found = "half of a surrogate pair" if value.strip() else "a blank one"
    raise DataError(where, expected=f"text in the field {field!r}", found=found, next_step="repair the row")


def is_unicode(text: str) -> bool:
    """Tell whether text can be written as UTF-8; JSON can smuggle in half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def encode(tokenizer: Tokenizer, rows: Sequence[Mapping[str, Any]]) -> list[Encoding]:
    """Encode rows that passed `check`."""
    return tokenizer.encode([row["text"] for row in rows], [row.get("text_pair") for row in rows])


def unpad(outputs: NDArray[np.float32], _encodings: Sequence[Encoding]) -> list[NDArray[np.float32]]:
    """Split logits (N,C) into one row (C,) float32 each."""
    return list(outputs.astype(np.float32, copy=False))


def decode(
    logits: Sequence[NDArray[np.float32]],
    encodings: Sequence[Encoding],
    _rows: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
) -> list[dict[str, Any]]:
    """Return each row's most probable label and its probability.

    Raises:
        DeploykitError: a logit is not finite.
    """
    found = _best_of_many(logits) if len(logits) > 1 else map(best_of_row, logits)
    return [_prediction(best, encoding, labels) for best, encoding in zip(found, encodings, strict=True)]


def confidence(logits: NDArray[np.float32], _encoding: Encoding) -> float:
    """Return the probability of a row's label.

    Raises:
        DeploykitError: a logit is not finite.
    """
    return best_of_row(logits)[1]


def _best_of_many(logits: Sequence[NDArray[np.float32]]) -> Iterable[tuple[int, float]]:
    indices, scores = best_of_rows(np.stack(logits))
    return zip(indices.tolist(), scores.tolist(), strict=True)


def _prediction(best: tuple[int, float], encoding: Encoding, labels: Sequence[str]) -> dict[str, Any]:
    index, score = best
    prediction: dict[str, Any] = {"label": labels[index], "score": score}
    return prediction | {"truncated": True} if encoding.truncated else prediction
