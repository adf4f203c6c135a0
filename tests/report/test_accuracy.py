import pytest

from deploykit.report.accuracy import compare_accuracy
from deploykit.report.collect import collect
from deploykit.report.settings import ReportSettings
from tests.report.evidence import ORIGINAL, TEXTS, model, seal, validation

HEAD, BASE = model("head"), model("base")
DEFAULT = ReportSettings()


def compared(tmp_path, head, base, settings=DEFAULT):
    for side, found in (("head", head), ("base", base)):
        (tmp_path / side).mkdir(parents=True)
        if found is not None:
            seal(tmp_path / side / "validation", *found)
    sides = collect(tmp_path / "head", "head"), collect(tmp_path / "base", "baseline")
    return compare_accuracy(*sides, settings)


def verdicts(qualities):
    return [quality.finding.gate.verdict for quality in qualities]


@pytest.mark.parametrize(("score", "verdict"), [(0.92, "pass"), (0.91, "pass"), (0.905, "pass"), (0.89, "fail")])
def test_a_drop_beyond_the_budget_fails(tmp_path, score, verdict):
    (quality,) = compared(tmp_path, validation(HEAD, score), validation(BASE, 0.91))
    assert quality.finding.gate.verdict == verdict
    assert quality.finding.gate.value == pytest.approx(0.91 - score)


def test_the_budget_is_the_setting(tmp_path):
    settings = ReportSettings(max_drop=0.05)
    assert verdicts(compared(tmp_path, validation(HEAD, 0.87), validation(BASE, 0.91), settings)) == ["pass"]


def test_the_drop_is_against_the_baseline_not_the_original(tmp_path):
    (quality,) = compared(tmp_path, validation(HEAD, 0.88), validation(BASE, 0.885))
    assert quality.drop is not None
    assert (quality.finding.gate.verdict, quality.drop.before) == ("pass", 0.885)


@pytest.mark.parametrize("changes", [{"split": "validation"}, {"data": model("other data")}, {"data": None}])
def test_other_data_or_another_split_is_inconclusive_on_both(tmp_path, changes):
    qualities = compared(tmp_path, validation(HEAD, 0.5, **changes), validation(BASE, 0.91))
    assert verdicts(qualities) == ["inconclusive", "inconclusive"]
    assert all(quality.drop is None for quality in qualities)


@pytest.mark.parametrize("missing", ["head", "base"])
def test_a_missing_validation_is_inconclusive(tmp_path, missing):
    sides = {"head": validation(HEAD, 0.9), "base": validation(BASE, 0.9)} | {missing: None}
    assert verdicts(compared(tmp_path, sides["head"], sides["base"])) == ["inconclusive"]


def test_no_validation_at_all_is_inconclusive(tmp_path):
    assert verdicts(compared(tmp_path, None, None)) == ["inconclusive"]


@pytest.mark.parametrize("side", ["head", "base"])
def test_a_validation_without_accuracy_is_inconclusive(tmp_path, side):
    sides = {"head": validation(HEAD, 0.9), "base": validation(BASE, 0.9)}
    found, _ = sides[side]
    del found.details["accuracy"]
    assert verdicts(compared(tmp_path, sides["head"], sides["base"])) == ["inconclusive"]


def test_another_metric_is_inconclusive(tmp_path):
    head, base = validation(HEAD, 0.9), validation(BASE, 0.9)
    head[0].details["accuracy"]["metric"] = "macro_f1"
    assert verdicts(compared(tmp_path, head, base)) == ["inconclusive"]


def test_a_baseline_that_is_the_original_needs_no_validation_of_its_own(tmp_path):
    seal(tmp_path / "base" / "other", *validation(ORIGINAL, 0.91, split="train"))
    seal(tmp_path / "head" / "validation", *validation(HEAD, 0.905))
    sides = collect(tmp_path / "head", "head"), collect(tmp_path / "base", "baseline")
    first, second = compare_accuracy(*sides, ReportSettings())
    assert first.drop is not None
    assert (first.finding.gate.verdict, first.drop.low, first.drop.high) == ("pass", -0.01, 0.02)
    assert second.finding.gate.verdict == "inconclusive"


def test_every_data_set_is_judged_by_itself(tmp_path):
    for side, scores in (("head", (0.91, 0.7)), ("base", (0.91, 0.91))):
        for split, score in zip(("test", "tweets"), scores, strict=True):
            seal(tmp_path / side / split, *validation(model(side), score, split=split, data=TEXTS))
    sides = collect(tmp_path / "head", "head"), collect(tmp_path / "base", "baseline")
    assert verdicts(compare_accuracy(*sides, ReportSettings())) == ["pass", "fail"]
