import math

import numpy as np

from deploykit.report.density import density, distribution
from tests.report.evidence import latencies


def test_the_peak_lies_at_the_mode_and_is_one():
    grid_G = np.geomspace(1, 10, 400)
    curve_G = density(latencies(3, spread=0.1, n=5000), grid_G)
    assert curve_G.max() == 1
    assert abs(grid_G[curve_G.argmax()] - 3) < 0.15


def test_both_sides_share_a_grid_that_holds_their_medians():
    found = distribution(latencies(3), latencies(20))
    assert found is not None
    assert found["ms"][0] < 3 < 20 < found["ms"][-1]
    assert len(found["ms"]) == len(found["head"]) == len(found["baseline"])


def test_a_far_outlier_does_not_squeeze_the_rest():
    samples_N = latencies(3, n=1000)
    samples_N[0] = 3000
    found = distribution(samples_N, samples_N)
    assert found is not None
    assert found["ms"][-1] < 4


def test_unanswered_requests_are_left_out_and_no_answer_is_no_curve():
    samples_N = latencies(3, n=50)
    assert distribution(np.append(samples_N, math.inf), samples_N) is not None
    assert distribution(np.array([math.inf]), samples_N) is None


def test_equal_samples_and_one_sample_are_drawn():
    for samples_N in (np.full(10, 2.0), np.array([2.0])):
        found = distribution(samples_N, samples_N)
        assert found is not None
        assert max(found["head"]) == 1
