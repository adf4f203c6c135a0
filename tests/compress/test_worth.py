"""Steps that are worth nothing are dropped and told; those that are smaller, better or faster stay."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deploykit import artifact, cli
from deploykit.check.latency import Rounds
from deploykit.check.statistics import Interval
from deploykit.checkpoint import load, open_checkpoint
from deploykit.compress import compress, waterfall, worth
from deploykit.compress.compress import Distil, Prune, Quantize, Smooth, TrainQuantized
from deploykit.compress.worth import Comparison, is_smaller
from deploykit.data import open_dataset
from deploykit.errors import OutputExists
from deploykit.pipeline import PipelineSteps
from deploykit.recipe import load_pipeline
from deploykit.tasks import task_named
from tests.models import VOCABULARY, make_checkpoint, make_dataset

POINTLESS = Distil(layers=2, epochs=1, learning_rate=1e-7)
"""Into as many layers as there are, learning next to nothing."""
BEFORE_N = np.random.default_rng(0).lognormal(0, 0.05, 100)
SAME_N, FASTER_N, SLOWER_N = BEFORE_N[::-1], BEFORE_N / 1.2, BEFORE_N * 1.2


@pytest.fixture
def line(bert: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A two-layer checkpoint, its rows, and a cache in which nothing is decided yet."""
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    return open_checkpoint(bert), open_dataset(reviews)


@pytest.fixture
def takes(monkeypatch: pytest.MonkeyPatch):
    """Plant the milliseconds that the next steps take, as near to the original as before; return how often asked."""
    asked: list[Any] = []

    def plant(after_N):
        def timed(loaded, split):
            asked.append(loaded)
            return [BEFORE_N, after_N]

        monkeypatch.setattr(worth, "timed", timed)
        monkeypatch.setattr(worth, "nearness", lambda *_: Interval(1.0, 0.95, 1.05))
        return asked

    return plant


def compressed(line, stages, out: Path, **settings):
    source, data = line
    return compress.compress(source, data, stages, out, **settings)


@pytest.mark.parametrize(
    ("before", "now", "said"), [(1000, 990, True), (1000, 991, False), (9, 9, False), (0, 0, True)]
)
def test_a_hundredth_of_the_bytes_is_smaller(before: int, now: int, said: bool):
    assert is_smaller(before, now) == said


@pytest.mark.parametrize(
    ("gain", "nearness", "speedup", "said"),
    [
        (Interval(0.1, 0.01, 0.2), None, None, True),
        (Interval(0.1, 0.0, 0.2), None, Interval(1.1, 1.01, 1.2), True),
        (Interval(0.1, -0.01, 0.2), None, Interval(1.5, 1.0, 2.0), False),
        (Interval(0.0, 0.0, 0.0), None, Interval(1.5, None, None), False),
        (Interval(float("nan"), float("nan"), float("nan")), None, Interval(0.5, 0.4, 0.6), False),
        (Interval(-0.1, -0.2, 0.0), Interval(1.2, 1.06, 1.4), None, True),
        (Interval(-0.1, -0.2, -0.01), Interval(1.2, 1.06, 1.4), Interval(0.9, 0.8, 1.0), False),
        (Interval(0.1, -0.01, 0.2), Interval(1.2, 1.05, 1.4), Interval(0.9, 0.8, 1.0), False),
        (Interval(0.1, -0.01, 0.2), Interval(1.2, None, None), Interval(0.9, 0.8, 1.0), False),
    ],
)
def test_only_what_is_measurably_better_nearer_or_faster_is_worth_it(gain, nearness, speedup, said: bool):
    assert Comparison(gain, nearness, speedup).is_worth_it == said


def test_a_step_that_is_faster_but_not_smaller_stays(line, takes, tmp_path: Path):
    asked = takes(FASTER_N)
    made = compressed(line, (POINTLESS, Quantize()), tmp_path / "out")
    assert [row["stage"] for row in waterfall.read(made.path)] == ["original", "distil", "quantize"]
    assert len(asked) == 1, "the quantization is smaller, and needs no clock"
    assert waterfall.DROPPED not in made.facts


