import math

import pytest

from deploykit.report import wording


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (wording.milliseconds, 0.0412, "41.2 µs"),
        (wording.milliseconds, 3.14159, "3.14 ms"),
        (wording.milliseconds, 12.34, "12.3 ms"),
        (wording.milliseconds, 999.4, "999 ms"),
        (wording.milliseconds, 2310, "2.31 s"),
        (wording.size, 53_012_345, "53.0 MB"),
        (wording.size, 999, "999 B"),
        (wording.count, 22_700_000, "22.7 M"),
        (wording.count, 812, "812"),
        (wording.score, 0.9, "0.9000"),
        (wording.points, 0.0123, "+1.23"),
        (wording.points, -0.0123, "−1.23"),
        (wording.unsigned_points, 0.01, "1.00"),
        (wording.pace, 0.25, "4.00× faster"),
        (wording.pace, 0.9, "10.0% faster"),
        (wording.pace, 1.0, "the same"),
        (wording.pace, 1.1, "10.0% slower"),
        (wording.pace, 3.0, "3.00× slower"),
        (wording.growth, 0.5, "2.00× smaller"),
        (wording.growth, 1.02, "2.0% larger"),
    ],
)
def test_numbers_read_well(write, value, text):
    assert write(value) == text


@pytest.mark.parametrize(
    "write",
    [wording.milliseconds, wording.size, wording.count, wording.score, wording.points, wording.pace, wording.growth],
)
def test_no_number_is_a_dash(write):
    assert write(None) == wording.UNKNOWN


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.2, 0.25, "4.00 to 5.00× faster"),
        (1.08, 1.1, "8.0 to 10.0% slower"),
        (0.95, 1.02, "5.0% faster to 2.0% slower"),
        (1.0, 1.0, "the same"),
        (math.inf, math.inf, "never answered"),
        (None, 1.0, ""),
    ],
)
def test_an_interval_names_its_unit_once(low, high, text):
    assert wording.pace_interval(low, high) == text
