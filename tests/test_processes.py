"""Several processes of one command, started as users start them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploykit import artifact, processes

RECIPE = """
stages:
  - distil: {layers: 1, epochs: 2, batch_size: 8}
  - prune: {heads: 0.25, epochs: 1, batch_size: 8}
  - quantize: {scheme: dynamic-int8}
"""


def launched(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "deploykit", *arguments]
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )


def test_alone_nothing_is_waited_for_and_the_first_process_writes(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")  # a cluster's own, without a launcher
    monkeypatch.setenv("RANK", "3")
    processes.wait()
    assert (processes.count(), processes.is_first(), processes.from_first("a")) == (1, True, "a")


@pytest.mark.slow
def test_two_processes_make_one_checkpoint_and_print_one_result(bert, reviews, tmp_path):
    flags = ("--data", reviews, "--out", tmp_path / "out", "--json")
    done = launched("finetune", bert, "--task", "text-classification", "--epochs", "2", "--batch-size", "8", *flags)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["digest"] == artifact.verified(tmp_path / "out").digest
    assert done.stderr.count("training: step 12/12") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    again = launched("finetune", bert, "--task", "text-classification", "--epochs", "2", "--batch-size", "8", *flags)
    assert (again.returncode, again.stdout) == (0, done.stdout)


@pytest.mark.slow
def test_two_processes_do_a_whole_recipe(bert, reviews, tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    flags = ("--data", reviews, "--recipe", tmp_path / "recipe.yaml", "--out", tmp_path / "out", "--json")
    for _ in range(2):
        done = launched("compress", bert, *flags)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["digest"] == artifact.verified(tmp_path / "out").digest
    rows = json.loads((tmp_path / "out" / "waterfall.json").read_text())
    assert [row["stage"] for row in rows] == ["original", "distil", "prune", "quantize"]
    assert not list((tmp_path / "cache" / "stages").glob(".*.partial"))


@pytest.mark.slow
def test_an_error_ends_both_processes(bert, reviews, tmp_path):
    done = launched(
        "finetune", bert, "--task", "text-classification", "--data", tmp_path / "none", "--out", tmp_path / "o"
    )
    assert done.returncode != 0
    assert "exitcode  : 3" in done.stderr
    assert not (tmp_path / "o").exists()
