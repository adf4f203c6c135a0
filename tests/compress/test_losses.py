import numpy as np
import pytest
import torch

from deploykit.compress.losses import (
    attention_loss,
    attention_scores,
    hidden_loss,
    relation_loss,
    soft_label_loss,
)

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


MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_attention_scores_are_the_scaled_products_of_each_head():
    query, key = rows(1, 3, 8), rows(1, 3, 8, seed=1)
    scores = attention_scores(query, key, 2)
    assert scores.shape == (1, 2, 3, 3)
    assert scores[0, 1, 2, 0].item() == pytest.approx(float(query[0, 2, 4:] @ key[0, 0, 4:]) / 2)


def test_attention_costs_nothing_for_a_copied_teacher_whatever_stands_in_the_padding():
    teacher = rows(2, 3, 4, 4)
    student = teacher.clone()
    student[1, :, 2:], student[1, :, :, 2:] = 99.0, 99.0
    assert attention_loss(student, teacher, MASK).item() == 0.0
    student[1, 0, 1, 1] += 1.0
    real = torch.cat([teacher[0].flatten(), teacher[1, :, :2, :2].flatten()])
    assert attention_loss(student, teacher, MASK).item() == pytest.approx(1 / real.square().sum().item())


def slow_relation_loss(student: torch.Tensor, teacher: torch.Tensor, heads: int, mask: torch.Tensor) -> float:
    found = []
    for row, real in enumerate(mask.bool()):
        for head in range(heads):
            relations = []
            for given in (student, teacher):
                x = given[row][real].chunk(heads, dim=-1)[head].double().numpy()
                scores = np.exp(x @ x.T / np.sqrt(x.shape[1]))
                relations.append(scores / scores.sum(1, keepdims=True))
            q, p = relations
            found.append((p * np.log(p / q)).sum(1))
    return float(np.concatenate(found).mean())


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_relations_equal_the_slow_sum_also_for_another_width(heads: int):
    student, teacher = rows(2, 4, 8), rows(2, 4, 16, seed=1)
    expected = slow_relation_loss(student, teacher, heads, MASK)
    assert relation_loss(student, teacher, heads, MASK).item() == pytest.approx(expected, rel=1e-4)
    assert expected > 0.01


def test_relations_cost_nothing_for_a_copied_or_turned_teacher_whatever_stands_in_the_padding():
    teacher = rows(2, 4, 8)
    turned = teacher @ torch.linalg.qr(rows(8, 8, seed=2)).Q
    turned[1, 2:] = 99.0
    assert relation_loss(turned, teacher, 1, MASK).item() == pytest.approx(0.0, abs=1e-6)
    assert relation_loss(turned, teacher, 2, MASK).item() > 0.01, "other heads are other relations"


def test_the_gradients_of_masked_relations_are_finite_and_none_for_padding():
    student = rows(2, 4, 8).requires_grad_()
    relation_loss(student, rows(2, 4, 8, seed=1), 2, MASK).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad[1, 2:].abs().max() == 0
    assert student.grad[0].abs().max() > 0


def test_a_row_of_one_token_has_one_relation_and_no_loss():
    assert relation_loss(rows(1, 1, 8), rows(1, 1, 8, seed=1), 2, torch.ones(1, 1)).item() == 0.0


def test_a_nan_is_not_hidden():
    assert relation_loss(torch.full((1, 2, 2), float("nan")), torch.ones(1, 2, 2), 1, torch.ones(1, 2)).isnan()
    assert attention_loss(torch.full((1, 1, 2, 2), float("nan")), torch.ones(1, 1, 2, 2), torch.ones(1, 2)).isnan()
    assert soft_label_loss(STUDENT * float("nan"), TEACHER, 1.0).isnan()
    assert hidden_loss(torch.full((1, 1, 2), float("nan")), torch.ones(1, 1, 2), torch.ones(1, 1)).isnan()
