"""What a task is at run time: one entry per task, found by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import UsageError
from deploykit.runtime import text_classification, token_classification
from deploykit.runtime.tokenizer import Encoding, Tokenizer

Row = Mapping[str, Any]
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class RuntimeTask:
    """The functions between a user's rows and the model's tensors."""

    fields: tuple[str, ...]
    """The input fields of a row."""
    check: Callable[[Row, str], None]
    """Raise DataError at `where` (the second argument) for a row that cannot be answered."""
    encode: Callable[[Tokenizer, Sequence[Row]], list[Encoding]]
    unpad: Callable[[Logits, Sequence[Encoding]], list[Logits]]
    """The model's padded output to one array per row."""
    decode: Callable[[Sequence[Logits], Sequence[Encoding], Sequence[Row], Sequence[str]], list[dict[str, Any]]]
    """Logits, encodings, rows and labels to one JSON object per row."""
    confidence: Callable[[Logits, Encoding], float]
    """How sure a row's answer is, a probability; raise DeploykitError where a logit is not finite."""


TEXT_CLASSIFICATION = RuntimeTask(
    text_classification.FIELDS,
    text_classification.check,
    text_classification.encode,
    text_classification.unpad,
    text_classification.decode,
    text_classification.confidence,
)

TOKEN_CLASSIFICATION = RuntimeTask(
    token_classification.FIELDS,
    token_classification.check,
    token_classification.encode,
    token_classification.unpad,
    token_classification.decode,
    token_classification.confidence,
)

RUNTIME_TASKS: Mapping[str, RuntimeTask] = {
    "text-classification": TEXT_CLASSIFICATION,
    "token-classification": TOKEN_CLASSIFICATION,
}


def decoder_of(task: str) -> RuntimeTask:
    """Return a task's functions.

    Raises:
        UsageError: there is no such task.
    """
    if task not in RUNTIME_TASKS:
        known = ", ".join(RUNTIME_TASKS)
        raise UsageError(
            "task", expected=f"one of {known}", found=repr(task), next_step="name a task that deploykit knows"
        )
    return RUNTIME_TASKS[task]
