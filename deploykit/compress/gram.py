"""Sums of X^T X, which are symmetric: only one half is multiplied, in blocks, and it is mirrored at the end.

T tokens   K numbers a token
"""

from typing import cast

import torch
from torch import Tensor

_BLOCKS = 6
"""Rows of blocks: 7 products in the place of 12."""


def add_gram(total_KK: Tensor, x_TK: Tensor) -> None:
    """Add X^T X to a sum, in place and in the sum's precision; what is left of the diagonal blocks is not touched."""
    step = -(-len(total_KK) // _BLOCKS)
    for start in range(0, len(total_KK), step):
        rows = slice(start, start + step)
        total_KK[rows, start:] += x_TK[:, rows].T @ x_TK[:, start:]


def whole(total_KK: Tensor) -> Tensor:
    """Return the sum that `add_gram` made, both halves."""
    return total_KK.triu() + total_KK.triu(1).T


def damped_factor(gram_KK: Tensor, damping: float) -> Tensor:
    """Return the lower Cholesky factor of a sum, with `damping` of its mean diagonal added: float64 (K,K).

    Where fewer tokens than numbers were summed in fp32, rounding alone may make the sum indefinite: the damping is
    then raised, tenfold at a time, until it outweighs that.

    Raises:
        torch.linalg.LinAlgError, a RuntimeError: the sum is not finite, or is no sum of X^T X.
    """
    gram_KK = gram_KK.double()
    unit_KK = torch.eye(len(gram_KK), dtype=torch.float64) * (gram_KK.diagonal().mean() or 1.0)
    while damping < 1.0:
        factor_KK, failed_at = torch.linalg.cholesky_ex(gram_KK + damping * unit_KK)
        if not failed_at:
            return cast("Tensor", factor_KK)
        damping *= 10.0
    return cast("Tensor", torch.linalg.cholesky(gram_KK + damping * unit_KK))