def test_no_time_enters_the_digest_of_what_stays(line, takes, tmp_path: Path):
    takes(FASTER_N)
    first = compressed(line, (POINTLESS,), tmp_path / "out")
    takes(BEFORE_N / 2)
    for file in (tmp_path / "cache" / "decisions").glob("*.json"):
        file.unlink()
    assert compressed(line, (POINTLESS,), tmp_path / "again").digest == first.digest


@pytest.mark.parametrize("after_N", [SAME_N, SLOWER_N])
def test_a_step_that_is_neither_is_dropped_and_the_next_goes_on_before_it(line, takes, tmp_path: Path, after_N):
    takes(after_N)
    told: list[Any] = []
    made = compressed(line, (POINTLESS, Prune(ffn=0.5, multiple=8), Quantize()), tmp_path / "out", on_row=told.append)
    assert [row["stage"] for row in told] == ["original", "distil", "prune", "quantize"]
    assert [row["stage"] for row in waterfall.read(made.path)] == ["original", "prune", "quantize"]
    assert made.digest == compressed(line, (Prune(ffn=0.5, multiple=8), Quantize()), tmp_path / "without").digest
    (refused,) = made.facts[waterfall.DROPPED]
    assert (refused["stage"], refused["settings"]["layers"]) == ("distil", 2)
    assert refused["num_bytes"] == refused["num_bytes_before"]
    assert (
        refused["speedup"]["low"]
        < refused["speedup"]["value"]
        == pytest.approx(np.sort(BEFORE_N)[49] / np.sort(after_N)[49])
    )
    assert refused["reason"] == told[1]["dropped"]
    assert refused["reason"] in made.facts["warnings"]


