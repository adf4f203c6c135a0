"""The table of quantizations: which rows have no point, what is offered, and the whole benchmark on a tiny model."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from benchmarks import quantization
from benchmarks.quantization import FP32, INT8, pointless, recipes, table
from deploykit.compress.calibrate import CALIBRATIONS
from deploykit.compress.compress import Quantize, Smooth
from deploykit.errors import DataError
from deploykit.spec import Scheme

DROP = 0.01


def row(name: str, speed: float, *, offline: float | None = None, mb: float = 20, metric: float = 0.8) -> Any:
    """A row of the table whose speeds over float32 are known to 2%."""
    speeds = {"single": speed, "offline": speed if offline is None else offline}
    found = {
        each: {"over_baseline": {"value": value, "low": 0.98 * value, "high": 1.02 * value}}
        for each, value in speeds.items()
    }
    return {"name": name, "size_bytes": mb * 1e6, "metric": {"value": metric}, "graph": name, **found}


REFERENCE = row(FP32, 1.0, mb=80)


def test_what_is_no_faster_and_no_smaller_has_no_point():
    reason = "neither measurably faster nor smaller than fp32"
    assert pointless([REFERENCE, row("a", 1.01, mb=80)]) == {"a": reason}
    assert pointless([REFERENCE, row("a", 0.9, mb=79.5)]) == {"a": reason}
    assert pointless([REFERENCE, row("faster offline", 1.0, offline=1.1, mb=80)]) == {}
    assert pointless([REFERENCE, row("smaller", 0.2, mb=20)]) == {}


def test_a_row_that_another_beats_in_everything_has_no_point():
    best = row("best", 2.0)
    assert pointless([REFERENCE, best, row("a", 1.5)]) == {"a": "best is faster, no larger and loses no more"}
    for kept in (row("smaller", 1.5, mb=10), row("better", 1.5, metric=0.81), row("offline", 1.5, offline=2.5)):
        assert pointless([REFERENCE, best, kept]) == {}


def test_a_difference_within_the_intervals_beats_nothing():
    assert pointless([REFERENCE, row("a", 2.0), row("b", 2.05)]) == {}


def test_without_an_interval_nothing_is_told_faster():
    unsure = row("a", 3.0, mb=80)
    for each in quantization.SCENARIOS:
        unsure[each]["over_baseline"] |= {"low": None, "high": None}
    assert list(pointless([REFERENCE, unsure])) == ["a"]
    assert pointless([REFERENCE, row("small", 1.5), unsure])["a"].startswith("neither")


def test_the_same_graph_twice_is_said():
    first, second = row("first", 2.0), row("second", 2.2)
    assert pointless([REFERENCE, first, second | {"graph": "first"}]) == {"second": "the same graph as first"}


def test_float32_alone_is_not_judged():
    assert pointless([REFERENCE]) == {}


def test_every_scheme_calibration_and_rounding_is_offered():
    stages = [each for recipe in recipes(DROP, 1).values() for each in recipe]
    decided = [each for each in stages if isinstance(each, Quantize)]
    assert {each.scheme for each in decided} == set(get_args(Scheme))
    assert {each.calibration for each in decided} - {None} == set(CALIBRATIONS)
    assert {each.rounding for each in decided} - {None} == {"nearest", "gptq"}
    assert {each.weight_bits for each in decided} - {None} == {8}
    assert {each.max_drop for each in decided} - {None} == {DROP}
    assert {each.verb for each in stages} == {"quantize", "smooth", "train-quantized"}
    assert "train-quantized" not in {each.verb for recipe in recipes(DROP, 0).values() for each in recipe}


@pytest.fixture
def arguments(bert: Path, reviews: Path, tmp_path: Path) -> list[str]:
    few = ["--threads", "1", "--rows", "12"]
    kept = ["--models", str(tmp_path / "models"), "--out", str(tmp_path / "result.json")]
    return [str(bert), "--data", str(reviews), *few, *kept]


def test_the_benchmark_runs_prints_and_keeps_its_models(arguments, tmp_path, monkeypatch, capsys):
    few = {
        FP32: (),
        INT8: (Quantize(),),
        "again": (Quantize(weight_bits=7, keep_float=()),),
        "smooth": (Smooth(calibration_rows=32), Quantize(embeddings="float32")),
        "fp16": (Quantize(scheme="fp16", calibration_rows=32),),
    }
    monkeypatch.setattr(quantization, "recipes", lambda *_settings: few)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    assert quantization.main(arguments) == 0
    said = capsys.readouterr().out
    result = json.loads(said.splitlines()[-1])
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert [each["name"] for each in result["systems"]] == [FP32, INT8, "again", "smooth"]
    reference, int8, again, smooth = result["systems"]
    assert reference["drop"]["value"] == 0
    assert int8["size_bytes"] < smooth["size_bytes"] < reference["size_bytes"]
    assert int8["single"]["over_int8"]["value"] == pytest.approx(1)
    assert again["pointless"] == "the same graph as dynamic int8"
    assert [list(each) for each in smooth["stages"]] == [["smooth"], ["quantize"]]
    (failed,) = result["failed"]
    assert failed["name"] == "fp16"
    assert "not run: " + failed["reason"] in said
    made = tmp_path / "models" / INT8.replace(" ", "-") / "manifest.json"
    before = made.stat().st_mtime_ns
    assert quantization.main(arguments) == 0
    assert made.stat().st_mtime_ns == before
    rows = [line for line in table(result).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {13}


def test_bad_input_is_one_line_and_its_exit_code(arguments, capsys, tmp_path):
    arguments[2] = str(tmp_path / "none")
    assert quantization.main(arguments) == DataError.exit_code
    assert len(capsys.readouterr().err.splitlines()) == 1
