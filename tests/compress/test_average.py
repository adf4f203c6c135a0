from typing import Any

import pytest
import torch
from torch import nn

from deploykit.compress.average import SHARES, average, between


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((2, 3), value), "bias": torch.full((2,), 10 * value)}


def ended(value: float) -> Any:
    model = nn.Linear(3, 2)
    model.load_state_dict(weights(value))
    return model


@pytest.mark.parametrize("best", SHARES)
def test_the_model_has_the_weights_that_diverge_least_afterwards(best: float):
    model = ended(8.0)
    found = average(weights(4.0), model, lambda: abs(model.weight[0, 0].item() - (4 + 4 * best)))
    assert list(found) == list(SHARES)
    assert min(found, key=found.__getitem__) == best
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights(4 + 4 * best).items())


def test_of_equal_ones_the_end_is_kept():
    model = ended(8.0)
    average(weights(4.0), model, lambda: 1.0)
    assert torch.equal(model.weight, weights(8.0)["weight"])


def test_what_is_no_float_is_the_ends():
    start, end = ({"count": torch.tensor([count])} for count in (1, 4))
    assert between(start, end, 0.5)["count"].tolist() == [4]
