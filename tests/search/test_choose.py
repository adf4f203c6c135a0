"""The front against brute force, and the choice under a budget."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.check.statistics import Interval
from deploykit.search.choose import Budget, Point, candidates, chosen, dominates, finalists, front, ranked
from deploykit.search.front import gates_of


def point(trial: int, drop: float, ms: float, num_bytes: int = 100, margin: float = 0.0) -> Point:
    return Point(trial, 0.9 - drop, drop, drop + margin, ms, num_bytes)


POINTS = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(1, 4)), max_size=12)


@given(POINTS)
def test_the_front_is_what_brute_force_finds(values):
    points = [point(i, drop / 100, ms, size) for i, (drop, ms, size) in enumerate(values)]
    beaten = set()
    for one, other in itertools.permutations(points, 2):
        no_worse = one.metric >= other.metric and one.ms <= other.ms and one.num_bytes <= other.num_bytes
        better = one.metric > other.metric or one.ms < other.ms or one.num_bytes < other.num_bytes
        if no_worse and better:
            beaten.add(other.trial)
    assert {found.trial for found in front(points)} == {each.trial for each in points} - beaten


@given(POINTS)
def test_the_front_is_never_empty_and_none_of_it_dominates_another(values):
    points = [point(i, drop / 100, ms, size) for i, (drop, ms, size) in enumerate(values)]
    found = front(points)
    assert bool(found) == bool(points)
    assert not any(dominates(one, other) for one in found for other in found)


def test_equal_points_do_not_dominate_each_other():
    assert not dominates(point(0, 0.0, 1.0), point(1, 0.0, 1.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_point_that_is_not_measured_is_nowhere(bad):
    points = [point(0, 0.0, bad), point(1, 0.5, 1.0), Point(2, bad, bad, bad, 0.1, 1), Point(3, 0.9, 0.0, bad, 0.1, 1)]
    assert front(points) == [points[1]]
    assert ranked(points, Budget(0.01)) == [points[1]]
    assert finalists(points, Budget(0.01), 3) == [points[1]]


def test_nothing_tried_is_nothing_found():
    assert front([]) == ranked([], Budget(0.0)) == finalists([], Budget(0.0), 4) == []


def test_the_fastest_within_the_budget_is_the_best_and_a_faster_one_beyond_it_is_not():
    slow, fast, planted = point(0, 0.0, 3.0), point(1, 0.01, 1.0), point(2, 0.011, 0.1)
    assert ranked([slow, fast, planted], Budget(0.01)) == [fast, slow, planted]
    assert planted not in finalists([slow, fast, planted], Budget(0.01), 4)


def test_with_a_target_the_most_accurate_that_is_fast_enough_is_the_best():
    accurate, middle, fast = point(0, 0.0, 3.0), point(1, 0.004, 1.9), point(2, 0.008, 1.0)
    assert ranked([accurate, middle, fast], Budget(0.01, 2.0)) == [middle, fast, accurate]


def test_where_the_budget_cannot_be_met_the_nearest_is_first_accuracy_before_speed():
    near, far = point(0, 0.02, 9.0), point(1, 0.05, 0.1)
    assert ranked([far, near], Budget(0.01, 2.0))[0] == near
    quick, quicker = point(2, 0.0, 5.0), point(3, 0.001, 4.0)
    assert ranked([far, near, quick, quicker], Budget(0.01, 2.0))[0] == quicker
    assert finalists([far, near], Budget(0.01), 4) == [near]


def test_a_drop_of_exactly_the_budget_is_within_it():
    assert Budget(0.01).met(point(0, 0.81 - 0.8, 1.0))
    assert not Budget(0.01).met(point(0, 0.0101, 1.0))


def test_finalists_are_few_and_of_the_front():
    generator = random.Random(0)
    points = [point(i, i / 1000, 10.0 - i, generator.randint(1, 9)) for i in range(8)]
    dominated = point(8, 0.004, 9.9, 10)
    found = finalists([*points, dominated], Budget(0.005), 4)
    assert [each.trial for each in found] == [5, 4, 3, 2]


def test_of_those_that_may_be_as_fast_the_most_accurate_is_chosen():
    fast, close, slow = point(0, 0.009, 1.0), point(1, 0.001, 1.01), point(2, 0.0, 1.5)
    paces = {0: Interval(1.0, 1.0, 1.0), 1: Interval(1.01, 0.98, 1.04), 2: Interval(1.5, 1.45, 1.55)}
    assert chosen([fast, close, slow], paces, Budget(0.01)) == close
    told_apart = {**paces, 1: Interval(1.01, 1.001, 1.02)}
    assert chosen([fast, close, slow], told_apart, Budget(0.01)) == fast
    assert chosen([slow], paces, Budget(0.01)) == slow


def test_a_close_one_beyond_the_budget_is_not_chosen():
    fast, beyond = point(0, 0.009, 1.0), Point(1, 0.95, 0.02, 0.02, 1.01, 100)
    paces = {0: Interval(1.0, 1.0, 1.0), 1: Interval(1.01, 0.9, 1.1)}
    assert chosen([fast, beyond], paces, Budget(0.01)) == fast


def test_an_optimistic_trial_that_is_unsure_loses_to_a_surer_one_even_to_one_that_it_dominates():
    unsure, sure = point(0, 0.008, 1.0, 100, margin=0.02), point(1, 0.009, 1.5, 100, margin=0.001)
    assert dominates(unsure, sure)
    budget = Budget(0.01)
    assert ranked([unsure, sure], budget) == [sure, unsure]
    assert candidates([unsure, sure], budget) == finalists([unsure, sure], budget, 4) == [sure]
    paces = {0: Interval(1.0, 1.0, 1.0), 1: Interval(1.5, 1.4, 1.6)}
    assert chosen([unsure, sure], paces, budget) == sure


def test_where_none_is_sure_the_nearest_by_its_bound_is_named_and_is_not_met():
    near, far = point(0, 0.009, 9.0, margin=0.004), point(1, 0.005, 0.1, margin=0.02)
    budget = Budget(0.01)
    assert finalists([far, near], budget, 4) == [near]
    assert not budget.met(near)
    assert candidates([far, near], budget) == []


@pytest.mark.parametrize(
    ("drop", "margin", "verdict"), [(0.008, 0.001, "pass"), (0.008, 0.02, "inconclusive"), (0.012, 0.001, "fail")]
)
def test_a_drop_that_may_be_beyond_is_inconclusive_and_one_that_is_fails(drop: float, margin: float, verdict: str):
    (gate,) = gates_of(point(3, drop, 1.0, margin=margin), Budget(0.01), "accuracy")
    assert gate.verdict == verdict
    assert ("nearest" in gate.reason) == (verdict != "pass")
    assert f"below {drop + margin:.4f} with 95% confidence" in gate.reason
