import contextlib
import io
import json

import numpy as np
import pytest

from deploykit import artifact, cli, commands, evidence
from deploykit.check import latency
from deploykit.check.latency_tables import throughput_of
from deploykit.check.memory import peak_bytes
from deploykit.check.steps import PYTORCH, TURN, Steps, chain_of, checkpoint_bytes, rows_of, slower
from deploykit.compress.compress import Prune, Quantize
from deploykit.errors import ArtifactError, DeploykitError
from deploykit.runtime.model_info import GRAPH

STEP = {"stage": "original", "metric": "accuracy", "value": 0.9}


@pytest.fixture(scope="module")
def compressed(bert, reviews, tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    stages = (Prune(ffn=0.5, multiple=8, calibration_rows=16), Quantize())
    return commands.compress(bert, stages, data=reviews, out=folder / "compressed")


@pytest.fixture(scope="module")
def benched(compressed, reviews, tmp_path_factory):
    """What `deploykit bench` of a compressed checkpoint wrote, and printed."""
    out, printed = tmp_path_factory.mktemp("steps") / "evidence", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main(["bench", str(compressed.path), "--data", str(reviews), "--out", str(out)]) == 0
    return artifact.verified(out), printed.getvalue()


@pytest.fixture(scope="module")
def measured(benched):
    return benched[0]


def test_every_step_is_measured_from_pytorch_to_the_last(measured):
    rows = evidence.load(measured.path).details["steps"]
    assert [row["stage"] for row in rows] == [PYTORCH, "original", "prune", "quantize"]
    assert rows[0]["single_speedup"]["value"] == rows[0]["offline_speedup"]["value"] == 1.0
    assert all(row["p50_ms"] > 0 and row["throughput_per_s"] > 0 for row in rows)
    assert rows[1]["size_bytes"] > rows[2]["size_bytes"] > rows[3]["size_bytes"]
    assert rows[0]["memory_bytes"] > rows[3]["memory_bytes"] > 10_000_000, "PyTorch itself takes memory"


def test_an_export_inside_the_originals_folder_is_none_of_its_bytes(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    (tmp_path / "onnx").mkdir()
    for file in ("model.onnx", "onnx/model.onnx", "onnx/model.safetensors"):
        (tmp_path / file).write_bytes(b"1234567890")
    assert checkpoint_bytes(tmp_path) == 5


def test_every_raw_sample_is_kept(measured):
    single, offline = (
        [np.load(measured.path / f"{name}.{at}.npy") for at in range(4)] for name in ("single", "offline")
    )
    assert len({len(samples) for samples in single}) == len({len(samples) for samples in offline}) == 1
    rows = evidence.load(measured.path).details["steps"]
    assert [row["p50_ms"] for row in rows] == [latency.summary(samples)["p50_ms"] for samples in single]
    assert [row["throughput_per_s"] for row in rows] == [
        throughput_of(latency.summary(samples))["throughput_per_s"] for samples in offline
    ]


def test_a_row_is_timed_after_a_turn_that_is_not():
    answered: list[str] = []

    def predict(rows):
        answered.extend(row["text"] for row in rows if len(rows) == 1)

    samples = Steps(calls=30, rows=2, passes=1)._samples({"0": predict}, [{"text": str(n)} for n in range(100)])
    turns = [list(map(int, answered[start : start + TURN])) for start in range(0, len(answered), TURN)]
    timed = turns[2::2]  # a turn warms up, and then every other one is not timed
    assert [turn[0] for turn in timed] == [0, 5, 10, 15, 20, 25]
    assert len(samples["single"][0]) == len(timed) == len(turns) // 2
    assert all(set(turn).isdisjoint(before) for before, turn in zip(turns[1::2], timed, strict=True))


def test_the_chain_reaches_the_original(compressed, bert):
    chain = chain_of(compressed)
    assert [step.node.stage for step in chain[1:]] == ["prune", "quantize"]
    assert chain[0].path == bert


def test_an_original_has_no_steps(bert, reviews, tmp_path):
    with pytest.raises(ArtifactError, match="compressed"):
        commands.bench_steps(bert, Steps(), data=reviews, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_speed_ups_are_those_of_the_samples():
    rng = np.random.default_rng(0)
    base_N = rng.lognormal(0, 0.01, 50)
    samples = {"single": [8 * base_N, 4 * base_N, 2 * base_N], "offline": [2 * base_N, base_N, base_N]}
    steps = [STEP, {**STEP, "stage": "quantize", "value": 0.8}]
    rows = rows_of(steps, samples, sizes=[3, 2, 1], memory=[30, 20, 10])
    assert [row["single_speedup"]["value"] for row in rows] == pytest.approx([1, 2, 4])
    assert [row["offline_speedup"]["value"] for row in rows] == pytest.approx([1, 2, 2])
    assert [(row["value"], row["size_bytes"], row["memory_bytes"]) for row in rows] == [
        (0.9, 3, 30),
        (0.9, 2, 20),
        (0.8, 1, 10),
    ]


@pytest.mark.parametrize("setting", [{"calls": 0}, {"rows": -1}, {"seconds": float("inf")}, {"threads": 0}])
def test_what_cannot_be_measured_is_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        Steps(**setting)


def test_a_process_that_fails_is_named(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / GRAPH).touch()
    with pytest.raises(DeploykitError, match="broken"):
        peak_bytes(tmp_path / "broken", [{"text": "good"}])


def test_the_report_draws_the_steps(measured, tmp_path):
    from deploykit.report import ReportSettings, report
    from tests.report.evidence import model, seal, validation

    for side in ("head", "base"):
        seal(tmp_path / side / "validation", *validation(model(side), 0.9))
    artifact.copy(measured, tmp_path / "head" / "steps")
    report(tmp_path / "head", tmp_path / "base", tmp_path / "report", ReportSettings())
    record = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [row["stage"] for row in record["steps"]] == [PYTORCH, "original", "prune", "quantize"]
    page, text = ((tmp_path / "report" / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "What each step gave" in page
    assert "What each step gave" in text


def test_bench_of_a_compressed_checkpoint_prints_its_steps_and_takes_no_scenario(
    compressed, benched, reviews, tmp_path, capsys
):
    assert all(step in benched[1] for step in (PYTORCH, "original", "prune", "quantize"))
    args = ["bench", str(compressed.path), "--data", str(reviews), "--out", str(tmp_path / "out")]
    assert cli.main([*args, "--scenario", "single"]) == 2
    assert "scenarios" in capsys.readouterr().err


def test_a_step_that_made_a_row_slower_is_told_and_no_other():
    rng = np.random.default_rng(0)
    base_N = rng.lognormal(0, 0.01, 50)
    noise_N = rng.lognormal(0, 0.01, 50)
    rows = [{"stage": name} for name in (PYTORCH, "original", "prune", "quantize", "again")]
    said = slower(rows, [base_N, 2 * base_N, base_N, 1.5 * base_N, 1.5 * base_N * noise_N])
    assert len(said) == 1
    assert "after quantize a row takes 1.5 times as long" in said[0]
    assert slower(rows[:2], [base_N, 2 * base_N]) == []
