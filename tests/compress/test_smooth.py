import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from deploykit import checkpoint as checkpoints
from deploykit import families, stage
from deploykit.compress import waterfall
from deploykit.compress.fake_quant import decide
from deploykit.compress.smooth import Smooth, fold, smooth, smoothing_factors
from deploykit.data import open_dataset
from deploykit.errors import DataError
from deploykit.train.labelled import read_labelled
from tests.models import make_checkpoint, make_dataset


@pytest.fixture(params=["bert", "distilbert", "roberta"])
def planted(request: pytest.FixtureRequest, tmp_path: Path) -> checkpoints.Checkpoint:
    """A model whose values have a channel three hundred times the others, which the output matrix makes small again."""
    folder = make_checkpoint(tmp_path / "model", family=request.param)
    source = checkpoints.load(checkpoints.open_checkpoint(folder))
    for block in families.blocks(source.model):
        fold(block.value, block.attention_output, torch.tensor([1 / 300, *[1.0] * 31]))
    return source


def error_of_int8(source: checkpoints.Checkpoint, encodings) -> float:
    decided = dataclasses.replace(source.spec, quantization=decide(source.model))
    quantized = waterfall.as_exported(dataclasses.replace(source, spec=decided))
    pairs = zip(checkpoints.logits(source, encodings), checkpoints.logits(quantized, encodings), strict=True)
    return float(np.mean([np.abs(one - other).mean() for one, other in pairs]))


def test_in_float_nothing_changes_and_in_int8_a_planted_outlier_does_less_harm(
    planted: checkpoints.Checkpoint, reviews: Path
):
    rows = read_labelled(planted, open_dataset(reviews), "train")
    before, error = checkpoints.logits(planted, rows.encodings), error_of_int8(planted, rows.encodings)
    smooth(planted, rows, 0.5)
    after = checkpoints.logits(planted, rows.encodings)
    assert max(np.abs(one - other).max() for one, other in zip(before, after, strict=True)) < 2e-5
    assert error_of_int8(planted, rows.encodings) < 0.5 * error


def test_factors_are_the_papers_equation():
    peak, weight = torch.tensor([4.0, 9.0, 0.0]), torch.tensor([[1.0, -1.0, 0.0], [-16.0, 0.5, 0.0]])
    assert torch.allclose(smoothing_factors(peak, weight, 0.5), torch.tensor([2.0 / 4.0, 3.0, 1.0]))
    assert torch.allclose(smoothing_factors(peak, weight, 1.0)[:2], peak[:2])
    assert torch.allclose(smoothing_factors(peak, weight, 0.0)[:2], torch.tensor([1 / 16.0, 1.0]))


@pytest.mark.parametrize("bias", [True, False])
def test_folding_keeps_the_product_of_two_matrices(bias: bool):
    torch.manual_seed(0)
    first, second, x = nn.Linear(5, 7, bias=bias), nn.Linear(7, 3), torch.randn(4, 5)
    before = second(first(x))
    fold(first, second, torch.rand(7) * 10 + 0.1)
    assert torch.allclose(second(first(x)), before, atol=1e-5)


def test_the_stage_keeps_the_metric_and_changes_the_weights(bert: Path, reviews: Path, tmp_path: Path):
    source = checkpoints.open_checkpoint(bert)
    made = stage.run(Smooth(alpha=0.7), source, open_dataset(reviews), out=tmp_path / "out")
    original, row = waterfall.read(made.path)
    assert (row["stage"], row["value"]) == ("smooth", original["value"])
    name = "bert.encoder.layer.0.attention.self.value.weight"
    weights = [checkpoints.load(one).model.state_dict()[name] for one in (source, made)]
    assert not torch.equal(*weights)


def test_too_few_rows_and_a_wrong_alpha_are_refused(bert: Path, tmp_path: Path):
    data = open_dataset(make_dataset(tmp_path / "data", rows=8))
    with pytest.raises(DataError, match="at least 32 rows"):
        stage.run(Smooth(), checkpoints.open_checkpoint(bert), data, out=tmp_path / "out")
    for settings in ({"alpha": 1.5}, {"alpha": float("nan")}, {"calibration_rows": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            Smooth(**settings)
