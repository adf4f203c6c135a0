import copy

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from deploykit import families
from deploykit.compress import teacher
from deploykit.compress.gram import add_gram, whole
from deploykit.compress.mask_tuning import MASK_LIMIT, Sums, best_change, mask_change, tune, weight_change
from deploykit.compress.slicing import slice_parts
from tests.models import CLASS_LABELS, tiny_config

FAMILIES = ("bert", "roberta", "distilbert")
HEADS, NEURONS = np.arange(4), np.arange(64)


@pytest.fixture(autouse=True)
def _in_fp32(monkeypatch):
    """Run layers in fp32 on every machine: in bf16 nothing is exact."""
    monkeypatch.setattr(teacher, "precision", lambda: "no")


def tiny_model(family: str):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(tiny_config(family, CLASS_LABELS)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.2)
    return model


def batches(rows: int = 96, size: int = 12) -> list[dict[str, Tensor]]:
    ids = torch.randint(5, 30, (rows, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[::3, 5:] = 0
    return [{"input_ids": a, "attention_mask": b} for a, b in zip(ids.split(size), mask.split(size), strict=True)]


@torch.no_grad()
def logits(model) -> Tensor:
    return torch.cat([model(**batch).logits for batch in batches()])


def pruned(model, heads, neurons):
    made = copy.deepcopy(model)
    slice_parts(made, heads, neurons)
    return made


@torch.no_grad()
def with_twins(family: str):
    """A model in which head 3 does what head 1 does, and neuron 40 what neuron 2 does, in every layer."""
    model = tiny_model(family)
    size = families.head_size(model)
    for block in families.blocks(model):
        for linear in (block.query, block.key, block.value):
            for tensor in (linear.weight, linear.bias):
                tensor[3 * size :] = tensor[size : 2 * size]
        block.attention_output.weight[:, 3 * size :] = block.attention_output.weight[:, size : 2 * size]
        block.ffn_in.weight[40], block.ffn_in.bias[40] = block.ffn_in.weight[2], block.ffn_in.bias[2]
        block.ffn_out.weight[:, 40] = block.ffn_out.weight[:, 2]
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["masks", "weights"])
def test_a_removed_twin_is_restored(family: str, method):
    model = with_twins(family)
    made = pruned(model, [HEADS[:3]] * 2, [np.delete(NEURONS, 40)] * 2)
    broken = (logits(made) - logits(model)).abs().max()
    tune(made, model, batches(), method)
    assert (logits(made) - logits(model)).abs().max() < 0.01 * broken


@pytest.mark.parametrize("method", ["masks", "weights"])
def test_in_bf16_it_is_restored_to_rounding(method, monkeypatch):
    monkeypatch.setattr(teacher, "precision", lambda: "bf16")
    model = with_twins("bert")
    made = pruned(model, [HEADS[:3]] * 2, [np.delete(NEURONS, 40)] * 2)
    broken = (logits(made) - logits(model)).abs().max()
    tune(made, model, batches(), method)
    assert 1e-5 * broken < (logits(made) - logits(model)).abs().max() < 0.03 * broken


def test_the_mask_of_a_removed_twin_is_two_and_of_the_others_one():
    torch.manual_seed(0)
    x = torch.randn(500, 4)
    weight = torch.randn(8, 4)
    target = (torch.cat([x, x[:, 1:2]], dim=1)) @ torch.cat([weight, weight[:, 1:2]], dim=1).T
    sums = Sums((x.T @ x).double(), (x.T @ (target - x @ weight.T)).double(), 1.0, 1.0)
    masks = 1 + (mask_change(sums, weight, 1, damping=1e-9) / weight.T)[:, 0]
    assert masks.tolist() == pytest.approx([1.0, 2.0, 1.0, 1.0], abs=1e-4)


def test_small_normal_equations_equal_the_large_least_squares_problem():
    torch.manual_seed(1)
    x, weight, lacking = torch.randn(30, 6).double(), torch.randn(5, 6).double(), torch.randn(30, 5).double()
    sums = Sums(x.T @ x, x.T @ lacking, float(lacking.square().sum()), 1.0)
    columns = [(x[:, group : group + 2] @ weight[:, group : group + 2].T).flatten() for group in (0, 2, 4)]
    slow = torch.linalg.lstsq(torch.stack(columns, dim=1), lacking.flatten()[:, None]).solution[:, 0]
    change = mask_change(sums, weight, 2, damping=1e-12)
    assert torch.allclose(change, slow.repeat_interleave(2)[:, None] * weight.T, atol=1e-6)
    assert sums.error(change) == pytest.approx(float((lacking - x @ change).square().sum()))
    fitted = weight_change(sums, damping=1e-12)
    assert torch.allclose(fitted, torch.linalg.lstsq(x, lacking).solution, atol=1e-6)


def test_masks_that_blow_up_stay_ones():
    gram = torch.eye(2).double()
    calm = Sums(gram, torch.full((2, 1), 0.9 * (MASK_LIMIT - 1)).double(), 1.0, 1.0)
    wild = Sums(gram, torch.tensor([[0.5], [1.1 * (MASK_LIMIT - 1)]]).double(), 1.0, 1.0)
    weight = torch.ones(1, 2)
    assert mask_change(calm, weight, 1, 0.0).abs().min() > 1
    assert mask_change(wild, weight, 1, 0.0).abs().max() == 0


def sums_of(x: Tensor, lacking: Tensor) -> Sums:
    squares = float(lacking.square().sum())
    return Sums((x.T @ x).double(), (x.T @ lacking).double(), squares, squares)


def test_what_does_not_hold_on_other_tokens_is_not_fitted():
    torch.manual_seed(0)
    x, others = torch.randn(20, 16), torch.randn(400, 16)
    noise, truth = torch.randn(20, 3), torch.randn(16, 3)
    by_heart = best_change(weight_change, sums_of(x, noise), sums_of(others, torch.randn(400, 3)))
    assert by_heart.abs().max() == 0
    learned = best_change(weight_change, sums_of(x, x @ truth), sums_of(others, others @ truth))
    assert torch.allclose(learned, truth.double(), atol=1e-3)


def test_inputs_that_are_always_zero_change_nothing():
    sums = Sums(torch.zeros(2, 2).double(), torch.zeros(2, 3).double(), 1.0, 1.0)
    assert mask_change(sums, torch.ones(3, 2), 1, 1e-6).abs().max() == 0
    assert weight_change(sums, 1e-6).abs().max() == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["masks", "weights"])
