"""Sums of X^T X, which are symmetric: only one half is multiplied, in blocks, and it is mirrored at the end.

T tokens   K numbers a token
"""

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
