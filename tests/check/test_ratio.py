import math

import numpy as np
import pytest

from deploykit.check.ratio import (
    percentile,
    ratio_of_independent,
    ratio_of_interleaved,
    ratio_of_sums,
    samples_needed,
)
from deploykit.check.statistics import Interval
from tests.report.evidence import latencies


def ends(found: Interval) -> tuple[float, float]:
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


COMPARE = (ratio_of_independent, ratio_of_interleaved)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_a_percentile_is_the_nearest_rank(size, share):
    samples_N = np.random.default_rng(size).random(size)
    slow = next(value for value in sorted(samples_N) if np.mean(samples_N <= value) >= share - 1e-9)
    assert percentile(samples_N, share) == slow


@pytest.mark.parametrize("compare", COMPARE)
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_head_ten_percent_slower_is_seen(compare, share):
    found = compare(latencies(1.1, seed=1), latencies(1.0, seed=2), share)
    assert found.low > 1.05
    assert found.high < 1.15


@pytest.mark.parametrize("compare", COMPARE)
def test_the_interval_of_equal_systems_holds_one_nearly_always(compare):
    pairs = [(latencies(5, n=80, seed=2 * i), latencies(5, n=80, seed=2 * i + 1)) for i in range(100)]
    found = [compare(head, base, 0.5) for head, base in pairs]
    assert sum(one.low <= 1 <= one.high for one in found) >= 88  # 95 expected


def test_the_exact_draw_agrees_with_a_plain_bootstrap():
    head_N, base_N = latencies(2, n=60, seed=1), latencies(2.2, n=90, seed=2)
    generator = np.random.default_rng(7)
    slow_R = [
        percentile(generator.choice(head_N, 60), 0.9) / percentile(generator.choice(base_N, 90), 0.9)
        for _ in range(4000)
    ]
    found = ratio_of_independent(head_N, base_N, 0.9)
    assert np.allclose(ends(found), np.quantile(slow_R, [0.025, 0.975]), rtol=4e-3)


def test_the_ratio_of_interleaved_samples_sees_ten_percent_through_noise_that_both_share():
    rng = np.random.default_rng(0)
    drift = np.exp(np.cumsum(rng.normal(0, 0.02, 300)))
    base, head = (drift * rng.lognormal(0, 0.05, 300) for _ in range(2))
    equal, slower = ratio_of_interleaved(head, base, 0.5), ratio_of_interleaved(1.1 * head, base, 0.5)
    assert ends(equal)[0] < 1 < ends(equal)[1]
    assert ends(slower)[0] > 1
    assert slower.value == pytest.approx(1.1 * equal.value)


def test_a_ratio_of_few_or_unpaired_samples_is_unbounded_or_refused():
    assert ratio_of_interleaved(np.array([2.0]), np.array([1.0]), 0.5).low is None
    with pytest.raises(ValueError, match="paired"):
        ratio_of_interleaved(np.ones(3), np.ones(4), 0.5)


def test_noise_common_to_both_cancels_only_when_interleaved():
    drift_N = np.repeat([1.0, 1.5], 200)
    head_N, base_N = latencies(3, n=400, seed=1) * drift_N, latencies(3, n=400, seed=2) * drift_N
    paired, apart = ratio_of_interleaved(head_N, base_N, 0.5), ratio_of_independent(head_N, base_N, 0.5)
    assert np.ptp(ends(paired)) < np.ptp(ends(apart)) / 2


@pytest.mark.parametrize(("share", "needed"), [(0.5, 6), (0.95, 72), (0.99, 368), (0.01, 368)])
def test_fewer_samples_than_needed_bound_nothing(share, needed):
    assert samples_needed(share) == needed
    for compare in COMPARE:
        few, enough = (
            compare(latencies(1, n=n, seed=1), latencies(1, n=n, seed=2), share) for n in (needed - 1, needed)
        )
        assert (few.low, few.high) == (None, None)
        assert enough.low is not None


@pytest.mark.parametrize("compare", COMPARE)
def test_one_sample_gives_a_ratio_and_no_interval(compare):
    found = compare(np.array([2.0]), np.array([4.0]), 0.5)
    assert (found.value, found.low, found.high) == (0.5, None, None)


@pytest.mark.parametrize("compare", COMPARE)
def test_requests_never_answered_are_infinitely_slow(compare):
    lost_N = latencies(1, n=100)
    lost_N[:20] = math.inf
    assert compare(lost_N, latencies(1, n=100), 0.95).low == math.inf
    both = compare(lost_N, lost_N, 0.95)
    assert (both.low, both.high) == (None, None)


def test_sums_that_pair_up_have_a_narrow_ratio_where_apart_they_would_not():
    base_N = np.random.default_rng(0).lognormal(0, 2, 400)
    found = ratio_of_sums(1.1 * base_N, base_N)
    assert found.value == pytest.approx(1.1)
    assert ends(found) == pytest.approx((1.1, 1.1))
    low, high = ends(ratio_of_sums(1.1 * base_N[::-1], base_N))
    assert low < 1 < high


def test_ten_percent_slower_is_seen_in_sums_through_noise_that_both_share():
    rng = np.random.default_rng(0)
    seconds_N = rng.lognormal(0, 0.5, 300)
    found = ratio_of_sums(seconds_N, seconds_N * 1.1 * rng.lognormal(0, 0.02, 300))
    assert found.high is not None
    assert found.high < 1
    assert found.value == pytest.approx(1 / 1.1, rel=0.02)


def test_sums_of_a_few_rows_bound_nothing_and_what_does_not_pair_up_is_refused():
    assert ratio_of_sums(np.ones(5), np.ones(5)) == Interval(1.0, None, None)
    with pytest.raises(ValueError, match="3 samples cannot be paired with 4"):
        ratio_of_sums(np.ones(3), np.ones(4))
