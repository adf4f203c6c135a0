from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deploykit import checkpoint as checkpoints
from deploykit import families
from deploykit.artifact import Artifact
from deploykit.checkpoint import Checkpoint, input_names
from deploykit.compress import distillation
from deploykit.compress import teacher as teachers
from deploykit.compress.distillation import (
    Objective,
    best_projection,
    distil_from,
    distillation_loss,
    matching_layers,
    observed,
    with_teacher,
)
from deploykit.compress.divergence import divergence
from deploykit.compress.student import Widths, activity, keep_layers, keep_widths
from deploykit.compress.teacher import states_to_keep, teacher_outputs
from deploykit.data import open_dataset
from deploykit.errors import TrainingStopped
from deploykit.tasks.task import IGNORED, UNLABELED
from deploykit.train.batch import Batch, collate, examples_of
from deploykit.train.labelled import Labelled, read_labelled, score, without_labels
from deploykit.train.loop import History, Training

ALL = Objective(2.0, 0.0, 1.0, matching_layers(2, 2), 1.0, 1.0, (2, 2), 4)
PARTS = [
    Objective(2.0, 0.0, 0.0),
    Objective(2.0, 0.0, 1.0, matching_layers(2, 2)),
    Objective(2.0, 0.0, 0.0, matching_layers(2, 2), 1.0),
    Objective(2.0, 0.0, 0.0, (), 0.0, 1.0, (2, 2), 4),
]


@pytest.fixture(autouse=True)
def _exact_teacher(monkeypatch: pytest.MonkeyPatch):
    """Known answers are those of fp32, whatever this processor multiplies faster."""
    monkeypatch.setattr(teachers, "precision", lambda: "no")


def opened(model: Path, data: Path) -> tuple[Artifact, Checkpoint, Labelled]:
    source = checkpoints.open_checkpoint(model)
    teacher = checkpoints.load(source)
    return source, teacher, read_labelled(teacher, open_dataset(data), "train")


def batch_of(source: Artifact, teacher: Checkpoint, rows: Labelled, objective: Objective) -> Batch:
    kept = states_to_keep(teacher, [rows.encodings], objective.states())
    outputs = teacher_outputs(source.digest, teacher, rows.encodings, kept)
    examples = with_teacher(examples_of(rows.encodings, rows.targets, input_names(teacher.model)), outputs)
    return collate(examples[:16], teacher.spec.pad_id)


def value_of(objective: Objective, student: Checkpoint, teacher: Checkpoint, batch: Batch) -> float:
    with torch.inference_mode():
        return float(
            distillation_loss(objective, teacher.model)(observed(student.model, teacher.model, objective), batch)
        )


@pytest.mark.parametrize("objective", [*PARTS, ALL], ids=["logits", "hidden", "attention", "relations", "all"])
@pytest.mark.parametrize(("model", "data"), [("bert", "reviews"), ("bert_ner", "entities")])
def test_the_loss_is_zero_for_a_copied_teacher_and_not_for_a_changed_one(
    objective: Objective, model: str, data: str, request: pytest.FixtureRequest
):
    source, teacher, rows = opened(request.getfixturevalue(model), request.getfixturevalue(data))
    batch = batch_of(source, teacher, rows, objective)
    assert value_of(objective, teacher, teacher, batch) == pytest.approx(0.0, abs=1e-5)
    changed = keep_layers(teacher, [0, 1])
    with torch.no_grad():
        next(changed.model.parameters()).mul_(1.5)
    assert value_of(objective, changed, teacher, batch) > 1e-3


def test_each_part_counts_by_its_weight(bert: Path, reviews: Path):
    source, teacher, rows = opened(bert, reviews)
    batch = batch_of(source, teacher, rows, ALL)
    student = keep_layers(teacher, [0, 1])
    with torch.no_grad():
        next(student.model.parameters()).mul_(1.5)

    def value(alpha: float, *weights: float) -> float:
        hidden, attention, relation = weights
        changed = replace(ALL, alpha=alpha, hidden_weight=hidden, attention_weight=attention, relation_weight=relation)
        return value_of(changed, student, teacher, batch)

    soft, hard = value(0, 0, 0, 0), value(1, 0, 0, 0)
    assert value(0.25, 0, 0, 0) == pytest.approx(0.25 * hard + 0.75 * soft, rel=1e-4)
    alone = [value(0, *(float(part == index) for index in range(3))) - soft for part in range(3)]
    assert min(alone) > 0
    assert value(0, 3, 5, 7) == pytest.approx(soft + np.dot(alone, [3, 5, 7]), rel=1e-3)


def test_the_teacher_runs_beside_the_student_where_its_states_are_not_kept(bert, reviews, monkeypatch):
    source, teacher, rows = opened(bert, reviews)
    student = keep_layers(teacher, [0, 1])
    with torch.no_grad():
        next(student.model.parameters()).mul_(1.5)
    kept = value_of(ALL, student, teacher, batch_of(source, teacher, rows, ALL))
    monkeypatch.setattr("deploykit.compress.teacher.MOST_BYTES", 0)
    batch = batch_of(source, teacher, rows, ALL)
    assert "teacher-hidden-1" not in batch
    assert value_of(ALL, student, teacher, batch) == pytest.approx(kept, rel=1e-3)


