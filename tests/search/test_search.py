"""A whole search on tiny models: what it leaves, that it goes on, and that a kill in the middle costs nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from deploykit import artifact, cli, commands, evidence, recipe
from deploykit.search import confirm, worker
from deploykit.search.settings import SearchSettings
from deploykit.search.trial import recipe_text, try_recipe
from tests.models import make_checkpoint, make_dataset

PIPELINE = """\
task: text-classification
data: reviews
checkpoint: model
compress:
  - prune: {heads: 0.25, multiple: 1}
  - quantize: {}
export: {provider: cpu, precision: int8}
validate: {max_drop: 0.5, parity_rows: 8, invariance_rows: 4}
bench: {scenarios: [single], calls: 20, warm_up: 2, seconds: 1, threads: 1}
report: {max_slowdown: 9.0, max_drop: 0.9, max_growth: 9.0}
search:
  distil: {layers: [0, 1], heads: null, ffn: null, epochs: 1, augment: 0, splice: 0, learning_rate: [1.0e-4, 1.0e-3]}
  prune: {heads: [0, 0.25], ffn: 0, epochs: 0, multiple: 1}
  prune-post-training: false
  train-quantized: false
"""
STUDENTS = """\
search:
  distil: {layers: 1, student: [null, small], average: [false, true], unlabeled: more.txt, epochs: 1,
    heads: null, ffn: null, augment: 0, splice: 0, learning_rate: 1.0e-4}
  prune: false
  prune-post-training: false
  train-quantized: false
"""


def write_pipeline(folder: Path, text: str = PIPELINE) -> Path:
    """A checkpoint and rows whose labels are the checkpoint's own answers: it is right in all of them."""
    make_checkpoint(folder / "model", seed=2)  # one that gives both answers
    make_dataset(folder / "reviews", rows=24)
    model = commands.export(folder / "model", recipe_export(), out=folder / "exported").path
    for split in ("validation", "test"):
        file = folder / "reviews" / f"{split}.jsonl"
        commands.predict(model, source=file, out=folder / f"{split}.answers")
        answers = (folder / f"{split}.answers").read_text().splitlines()
        rows = zip(file.read_text().splitlines(), answers, strict=True)
        labelled = [{**json.loads(row), "label": json.loads(answer)["label"]} for row, answer in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in labelled))
    (folder / "pipeline.yaml").write_text(text)
    return folder / "pipeline.yaml"


def recipe_export() -> Any:
    from deploykit.export.export import Export

    return Export()


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory):
    """A finished search of three trials: its pipeline, its folder and what it found. Read only."""
    folder = tmp_path_factory.mktemp("searched")
    pipeline = write_pipeline(folder)
    said: list[str] = []
    found = commands.search(recipe.load_pipeline(pipeline), folder / "out", SearchSettings(trials=3), say=said.append)
    return pipeline, folder / "out", found, said


def test_a_search_ends_with_a_confirmed_model_its_checkpoint_and_its_recipe(searched):
    _, out, found, _ = searched
    assert found.verdict == "pass", found.gates
    best = out / "best"
    model = artifact.verified(best / "model")
    assert model.digest == found.model.digest
    stages = recipe.load_recipe(best / "recipe.yaml")
    assert artifact.verified(best / "compressed").node.stage == stages[-1].verb
    proof = evidence.load(out / "validation")
    assert (proof.subject.digest, proof.split, proof.verdict) == (model.digest, "test", "pass")
    assert {"budget", "accuracy", "labels"} <= {gate.name for gate in found.gates}
    assert {"accuracy", "size_bytes", "p50_ms"} <= {metric.name for metric in found.metrics}


def test_the_first_trials_are_int8_alone_and_the_pipelines_own_recipe(searched):
    pipeline, _, found, _ = searched
    points = found.record["points"]
    assert points[0]["recipe"] == [{"quantize": {}}]
    assert recipe.stages_of(points[1]["recipe"]) == recipe.load_pipeline(pipeline).compress
    assert len(points) == 3


def test_the_search_is_evidence_and_the_report_draws_it(searched):
    _, out, found, _ = searched
    sealed = evidence.load(out / "search")
    assert sealed.measure == "search"
    assert sealed.details["points"] == artifact.read_json(out / "pareto.json")["points"] == found.record["points"]
    record = artifact.read_json(out / "report" / "report.json")
    assert record["search"] == dict(sealed.details)
    assert found.report is not None
    assert "<h2>Search</h2>" in (out / "report" / "report.html").read_text()


def test_asked_again_it_measures_nothing_anew_and_finds_the_same(searched, monkeypatch):
    pipeline, out, found, _ = searched
    monkeypatch.setattr(worker, "try_recipe", None)
    monkeypatch.setattr(confirm, "timed", None)
    again = commands.search(recipe.load_pipeline(pipeline), out, SearchSettings(trials=3), say=lambda _: None)
    assert (again.model.digest, again.record["points"]) == (found.model.digest, found.record["points"])


