from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploykit.compress.average import SHARES, average, between, divergence
from deploykit.tasks.task import IGNORED, UNLABELED


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((2, 3), value), "bias": torch.full((2,), 10 * value)}


def ended(value: float) -> Any:
    model = nn.Linear(3, 2)
    model.load_state_dict(weights(value))
    return model


@pytest.mark.parametrize("best", SHARES)
def test_the_model_has_the_weights_that_diverge_least_afterwards(best: float):
    model = ended(8.0)
    found = average(weights(4.0), model, lambda: abs(model.weight[0, 0].item() - (4 + 4 * best)))
    assert list(found) == list(SHARES)
    assert min(found, key=found.__getitem__) == best
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights(4 + 4 * best).items())


def test_of_equal_ones_the_end_is_kept():
    model = ended(8.0)
    average(weights(4.0), model, lambda: 1.0)
    assert torch.equal(model.weight, weights(8.0)["weight"])


def test_what_is_no_float_is_the_ends():
    start, end = ({"count": torch.tensor([count])} for count in (1, 4))
    assert between(start, end, 0.5)["count"].tolist() == [4]


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
