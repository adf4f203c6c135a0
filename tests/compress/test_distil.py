import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploykit import artifact, families, stage
from deploykit import checkpoint as checkpoints
from deploykit.compress.distil import Distil
from deploykit.compress.divergence import divergence
from deploykit.compress.quantize import Quantize
from deploykit.compress.reread import moved, reread
from deploykit.data import open_dataset, open_unlabeled
from deploykit.errors import DataError, UsageError
from deploykit.tasks.task import IGNORED
from deploykit.train.labelled import read_labelled
from tests.models import make_checkpoint, make_dataset, of_other_pieces

EPOCHS = 4
NARROW = {
    "layers": (2,), "hidden_size": 16, "ffn": 32, "epochs": EPOCHS, "relation_weight": 1.0, "augment": 1,
}  # fmt: skip
DIES_AFTER_TWO_EPOCHS = f"""
import sys
from pathlib import Path
from deploykit import stage
from deploykit.checkpoint import open_checkpoint
from deploykit.compress import distillation
from deploykit.compress.distil import Distil
from deploykit.data import open_dataset
from tests.dying import die_at_call
die_at_call(3, distillation, "divergence")
model, data, out = map(Path, sys.argv[1:])
stage.run(Distil(**{NARROW}), open_checkpoint(model), open_dataset(data), out=out)
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


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_embeddings_stay_the_teachers_and_the_rest_learns(
    bert: Path, reviews: Path, tmp_path: Path, frozen: bool
):
    teacher = checkpoints.load(checkpoints.open_checkpoint(bert))
    _, student = distilled(bert, reviews, tmp_path / "out", layers=(1,), epochs=1, freeze_embeddings=frozen)
    tables = [families.word_embeddings(each.model) for each in (teacher, student)]
    assert torch.equal(*tables) == frozen
    firsts = [families.blocks(each.model)[0].ffn_in.weight for each in (teacher, student)]
    assert not torch.equal(*firsts)


def test_a_killed_run_goes_on_projection_included_and_ends_with_the_same_digest(
    bert: Path, reviews: Path, tmp_path: Path, monkeypatch
):
    clean, student = distilled(bert, reviews, tmp_path / "clean", **NARROW)
    assert families.structure_of(student.model) == families.Structure((2,), (32,))
    assert not [name for name in student.model.state_dict() if "projection" in name]
    assert clean.facts["rows"] == [48, 48]
    out = tmp_path / "killed"
    command = [sys.executable, "-c", DIES_AFTER_TWO_EPOCHS, *map(str, (bert, reviews, out))]
    died = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True)
    assert died.returncode == -9, died.stderr.decode()
    assert not out.exists()
    evaluated = []

    def counted(*arguments):
        evaluated.append(arguments)
        return divergence(*arguments)

    monkeypatch.setattr("deploykit.compress.distillation.divergence", counted)
    resumed, _ = distilled(bert, reviews, out, **NARROW)
    assert len(evaluated) == EPOCHS - 2
    assert resumed.digest == clean.digest
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_another_seed_is_another_student(bert: Path, reviews: Path, tmp_path: Path):
    first, second = (
        distilled(bert, reviews, tmp_path / str(seed), layers=1, epochs=1, seed=seed)[0] for seed in (0, 1)
    )
    assert first.files["model.safetensors"] != second.files["model.safetensors"]


def test_attention_scores_are_learned_too(bert: Path, reviews: Path, tmp_path: Path):
    made, _ = distilled(bert, reviews, tmp_path / "out", layers=1, epochs=2, attention_weight=1.0, relation_weight=1.0)
    assert made.node.settings["attention_weight"] == 1.0


def test_rows_without_labels_are_learned_from_and_enter_the_digest_by_content(
    bert: Path, reviews: Path, tmp_path: Path
):
    (tmp_path / "more.txt").write_text("the film was fine\n\na sad plot in paris\n")
    (tmp_path / "moved.txt").write_bytes((tmp_path / "more.txt").read_bytes())
    (tmp_path / "labelled.jsonl").write_text('{"text": "good", "label": "never read"}\n')
    source, data = checkpoints.open_checkpoint(bert), open_dataset(reviews)

    def made(name: str, *files: str):
        further = [open_unlabeled(tmp_path / file) for file in files]
        return stage.run(Distil(layers=1, epochs=1), source, data, *further, out=tmp_path / name)

    first, other = made("first", "more.txt"), made("other", "labelled.jsonl")
    assert (first.facts["rows"], other.facts["rows"]) == ([48, 2], [48, 1])
    weights = {each.files["model.safetensors"] for each in (first, other, made("none"))}
    assert len(weights) == 3
    assert "unlabeled" not in first.node.settings
    (tmp_path / "more.txt").unlink()
    assert artifact.verify(first) == []


def test_sets_of_rows_that_together_are_too_large_to_keep_are_learned_from_all_the_same(
    bert: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = read_labelled(checkpoints.load(checkpoints.open_checkpoint(bert)), open_dataset(reviews), "train")
    alone = 2 * 32 * sum(len(encoding.ids) for encoding in rows.encodings)
    monkeypatch.setattr("deploykit.compress.teacher.MOST_BYTES", alone)  # the rows would fit, their copies not
    made, _ = distilled(bert, reviews, tmp_path / "student", layers=1, augment=2, splice=30, epochs=1)
    assert made.facts["rows"] == [len(rows), 2 * len(rows), 30]


def test_a_row_without_the_tasks_input_is_refused_with_its_place(bert: Path, reviews: Path, tmp_path: Path):
    (tmp_path / "more.jsonl").write_text('{"text": "good"}\n{"sentence": "bad"}\n')
    sources = checkpoints.open_checkpoint(bert), open_dataset(reviews), open_unlabeled(tmp_path / "more.jsonl")
    with pytest.raises(DataError, match=r"more\.jsonl:2: expected text in the field 'text'"):
        stage.run(Distil(layers=1, epochs=1), *sources, out=tmp_path / "out")


def test_rows_that_are_named_and_not_given_are_missed(bert: Path, reviews: Path, tmp_path: Path):
    with pytest.raises(UsageError, match=r"distil\.unlabeled"):
        distilled(bert, reviews, tmp_path / "out", layers=1, unlabeled="more.txt")


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_a_student_may_start_as_another_model_whose_content_enters_the_digest(task: str, tmp_path: Path):
    teacher = make_checkpoint(tmp_path / "teacher", family="distilbert", task=task)
    starts = [make_checkpoint(tmp_path / str(seed), task=task, layers=3, seed=seed) for seed in (1, 2)]
    sources = checkpoints.open_checkpoint(teacher), open_dataset(make_dataset(tmp_path / "data", task=task, rows=16))
    made = []
    for start in starts:
        setting = Distil(
            layers=(1, 3), student=str(start), epochs=1, heads=2, attention_weight=0.0, relation_weight=1.0
        )
        made.append(
            stage.run(setting, *sources, checkpoints.open_checkpoint(start), out=tmp_path / f"out-{start.name}")
        )
    student, base = checkpoints.load(made[0]), checkpoints.load(checkpoints.open_checkpoint(starts[0]))
    assert student.model.config.model_type == "bert"
    assert families.structure_of(student.model) == families.Structure((2, 2), (64, 64))
    assert student.labels == checkpoints.load(sources[0]).labels
    moved = (families.word_embeddings(student.model) - families.word_embeddings(base.model)).abs().max()
    assert moved < 0.01  # one epoch from the start's own weights, not from the teacher's or from chance
    assert "student" not in made[0].node.settings
    assert made[0].node.origin != made[1].node.origin


def test_a_student_goes_on_learning_with_its_widths_and_its_head(bert: Path, reviews: Path, tmp_path: Path):
    teacher, data = checkpoints.open_checkpoint(bert), open_dataset(reviews)
    first = stage.run(Distil(layers=1, heads=2, ffn=32, epochs=1), teacher, data, out=tmp_path / "first")
    on = Distil(layers=1, student=str(first.path), epochs=1, learning_rate=1e-9)
    then = checkpoints.load(stage.run(on, teacher, data, first, out=tmp_path / "then"))
    before = checkpoints.load(first)
    assert then.spec == before.spec
    assert families.structure_of(then.model) == families.Structure((2,), (32,))
    moved = [(then.model.state_dict()[name] - tensor).abs().max() for name, tensor in before.model.state_dict().items()]
    assert max(moved) < 1e-5  # at no learning rate to speak of it is the first student, its head too
    quantized = stage.run(Quantize(), first, data, out=tmp_path / "quantized")
    with pytest.raises(UsageError, match="distil: expected a checkpoint in float"):
        stage.run(replace(on, student=str(quantized.path)), teacher, data, quantized, out=tmp_path / "no")


def test_a_student_that_goes_on_may_keep_the_weights_on_its_way_that_diverge_least(
    bert: Path, reviews: Path, tmp_path: Path
):
    teacher, data = checkpoints.open_checkpoint(bert), open_dataset(reviews)
    first = stage.run(Distil(layers=1, epochs=2, learning_rate=3e-3), teacher, data, out=tmp_path / "first")
    on = Distil(layers=1, student=str(first.path), epochs=1, learning_rate=1e-1, splice=40)
    end, kept = (
        stage.run(replace(on, average=average), teacher, data, first, out=tmp_path / f"average-{average}")
        for average in (False, True)
    )
    found = {float(share): value for share, value in kept.facts["divergence_by_share"].items()}
    best = min(found, key=found.__getitem__)
    assert best < 1, "so large a learning rate goes too far"
    models = [checkpoints.load(each) for each in (first, end, kept)]
    start, stop, made = (each.model.state_dict() for each in models)
    assert all(torch.allclose(made[name], torch.lerp(start[name], stop[name], best)) for name in made)
    rows = read_labelled(models[0], data, "validation")
    theirs = checkpoints.logits(checkpoints.load(teacher), rows.encodings)
    own = checkpoints.logits(models[2], rows.encodings)
    assert divergence(theirs, own, rows.targets) == pytest.approx(found[best], rel=0.05)  # the teacher may run in bf16


def test_a_start_that_does_not_fit_is_refused(bert: Path, reviews: Path, tmp_path: Path):
    start = make_checkpoint(tmp_path / "start")
    sources = checkpoints.open_checkpoint(bert), open_dataset(reviews)
    setting = Distil(layers=1, student=str(start), epochs=1)
    with pytest.raises(UsageError, match=r"distil\.student: expected its checkpoint among the sources"):
        stage.run(setting, *sources, out=tmp_path / "out")
    with pytest.raises(UsageError, match=r"distil\.layers: expected at most 2, the student's"):
        stage.run(replace(setting, layers=3), *sources, checkpoints.open_checkpoint(start), out=tmp_path / "out")


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_a_student_of_another_vocabulary_keeps_its_tokenizer_and_learns_its_teachers_answers(task: str, tmp_path: Path):
    teacher = make_checkpoint(tmp_path / "teacher", family="distilbert", task=task)
    start = make_checkpoint(tmp_path / "start", task=task, seed=1)
    of_other_pieces(start)
    data = open_dataset(make_dataset(tmp_path / "data", task=task))
    sources = checkpoints.open_checkpoint(teacher), data, checkpoints.open_checkpoint(start)
    settings: dict[str, Any] = {"layers": 2, "heads": 2, "student": str(start), "hidden_weight": 0.0, "alpha": 0.0}
    first = Distil(**settings, learning_rate=3e-3, batch_size=8, epochs=12, patience=12, augment=1, splice=30)
    made = stage.run(first, *sources, out=tmp_path / "out")
    student, its_teacher, base = (checkpoints.load(each) for each in (made, sources[0], sources[2]))
    assert checkpoints.tokenizer_json(student) == checkpoints.tokenizer_json(base)
    assert student.labels == its_teacher.labels
    assert made.facts["rows"] == [48, 48, 30]
    losses = [epoch["loss"] for epoch in made.facts["history"]]
    assert losses[-1] < losses[0] / 2
    rows = read_labelled(its_teacher, data, "train")
    own = reread(rows, student)
    answers = [
        np.concatenate([np.atleast_1d(row.argmax(-1)) for row in moved(each, rows.encodings, logits, 0)])
        for each, logits in (
            (rows, checkpoints.logits(its_teacher, rows.encodings)),
            (own, checkpoints.logits(student, own.encodings)),
        )
    ]
    counted = np.concatenate([np.atleast_1d(target != IGNORED) for target in rows.targets])
    assert np.mean((answers[0] == answers[1])[counted]) > 0.6, "chance is a third"
    for name in ("hidden_weight", "attention_weight", "relation_weight"):
        with pytest.raises(UsageError, match=rf"distil\.{name}: expected 0 for a student of another vocabulary"):
            stage.run(Distil(**{**settings, "epochs": 1, name: 1.0}), *sources, out=tmp_path / "no")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"layers": 3}, r"layers: expected at most 2"),
        ({"layers": (1, 3)}, r"layers: expected at most 2"),
        ({"layers": 1, "hidden_size": 40}, r"hidden_size: expected a multiple of 8, .*, up to 32"),
        ({"layers": 1, "hidden_size": 20}, r"hidden_size: expected a multiple of 8"),
        ({"layers": 1, "heads": 5}, r"heads: expected at most 4"),
        ({"layers": 1, "ffn": 65}, r"ffn: expected at most 64"),
        ({"layers": 1, "heads": 2, "attention_weight": 1.0}, r"attention_weight: expected 4 heads in layer 1"),
        ({"layers": 1, "relation_weight": 1.0, "relation_layer": 3}, r"relation_layer: expected at most 2"),
        ({"layers": 1, "relation_weight": 1.0, "relation_heads": 3}, r"relation_heads: expected a divisor of 32"),
    ],
)
def test_a_student_that_does_not_fit_its_teacher_is_refused_before_any_work(settings, said, bert, tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(UsageError, match=rf"distil\.{said}"):
        stage.run(
            Distil(**settings),
            checkpoints.open_checkpoint(bert),
            artifact.adopt(tmp_path / "data", "dataset"),
            out=tmp_path / "out",
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": 0},
        {"layers": 1, "temperature": 0.0},
        {"layers": 1, "alpha": 1.1},
        {"layers": 1, "epochs": 0},
        {"layers": 1, "learning_rate": 0.0},
        {"layers": 1, "max_train_samples": 0},
        {"layers": ()},
        {"layers": (2, 1)},
        {"layers": 1, "hidden_size": 0},
        {"layers": 1, "attention_weight": -1.0},
        {"layers": 1, "relation_heads": 4},
        {"layers": 1, "relation_layer": 1},
        {"layers": 1, "splice": -1},
        {"layers": 1, "average": True},
        {"layers": 1, "alpha": 1.0, "hidden_weight": 0.0, "augment": 1},
        {"layers": 1, "alpha": 1.0, "hidden_weight": 0.0, "splice": 1},
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(settings: dict[str, float]):
    with pytest.raises(ValueError, match=[*settings][-1]):
        Distil(**settings)  # type: ignore[arg-type]


def test_rows_with_a_label_that_the_teacher_does_not_know_are_refused(bert: Path, tmp_path: Path):
    data = make_dataset(tmp_path / "data", rows=4)
    (data / "train.jsonl").write_text('{"text": "good film", "label": "fine"}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:1"):
        distilled(bert, data, tmp_path / "out", layers=1)
    assert not (tmp_path / "out").exists()
