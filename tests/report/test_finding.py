import math

import pytest

from deploykit.report.finding import unknown, within


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.9, 1.04, "pass"),
        (1.0, 1.05, "pass"),
        (1.0, 1.06, "inconclusive"),
        (1.05, 1.06, "inconclusive"),
        (1.06, 1.2, "fail"),
        (None, None, "inconclusive"),
        (math.nan, math.nan, "inconclusive"),
        (math.inf, math.inf, "fail"),
    ],
)
def test_only_an_interval_wholly_on_one_side_of_the_budget_decides(low, high, verdict):
    assert within(low, high, 1.05) == verdict


def test_what_is_unknown_has_no_number():
    finding = unknown("latency", 1.05, "Because.")
    assert finding.gate.verdict == "inconclusive"
    assert math.isnan(finding.gate.value)
