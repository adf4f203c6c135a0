"""Logits to probabilities, refusing what no model should answer."""

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import DeploykitError


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return probabilities along the last axis, in float64.

    Raises:
        DeploykitError: a logit is NaN or infinite.
    """
    wide = logits.astype(np.float64)
    if not np.isfinite(wide).all():
        raise DeploykitError(
            "the model's answer",
            expected="finite logits",
            found="NaN or infinite ones",
            next_step="validate the model: its weights or precision are broken",
        )
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]
