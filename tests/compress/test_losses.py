import numpy as np
import pytest
import torch

from deploykit.compress.losses import hidden_loss, soft_label_loss

STUDENT = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3]])
TEACHER = torch.tensor([[1.0, 0.0, -0.5], [3.0, -2.0, 0.0]])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_labels_cost_nothing_for_a_copied_teacher_and_something_for_another(temperature: float):
    assert soft_label_loss(TEACHER, TEACHER.clone(), temperature).item() == pytest.approx(0.0, abs=1e-6)
    assert soft_label_loss(STUDENT, TEACHER, temperature).item() > 0.01


def test_soft_labels_equal_the_slow_sum():
    temperature = 2.0
    expected = 0.0
    for student, teacher in zip(STUDENT.tolist(), TEACHER.tolist(), strict=True):
        p = np.exp(np.array(teacher) / temperature)
        q = np.exp(np.array(student) / temperature)
        p, q = p / p.sum(), q / q.sum()
        expected += temperature**2 * float((p * np.log(p / q)).sum()) / 2
    assert soft_label_loss(STUDENT, TEACHER, temperature).item() == pytest.approx(expected, rel=1e-5)


def test_hidden_states_cost_nothing_for_a_copied_teacher_whatever_stands_in_the_padding():
    teacher = torch.randn(2, 3, 4)
    student = teacher.clone()
    student[1, 2] = 99.0
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert hidden_loss(student, teacher, mask).item() == 0.0
    assert hidden_loss(student, teacher, torch.ones(2, 3)).item() > 1.0


def test_hidden_states_of_zero_cost_one_in_any_unit():
    teacher, mask = torch.randn(2, 3, 4), torch.ones(2, 3)
    for scale in (1.0, 1000.0):
        assert hidden_loss(torch.zeros(2, 3, 4), scale * teacher, mask).item() == pytest.approx(1.0)


def test_a_nan_is_not_hidden():
    assert soft_label_loss(STUDENT * float("nan"), TEACHER, 1.0).isnan()
    assert hidden_loss(torch.full((1, 1, 2), float("nan")), torch.ones(1, 1, 2), torch.ones(1, 1)).isnan()
