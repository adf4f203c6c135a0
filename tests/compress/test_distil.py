import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deploykit import artifact, families, stage
from deploykit import checkpoint as checkpoints
from deploykit.compress.distil import Distil, keep_layers, spread
from deploykit.compress.slicing import slice_parts
from deploykit.data import open_dataset
from deploykit.errors import DataError, UsageError
from deploykit.train.labelled import score
from tests.models import make_checkpoint, make_dataset

EPOCHS = 4
DIES_AFTER_TWO_EPOCHS = f"""
import os, signal, sys
from pathlib import Path
from deploykit import stage
from deploykit.checkpoint import open_checkpoint
from deploykit.compress import distillation
from deploykit.compress.distil import Distil
from deploykit.data import open_dataset
score, calls = distillation.score, []
def dying(*arguments):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return score(*arguments)
distillation.score = dying
model, data, out = map(Path, sys.argv[1:])
stage.run(Distil(layers=1, epochs={EPOCHS}), open_checkpoint(model), open_dataset(data), out=out)
"""


def distilled(model: Path, data: Path, out: Path, **settings):
    made = stage.run(Distil(**settings), checkpoints.open_checkpoint(model), open_dataset(data), out=out)
    return made, checkpoints.load(made)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_a_student_has_fewer_layers_and_reloads_exactly(family: str, task: str, tmp_path: Path):
    model = make_checkpoint(tmp_path / "model", family=family, task=task, layers=3)
    data = make_dataset(tmp_path / "data", task=task, rows=16)
    made, student = distilled(model, data, tmp_path / "out", layers=2, epochs=1)
    assert len(families.blocks(student.model)) == 2
    assert not [name for name in made.files if name.startswith(".")]
    assert len(made.facts["history"]) == 1


def test_a_student_learns_its_teachers_answers(bert: Path, reviews: Path, tmp_path: Path):
    made, _ = distilled(bert, reviews, tmp_path / "out", layers=1, epochs=6, learning_rate=3e-3, alpha=0.0)
    losses = [epoch["loss"] for epoch in made.facts["history"]]
    assert min(losses[1:]) < losses[0] / 2


def test_a_killed_run_goes_on_and_ends_with_the_same_digest(bert: Path, reviews: Path, tmp_path: Path, monkeypatch):
    clean, _ = distilled(bert, reviews, tmp_path / "clean", layers=1, epochs=EPOCHS)
    out = tmp_path / "killed"
    died = subprocess.run([sys.executable, "-c", DIES_AFTER_TWO_EPOCHS, bert, reviews, out], capture_output=True)
    assert died.returncode == -9, died.stderr.decode()
    assert not out.exists()
    evaluated = []

    def counted(*arguments):
        evaluated.append(arguments)
        return score(*arguments)

    monkeypatch.setattr("deploykit.compress.distillation.score", counted)
    resumed, _ = distilled(bert, reviews, out, layers=1, epochs=EPOCHS)
    assert len(evaluated) == EPOCHS - 2
    assert resumed.digest == clean.digest
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_another_seed_is_another_student(bert: Path, reviews: Path, tmp_path: Path):
    first, second = (
        distilled(bert, reviews, tmp_path / str(seed), layers=1, epochs=1, seed=seed)[0] for seed in (0, 1)
    )
    assert first.files["model.safetensors"] != second.files["model.safetensors"]


def test_a_student_starts_as_its_teachers_layers(bert: Path):
    teacher = checkpoints.load(checkpoints.open_checkpoint(bert))
    student = keep_layers(teacher, [1])
    assert len(families.blocks(student.model)) == student.model.config.num_hidden_layers == 1
    assert len(families.blocks(teacher.model)) == teacher.model.config.num_hidden_layers == 2
    ours, theirs = families.blocks(student.model)[0], families.blocks(teacher.model)[1]
    assert torch.equal(ours.query.weight, theirs.query.weight)


def test_a_pruned_teacher_gives_each_layer_its_own_widths(bert: Path):
    teacher = checkpoints.load(checkpoints.open_checkpoint(bert))
    full = torch.arange(64).numpy()
    structure = slice_parts(teacher.model, [full[:4], full[:1]], [full, full[:32]])
    teacher = checkpoints.Checkpoint(
        teacher.path, teacher.model, teacher.tokenizer, teacher.labels,
        checkpoints.Spec("text-classification", 64, 0, structure),
    )  # fmt: skip
    student = keep_layers(teacher, [1])
    assert student.spec.structure == families.Structure((1,), (32,)) == families.structure_of(student.model)


def test_layers_are_spread_with_the_first_and_the_last():
    assert spread(3, 6) == [0, 2, 5]
    assert spread(6, 6) == list(range(6))
    assert spread(1, 6) == [0]
    for count in range(2, 13):
        chosen = spread(count, 12)
        assert len(set(chosen)) == count
        assert (chosen[0], chosen[-1]) == (0, 11)


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": 0},
        {"layers": 1, "temperature": 0.0},
        {"layers": 1, "alpha": 1.1},
        {"layers": 1, "epochs": 0},
        {"layers": 1, "learning_rate": 0.0},
        {"layers": 1, "max_train_samples": 0},
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(settings: dict[str, float]):
    with pytest.raises(ValueError, match=[*settings][-1]):
        Distil(**settings)  # type: ignore[arg-type]


def test_a_student_deeper_than_its_teacher_is_refused_before_any_work(bert: Path, tmp_path: Path):
    empty = tmp_path / "data"
    empty.mkdir()
    with pytest.raises(UsageError, match=r"distil\.layers: expected at most 2"):
        stage.run(
            Distil(layers=3), checkpoints.open_checkpoint(bert), artifact.adopt(empty, "dataset"), out=tmp_path / "out"
        )


def test_rows_with_a_label_that_the_teacher_does_not_know_are_refused(bert: Path, tmp_path: Path):
    data = make_dataset(tmp_path / "data", rows=4)
    (data / "train.jsonl").write_text('{"text": "good film", "label": "fine"}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:1"):
        distilled(bert, data, tmp_path / "out", layers=1)
    assert not (tmp_path / "out").exists()
