"""Sums of X^T X in halves."""

import pytest
import torch

from deploykit.compress.gram import add_gram, damped_factor, whole


@pytest.mark.parametrize("width", [1, 5, 6, 7, 20])
def test_halves_of_two_batches_are_the_sum_of_both_products(width: int) -> None:
    first, second = torch.randn(9, width), torch.randn(4, width)
    total = torch.zeros(width, width, dtype=torch.float64)
    for batch in (first, second):
        add_gram(total, batch)
    expected = torch.cat([first, second]).double()
    assert torch.allclose(whole(total), expected.T @ expected, atol=1e-5)


def test_what_lies_left_of_the_diagonal_is_mirrored() -> None:
    assert whole(torch.tensor([[1.0, 2.0], [9.0, 3.0]])).tolist() == [[1.0, 2.0], [2.0, 3.0]]


def test_the_factor_is_that_of_the_damped_sum() -> None:
    x = torch.randn(50, 8, dtype=torch.float64)
    gram = x.T @ x
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(8, dtype=torch.float64)
    factor = damped_factor(gram.float(), 0.01)
    assert factor.dtype == torch.float64
    assert torch.allclose(factor @ factor.T, damped, rtol=1e-5)


@pytest.mark.parametrize("damping", [1e-12, 1e-6])
def test_a_sum_that_rounding_has_made_indefinite_is_damped_more_and_no_more_than_it_takes(damping: float) -> None:
    gram = torch.ones(8, 8, dtype=torch.float64) - 2e-5 * torch.eye(8, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="not positive-definite"):
        torch.linalg.cholesky(gram + damping * torch.eye(8, dtype=torch.float64))
    factor = damped_factor(gram, damping)
    assert ((factor @ factor.T - gram).diagonal() < 1.1e-4).all()


def test_of_nothing_the_factor_is_the_damping_alone() -> None:
    assert torch.allclose(damped_factor(torch.zeros(3, 3), 0.25), 0.5 * torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_what_no_damping_helps_has_no_factor(bad: float) -> None:
    with pytest.raises(RuntimeError, match="not positive-definite"):
        damped_factor(torch.tensor([[1.0, 0.0], [0.0, bad]]), 1e-6)
