import itertools

import numpy as np
import pytest

from deploykit.compress.brain_surgeon import SuccessiveRemoval
from deploykit.compress.mask_search import Group, joint_loss, least_loss, most_valuable, rearranged, search
from deploykit.compress.slicing import require_reachable


def planted(seed: int, num_groups: int = 4) -> list[Group]:
    """Groups of up to five parts with uneven integer costs, some of which do not grow with the width."""
    rng = np.random.default_rng(seed)
    groups = []
    for _ in range(num_groups):
        size = int(rng.integers(2, 6))
        widths = np.arange(1, size + 1)
        costs = np.cumsum(rng.integers(0, 5, size)).astype(float)
        groups.append(group(rng.exponential(size=size), widths, costs))
    return groups


def group(scores, widths, costs) -> Group:
    """Parts of which each is worth its score, whatever else goes."""
    return Group(widths, costs, np.array([np.sort(scores)[: len(scores) - width].sum() for width in widths]))


def brute_force(groups: list[Group], budget: float) -> float:
    options = [list(zip(group.losses, group.costs, strict=True)) for group in groups]
    totals = [np.sum(choice, axis=0) for choice in itertools.product(*options)]
    return min((loss for loss, cost in totals if cost <= budget), default=np.inf)


def outcome(groups: list[Group], widths: list[int]) -> tuple[float, float]:
    """Loss and cost of a choice, added up the slow way."""
    options = [list(group.widths).index(width) for group, width in zip(groups, widths, strict=True)]
    loss = sum(group.losses[option] for group, option in zip(groups, options, strict=True))
    cost = sum(group.costs[option] for group, option in zip(groups, options, strict=True))
    return float(loss), float(cost)


@pytest.mark.parametrize("seed", range(12))
def test_the_choice_is_the_optimum_of_all_choices(seed: int):
    groups = planted(seed)
    for budget in (3, 7, 12, 20, 100):
        widths = search(groups, budget, steps=budget)
        best = brute_force(groups, budget)
        if widths is None:
            assert best == np.inf
        else:
            loss, cost = outcome(groups, widths)
            assert cost <= budget
            assert loss == pytest.approx(best)


def test_a_proportional_search_misses_the_optimum_where_costs_differ():
    # The same loss twice, but one group's part costs ten times the other's: equal shares would remove from both.
    groups = [group(np.array([1.0, 1.0]), np.array([1, 2]), np.array(costs)) for costs in ([10.0, 20.0], [1.0, 2.0])]
    assert search(groups, 12.0, steps=120) == [1, 2]


@pytest.mark.parametrize("seed", range(4))
def test_rounding_of_costs_never_exceeds_the_budget(seed: int):
    rng = np.random.default_rng(seed)
    groups = [group(rng.random(8), np.arange(1, 9), np.sort(rng.random(8))) for _ in range(6)]
    budget = 2.0
    widths = search(groups, budget)
    assert widths is not None
    assert outcome(groups, widths)[1] <= budget


@pytest.mark.parametrize("budget", [0.5, 0.0, -1.0, float("nan")])
def test_a_budget_below_the_cheapest_choice_gives_none(budget: float):
    assert search([group(np.ones(2), np.array([1, 2]), np.array([1.0, 2.0]))], budget) is None


def test_nothing_to_choose_is_an_empty_choice():
    assert search([], 1.0) == []


def test_the_most_valuable_stay_in_order():
    assert most_valuable(np.array([3.0, 1.0, 2.0]), 2).tolist() == [0, 2]
    assert most_valuable(np.array([1.0]), 1).tolist() == [0]


def test_rearrangement_beats_the_diagonal_where_two_parts_do_the_same():
    # Parts 0 and 1 are twins: each alone is cheap to remove, both together cost four times one. The diagonal removes
    # both; the block removes one of them and part 2, which is dearer alone and cheaper in company.
    rng = np.random.default_rng(0)
    twin, other, dear = rng.standard_normal((3, 400))
    gradients = np.stack([twin, twin, 1.2 * other, 3 * dear], axis=1).astype(np.float32)
    diagonal = most_valuable(np.square(gradients).mean(axis=0), 2)
    assert diagonal.tolist() == [2, 3]
    found = rearranged(gradients, diagonal)
    assert 3 in found
    assert 2 not in found
    assert joint_loss(gradients, found) < 0.7 * joint_loss(gradients, diagonal)


@pytest.mark.parametrize("seed", range(8))
def test_rearrangement_is_never_worse_and_keeps_the_number(seed: int):
    rng = np.random.default_rng(seed)
    gradients = (rng.standard_normal((30, 6)) @ rng.standard_normal((6, 20))).astype(np.float32)
    for width in (1, 7, 19, 20):
        kept = most_valuable(np.square(gradients).mean(axis=0), width)
        found = rearranged(gradients, kept)
        assert len(set(found.tolist())) == width
        assert joint_loss(gradients, found) <= joint_loss(gradients, kept) * (1 + 1e-6)


def test_parts_that_have_nothing_to_do_with_each_other_are_left_alone():
    gradients = np.diag([1.0, 2.0, 3.0, 4.0]).astype(np.float32)
    kept = np.array([2, 3])
    assert rearranged(gradients, kept).tolist() == [2, 3]


def removal(scores, multiple: int = 1) -> SuccessiveRemoval:
    """Parts of which each is worth its score, whatever else goes; an odd group goes first."""
    widths = np.unique([*range(multiple, len(scores) + 1, multiple), len(scores)])
    lost = np.concatenate([[0.0], np.cumsum(np.sort(scores))])
    return SuccessiveRemoval(np.argsort(scores, kind="stable"), widths, lost[len(scores) - widths])


def test_the_least_valuable_parts_go_wherever_they_are():
    kept = least_loss([removal([5.0, 1.0, 4.0, 2.0]), removal([9.0, 8.0, 7.0, 6.0])], 0.25, 1)
    assert [k.tolist() for k in kept] == [[0, 2], [0, 1, 2, 3]]


def test_every_layer_keeps_one_part_even_if_it_is_worthless():
    assert [len(k) for k in least_loss([removal(np.zeros(4)), removal(np.ones(4))], 0.75, 1)] == [1, 1]


def test_parts_go_in_groups_so_that_widths_stay_multiples():
    rng = np.random.default_rng(0)
    kept = least_loss([removal(rng.random(width), 32) for width in (100, 96, 64)], 0.5, 32)
    assert all(len(k) % 32 == 0 for k in kept)
    assert abs(sum(map(len, kept)) - 130) <= 16
    assert all((np.diff(k) > 0).all() for k in kept)


def test_a_group_holds_a_layers_least_valuable_parts():
    (kept,) = least_loss([removal(np.arange(64.0)[::-1], 32)], 0.5, 32)
    assert kept.tolist() == list(range(32))


@pytest.mark.parametrize("share", [0.125, 0.25, 0.5, 0.75])
def test_every_share_that_is_not_refused_removes_about_that_much(share: float):
    require_reachable("prune.heads", share, [4, 4], 1)
    kept = least_loss([removal(np.arange(4.0))] * 2, share, 1)
    assert 8 - sum(map(len, kept)) == pytest.approx(8 * share, abs=0.5)
    assert sum(map(len, kept)) < 8


def test_no_more_goes_than_is_asked_for_even_if_it_is_worthless():
    assert [len(k) for k in least_loss([removal(np.zeros(4)), removal(np.zeros(4))], 0.0, 1)] == [4, 4]
