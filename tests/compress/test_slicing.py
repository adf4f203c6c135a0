import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from deploykit import families
from deploykit.compress.slicing import require_reachable, slice_parts
from deploykit.errors import UsageError
from deploykit.families import Structure
from tests.models import CLASS_LABELS, tiny_config

FAMILIES = ("bert", "roberta", "distilbert")


def tiny_model(family: str):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(tiny_config(family, CLASS_LABELS)).eval()


def logits(model):
    ids = torch.arange(2, 26).reshape(2, 12)
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.mark.parametrize("share", [0.001, 0.76, 1.0])
def test_a_share_that_removes_nothing_or_too_much_is_refused(share: float):
    with pytest.raises(UsageError, match=r"prune\.heads"):
        require_reachable("prune.heads", share, [4, 4, 4, 4], 1)


def test_a_layer_narrower_than_a_group_is_never_cut():
    with pytest.raises(UsageError):
        require_reachable("prune.ffn", 0.5, [16, 16], 32)


@pytest.mark.parametrize("family", FAMILIES)
def test_slicing_parts_that_are_exactly_zero_changes_nothing(family: str):
    model = tiny_model(family)
    size = families.head_size(model)
    with torch.no_grad():
        for block in families.blocks(model):
            block.attention_output.weight[:, size : 2 * size] = 0.0
            block.ffn_out.weight[:, 5:37] = 0.0
    before = logits(model)
    neurons = np.concatenate([np.arange(5), np.arange(37, 64)])
    structure = slice_parts(model, [np.array([0, 2, 3])] * 2, [neurons] * 2)
    assert structure == Structure((3, 3), (32, 32)) == families.structure_of(model)
    assert torch.allclose(logits(model), before, atol=1e-6)


def test_slicing_parts_that_matter_changes_the_output():
    model = tiny_model("bert")
    before = logits(model)
    slice_parts(model, [np.array([0, 2, 3])] * 2, [np.arange(32)] * 2)
    assert not torch.allclose(logits(model), before, atol=1e-6)


def test_layers_may_differ():
    model = tiny_model("distilbert")
    slice_parts(model, [np.array([1]), np.arange(4)], [np.arange(64), np.arange(0, 64, 2)])
    assert families.structure_of(model) == Structure((1, 4), (64, 32))
    assert logits(model).isfinite().all()
