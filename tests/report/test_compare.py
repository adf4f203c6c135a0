import dataclasses

import pytest

from deploykit.evidence import Gate, Metric
from deploykit.report.collect import collect
from deploykit.report.compare import compare_size, judge_proof
from deploykit.report.settings import ReportSettings
from tests.report.evidence import model, seal, validation


def side(folder, name, num_bytes=None, **changes):
    metrics = () if num_bytes is None else (Metric("size_bytes", num_bytes, "B", "lower"),)
    seal(folder / "validation", *validation(model(name), 0.9, metrics=metrics, **changes))
    return collect(folder, "head" if name == "head" else "baseline")


@pytest.mark.parametrize(("num_bytes", "verdict"), [(50.0, "pass"), (100.0, "pass"), (101.0, "pass"), (102.0, "fail")])
def test_a_model_that_grew_beyond_the_budget_fails(tmp_path, num_bytes, verdict):
    finding = compare_size(
        side(tmp_path / "head", "head", num_bytes), side(tmp_path / "base", "base", 100.0), ReportSettings()
    )
    assert finding.gate.verdict == verdict


@pytest.mark.parametrize("sizes", [(None, 100.0), (100.0, None), (100.0, 0.0)])
def test_an_unknown_size_is_inconclusive(tmp_path, sizes):
    head, base = side(tmp_path / "head", "head", sizes[0]), side(tmp_path / "base", "base", sizes[1])
    assert compare_size(head, base, ReportSettings()).gate.verdict == "inconclusive"


@pytest.mark.parametrize("verdict", ["pass", "fail", "inconclusive"])
def test_a_head_is_as_proven_as_its_own_validation_says(tmp_path, verdict):
    gates = (Gate("parity", 1.0, 1e-4, "lower", verdict, "Because."),)
    finding = judge_proof(side(tmp_path, "head", gates=gates, verdict=verdict))
    assert finding.gate.verdict == verdict
    assert ("parity" in finding.gate.reason) == (verdict != "pass")


def test_one_failed_validation_of_two_fails(tmp_path):
    seal(tmp_path / "a", *validation(model("head"), 0.9))
    found, _ = validation(model("head"), 0.9, split="other")
    seal(tmp_path / "b", dataclasses.replace(found, verdict="fail", gates=()), {})
    assert judge_proof(collect(tmp_path, "head")).gate.verdict == "fail"


def test_a_head_never_validated_is_unproven(tmp_path):
    assert judge_proof(collect(tmp_path, "head")).gate.verdict == "inconclusive"
