import math

import numpy as np
import pytest

from deploykit.check.parity import (
    TOLERANCES,
    compare,
    invariance,
    judge,
    judge_changed,
    judge_invariance,
    judge_rounded_invariance,
    judge_rounding,
)


def outputs(rows=20, seed=0):
    return list(np.random.default_rng(seed).normal(size=(rows, 3)).astype(np.float32))


def moved(rows, by, seed=1):
    noise = np.random.default_rng(seed).normal(size=(len(rows), 3)).astype(np.float32)
    return [row + by * one for row, one in zip(rows, noise, strict=True)]


def test_equal_outputs_do_not_deviate():
    found = compare(outputs(), outputs())
    assert (found.worst, found.typical, found.max_abs) == (0.0, 0.0, 0.0)
    assert judge("parity", found, 0.0).verdict == "pass"


def test_deviation_agrees_with_a_slow_reference():
    reference, candidate = outputs(), moved(outputs(), 0.01)
    scale = math.sqrt(sum(float(value) ** 2 for row in reference for value in row) / 60)
    pairs = list(zip(reference, candidate, strict=True))
    slow = [max(abs(float(a) - float(b)) for a, b in zip(*pair, strict=True)) / scale for pair in pairs]
    found = compare(reference, candidate)
    assert found.worst == pytest.approx(max(slow))
    assert found.typical == pytest.approx(float(np.median(slow)))
    assert found.worst_row == int(np.argmax(slow))


def test_deviation_does_not_depend_on_the_outputs_scale():
    one, other = (
        compare([row * by for row in outputs()], [row * by for row in moved(outputs(), 0.01)]) for by in (1, 64)
    )
    assert one.worst == pytest.approx(other.worst, rel=1e-5)


def test_one_value_of_one_row_beyond_the_tolerance_fails_and_is_named():
    candidate = outputs()
    candidate[7] = candidate[7] + np.array([0, 3 * TOLERANCES["fp32"], 0], np.float32)
    found = compare(outputs(), candidate, numbers=range(100, 120))
    gate = judge("parity", found, TOLERANCES["fp32"])
    assert gate.verdict == "fail"
    assert "row 107" in gate.reason
    assert found.candidate == tuple(map(float, candidate[7]))


def test_float_noise_passes():
    assert judge("parity", compare(outputs(), moved(outputs(), 2e-6)), TOLERANCES["fp32"]).verdict == "pass"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_fails(bad):
    candidate = outputs()
    candidate[3] = np.array([0, bad, 0], np.float32)
    found = compare(outputs(), candidate)
    assert (found.worst, found.worst_row) == (math.inf, 3)
    assert judge("parity", found, 1.0).verdict == "fail"
    assert judge_rounding("parity", found, 1.0).verdict == "fail"


def test_another_shape_fails():
    candidate = outputs()
    candidate[5] = candidate[5][:2]
    assert compare(outputs(), candidate).worst == math.inf


def test_rows_of_tokens_are_compared_at_their_worst_token():
    reference = [np.zeros((4, 2), np.float32), np.ones((2, 2), np.float32)]
    candidate = [reference[0].copy(), reference[1].copy()]
    candidate[1][1, 0] = 3.0
    found = compare(reference, candidate)
    assert (found.worst_row, found.max_abs, found.candidate) == (1, 2.0, (3.0, 1.0))


@pytest.mark.parametrize("rows", [[], outputs(19)])
def test_rows_that_do_not_pair_up_are_refused(rows):
    with pytest.raises(ValueError, match="compared"):
        compare(outputs(20) if rows else [], rows)


def test_outputs_of_zeros_are_compared_as_they_stand():
    zeros = [np.zeros(2, np.float32)]
    assert compare(zeros, [np.full(2, 0.5, np.float32)]).worst == 0.5


def test_another_rounding_passes_and_a_wrong_scale_fails():
    exact, unit = outputs(400), 0.01
    reference, other = moved(exact, unit, seed=2), moved(exact, unit, seed=3)
    due = compare(exact, reference).typical
    assert judge_rounding("parity", compare(reference, other), due).verdict == "pass"
    assert judge_rounding("parity", compare(reference, [row * 1.2 for row in other]), due).verdict == "fail"
    assert judge_rounding("parity", compare(reference, moved(other, 10 * unit)), due).verdict == "fail"


def test_without_rounding_nothing_may_deviate():
    assert judge_rounding("parity", compare(outputs(), outputs()), 0.0).verdict == "pass"
    assert judge_rounding("parity", compare(outputs(), moved(outputs(), 0.01)), 0.0).verdict == "fail"


def test_a_row_that_depends_on_its_surroundings_fails():
    rows = outputs(64)
    sound = invariance(rows, moved(rows, 1e-7), moved(rows, 1e-7))
    assert [gate.verdict for gate in judge_invariance(sound, TOLERANCES["fp32"])] == ["pass", "pass"]
    leaking = invariance(rows, moved(rows, 1e-2), rows)
    assert [gate.verdict for gate in judge_invariance(leaking, TOLERANCES["fp32"])] == ["fail", "pass"]
    leaking = invariance(rows, moved(rows, 0.5), moved(rows, 0.5))
    assert "fail" in {gate.verdict for gate in judge_rounded_invariance(leaking, unit=0.02)}


def test_predictions_that_change_are_counted_and_surely_too_many_fail():
    rows = [np.array([0.0, 1.0], np.float32)] * 40
    changed = [row[::-1] if index < 20 else row for index, row in enumerate(rows)]
    found = invariance(rows, rows, changed)
    assert (found.changed, found.predictions) == (20, 40)
    assert judge_changed(found).verdict == "fail"
    assert judge_changed(invariance(rows, changed[18:] + rows[:18], rows)).verdict == "pass"
