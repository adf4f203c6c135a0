"""Both scorers agree with scipy and refuse what is not finite."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax

from deploykit.errors import DeploykitError
from deploykit.runtime.probabilities import best_of_row, best_of_rows

LOGITS = st.integers(1, 8).flatmap(
    lambda width: arrays(np.float32, (3, width), elements=st.floats(-(2.0**100), 2.0**100, width=32))
)


@given(LOGITS)
def test_scores_are_softmax_probabilities(logits: np.ndarray) -> None:
    expected = softmax(logits.astype(np.float64), axis=-1)
    indices, scores = best_of_rows(logits)
    np.testing.assert_array_equal(indices, logits.argmax(axis=-1))
    np.testing.assert_allclose(scores, expected.max(axis=-1), rtol=1e-12)
    for row, index, score in zip(logits, indices, scores, strict=True):
        best, probability = best_of_row(row)
        assert best == index
        assert probability == pytest.approx(score, rel=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_refused(value: float) -> None:
    logits = np.array([[0.5, 1.0], [value, 2.0]], np.float32)
    with pytest.raises(DeploykitError, match="finite"):
        best_of_row(logits[1])
    with pytest.raises(DeploykitError, match="finite"):
        best_of_rows(logits)


def test_one_label_is_certain_and_no_row_has_no_score() -> None:
    assert best_of_row(np.array([-3.0], np.float32)) == (0, 1.0)
    indices, scores = best_of_rows(np.zeros((0, 4), np.float32))
    assert indices.shape == scores.shape == (0,)
