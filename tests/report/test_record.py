import math

import pytest

from deploykit.report.collect import collect
from deploykit.report.compare import compare
from deploykit.report.record import record_of
from deploykit.report.settings import ReportSettings
from tests.report.evidence import latencies, latency, model, seal, validation


def recorded(tmp_path, settings=None):
    sides = collect(tmp_path / "head", "head"), collect(tmp_path / "base", "baseline")
    chosen = settings or ReportSettings()
    return record_of(*sides, compare(*sides, chosen), chosen)


def test_sides_are_named_by_their_models_or_by_folders_where_those_agree(tmp_path):
    seal(tmp_path / "head" / "validation", *validation(model("model"), 0.9))
    seal(tmp_path / "base" / "validation", *validation(model("model"), 0.9))
    record = recorded(tmp_path)
    assert (record["head"]["name"], record["baseline"]["name"]) == ("head", "base")


def test_an_empty_side_is_named_by_its_folder(tmp_path):
    seal(tmp_path / "head" / "validation", *validation(model("small"), 0.9))
    (tmp_path / "base").mkdir()
    record = recorded(tmp_path)
    assert (record["head"]["name"], record["baseline"]["name"]) == ("small", "base")
    assert record["verdict"] == "inconclusive"


def test_classes_and_slices_stand_beside_each_other(tmp_path):
    seal(tmp_path / "head" / "validation", *validation(model("head"), 0.8))
    seal(tmp_path / "base" / "validation", *validation(model("base"), 0.9))
    (quality,) = recorded(tmp_path)["accuracy"]
    assert quality["classes"][0] == {
        "label": "negative", "support": 200, "original": 0.9, "baseline": pytest.approx(0.89),
        "head": pytest.approx(0.79),
    }  # fmt: skip
    assert quality["slices"][1]["value"] == "tweets"
    assert quality["slices"][1]["baseline"] - quality["slices"][1]["head"] == pytest.approx(0.1)


def test_percentiles_are_judged_or_shown_and_all_have_their_numbers(tmp_path):
    base = model("base")
    found = latency(model("head"), latencies(1, seed=1), latencies(2), reference=base)
    seal(tmp_path / "head" / "latency", *found)
    seal(tmp_path / "base" / "validation", *validation(base, 0.9))
    (scenario,) = recorded(tmp_path, ReportSettings(percentiles=(75,)))["latency"]
    assert [(row["percentile"], row["verdict"]) for row in scenario["percentiles"]] == [
        (50, "none"), (75, "pass"), (90, "none"), (95, "none"), (99, "none"),
    ]  # fmt: skip
    assert all(row["ratio"] == row["head_ms"] / row["baseline_ms"] for row in scenario["percentiles"])


def test_infinite_latencies_are_null_in_the_record(tmp_path):
    head = latencies(1)
    head[:100] = math.inf
    seal(tmp_path / "head" / "latency", *latency(model("head"), head))
    seal(tmp_path / "base" / "latency", *latency(model("base"), latencies(1)))
    (scenario,) = recorded(tmp_path)["latency"]
    row = next(row for row in scenario["percentiles"] if row["percentile"] == 95)
    assert (row["verdict"], row["head_ms"], row["ratio"]) == ("fail", None, None)
