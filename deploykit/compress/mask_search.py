"""Which heads and neurons stay, for the least loss within a latency budget.

First how many in each layer, from the diagonal of the Fisher information (Kwon et al. 2022, section 4.1); then which,
from its block of the layer, which also knows how parts work together (section 4.2). Their search walks over the number
of heads and gives neurons what is left; ours takes any table of costs, and its answer is optimal: choosing one width
for every group within a budget is the multiple-choice knapsack, solved by dynamic programming.

    W parts of a group (the heads or the neurons of one layer)   K options of a group   N rows   B steps of the budget
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deploykit.compress.fisher import MaskGradients, RowGradients, Scores, half_mean_square
from deploykit.compress.slicing import Kept

_STEPS = 1 << 14
"""Costs are rounded up to this share of the budget, so that it holds: half of 0.006% lost a group, on average."""


class Removal(Protocol):
    """What is lost as the heads or the neurons of one layer become fewer, and which stay."""

    @property
    def widths(self) -> NDArray[np.int64]:
        """How many parts may stay, ascending: (K,)."""

    @property
    def losses(self) -> NDArray[np.float64]:
        """How much the loss rises at each width: (K,)."""

    def kept(self, width: int) -> Kept:
        """Return the parts that stay, ascending: (`width`,)."""


Removals = tuple[Sequence[Removal], Sequence[Removal]]
"""Of heads and of neurons, layer by layer."""


@dataclass(frozen=True)
class FisherRemoval:
    """By Fisher information: the least valuable parts go, rearranged."""

    gradients: RowGradients
    """(N,W)"""
    multiple: int
    """Widths are multiples of it, or the full one."""

    @property
    def widths(self) -> NDArray[np.int64]:
        """How many parts may stay, ascending."""
        width = self.gradients.shape[1]
        return np.unique([*range(self.multiple, width + 1, self.multiple), width])

    @property
    def losses(self) -> NDArray[np.float64]:
        """The sum of the diagonal over what goes."""
        lost = np.concatenate([[0.0], np.cumsum(np.sort(half_mean_square(self.gradients)))])
        return np.asarray(lost[len(lost) - 1 - self.widths])

    def kept(self, width: int) -> Kept:
        """Return the parts that stay, chosen by the whole block."""
        return rearranged(self.gradients, most_valuable(half_mean_square(self.gradients), width))


def by_fisher(gradients: MaskGradients, multiple: int) -> Removals:
    """Return how every layer's heads, and neurons down to multiples, go by Fisher information."""
    heads, neurons = gradients.heads, gradients.neurons
    return [FisherRemoval(each, 1) for each in heads], [FisherRemoval(each, multiple) for each in neurons]


@dataclass(frozen=True)
class Group:
    """The heads or the neurons of one layer: the widths it may end with, and what each costs and loses."""

    widths: NDArray[np.int64]
    """(K,): how many parts may stay."""
    costs: NDArray[np.float64]
    """(K,): in the unit of the budget."""
    losses: NDArray[np.float64]
    """(K,)"""


def search(groups: Sequence[Group], budget: float, *, steps: int = _STEPS) -> list[int] | None:
    """Choose a width for every group: the least total loss at a total cost within the budget.

    Returns:
        the widths, or None where the cheapest ones together are above the budget.
    """
    best = np.zeros(steps + 1)
    choices = []
    for group in groups:
        costs = np.ceil(np.maximum(group.costs, 0.0) * (steps / budget) - 1e-9) if budget > 0 else np.full(1, np.inf)
        offers = np.full((len(group.widths), steps + 1), np.inf)
        for offer, cost, loss in zip(offers, costs, group.losses, strict=False):
            if cost <= steps:
                offer[int(cost) :] = best[: steps + 1 - int(cost)] + loss
        choice = offers.argmin(axis=0)
        best = offers[choice, np.arange(steps + 1)]
        choices.append((choice, costs))
    return _traced_back(groups, choices) if np.isfinite(best[-1]) else None


def least_loss(removals: Sequence[Removal], share: float, multiple: int) -> list[Kept]:
    """Keep the parts whose loss together is least, layer by layer, where a share of all parts goes.

    Args:
        removals: one for each layer.
        share: of all parts of all layers, to the nearest group; one that leaves something in each layer.
        multiple: parts that go together.
    """
    total = sum(int(removal.widths[-1]) for removal in removals)
    count = math.ceil(total * (1 - share) + multiple / 2) - 1
    widest_first = [(removal.widths[::-1], removal.losses[::-1]) for removal in removals]  # of equal losses the first
    groups = [Group(widths, widths.astype(np.float64), losses) for widths, losses in widest_first]
    chosen = search(groups, count, steps=count) or [int(group.widths[-1]) for group in groups]
    return [removal.kept(width) for removal, width in zip(removals, chosen, strict=True)]


def _traced_back(
    groups: Sequence[Group], choices: Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]]
) -> list[int]:
    left = len(choices[0][0]) - 1 if choices else 0
    widths = []
    for group, (choice, costs) in zip(reversed(groups), reversed(choices), strict=True):
        option = int(choice[left])
        widths.append(int(group.widths[option]))
        left -= int(costs[option])
    return widths[::-1]


def most_valuable(scores_W: Scores, width: int) -> Kept:
    """Return the `width` parts of the highest scores, ascending."""
    return np.sort(np.argsort(scores_W, kind="stable")[len(scores_W) - width :])


def joint_loss(gradients_NW: RowGradients, kept: Kept) -> float:
    """Return what removing all the others at once costs: half the mean square of their summed gradient.

    The diagonal adds the squares of each alone; two parts that undo each other, or do the same, need the whole block.
    """
    removed = np.setdiff1d(np.arange(gradients_NW.shape[1]), kept)
    sums_N = gradients_NW[:, removed].sum(axis=1, dtype=np.float64)
    return float(sums_N @ sums_N) / (2 * len(gradients_NW))


def rearranged(gradients_NW: RowGradients, kept: Kept) -> Kept:
    """Exchange parts kept for removed ones wherever that lowers `joint_loss`; never raises it.

    One pass, as in Kwon et al. 2022: each kept part, least valuable first, joins the removed ones, and the one of them
    whose return helps most comes back; it may be the same.
    """
    gradients = gradients_NW.astype(np.float64)
    gram_WW = gradients.T @ gradients
    removed = np.ones(len(gram_WW), bool)
    removed[kept] = False
    dots_W = gram_WW[:, removed].sum(axis=1)
    for part in kept[np.argsort(gram_WW.diagonal()[kept], kind="stable")]:
        removed[part] = True
        dots_W += gram_WW[:, part]
        # ||s - g||^2 = ||s||^2 + gain, with s the sum over the removed parts
        gains_W = np.where(removed, gram_WW.diagonal() - 2 * dots_W, np.inf)
        best = part if gains_W[part] <= gains_W.min() else int(gains_W.argmin())
        removed[best] = False
        dots_W -= gram_WW[:, best]
    return np.flatnonzero(~removed)