def test_a_rerun_reuses_the_decision(line, takes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    takes(SAME_N)
    stages = (POINTLESS, Quantize())
    first = compressed(line, stages, tmp_path / "out")
    monkeypatch.setattr("deploykit.stage._work", None)
    monkeypatch.setattr(worth, "compare", None)
    told: list[Any] = []
    again = compressed(line, stages, tmp_path / "out", on_row=told.append)
    elsewhere = compressed(line, stages, tmp_path / "elsewhere")
    assert first.digest == again.digest == elsewhere.digest
    assert first.facts[waterfall.DROPPED] == again.facts[waterfall.DROPPED] == elsewhere.facts[waterfall.DROPPED]
    assert [row["stage"] for row in told if "dropped" in row] == ["distil"]
    for other in ((Distil(layers=2, epochs=1, learning_rate=1e-6), Quantize()), stages[:1]):
        with pytest.raises(OutputExists):
            compressed(line, other, tmp_path / "out")


def test_on_another_machine_it_is_decided_anew(line, takes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    takes(SAME_N)
    assert compressed(line, (POINTLESS,), tmp_path / "here").node.stage == artifact.IMPORT
    monkeypatch.setattr("deploykit.environment.key", lambda: "another machine")
    takes(FASTER_N)
    assert compressed(line, (POINTLESS,), tmp_path / "there").node.stage == "distil"


def test_where_every_step_is_dropped_the_checkpoint_stays_as_it_was(line, takes, tmp_path: Path):
    takes(SAME_N)
    made = compressed(line, (POINTLESS,), tmp_path / "out")
    assert made.digest == line[0].digest
    assert artifact.verified(tmp_path / "out").facts[waterfall.DROPPED][0]["stage"] == "distil"
    assert load(made).spec == load(line[0]).spec
    assert compressed(line, (POINTLESS,), tmp_path / "out").digest == made.digest
    text = f"task: text-classification\ndata: {line[1].path}\ncheckpoint: {line[0].path}\nbench: {{}}\n"
    (tmp_path / "pipeline.yaml").write_text(text + "compress: [{quantize: {}}]\n")
    steps = PipelineSteps(load_pipeline(tmp_path / "pipeline.yaml"), tmp_path, lambda _: None, force=False)
    assert steps.each_step(made) is None


SMOOTHED = (Smooth(calibration_rows=32), Quantize())


def test_what_prepares_a_quantization_is_judged_by_it_and_dropped(line, takes, tmp_path: Path):
    takes(SAME_N)
    told: list[Any] = []
    made = compressed(line, SMOOTHED, tmp_path / "out", on_row=told.append)
    assert made.digest == compressed(line, (Quantize(),), tmp_path / "without").digest
    assert [(row["stage"], "dropped" in row) for row in told] == [
        ("original", False),
        ("smooth", True),
        ("quantize", False),
    ]
    (refused,) = made.facts[waterfall.DROPPED]
    assert (refused["stage"], refused["settings"]["alpha"]) == ("smooth", 0.5)
    assert "quantize after it neither smaller, better nor faster than without it" in refused["reason"]
    assert compressed(line, SMOOTHED, tmp_path / "out").digest == made.digest


def test_what_prepares_a_quantization_stays_where_that_is_better_for_it(line, tmp_path: Path, monkeypatch):
    asked = []

    def compare(before, made, _judge):
        asked.append([[row["stage"] for row in waterfall.read(each.path)] for each in (before, made)])
        return Comparison(Interval(0.1, 0.05, 0.2), None, None)

    monkeypatch.setattr(worth, "compare", compare)
    made = compressed(line, SMOOTHED, tmp_path / "out")
    assert [row["stage"] for row in waterfall.read(made.path)] == ["original", "smooth", "quantize"]
    assert asked == [[["original", "quantize"], ["original", "smooth", "quantize"]]]


def test_both_of_two_preparations_are_judged(line, takes, tmp_path: Path):
    takes(SAME_N)
    trained = TrainQuantized(epochs=1, learning_rate=1e-9)
    made = compressed(line, (SMOOTHED[0], trained, Quantize()), tmp_path / "out")
    assert [row["stage"] for row in waterfall.read(made.path)] == ["original", "quantize"]
    assert [refused["stage"] for refused in made.facts[waterfall.DROPPED]] == ["smooth", "train-quantized"]


def test_a_preparation_with_another_step_between_is_not_judged(line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worth, "compare", None)
    told: list[Any] = []
    stages = (SMOOTHED[0], Prune(ffn=0.5, multiple=8), Quantize())
    made = compressed(line, stages, tmp_path / "out", on_row=told.append)
    assert [row["stage"] for row in waterfall.read(made.path)] == [row["stage"] for row in told]
    assert [row["stage"] for row in told] == ["original", "smooth", "prune", "quantize"]


def test_a_step_that_missed_its_target_is_not_hidden(monkeypatch: pytest.MonkeyPatch):
    row = {"num_bytes": 9, "missed": "2 times as fast; 1.2 at best"}
    monkeypatch.setattr(waterfall, "read", lambda _: [{"num_bytes": 9}, row])
    monkeypatch.setattr(worth, "compared", None)
    made: Any = SimpleNamespace(path=None)
    assert worth.dropped(made, made, made) is None


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch):
    """Plant how many of 100 rows each of the two models has right."""

    def plant(*right: int):
        rows = [(np.arange(100) < count).astype(np.float64)[:, None] for count in right]
        found = iter([SimpleNamespace(row_stats=each, statistic=lambda sums: sums[..., 0] / 100) for each in rows])
        task = SimpleNamespace(read=task_named("text-classification").read, score=lambda *_: next(found))
        monkeypatch.setattr(worth, "task_named", lambda _: task)

    return plant


def judged(line, before=None, made=None):
    source, data = line
    return worth.compare(before or source, made or source, worth.Judge(source, data))


def test_a_measurable_gain_in_the_metric_stays_without_a_clock(line, scores, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worth, "timed", None)
    scores(70, 85)
    found = judged(line)
    assert found.is_worth_it
    assert found.gain.value == pytest.approx(0.15)


def test_a_gain_of_one_row_is_none(line, takes, scores):
    takes(SAME_N)
    scores(70, 71)
    assert not judged(line).is_worth_it


@pytest.fixture
def two_cuts(line, tmp_path: Path):
    """The checkpoint with an eighth of its neurons gone, and with seven eighths."""
    return [compressed(line, (Prune(ffn=share, multiple=8),), tmp_path / str(share)) for share in (0.125, 0.875)]


def test_what_is_nearer_to_the_original_stays_without_a_clock(line, two_cuts, scores, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worth, "timed", None)
    near, far = two_cuts
    scores(70, 70)
    found = judged(line, far, near)
    assert found.nearness is not None
    assert found.nearness.value > 1.5
    assert found.is_worth_it


def test_what_is_farther_is_not_and_the_reason_says_so(line, two_cuts, scores, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worth, "timed", lambda *_: [BEFORE_N, SAME_N])
    near, far = two_cuts
    scores(70, 70)
    found = judged(line, near, far)
    assert found.nearness is not None
    assert found.nearness.value < 0.7
    assert not found.is_worth_it
    row = {"metric": "accuracy", "num_bytes": 10**6}
    assert re.search(r" 0\.\d+ \(95% 0\.\d+ to 0\.\d+\) times as near to the original,", worth._reason(row, row, found))


def test_nothing_is_nearer_where_both_answer_as_the_original(line, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worth, "timed", lambda *_: [BEFORE_N, SAME_N])
    assert judged(line).nearness is None


def test_both_are_exported_and_timed_on_the_users_rows(line, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worth, "_ROUNDS", Rounds(count=8, warm_up=1, seconds=1.0))
    found = judged(line)
    assert found.gain.value == 0.0
    assert found.speedup is not None
    assert found.speedup.value > 0
    assert found.speedup.low is not None


def test_the_command_drops_a_pointless_step_and_the_report_says_so(line, takes, tmp_path: Path, capsys):
    takes(SAME_N)
    make_checkpoint(tmp_path / "model")
    make_dataset(tmp_path / "data")
    with (tmp_path / "data" / "train.jsonl").open("a") as rows:  # every piece in use: none can go
        words = [*(word for word in VOCABULARY if word[0].isalnum()), "films", "filmer", "filmin", "."]
        rows.write(json.dumps({"text": " ".join(words), "label": "positive"}) + "\n")
    (tmp_path / "recipe.yaml").write_text("stages:\n  - prune-vocabulary: {min_count: 1}\n  - quantize: {}\n")
    said = "prune-vocabulary was dropped, neither smaller, better nor faster"
    out, data = tmp_path / "out", str(tmp_path / "data")

    def run(*args: object) -> tuple[int, Any]:
        return cli.main([str(each) for each in args]), capsys.readouterr()

    code, printed = run(
        "compress",
        tmp_path / "model",
        "--data",
        data,
        "--recipe",
        tmp_path / "recipe.yaml",
        "--out",
        out / "compressed",
    )
    assert code == 0
    assert "prune-vocabulary, dropped" in printed.out
    assert said in printed.err
    assert said in run("inspect", out / "compressed")[1].err
    assert [row["stage"] for row in waterfall.read(out / "compressed")] == ["original", "quantize"]
    run("export", out / "compressed", "--out", out / "model")
    proof = ["--reference", tmp_path / "model", "--data", data, "--max-drop", "0.9"]
    assert run("validate", out / "model", *proof, "--out", out / "validation")[0] in (0, 1)
    run("report", out, "--baseline", out, "--out", tmp_path / "report")
    for name in ("report.html", "report.md"):
        text = (tmp_path / "report" / name).read_text()
        assert "Dropped: neither smaller, better nor faster" in text
        assert said in text
    (refused,) = artifact.read_json(tmp_path / "report" / "report.json")["dropped"]
    assert (refused["stage"], refused["settings"]["min_count"]) == ("prune-vocabulary", 1)
