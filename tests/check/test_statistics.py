import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.check.statistics import agreement, metric_drop, percentile, wilson


def accuracy(sums):
    return sums[..., 0] / sums[..., 1]


def f1(sums):
    return 2 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1)


def ends(interval):
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


def rows_of(correct):
    correct = np.asarray(correct, np.float64)
    return np.stack([correct, np.ones_like(correct)], axis=1)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_percentile_is_the_smallest_sample_with_the_share_at_or_below_it(samples, share):
    found = percentile(np.array(samples), share)
    slow = next(value for value in sorted(samples) if sum(s <= value for s in samples) >= share * len(samples) - 1e-9)
    assert found.value == slow
    assert found.low is None or found.low <= found.value
    assert found.high is None or found.high >= found.value


def test_percentile_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    truth = -math.log(1 - 0.9)
    found = [ends(percentile(rng.exponential(size=200), 0.9)) for _ in range(400)]
    hits = sum(low <= truth <= high for low, high in found)
    assert hits >= 0.93 * 400


def test_percentile_of_few_samples_has_open_ends():
    found = percentile(np.arange(100.0), 0.99)
    assert found.value == 98.0
    assert found.high is None
    assert percentile(np.arange(400.0), 0.99).high is not None
    assert percentile(np.array([3.0]), 0.5) == type(found)(3.0, None, None)


def test_percentile_counts_what_was_never_answered_as_infinite():
    samples = np.array([1.0] * 98 + [math.inf] * 2)
    assert percentile(samples, 0.99).value == math.inf
    assert percentile(samples, 0.5).value == 1.0


@pytest.mark.parametrize("samples", [[], [math.nan], [1.0, math.nan]])
def test_percentile_refuses_nothing_and_nan(samples):
    with pytest.raises(ValueError, match="sample"):
        percentile(np.array(samples), 0.5)


def test_drop_is_the_difference_of_the_metrics_and_lies_in_its_interval():
    rng = np.random.default_rng(0)
    reference, candidate = (rows_of(rng.random(500) < share) for share in (0.9, 0.8))
    found = metric_drop(reference, candidate, accuracy)
    assert found.value == pytest.approx(reference[:, 0].mean() - candidate[:, 0].mean())
    assert found.low < found.value < found.upper < found.high


def test_drop_agrees_with_a_slow_row_by_row_bootstrap():
    rng = np.random.default_rng(3)
    reference = rng.integers(0, 3, (80, 3)).astype(float)
    candidate = np.maximum(reference - (rng.random((80, 3)) < 0.2), 0)
    found = metric_drop(reference, candidate, f1)
    slow = []
    for _ in range(2000):
        picks = rng.integers(0, 80, 80)
        slow.append(f1(reference[picks].sum(0)) - f1(candidate[picks].sum(0)) + (rng.poisson() - rng.poisson()) / 80)
    assert found.low == pytest.approx(np.quantile(slow, 0.025), abs=0.01)
    assert found.high == pytest.approx(np.quantile(slow, 0.975), abs=0.01)


def test_drop_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(200):
        right = rng.random(300) < 0.9
        lost, won = rng.random(300) < 0.05, rng.random(300) < 0.2
        candidate = np.where(right, ~lost, won)
        found = metric_drop(rows_of(right), rows_of(candidate), accuracy)
        hits += found.low <= 0.9 * 0.05 - 0.1 * 0.2 <= found.high
    assert hits >= 0.92 * 200


@pytest.mark.parametrize("size", [1, 3, 30, 300])
def test_two_models_that_agree_on_few_rows_are_not_called_equal_for_sure(size):
    found = metric_drop(rows_of(np.ones(size)), rows_of(np.ones(size)), accuracy)
    assert found.value == 0.0
    assert min(1.0, 2 / size) <= found.upper <= min(1.0, 4 / size)
    assert found.detectable >= 1 / size


def test_drop_is_the_same_every_time():
    rng = np.random.default_rng(0)
    reference, candidate = (rows_of(rng.random(50) < 0.8) for _ in range(2))
    assert metric_drop(reference, candidate, accuracy) == metric_drop(reference, candidate, accuracy)


def test_a_larger_set_detects_a_smaller_drop():
    few, many = (metric_drop(rows_of([1, 0] * n), rows_of([0, 1] * n), accuracy).detectable for n in (20, 2000))
    assert many < few / 5


@pytest.mark.parametrize(
    ("reference", "candidate"), [(np.ones((2, 2)), np.ones((3, 2))), (np.ones((0, 2)), np.ones((0, 2)))]
)
def test_drop_refuses_rows_that_do_not_pair_up(reference, candidate):
    with pytest.raises(ValueError, match="pair"):
        metric_drop(reference, candidate, accuracy)


def test_drop_refuses_nan():
    with pytest.raises(ValueError, match="finite"):
        metric_drop(np.full((2, 2), math.nan), np.ones((2, 2)), accuracy)


@settings(deadline=None)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share_and_stays_in_bounds(trial):
    found = wilson(*trial)
    low, high = ends(found)
    assert 0 <= low <= found.value + 1e-12
    assert found.value - 1e-12 <= high <= 1


def test_wilson_of_published_values_and_of_nothing():
    found = wilson(8, 10)  # Newcombe (1998): 0.4902 to 0.9433
    assert (found.low, found.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="successes"):
        wilson(3, 2)


def test_agreement_tells_related_answers_from_unrelated_ones():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200).tolist()
    shuffled = rng.permutation(labels).tolist()
    right = [label if rng.random() < 0.7 else 0 for label in labels]
    assert agreement(labels, labels).kappa == pytest.approx(1.0)
    assert agreement(right, labels).kappa > agreement(right, labels).chance
    assert agreement(right, shuffled).kappa < agreement(right, shuffled).chance


def test_unrelated_answers_pass_for_related_as_seldom_as_it_says():
    rng = np.random.default_rng(2)
    found = [agreement(rng.integers(0, 4, 60).tolist(), rng.integers(0, 4, 60).tolist()) for _ in range(400)]
    assert sum(one.kappa > one.chance for one in found) <= 0.08 * 400


def test_agreement_on_one_class_says_nothing_and_on_nothing_is_refused():
    assert agreement(["a"] * 9, ["a"] * 9).chance == math.inf
    with pytest.raises(ValueError, match="paired"):
        agreement([], [])
