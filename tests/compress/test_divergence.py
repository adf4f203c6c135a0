"""Divergence: the textbook's, of what counts, row by row."""

import numpy as np
import pytest

from deploykit.compress.divergence import divergence, row_divergences
from deploykit.tasks.task import IGNORED, UNLABELED


def test_divergence_is_none_for_a_copy_and_the_known_one_else_whatever_is_added_to_the_logits():
    teacher = [np.log(np.array([0.5, 0.5], np.float32)), np.log(np.array([0.9, 0.1], np.float32))]
    targets = [np.array(0), np.array(UNLABELED)]
    assert divergence(teacher, [row + 3 for row in teacher], targets) == pytest.approx(0, abs=1e-6)
    student = [np.log(np.array([0.25, 0.75], np.float32)), teacher[1]]
    known = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert divergence(teacher, student, targets) == pytest.approx(known / 2, rel=1e-5)


def test_only_words_that_count_diverge():
    teacher = [np.array([[0, 0], [2, 0], [0, 0]], np.float32)]
    student = [np.array([[9, 0], [2, 0], [0, 9]], np.float32)]
    assert divergence(teacher, student, [np.array([IGNORED, 1, IGNORED])]) == pytest.approx(0, abs=1e-9)
    assert divergence(teacher, student, [np.array([IGNORED, 1, UNLABELED])]) > 1


def test_it_sees_what_accuracy_does_not_and_hides_no_nan():
    left, right = (np.log(np.array(each, np.float32)) for each in ([0.6, 0.4], [0.9, 0.1]))
    assert divergence([left], [right], [np.array(0)]) > 0.1
    assert np.isnan(divergence([left], [np.array([np.nan, 0.0], np.float32)], [np.array(0)]))


def test_each_row_has_its_sum_and_its_count():
    left, right = (np.log(np.array(each, np.float32)) for each in ([0.5, 0.5], [0.25, 0.75]))
    known = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    reference = [np.stack([left] * 3), np.stack([left] * 2), np.stack([left])]
    candidate = [np.stack([right, left, right]), np.stack([right, left]), np.stack([right])]
    targets = [np.array([0, 1, 1]), np.array([1, IGNORED]), np.array([IGNORED])]
    found_N2 = row_divergences(reference, candidate, targets)
    assert found_N2[:, 0] == pytest.approx([2 * known, known, 0])
    assert found_N2[:, 1].tolist() == [3, 1, 0]
