import pytest

from deploykit.errors import UsageError
from deploykit.report.settings import ReportSettings
from deploykit.settings import make


@pytest.mark.parametrize(
    "values",
    [{"max_drop": -0.1}, {"max_slowdown": 1e9}, {"percentiles": []}, {"percentiles": [100]}, {"max_drop": "much"}],
)
def test_an_unusable_budget_is_refused(values):
    with pytest.raises(UsageError):
        make(ReportSettings, values, lambda name: f"report: {name}")


def test_settings_come_from_yaml_values():
    made = make(ReportSettings, {"max_drop": 0.02, "percentiles": [50, 99]}, str)
    assert made == ReportSettings(max_drop=0.02, percentiles=(50, 99))
