from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from deploykit import families
from deploykit.compress.fisher import half_mean_square, mask_gradients
from tests.models import CLASS_LABELS, tiny_config

FAMILIES = ("bert", "roberta", "distilbert")


def tiny_model(family: str):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(tiny_config(family, CLASS_LABELS)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.2)
    return model


def batches(sizes: list[int]) -> list[dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 30, (sum(sizes), 9), generator=rng)
    rows = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.randint(0, 2, (len(ids),), generator=rng),
    }
    return [
        dict(zip(rows, parts, strict=True))
        for parts in zip(*(value.split(sizes) for value in rows.values()), strict=True)
    ]


def row_losses(model):
    def loss(batch: dict[str, Any]) -> Tensor:
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return nn.functional.cross_entropy(output.logits, batch["labels"], reduction="sum")

    return loss


def scores(model, batches):
    """Heads' and neurons' scores, layer by layer."""
    found = mask_gradients(model, batches, row_losses(model))
    return [[half_mean_square(rows) for rows in part] for part in (found.heads, found.neurons)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_planted_dead_head_and_neuron_rank_last(family: str):
    model = tiny_model(family)
    size = families.head_size(model)
    with torch.no_grad():
        blocks = families.blocks(model)
        blocks[1].attention_output.weight[:, 2 * size : 3 * size] = 0.0
        blocks[0].ffn_out.weight[:, 17] = 0.0
    heads, neurons = scores(model, batches([8, 8]))
    assert [s.shape for s in (*heads, *neurons)] == [(4,), (4,), (64,), (64,)]
    assert heads[1][2] == 0.0 == neurons[0][17]
    assert sum((s == 0.0).sum() for s in heads) == 1
    assert sum((s == 0.0).sum() for s in neurons) == 1


def test_scores_equal_the_slow_way_one_row_and_one_head_at_a_time():
    model = tiny_model("bert")
    fast = scores(model, batches([4]))[0][0]
    size, step = families.head_size(model), 1e-3
    linear = families.blocks(model)[0].attention_output
    weight = linear.weight.detach().clone()
    slow = np.zeros(4)
    with torch.no_grad():
        for row in batches([1, 1, 1, 1]):
            for head in range(4):
                losses = []
                for factor in (1 - step, 1 + step):
                    linear.weight.copy_(weight)
                    linear.weight[:, head * size : (head + 1) * size] *= factor
                    losses.append(row_losses(model)(row).item())
                slow[head] += ((losses[1] - losses[0]) / (2 * step)) ** 2 / (2 * 4)
    assert fast == pytest.approx(slow, rel=0.02)


def test_the_batch_size_does_not_matter():
    model = tiny_model("bert")
    one, many = (scores(model, batches(sizes)) for sizes in ([1] * 6, [6]))
    for a, b in zip((*one[0], *one[1]), (*many[0], *many[1]), strict=True):
        assert a == pytest.approx(b, rel=1e-3)


def test_a_rows_gradients_do_not_depend_on_its_neighbours():
    model = tiny_model("bert")
    alone, together = (mask_gradients(model, batches(sizes), row_losses(model)) for sizes in ([1] * 4, [4]))
    assert [rows.shape for rows in (*alone.heads, *alone.neurons)] == [(4, 4), (4, 4), (4, 64), (4, 64)]
    assert np.allclose(alone.neurons[0], together.neurons[0], rtol=1e-3, atol=1e-6)


def test_the_model_is_left_as_it_was():
    model = tiny_model("bert")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mask_gradients(model, batches([3]), row_losses(model))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
