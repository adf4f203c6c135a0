import math

import pytest

from deploykit.report.collect import collect
from deploykit.report.latency import compare_latency
from deploykit.report.settings import ReportSettings
from tests.report.evidence import TEXTS, latencies, latency, model, seal, validation

HEAD, BASE = model("head"), model("base")
DEFAULT = ReportSettings()


def compared(tmp_path, head, base, settings=DEFAULT, **changes):
    """Two separate runs; `changes` are of the head's evidence."""
    seal(tmp_path / "head" / "latency", *latency(HEAD, head, **changes))
    seal(tmp_path / "base" / "latency", *latency(BASE, base))
    return compare_latency(collect(tmp_path / "head", "head"), collect(tmp_path / "base", "baseline"), settings)


def verdicts(scenarios):
    return [finding.gate.verdict for scenario in scenarios for finding in scenario.findings]


def test_a_head_ten_percent_slower_fails(tmp_path):
    (scenario,) = compared(tmp_path, latencies(1.1, seed=1), latencies(1.0))
    assert verdicts([scenario]) == ["fail", "fail"]
    assert "slower" in scenario.findings[0].gate.reason


def test_equal_models_pass(tmp_path):
    (scenario,) = compared(tmp_path, latencies(1, seed=1), latencies(1))
    assert verdicts([scenario]) == ["pass", "pass"]
    assert scenario.measured is not None
    assert scenario.measured.method == "separate"


def test_a_tail_ten_percent_slower_fails_though_the_median_is_equal(tmp_path):
    head, base = latencies(1, n=2000, seed=1), latencies(1, n=2000)
    head[head > 1.02] *= 1.1
    assert verdicts(compared(tmp_path, head, base)) == ["pass", "fail"]


def test_few_noisy_samples_are_inconclusive(tmp_path):
    scenarios = compared(tmp_path, latencies(1.02, n=20, spread=0.3, seed=1), latencies(1, n=20, spread=0.3))
    assert verdicts(scenarios) == ["inconclusive", "inconclusive"]
    assert "72 are needed" in scenarios[0].findings[1].gate.reason


def test_another_machine_is_inconclusive_and_never_a_number(tmp_path):
    (scenario,) = compared(tmp_path, latencies(0.5), latencies(1), environment_key="machine-2")
    (finding,) = scenario.findings
    assert finding.gate.verdict == "inconclusive"
    assert math.isnan(finding.gate.value)
    assert (scenario.ratios, scenario.measured) == ({}, None)


def test_other_texts_are_inconclusive(tmp_path):
    (scenario,) = compared(tmp_path, latencies(0.5), latencies(1), split="validation")
    assert verdicts([scenario]) == ["inconclusive"]
    assert "different texts" in scenario.findings[0].gate.reason


def test_other_settings_are_inconclusive_and_named(tmp_path):
    seal(tmp_path / "head" / "latency", *latency(HEAD, latencies(1)), threads=1)
    seal(tmp_path / "base" / "latency", *latency(BASE, latencies(1)), threads=2)
    sides = collect(tmp_path / "head", "head"), collect(tmp_path / "base", "baseline")
    (scenario,) = compare_latency(*sides, ReportSettings())
    assert "(threads)" in scenario.findings[0].gate.reason


def test_the_address_and_the_other_scenarios_are_no_other_settings(tmp_path):
    for side, url in (("head", "http://a:1"), ("base", "http://b:2")):
        asked = {"rows": 10, "scenarios": ["single"] if side == "head" else None}
        seal(tmp_path / side / "latency", *latency(model(side), latencies(1)), url=url, settings=asked)
    sides = collect(tmp_path / "head", "head"), collect(tmp_path / "base", "baseline")
    assert verdicts(compare_latency(*sides, ReportSettings())) == ["pass", "pass"]