@pytest.mark.parametrize(("model", "data"), [("bert", "reviews"), ("bert_ner", "entities")])
def test_a_row_without_a_label_has_the_teachers_losses_alone(model: str, data: str, request: pytest.FixtureRequest):
    source, teacher, rows = opened(request.getfixturevalue(model), request.getfixturevalue(data))
    bare = without_labels(teacher, rows.rows, rows.file)
    for target, unknown in zip(rows.targets, bare.targets, strict=True):
        assert np.array_equal(target != IGNORED, unknown == UNLABELED)
    student = keep_layers(teacher, [0])
    soft, both = Objective(2.0, 0.0, 0.0), Objective(2.0, 0.4, 0.0)
    with_labels, without = (batch_of(source, teacher, each, soft) for each in (rows, bare))
    assert value_of(soft, student, teacher, without) == value_of(soft, student, teacher, with_labels)
    assert value_of(both, student, teacher, without) == pytest.approx(0.6 * value_of(soft, student, teacher, without))
    assert value_of(Objective(2.0, 1.0, 0.0), student, teacher, without) == 0.0


def test_a_narrower_student_is_projected_and_the_projection_starts_at_the_dimensions_it_was_cut_from(bert, reviews):
    source, teacher, rows = opened(bert, reviews)
    student = keep_widths(teacher, Widths(16, 2, 32), activity(teacher, rows.encodings))
    objective = replace(ALL, attention_weight=0.0, relation_heads=2)
    wrapped = observed(student.model, teacher.model, objective)
    assert wrapped.projection is not None
    own, theirs = families.word_embeddings(student.model), families.word_embeddings(teacher.model)
    kept = [index for index in range(32) if any(torch.equal(theirs[:, index], column) for column in own.T)]
    assert len(kept) == 16
    assert torch.allclose(best_projection(student.model, teacher.model)[kept], torch.eye(16), atol=1e-4)
    loss = distillation_loss(objective, teacher.model)(wrapped, batch_of(source, teacher, rows, objective))
    loss.backward()
    assert all(parameter.grad is not None for parameter in wrapped.parameters())


def test_a_padded_vocabulary_is_projected_by_the_pieces_that_both_have(bert, reviews):
    _, teacher, _ = opened(bert, reviews)
    student = keep_layers(teacher, [0])
    student.model.resize_token_embeddings(len(families.word_embeddings(teacher.model)) + 3)
    assert torch.allclose(best_projection(student.model, teacher.model), torch.eye(32), atol=1e-4)


def test_layers_are_matched_at_the_same_depth_and_the_last_with_the_last():
    assert matching_layers(3, 6) == ((1, 2), (2, 4), (3, 6))
    assert matching_layers(1, 6) == ((1, 6),)
    assert matching_layers(12, 12) == ((3, 3), (6, 6), (9, 9), (12, 12))
    for student in range(1, 13):
        pairs = matching_layers(student, 12)
        assert pairs[-1] == (student, 12)
        assert len(set(pairs)) == len(pairs) <= 4


@pytest.mark.parametrize(
    "settings", [(0.0, 0.5, 1.0), (-1.0, 0.5, 1.0), (2.0, 1.5, 1.0), (2.0, 0.5, -1.0), (2.0, 0.5, 1.0, (), -1.0)]
)
def test_an_objective_out_of_range_is_refused(settings):
    with pytest.raises(ValueError, match="must"):
        Objective(*settings)


def rates(model: torch.nn.Module) -> set[float]:
    return {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}


@pytest.mark.parametrize("stopped", [False, True])
def test_a_student_learns_without_dropout_and_has_it_again(
    bert: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool
):
    source, teacher, rows = opened(bert, reviews)
    student, before = keep_layers(teacher, [0]), rates(teacher.model)
    assert max(before) > 0
    while_training = []

    def spied(model: torch.nn.Module, *_: object) -> History:
        while_training.append(rates(model))
        if stopped:
            raise TrainingStopped("a step", expected="a finite loss", found="nan", next_step="lower the rate")
        return History(())

    monkeypatch.setattr(distillation, "train", spied)
    with pytest.raises(TrainingStopped) if stopped else nullcontext():
        distil_from((source, teacher), student, (rows, rows), ALL, (Training(), tmp_path / "run" / "train"))
    assert while_training == [{0.0}]
    assert rates(student.model) == before


@pytest.mark.parametrize("asked", [True, False])
def test_epochs_are_judged_by_the_divergence_from_a_teacher_that_is_asked(bert: Path, reviews: Path, asked: bool):
    source, teacher, rows = opened(bert, reviews)
    student = keep_layers(teacher, [0])
    found = distillation.evaluation((source, teacher) if asked else None, student, rows)()
    assert found.metric == score(student, rows).metrics[0].value
    theirs, own = (checkpoints.logits(each, rows.encodings) for each in (teacher, student))
    known = divergence(theirs, own, rows.targets)
    assert known > 0
    assert found.divergence == (pytest.approx(known, rel=0.05) if asked else None)  # the teacher may run in bf16
    copy = distillation.evaluation((source, teacher), teacher, rows)()
    assert copy.divergence == pytest.approx(0, abs=known / 20)
