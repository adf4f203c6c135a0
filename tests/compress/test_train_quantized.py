import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from deploykit import checkpoint as checkpoints
from deploykit import stage
from deploykit.compress import compress as line
from deploykit.compress import waterfall, worth
from deploykit.compress.compress import Quantize
from deploykit.compress.fake_quant import decide, dynamic_linear, weights_quantized
from deploykit.compress.train_quantized import (
    RoundedLinear,
    TrainQuantized,
    put_rounding_in,
    straight_through,
    take_rounding_out,
)
from deploykit.data import open_dataset
from deploykit.train.labelled import read_labelled


def test_forward_is_the_int8_product_and_backward_is_the_float_one():
    torch.manual_seed(0)
    linear, x = nn.Linear(40, 6), torch.randn(9, 40, requires_grad=True)
    rounded = RoundedLinear(linear, checkpoints.Quantization("dynamic-int8"))
    quantized, scale = weights_quantized(linear.weight, 7)
    assert torch.allclose(rounded(x), dynamic_linear(x, quantized.float(), scale, linear.bias), atol=1e-5)
    rounded(x).sum().backward()
    assert linear.weight.grad is not None
    assert x.grad is not None
    own = linear.weight.grad, x.grad
    values = x.detach().clone().requires_grad_()
    linear.zero_grad()
    linear(values).sum().backward()
    assert linear.weight.grad is not None
    assert values.grad is not None
    assert torch.allclose(own[0], linear.weight.grad, atol=0.2)  # of the rounded input
    assert torch.allclose(own[1], values.grad, atol=0.05)  # of the rounded weight


def test_without_the_estimator_nothing_could_be_learned():
    x = torch.tensor([0.3, 0.7], requires_grad=True)
    assert not torch.round(x).detach().requires_grad
    straight_through(x, torch.round(x)).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones(2))


def test_what_is_put_in_is_taken_out_again(bert: Path):
    source = checkpoints.load(checkpoints.open_checkpoint(bert))
    before = {name: value.clone() for name, value in source.model.state_dict().items()}
    kinds = [type(module) for module in source.model.modules()]
    put_rounding_in(source.model, decide(source.model))
    assert list(source.model.state_dict()) == list(before)
    take_rounding_out(source.model)
    assert [type(module) for module in source.model.modules()] == kinds
    assert all(torch.equal(value, before[name]) for name, value in source.model.state_dict().items())


def coarse(source: checkpoints.Checkpoint, encodings) -> list[np.ndarray]:
    """The logits of the int8 model."""
    spec = dataclasses.replace(source.spec, quantization=decide(source.model))
    return list(checkpoints.logits(waterfall.as_exported(dataclasses.replace(source, spec=spec)), encodings))


def test_training_brings_the_int8_model_closer_to_the_float_one(bert: Path, reviews: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(__import__("deploykit.compress.fake_quant", fromlist=["x"]).WEIGHT_LIMITS, 7, 2)  # 2 bits
    origin, data = checkpoints.open_checkpoint(bert), open_dataset(reviews)
    settings = TrainQuantized(epochs=6, learning_rate=2e-3, alpha=0.0, batch_size=8)
    made = stage.run(settings, origin, data, out=tmp_path / "out")
    source, trained = checkpoints.load(origin), checkpoints.load(made)
    encodings = read_labelled(source, data, "train").encodings
    wanted = np.stack(checkpoints.logits(source, encodings))
    before, after = (np.abs(np.stack(coarse(one, encodings)) - wanted).mean() for one in (source, trained))
    assert after < 0.7 * before
    losses = [epoch["loss"] for epoch in made.facts["history"]]
    assert losses[-1] < losses[0]


def test_a_recipe_trains_and_then_quantizes(bert: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worth, "preparation_dropped", lambda *_: None)  # two steps of training gain nothing
    stages = (TrainQuantized(max_train_samples=16), Quantize())
    made = line.compress(checkpoints.open_checkpoint(bert), open_dataset(reviews), stages, tmp_path / "out")
    assert [row["stage"] for row in waterfall.read(made.path)] == ["original", "train-quantized", "quantize"]


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"temperature": 0.0}, {"max_train_samples": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        TrainQuantized(**settings)