def test_offline_is_judged_by_its_throughput(tmp_path):
    found, arrays = latency(HEAD, latencies(0.5, n=40, seed=1), latencies(1, n=40), reference=BASE)
    found.details["scenarios"]["offline"] = found.details["scenarios"].pop("single")
    renamed = {name.replace("single", "offline"): values for name, values in arrays.items()}
    seal(tmp_path / "head" / "latency", found, renamed)
    seal(tmp_path / "base" / "validation", *validation(BASE, 0.9))
    sides = collect(tmp_path / "head", "head"), collect(tmp_path / "base", "baseline")
    (scenario,) = compare_latency(*sides, ReportSettings())
    (finding,) = scenario.findings
    assert (finding.gate.name, finding.gate.verdict) == ("offline throughput", "pass")
    assert "rows/s against 1," in finding.gate.reason or "rows/s against 9" in finding.gate.reason


def interleaved(tmp_path, head, against, reference=BASE):
    """The head measured in turn with `against`; the baseline has no latency of its own, on another machine."""
    seal(tmp_path / "head" / "latency", *latency(HEAD, head, against, reference=reference))
    seal(tmp_path / "base" / "validation", *validation(BASE, 0.9, environment_key="machine-2"))
    sides = collect(tmp_path / "head", "head"), collect(tmp_path / "base", "baseline")
    return compare_latency(*sides, ReportSettings())


def test_a_model_measured_in_turn_needs_no_latency_of_the_baseline(tmp_path):
    (scenario,) = interleaved(tmp_path, latencies(1, seed=1), latencies(6))
    assert verdicts([scenario]) == ["pass", "pass"]
    assert scenario.measured is not None
    assert scenario.measured.method == "interleaved"
    assert abs(scenario.ratios[50].value - 1 / 6) < 0.01


def test_a_model_ten_percent_slower_in_turn_fails(tmp_path):
    assert verdicts(interleaved(tmp_path, latencies(1.1, seed=1), latencies(1))) == ["fail", "fail"]


def test_a_model_measured_in_turn_with_a_third_one_is_inconclusive(tmp_path):
    assert verdicts(interleaved(tmp_path, latencies(1), latencies(6), model("third"))) == ["inconclusive"]


def test_raw_samples_that_are_missing_or_do_not_pair_up_are_inconclusive(tmp_path):
    assert verdicts(interleaved(tmp_path / "a", latencies(1), latencies(1, n=499))) == ["inconclusive"]
    found, arrays = latency(HEAD, latencies(1), latencies(1), reference=BASE)
    seal(tmp_path / "head" / "latency", found, {"single.head": arrays["single.head"]})
    sides = collect(tmp_path / "head", "head"), collect(tmp_path / "a" / "base", "baseline")
    assert verdicts(compare_latency(*sides, ReportSettings())) == ["inconclusive"]


@pytest.mark.parametrize("missing", ["head", "base"])
def test_a_scenario_that_one_side_lacks_is_inconclusive(tmp_path, missing):
    for side in ("head", "base"):
        (tmp_path / side).mkdir()
        if side != missing:
            seal(tmp_path / side / "latency", *latency(model(side), latencies(1)))
    sides = collect(tmp_path / "head", "head"), collect(tmp_path / "base", "baseline")
    (scenario,) = compare_latency(*sides, ReportSettings())
    assert verdicts([scenario]) == ["inconclusive"]
    assert bool(scenario.own) == (missing == "base")


def test_no_latency_at_all_is_inconclusive(tmp_path):
    side = collect(tmp_path, "head")
    assert verdicts(compare_latency(side, side, ReportSettings())) == ["inconclusive"]


def test_the_budget_and_the_percentiles_are_the_settings(tmp_path):
    settings = ReportSettings(max_slowdown=0.2, percentiles=(75,))
    (scenario,) = compared(tmp_path, latencies(1.1, seed=1), latencies(1), settings)
    assert [(finding.gate.name, finding.gate.verdict) for finding in scenario.findings] == [("single p75", "pass")]


def test_a_head_that_drops_requests_fails(tmp_path):
    head = latencies(1, seed=1)
    head[::5] = math.inf
    assert verdicts(compared(tmp_path, head, latencies(1))) == ["pass", "fail"]


def test_the_data_set_is_part_of_what_must_be_equal(tmp_path):
    assert verdicts(compared(tmp_path, latencies(1, seed=1), latencies(1), data=TEXTS)) == ["pass", "pass"]
    assert verdicts(compared(tmp_path / "b", latencies(1), latencies(1), data=None)) == ["inconclusive"]
