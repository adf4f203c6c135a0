from pathlib import Path

import pytest
import torch

from deploykit import checkpoint as checkpoints
from deploykit.checkpoint import input_names
from deploykit.compress.distillation import Objective, distillation_loss, matching_layers, with_teacher
from deploykit.compress.teacher import teacher_outputs
from deploykit.data import open_dataset
from deploykit.train.batch import collate, examples_of
from deploykit.train.labelled import read_labelled


@pytest.mark.parametrize(("model", "data"), [("bert", "reviews"), ("bert_ner", "entities")])
def test_the_loss_is_zero_for_a_copied_teacher_and_not_for_a_changed_one(
    model: str, data: str, request: pytest.FixtureRequest
):
    source = checkpoints.open_checkpoint(request.getfixturevalue(model))
    teacher = checkpoints.load(source)
    rows = read_labelled(teacher, open_dataset(request.getfixturevalue(data)), "train")
    outputs = teacher_outputs(source.digest, teacher, rows.encodings, [1, 2])
    examples = with_teacher(examples_of(rows.encodings, rows.targets, input_names(teacher.model)), outputs)
    loss = distillation_loss(Objective(2.0, 0.0, 1.0, matching_layers(2, 2)))
    batch = collate(examples[:16], teacher.spec.pad_id)
    with torch.inference_mode():
        assert loss(teacher.model, batch).item() == pytest.approx(0.0, abs=1e-5)
        next(teacher.model.parameters()).mul_(1.5)
        assert loss(teacher.model, batch).item() > 1e-3


def test_each_part_counts_by_its_weight(bert: Path, reviews: Path):
    source = checkpoints.open_checkpoint(bert)
    teacher = checkpoints.load(source)
    rows = read_labelled(teacher, open_dataset(reviews), "train")
    outputs = teacher_outputs(source.digest, teacher, rows.encodings, [2])
    examples = with_teacher(examples_of(rows.encodings, rows.targets, input_names(teacher.model)), outputs)
    batch = collate(examples[:16], teacher.spec.pad_id)
    with torch.inference_mode():
        next(teacher.model.parameters()).mul_(1.5)
        soft, hard, both, hidden = (
            distillation_loss(Objective(2.0, alpha, weight, ((2, 2),)))(teacher.model, batch).item()
            for alpha, weight in ((0.0, 0.0), (1.0, 0.0), (0.25, 0.0), (0.0, 3.0))
        )
        distance = distillation_loss(Objective(2.0, 0.0, 1.0, ((2, 2),)))(teacher.model, batch).item() - soft
    assert both == pytest.approx(0.25 * hard + 0.75 * soft, rel=1e-4)
    assert hidden == pytest.approx(soft + 3.0 * distance, rel=1e-3)


def test_layers_are_matched_at_the_same_depth_and_the_last_with_the_last():
    assert matching_layers(3, 6) == ((1, 2), (2, 4), (3, 6))
    assert matching_layers(1, 6) == ((1, 6),)
    assert matching_layers(12, 12) == ((3, 3), (6, 6), (9, 9), (12, 12))
    for student in range(1, 13):
        pairs = matching_layers(student, 12)
        assert pairs[-1] == (student, 12)
        assert len(set(pairs)) == len(pairs) <= 4


@pytest.mark.parametrize("settings", [(0.0, 0.5, 1.0), (-1.0, 0.5, 1.0), (2.0, 1.5, 1.0), (2.0, 0.5, -1.0)])
def test_an_objective_out_of_range_is_refused(settings: tuple[float, float, float]):
    with pytest.raises(ValueError, match="must"):
        Objective(*settings)