def test_students_of_another_start_and_text_without_labels_are_searched_too(tmp_path):
    text = PIPELINE.partition("search:")[0].replace("  - prune: {heads: 0.25, multiple: 1}\n", "") + STUDENTS
    pipeline = write_pipeline(tmp_path, text)
    make_checkpoint(tmp_path / "small", seed=5)
    (tmp_path / "more.txt").write_text("a film\nanother film\n")
    asked = recipe.load_pipeline(pipeline)
    found = commands.search(asked, tmp_path / "out", SearchSettings(trials=9), say=lambda _: None)
    tried = [point["recipe"][0]["distil"] for point in found.record["points"] if "distil" in point["recipe"][0]]
    small = str(tmp_path / "small")
    known = [(each.get("student"), each.get("average"), each["unlabeled"]) for each in tried]
    more = str(tmp_path / "more.txt")
    assert sorted(known, key=str) == sorted([(None, None, more), (small, None, more), (small, True, more)], key=str)
    assert not found.record["failed"]


def test_a_budget_that_cannot_be_met_exits_1_and_names_the_nearest(searched, capsys, monkeypatch):
    pipeline, out, _, _ = searched
    code = cli.main(["search", str(pipeline), "--out", str(out), "--trials", "3", "--target-ms", "1e-6", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert (code, printed["verdict"]) == (1, "fail")
    assert "is the nearest" in printed["warnings"][0]
    assert Path(printed["artifact"]).is_dir()
    assert artifact.read_json(out / "pareto.json")["best"]["verdict"] == "fail"


def test_a_bug_that_one_recipe_meets_is_among_the_warnings_of_what_was_found(searched, tmp_path, monkeypatch):
    def tried(subject, stages, folder):
        if len(stages) > 1:
            raise ArithmeticError("not positive-definite")
        return try_recipe(subject, stages, folder)

    monkeypatch.setattr(worker, "try_recipe", tried)
    pipeline = recipe.load_pipeline(searched[0])
    found = commands.search(pipeline, tmp_path / "out", SearchSettings(trials=1), say=lambda _: None)
    assert not found.warnings
    found = commands.search(pipeline, tmp_path / "out", SearchSettings(trials=9), say=lambda _: None)
    assert found.verdict == "pass"
    assert "trial 1: a bug in deploykit: ArithmeticError: not positive-definite" in found.warnings


def test_a_folder_of_something_else_is_left_alone(searched, tmp_path):
    (tmp_path / "mine").write_text("mine")
    assert cli.main(["search", str(searched[0]), "--out", str(tmp_path)]) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_a_test_set_that_the_search_sees_is_refused(searched, tmp_path, capsys):
    command = ["search", str(searched[0]), "--out", str(tmp_path / "out"), "--set", "validate.split=validation"]
    assert cli.main(command) == 2
    assert "a split that the search does not see" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["max_drop", "target_ms", "minutes", "trials", "workers"])
def test_settings_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=name):
        SearchSettings(**{name: -1})


def test_a_recipe_is_written_as_it_is_read(searched, tmp_path):
    stages = recipe.load_pipeline(searched[0]).compress
    (tmp_path / "recipe.yaml").write_text(recipe_text(stages))
    assert recipe.load_recipe(tmp_path / "recipe.yaml") == stages


@pytest.mark.slow
def test_killed_again_and_again_it_goes_on_and_tries_every_recipe(tmp_path):
    pipeline, out = write_pipeline(tmp_path), tmp_path / "out"

    def start(*flags: str) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, "DEPLOYKIT_CACHE": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "deploykit", "search", str(pipeline), "--out", str(out), *flags]
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    for at_work in (1, 2, 3):
        process = start()
        while process.poll() is None and len(list((out / "trials").glob("*"))) < at_work:
            time.sleep(0.01)
        time.sleep(0.3)
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start("--workers", "2").wait() == 0
    record = artifact.read_json(out / "pareto.json")
    tried = [json.dumps(point["recipe"]) for point in record["points"]]
    assert len(tried) == len(set(tried)) == 6
    study = optuna.load_study(study_name="deploykit", storage=f"sqlite:///{out / 'search.db'}")
    assert study.get_trials(states=[TrialState.FAIL]), "the kills came while no trial was at work"
    assert not record["failed"], "each that died was tried again"
    assert not list(out.rglob("*.partial"))
    assert record["best"]["verdict"] == evidence.load(out / "validation").verdict == "pass"


@pytest.mark.parametrize("command", ["run", "search"])
def test_several_processes_are_refused_in_one_line_before_anything_is_made(
    searched, tmp_path, capsys, monkeypatch, command
):
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert cli.main([command, str(searched[0]), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"deploykit {command}" in line
    assert "without torchrun" in line
    assert not (tmp_path / "out").exists()
