"""How far a model's answers are from another's: Kullback-Leibler divergence, which sees what accuracy does not.

A few hundred rows tell two accuracies apart by points; how sure each answer is, and of what, they tell much finer.

    N rows   L tokens of a row   C labels   M positions that count
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import log_softmax, softmax

from deploykit.check.statistics import Floats
from deploykit.tasks.task import IGNORED, Logits, Targets


def divergence(reference: Sequence[Logits], candidate: Sequence[Logits], targets: Sequence[Targets]) -> float:
    """Return the mean divergence of a candidate's answers from a reference's, in nats; at least one counts.

    Args:
        reference: logits of each row, (C,) or (L,C).
        candidate: likewise.
        targets: () or (L,) of each row; what they ignore does not count.
    """
    nats, count = row_divergences(reference, candidate, targets).sum(axis=0)
    return float(nats / count)


def row_divergences(reference: Sequence[Logits], candidate: Sequence[Logits], targets: Sequence[Targets]) -> Floats:
    """Return for each row the sum of its answers' divergences, in nats, and how many answers count: (N,2)."""
    counted = [np.atleast_1d(target) != IGNORED for target in targets]
    theirs_MC, own_MC = (
        np.concatenate([np.atleast_2d(row)[mask] for row, mask in zip(rows, counted, strict=True)]).astype(np.float64)
        for rows in (reference, candidate)
    )
    difference_MC = log_softmax(theirs_MC, axis=-1) - log_softmax(own_MC, axis=-1)
    nats_M = (softmax(theirs_MC, axis=-1) * difference_MC).sum(axis=-1)
    counts_N = np.array([mask.sum() for mask in counted])
    row_M = np.repeat(np.arange(len(counts_N)), counts_N)
    return np.stack([np.bincount(row_M, nats_M, len(counts_N)), counts_N.astype(np.float64)], axis=1)
