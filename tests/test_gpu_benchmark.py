"""The GPU benchmark without a GPU: it says so; and what of it needs none."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import attempted, table
from benchmarks.turns import Call
from deploykit import artifact
from deploykit.errors import EnvironmentMissing


def noop() -> None:
    pass


def test_without_a_gpu_it_exits_4_with_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([str(tmp_path), "--data", str(tmp_path), "--out", str(tmp_path / "result.json")]) == 4
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert "expected an NVIDIA GPU" in said.err
    assert not (tmp_path / "result.json").exists()


def test_pytorchs_numbers_alone_are_no_result(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("deploykit.export.write._unusable", lambda *_: ["no driver"])
    with pytest.raises(EnvironmentMissing, match="ONNX Runtime to start on the GPU, found no driver"):
        gpu._exported(artifact.adopt(bert, "checkpoint"), tmp_path, {})


def test_a_system_that_fails_is_named_with_its_reason_and_not_timed():
    def broken() -> Call:
        raise RuntimeError("no such kernel\nand a long trace")

    calls: dict[str, Call] = {}
    failed: dict[str, str] = {}
    attempted(calls, failed, "works", lambda: noop)
    attempted(calls, failed, "breaks", broken)
    assert list(calls) == ["works"]
    assert failed == {"breaks": "RuntimeError: no such kernel"}


def test_the_table_shows_where_nodes_ran_speed_and_failures():
    truth = {"provider": "cuda", "heavy": 10, "misplaced": ["MatMul_3"], "copies": 2, "max_abs": 1e-6}
    result = {
        "exports": {"deploykit cuda fp16": truth},
        "shapes": [{"shape": [32, 128], "p50_ms": {"slow": 4.0, "fast": 2.0}}],
        "failed": {"deploykit tensorrt fp16": "no TensorRT"},
    }
    drawn = table(result)
    assert "heavy nodes on cuda 9/10" in drawn
    assert drawn.index("fast") < drawn.index("slow")
    assert "16000 rows/s" in drawn
    assert "deploykit tensorrt fp16: not run: no TensorRT" in drawn


@pytest.mark.gpu
def test_on_a_gpu_every_heavy_node_runs_there(
    bert: Path, reviews: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    assert gpu.main([str(bert), "--data", str(reviews), "--runs", "10"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all(found["ok"] for found in result["exports"].values())
    assert "deploykit cuda fp16" in result["exports"]
