"""The whole line on tiny models: it runs, stops at a failed gate, and goes on after a kill to the same digests."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoModel

from deploykit import artifact, cli
from deploykit.pipeline import run_pipeline
from deploykit.recipe import load_pipeline
from tests.models import make_dataset, tiny_config, write_tokenizer

PIPELINE = """\
task: text-classification
data: reviews
base: base
finetune: {epochs: 2, learning_rate: 1e-3, batch_size: 16}
compress:
  - distil: {layers: 2, epochs: 2, learning_rate: 1e-3, batch_size: 16}
  - prune: {heads: 0.25, multiple: 1}
  - quantize: {scheme: dynamic-int8}
validate: {max_drop: 0.9, parity_rows: 16, invariance_rows: 8}
bench: {scenarios: [single, offline], rows: 20, seconds: 0.5, warm_up: 2}
package: {name: tiny}
report: {max_slowdown: 9.0, max_drop: 0.9}
"""
STEPS = ("checkpoint", "compressed", "model", "validation", "bento", "original/model", "original/validation", "bench")
REPEATABLE = ("checkpoint", "compressed", "model", "validation", "bento", "original/model", "original/validation")
"""All but the latency evidence, whose samples are new each time it is measured."""


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    AutoModel.from_config(tiny_config("bert", ["a", "b"], layers=3)).save_pretrained(tmp_path / "base")
    write_tokenizer(tmp_path / "base")
    make_dataset(tmp_path / "reviews")
    (tmp_path / "pipeline.yaml").write_text(PIPELINE)
    return tmp_path / "pipeline.yaml"


def digests(out: Path, names: tuple[str, ...] = REPEATABLE) -> dict[str, str]:
    return {name: artifact.verified(out / name).digest for name in names}


def test_the_line_ends_with_a_bento_and_a_report_and_a_second_run_changes_nothing(pipeline, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["run", str(pipeline), "--out", str(out), "--json"]) in (0, 6)
    printed = json.loads(capsys.readouterr().out)
    first = digests(out, STEPS)
    assert printed["digest"] == first["bento"]
    assert {"accuracy", "p50_ms", "throughput_per_s", "size_bytes"} <= {metric["name"] for metric in printed["metrics"]}
    assert {file.name for file in (out / "report").iterdir()} >= {"report.html", "report.md", "report.json"}
    line = run_pipeline(load_pipeline(pipeline), out, say=lambda _: None)
    assert digests(out, STEPS) == first
    assert not list(out.rglob("*.partial"))
    assert line.bento is not None
    lineage = {node.stage for node in line.bento.node.ancestors()}
    assert lineage >= {"package", "export", "quantize", "prune", "distil", "finetune", "import", "validate"}


def test_nothing_is_packaged_after_a_failed_gate(pipeline, tmp_path, capsys):
    test = tmp_path / "reviews" / "test.jsonl"
    swapped = {"positive": "negative", "negative": "positive"}
    rows = [json.loads(line) for line in test.read_text().splitlines()]
    test.write_text("".join(json.dumps({**row, "label": swapped[row["label"]]}) + "\n" for row in rows))
    out = tmp_path / "out"
    learns = ["--set", "finetune.epochs=30", "--set", "finetune.learning_rate=5e-3", "--set", "finetune.patience=30"]
    assert cli.main(["run", str(pipeline), "--out", str(out), *learns]) == 1
    assert "nothing was packaged" in capsys.readouterr().err
    assert artifact.read_json(out / "validation" / "evidence.json")["verdict"] == "fail"
    assert not (out / "bento").exists()


def test_nothing_is_exported_after_a_target_out_of_reach_and_the_nearest_point_is_kept(pipeline, tmp_path, capsys):
    out, small = tmp_path / "out", ["--set", "compress.1.prune={size_mb: 0.001}", "--set", "finetune.epochs=1"]
    for _ in range(2):
        assert cli.main(["run", str(pipeline), "--out", str(out), *small]) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert "prune.size_mb 0.001" in said
        assert "at best" in said
    assert artifact.verified(out / "compressed").kind == "checkpoint"
    assert not (out / "model").exists()


def test_a_mistake_in_the_pipeline_is_told_before_anything_starts(pipeline, tmp_path, capsys):
    pipeline.write_text(PIPELINE.replace("max_drop: 0.9, parity", "max_dorp: 0.9, parity", 1))
    assert cli.main(["run", str(pipeline), "--out", str(tmp_path / "out")]) == 2
    assert "did you mean max_drop?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_killed_in_every_stage_the_line_ends_with_the_same_digests(pipeline, tmp_path):
    def start(out: Path, cache: str) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, "DEPLOYKIT_CACHE": str(tmp_path / cache)}
        command = [sys.executable, "-m", "deploykit", "run", str(pipeline), "--out", str(out)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    assert start(tmp_path / "whole", "cache-whole").wait() in (0, 6)
    out = tmp_path / "killed"
    for step in STEPS:
        process = start(out, "cache-killed")
        folder = out / step
        while process.poll() is None and not _at_work(folder, tmp_path / "cache-killed"):
            time.sleep(0.002)
        assert process.poll() is None, f"{step} ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not folder.exists()
    assert start(out, "cache-killed").wait() in (0, 6)
    assert digests(out) == digests(tmp_path / "whole")


def _at_work(folder: Path, cache: Path) -> bool:
    """Tell whether the step's scratch folder is there; the stages of compress work in the cache."""
    if folder.name == "compressed":
        return any((cache / "stages").glob(".*.partial"))
    return any(folder.parent.glob(f".{folder.name}.*.partial"))