def test_tuning_beats_no_tuning(family: str, method):
    model = tiny_model(family)
    parts = [HEADS[:3], HEADS[1:]], [NEURONS[:40], NEURONS[20:]]
    made = pruned(model, *parts)
    untuned = (logits(made) - logits(model)).square().mean()
    fits = tune(made, model, batches(), method)
    if method == "weights":  # masks bring the layers nearer, which need not bring two random logits nearer
        assert (logits(made) - logits(model)).square().mean() < 0.5 * untuned
    assert sum(fit.after for fit in fits) < 0.9 * sum(fit.before for fit in fits)
    assert [(fit.layer, fit.part) for fit in fits] == [
        (layer, part) for layer in (0, 1) for part in ("attention_output", "ffn_out")
    ]
    assert all(fit.after <= fit.before + 1e-9 for fit in fits)


def test_folded_masks_give_what_masked_inputs_give():
    model = tiny_model("bert")
    made = pruned(model, [HEADS[:3]] * 2, [NEURONS[:40]] * 2)
    masked = copy.deepcopy(made)
    tune(made, model, batches(), "masks")
    size = families.head_size(model)
    for ours, theirs in zip(families.blocks(made), families.blocks(masked), strict=True):
        for name, group in (("attention_output", size), ("ffn_out", 1)):
            folded, plain = getattr(ours, name), getattr(theirs, name)
            masks = (folded.weight / plain.weight).detach()[0]
            assert torch.allclose(masks, masks[::group].repeat_interleave(group), rtol=1e-4)
            assert torch.equal(folded.bias, plain.bias)
            plain.register_forward_pre_hook(lambda _module, inputs, masks=masks: inputs[0] * masks)
    assert torch.allclose(logits(made), logits(masked), atol=1e-5)


def test_padding_does_not_matter():
    model = tiny_model("bert")
    made, padded = (pruned(model, [HEADS[:3]] * 2, [NEURONS[:40]] * 2) for _ in range(2))
    rows = batches()
    tune(made, model, rows, "weights")
    pads = [{name: torch.nn.functional.pad(tensor, (0, 4)) for name, tensor in batch.items()} for batch in rows]
    tune(padded, model, pads, "weights")
    assert torch.allclose(logits(made), logits(padded), atol=1e-3)


def test_fewer_tokens_than_inputs_are_fitted_though_rounding_makes_their_sum_indefinite():
    draw = torch.Generator().manual_seed(0)
    x, lacking = torch.randn(16, 400, generator=draw) + 30, torch.randn(16, 3, generator=draw)
    gram = torch.zeros(400, 400, dtype=torch.float64)
    add_gram(gram, x)
    sums = Sums(whole(gram), (x.T @ lacking).double(), float(lacking.square().sum()), float(lacking.square().sum()))
    with pytest.raises(RuntimeError, match="not positive-definite"):
        torch.linalg.cholesky(sums.gram + 1e-6 * sums.gram.diagonal().mean() * torch.eye(400, dtype=torch.float64))
    assert sums.error(weight_change(sums, 1e-6)) < 0.9


def test_an_unpruned_model_stays_as_it_is():
    model = tiny_model("bert")
    made = copy.deepcopy(model)
    fits = tune(made, model, batches(), "weights")
    assert all(fit.before == fit.after == 0.0 for fit in fits)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), model.parameters(), strict=True))
