"""What a search found, drawn: every recipe, the edge of the front, the limits; nothing of it where none was made."""

import re
from pathlib import Path
from typing import Any

import pytest

from deploykit import artifact
from deploykit.errors import UsageError
from deploykit.evidence import Evidence, Subject
from deploykit.report import ReportSettings, charts, report
from tests.report.evidence import MACHINE, TEXTS, model, seal, validation


def found(**changes: Any) -> dict[str, Any]:
    values = [  # trial, drop, ms, megabytes, front, within
        (0, 0.001, 3.0, 23, True, True), (1, 0.004, 1.9, 18, True, True), (2, 0.009, 1.2, 16, True, True),
        (3, 0.012, 0.8, 15, True, False), (4, 0.006, 2.6, 19, False, True), (5, 0.05, 0.9, 16, False, False),
    ]  # fmt: skip
    points = [
        {
            "trial": trial, "metric": 0.85 - drop, "drop": drop, "drop_low": drop - 0.01, "drop_high": drop + 0.01,
            "ms": ms, "ms_low": ms * 0.97, "ms_high": ms * 1.03, "num_bytes": megabytes * 1_000_000, "front": front,
            "within": within, "recipe": [{"distil": {"layers": 2}}, {"quantize": {}}],
            "words": "distil layers=2 <b>, quantize",
        }
        for trial, drop, ms, megabytes, front, within in values
    ]  # fmt: skip
    record: dict[str, Any] = {
        "format": 1, "metric": "accuracy", "split": "validation", "budget": {"max_drop": 0.01, "target_ms": 2.0},
        "original": {"metric": 0.85, "ms": 5.7, "num_bytes": 90_900_000}, "points": points,
        "best": {"trial": 2, "verdict": "pass", "reason": "trial 2: accuracy 0.8410, 0.01 is allowed"},
        "failed": [{"trial": 6, "reason": "its process died"}], "final": None,
    }  # fmt: skip
    return record | changes


def evidence_of(subject: Subject, record: dict[str, Any]) -> tuple[Evidence, dict[str, Any]]:
    known: dict[str, Any] = {
        "environment": MACHINE,
        "environment_key": "machine-1",
        "data": TEXTS,
        "split": "validation",
    }
    return Evidence("search", subject, "pass", (), (), details=record, **known), {}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    seal(tmp_path / "head" / "validation", *validation(model("head"), 0.905))
    seal(tmp_path / "head" / "search", *evidence_of(model("head"), found()))
    seal(tmp_path / "base" / "validation", *validation(model("base"), 0.91))
    return tmp_path


def written(folders: Path) -> Path:
    report(folders / "head", folders / "base", folders / "report", ReportSettings())
    return folders / "report"


def test_the_search_of_the_head_is_in_every_form_of_the_report(folders):
    out = written(folders)
    assert artifact.read_json(out / "report.json")["search"] == found()
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    assert "<h2>Search</h2>" in page
    assert "trial 2: accuracy 0.8410" in page
    assert "distil layers=2 &lt;b&gt;, quantize" in page
    assert "its process died" in page
    assert "## Search" in text
    assert "| 2 | 0.8410 | +0.90 | 1.20 ms | 16.0 MB | distil layers=2 &lt;b>, quantize |" in text
    assert "| 4 |" not in text


def test_without_a_search_there_is_nothing_of_it(folders):
    seal(folders / "plain" / "validation", *validation(model("head"), 0.905))
    report(folders / "plain", folders / "base", folders / "report", ReportSettings())
    assert artifact.read_json(folders / "report" / "report.json")["search"] is None
    assert "Search" not in (folders / "report" / "report.html").read_text()
    assert "Search" not in (folders / "report" / "report.md").read_text()


def test_a_search_for_another_model_is_refused(folders):
    seal(folders / "other" / "validation", *validation(model("other"), 0.905))
    seal(folders / "other" / "search", *evidence_of(model("head"), found()))
    with pytest.raises(UsageError, match="evidence on one model"):
        report(folders / "other", folders / "base", folders / "report", ReportSettings())


def test_every_recipe_and_the_original_are_drawn_and_the_chosen_one_is_marked():
    place = {"ms": 1.0, "metric": 0.8, "megabytes": 10.0, "label": "", "edge": False}
    points = [
        {**place, "ms": 1.0 + index, "kind": kind} for index, kind in enumerate(("best", "front", "within", "beyond"))
    ]
    original = {"ms": 9.0, "metric": 0.9, "megabytes": 90.0, "label": "original"}
    drawn = charts.pareto(points, original, {"metric": 0.79, "ms": 2.0, "title": "accuracy"})
    for colour in ("--head", "--pass", "--muted", "--fail", "--baseline"):
        assert len(re.findall(rf'fill="var\({colour}\)"', drawn)) == 1, colour
    assert drawn.count('stroke="var(--fail)"') == 2
    without = charts.pareto(points, original, {"metric": 0.79, "ms": None, "title": "accuracy"})
    assert without.count('stroke="var(--fail)"') == 1
    assert charts.pareto([], original, {"metric": 0.79, "ms": None, "title": "accuracy"}).startswith("<svg")
