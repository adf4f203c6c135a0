"""Sums of X^T X in halves."""

import pytest
import torch

from deploykit.compress.gram import add_gram, whole


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
