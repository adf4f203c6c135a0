from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from deploykit import checkpoint as checkpoints
from deploykit import families
from deploykit.compress import brain_surgeon, teacher
from deploykit.compress.brain_surgeon import Curvature, curvatures, successive
from deploykit.compress.fisher import mask_gradients
from deploykit.compress.fisher_rows import batches, inputs_of, row_loss
from deploykit.compress.mask_search import by_fisher
from deploykit.compress.mask_tuning import tune
from deploykit.compress.slicing import sliced
from deploykit.data import open_dataset
from deploykit.train.labelled import read_labelled
from tests.models import make_dataset


def measured(x_TK: Tensor, g_TH: Tensor) -> Curvature:
    """Each token a row of its own."""
    x_TK = torch.cat([x_TK, x_TK.new_ones(len(x_TK), 1)], dim=1)
    return Curvature(x_TK.T @ x_TK / len(x_TK), g_TH.T @ g_TH / len(g_TH))


def error_of_best_fit(curvature: Curvature, x_TK: Tensor, weight_HK: Tensor, stays: Tensor) -> float:
    """Half of the weighted mean square that no other weights of the inputs that stay can avoid, the slow way."""
    given = torch.cat([x_TK[:, stays], x_TK.new_ones(len(x_TK), 1)], dim=1)
    wanted_TH = x_TK @ weight_HK.T
    lacking_TH = wanted_TH - given @ torch.linalg.lstsq(given, wanted_TH).solution
    return 0.5 * float(((lacking_TH @ curvature.outputs) * lacking_TH).sum()) / len(x_TK)


@pytest.mark.parametrize(("group", "multiple"), [(1, 2), (1, 3), (2, 1), (4, 1)])
def test_the_cost_is_what_the_best_fit_of_the_rest_lacks(group: int, multiple: int):
    torch.manual_seed(group)
    x_TK = torch.randn(200, 8) @ (torch.eye(8) + 0.3 * torch.randn(8, 8)) + 1.0
    weight_HK, g_TH = torch.randn(5, 8), torch.randn(200, 5) * torch.tensor([1.0, 2.0, 0.0, 0.5, 1.0])
    curvature = measured(x_TK, g_TH)
    found = successive(curvature, weight_HK, group, multiple)
    assert sorted(found.order.tolist()) == list(range(8 // group))
    assert len(found.widths) == -(-(8 // group) // multiple)
    for width, loss in zip(found.widths.tolist(), found.losses.tolist(), strict=True):
        kept = found.kept(width)
        assert kept.tolist() == sorted(found.order[len(found.order) - width :].tolist())
        stays = torch.cat([torch.arange(part * group, (part + 1) * group) for part in kept.tolist()])
        expected = error_of_best_fit(curvature, x_TK, weight_HK, stays)
        assert loss == pytest.approx(expected, rel=0.02, abs=1e-3)


def test_one_of_two_that_do_the_same_goes_for_nothing_and_the_other_is_dear():
    torch.manual_seed(0)
    x_TK = torch.randn(100, 4)
    x_TK[:, 3] = 2 * x_TK[:, 0] - 1  # with the bias, the same
    found = successive(measured(x_TK, torch.randn(100, 3)), torch.randn(3, 4), 1, 1)
    assert found.order[0] in (0, 3)
    assert found.losses[-2] < 1e-2 * found.losses[-3]
    assert {0, 3} & set(found.kept(3).tolist())


def test_what_the_loss_does_not_mind_goes_first():
    torch.manual_seed(0)
    weight_HK, g_TH = torch.eye(3), torch.randn(100, 3) * torch.tensor([1.0, 1e-3, 1.0])
    found = successive(measured(torch.randn(100, 3), g_TH), weight_HK, 1, 1)
    assert found.order[0] == 1


@pytest.mark.parametrize("name", ["bert", "bert_ner"])
def test_curvature_is_of_real_tokens_and_does_not_depend_on_batches(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(teacher, "precision", lambda: "no")
    source = checkpoints.load(checkpoints.open_checkpoint(request.getfixturevalue(name)))
    data = open_dataset(request.getfixturevalue("reviews" if name == "bert" else "entities"))
    rows = read_labelled(source, data, "train").trainable().sample(24, 0)
    source.model.double()  # in single precision, sums whose terms cancel differ with threads and batches
    block = families.blocks(source.model)[0]
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(_module: object, given: tuple[Tensor], made: Tensor) -> None:
        made.retain_grad()
        seen.append((given[0].detach(), made))

    handle = block.ffn_out.register_forward_hook(keep)
    inputs, outputs, tokens = torch.zeros(65, 65, dtype=torch.double), torch.zeros(32, 32, dtype=torch.double), 0
    for batch in batches(source, rows, 1):  # one row at a time: no padding
        row_loss(source)(batch).backward()
        (given, made), seen[:] = seen[0], []
        x_TK = torch.cat([given[0], torch.ones(given.shape[1], 1, dtype=torch.double)], dim=1)
        assert made.grad is not None
        inputs, outputs, tokens = inputs + x_TK.T @ x_TK, outputs + made.grad[0].T @ made.grad[0], tokens + len(x_TK)
    handle.remove()
    for size in (1, 5, 24):
        _, found = curvatures(source.model, batches(source, rows, size), row_loss(source))[0]
        torch.testing.assert_close(found.inputs.double(), inputs / tokens, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.outputs.double(), outputs / 24, rtol=1e-3, atol=1e-9)
    assert all(parameter.requires_grad for parameter in source.model.parameters())


def test_a_model_without_its_twins_answers_the_same_which_fisher_information_cannot_see(bert: Path, tmp_path: Path):
    source = checkpoints.load(checkpoints.open_checkpoint(bert))
    with torch.no_grad():  # every other neuron computes what the one before it does
        for block in families.blocks(source.model):
            for tensor in (block.ffn_in.weight, block.ffn_in.bias):
                tensor[1::2] = tensor[0::2]
    rows = read_labelled(source, open_dataset(make_dataset(tmp_path / "data", rows=200)), "train")
    given = list(batches(source, rows, 32))
    expected = np.array(checkpoints.logits(source, rows.encodings))
    heads = [np.arange(4)] * 2

    def distance(neurons: list[np.ndarray]) -> float:
        made = sliced(source, (heads, neurons))
        tune(made.model, source.model, [inputs_of(batch) for batch in given], "weights")
        return float(np.abs(np.array(checkpoints.logits(made, rows.encodings)) - expected).max())

    _, by_surgeon = brain_surgeon.removals(source.model, given, row_loss(source), 8)
    _, by_gradients = by_fisher(mask_gradients(source.model, given, row_loss(source)), 8)
    assert distance([each.kept(32) for each in by_surgeon]) < 0.1 * distance([each.kept(32) for each in by_gradients])
