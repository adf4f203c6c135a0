from pathlib import Path

import numpy as np
import pytest
import torch

from deploykit import checkpoint as checkpoints
from deploykit import families
from deploykit.compress.slicing import slice_parts
from deploykit.compress.student import Activity, Widths, activity, keep_layers, keep_widths, spread
from deploykit.data import open_dataset
from deploykit.train.labelled import read_labelled
from tests.models import make_checkpoint


def loaded(model: Path) -> checkpoints.Checkpoint:
    return checkpoints.load(checkpoints.open_checkpoint(model))


def test_a_student_starts_as_its_teachers_layers(bert: Path):
    teacher = loaded(bert)
    student = keep_layers(teacher, [1])
    assert len(families.blocks(student.model)) == student.model.config.num_hidden_layers == 1
    assert len(families.blocks(teacher.model)) == teacher.model.config.num_hidden_layers == 2
    ours, theirs = families.blocks(student.model)[0], families.blocks(teacher.model)[1]
    assert torch.equal(ours.query.weight, theirs.query.weight)


def test_a_pruned_teacher_gives_each_layer_its_own_widths(bert: Path):
    teacher = loaded(bert)
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


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
@pytest.mark.parametrize("widths", [Widths(16, 2, 32), Widths(24, 1, 64), Widths(32, 4, 48), Widths(16, 4, 8)])
def test_a_narrower_student_of_every_family_reloads_exactly(family: str, task: str, widths: Widths, tmp_path: Path):
    teacher = loaded(make_checkpoint(tmp_path / "model", family=family, task=task))
    rng = np.random.default_rng(0)
    sizes = Activity((rng.random(4),) * 2, (rng.random(64),) * 2, rng.random(32))
    student = keep_widths(teacher, widths, sizes)
    (tmp_path / "student").mkdir()
    checkpoints.save(student, tmp_path / "student")
    again = loaded(tmp_path / "student")
    assert families.structure_of(again.model) == families.Structure((widths.heads,) * 2, (widths.ffn,) * 2)
    assert families.hidden_size(again.model) == widths.hidden_size
    assert families.head_size(again.model) == 8
    inputs = {"input_ids": torch.arange(2, 12)[None], "attention_mask": torch.ones(1, 10, dtype=torch.long)}
    with torch.inference_mode():
        assert torch.allclose(again.model(**inputs).logits, student.model(**inputs).logits, atol=1e-6)
    own = student.model.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in again.model.state_dict().items())
    assert (again.spec.structure is None) == (widths.heads * 8 == widths.hidden_size)


def test_the_most_active_parts_stay_and_a_student_of_full_width_is_the_teacher(bert: Path):
    teacher = loaded(bert)
    ascending = Activity((np.arange(4.0),) * 2, (np.arange(64.0),) * 2, np.arange(32.0))
    student = keep_widths(teacher, Widths(16, 2, 8), ascending)
    ours, theirs = families.blocks(student.model)[1], families.blocks(teacher.model)[1]
    assert torch.equal(ours.query.weight, theirs.query.weight[16:, 16:])
    assert torch.equal(ours.ffn_out.weight, theirs.ffn_out.weight[16:, 56:])
    assert torch.equal(ours.ffn_out.bias, theirs.ffn_out.bias[16:])
    same = keep_widths(teacher, Widths(32, 4, 64), ascending).model.state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in teacher.model.state_dict().items())


def test_a_part_that_nothing_passes_through_is_worth_nothing(bert: Path, reviews: Path):
    teacher = loaded(bert)
    rows = read_labelled(teacher, open_dataset(reviews), "train")
    block = families.blocks(teacher.model)[0]
    with torch.no_grad():
        block.value.weight[8:16], block.value.bias[8:16] = 0.0, 0.0
        block.ffn_in.weight[5], block.ffn_in.bias[5] = 0.0, -100.0
    found = activity(teacher, rows.encodings)
    assert [sizes.shape for sizes in (*found.heads, *found.neurons, found.hidden)] == [(4,)] * 2 + [(64,)] * 2 + [(32,)]
    assert found.heads[0].argmin() == 1
    assert found.heads[0][1] == 0.0
    assert found.neurons[0].argmin() == 5
    assert found.hidden.sum() == pytest.approx(3.0), "embeddings and two layers, each with the same say"
    assert not any(module._forward_pre_hooks for module in teacher.model.modules())


def test_padding_does_not_count_and_batches_do_not_matter(bert: Path, reviews: Path):
    teacher = loaded(bert)
    rows = read_labelled(teacher, open_dataset(reviews), "train").encodings
    whole, alone = activity(teacher, rows[:3]), [activity(teacher, [row]) for row in rows[:3]]
    assert np.allclose(whole.heads[0], sum(each.heads[0] for each in alone), rtol=1e-4)
