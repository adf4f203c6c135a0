import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deploykit import checkpoint as checkpoints
from deploykit import stage
from deploykit.compress.activations import watched
from deploykit.compress.calibrate import (
    CALIBRATIONS,
    Histogram,
    activation,
    calibrated,
    cut,
    histograms,
    require_kindred,
)
from deploykit.compress.fake_quant import decide, quantized_as, quantized_names
from deploykit.compress.first_token import reduced
from deploykit.compress.quantize import Quantize
from deploykit.data import open_dataset
from deploykit.errors import DataError
from deploykit.spec import Activation
from deploykit.train.labelled import read_labelled


@pytest.fixture(scope="module")
def source(bert: Path) -> checkpoints.Checkpoint:
    return reduced(checkpoints.load(checkpoints.open_checkpoint(bert)))


def rows_of(source, data: Path, split: str = "train"):
    return read_labelled(source, open_dataset(data), split)


def histogram_of(values: np.ndarray) -> Histogram:
    low, high = min(float(values.min(initial=0)), 0.0), max(float(values.max(initial=0)), 0.0)
    counts, _ = np.histogram(values, 2048, (low, high if high > low else low + 1))
    return Histogram(low, high, counts)


def rounding_error(values: np.ndarray, low: float, high: float) -> float:
    how = activation("x", low, high)
    x = torch.tensor(values, dtype=torch.float32)
    quantized = quantized_as(x, torch.tensor(how.scale), torch.tensor(how.zero_point)).float()
    return float((((quantized - how.zero_point) * how.scale) - x).square().mean())


def test_minmax_cuts_nothing():
    values = np.random.default_rng(0).normal(size=5000)
    assert cut(histogram_of(values), "minmax") == (values.min(), values.max())


def test_percentile_leaves_the_given_share_of_magnitudes_outside():
    values = np.random.default_rng(0).laplace(size=200_000)
    low, high = cut(histogram_of(values), "percentile")
    assert -low == high
    assert np.mean(np.abs(values) > high) == pytest.approx(1e-4, abs=3e-5)


def test_mse_finds_the_cut_that_a_slow_search_over_the_values_finds():
    values = np.append(np.random.default_rng(0).normal(size=400_000), 20.0).astype(np.float32)
    low, high = cut(histogram_of(values), "mse")
    peak = np.abs(values).max()
    errors = {
        t: rounding_error(values, max(values.min(), -t), min(values.max(), t)) for t in peak * np.arange(1, 129) / 128
    }
    best = min(errors.values())
    assert rounding_error(values, low, high) <= 1.02 * best
    assert best < 0.8 * rounding_error(values, values.min(), values.max())


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_one_outlier_among_many_values_is_cut(method):
    values = np.append(np.random.default_rng(0).normal(size=100_000), 400.0)
    low, high = cut(histogram_of(values), method)
    assert high < 100
    assert low < -3


@pytest.mark.parametrize("method", CALIBRATIONS)
def test_values_that_fill_their_range_are_not_cut(method):
    values = np.random.default_rng(0).uniform(-1, 3, size=100_000)
    low, high = cut(histogram_of(values), method)
    assert (low, high) == pytest.approx((-1, 3), abs=0.03)


@pytest.mark.parametrize("method", CALIBRATIONS)
def test_zeros_one_value_and_none_give_a_usable_scale(method):
    for values in (np.zeros(5), np.array([2.5]), np.array([-2.5]), np.array([])):
        found = activation("x", *cut(histogram_of(values), method))
        assert found.scale > 0
        assert 0 <= found.zero_point <= 255


@given(st.floats(-1e4, 0, width=32), st.floats(0, 1e4, width=32))
def test_zero_is_exact_and_the_ends_are_within_a_step(low: float, high: float):
    found = activation("x", low, high)
    x = torch.tensor([0.0, low, high])
    back = (quantized_as(x, torch.tensor(found.scale), torch.tensor(found.zero_point)).float() - found.zero_point) * (
        found.scale
    )
    assert back[0] == 0
    assert (back - x).abs().max() <= found.scale * 1.01


def test_padding_is_not_counted(source: checkpoints.Checkpoint, reviews: Path):
    rows = rows_of(source, reviews)
    names = ["bert.encoder.layer.0.output.dense"]
    (found,) = histograms(source, rows, names).values()
    assert found.counts.sum() == 64 * sum(len(encoding.ids) for encoding in rows.encodings)
    seen = []
    with watched(source.model, names, lambda _name, x_MI: seen.append(x_MI)):
        for encoding in rows.encodings:
            checkpoints.logits(source, [encoding])
    alone = torch.cat(seen)
    assert (found.low, found.high) == pytest.approx((float(alone.min()), float(alone.max())), rel=1e-5)


@pytest.mark.parametrize("method", CALIBRATIONS)
def test_every_quantized_module_has_a_range_and_those_of_one_tensor_share_it(source, reviews: Path, method):
    decision = calibrated(source, rows_of(source, reviews), decide(source.model), method)
    by_name = {one.name: one for one in decision.activations}
    assert list(by_name) == quantized_names(source.model, decision)
    first = "bert.encoder.layer.0.attention.self."
    assert len({dataclasses.replace(by_name[first + part], name="") for part in ("query", "key", "value")}) == 1


def test_too_few_rows_are_refused_by_file_and_number(source: checkpoints.Checkpoint, reviews: Path):
    rows = rows_of(source, reviews).sample(31, 0)
    with pytest.raises(DataError, match=r"train\.jsonl: expected at least 32 rows to calibrate on, found 31"):
        calibrated(source, rows, decide(source.model), "minmax")


def test_rows_of_another_kind_are_refused_by_module(source: checkpoints.Checkpoint, reviews: Path):
    rows = rows_of(source, reviews)
    same = dataclasses.replace(rows, encodings=[rows.encodings[0]] * 40)
    decision = decide(source.model)
    with pytest.raises(DataError, match=r"tokens of validation\.jsonl bring values into bert\.encoder"):
        require_kindred(source, same, rows_of(source, reviews, "validation"), decision)
    assert require_kindred(source, rows, rows, decision) == []


def test_the_stage_stores_exact_ranges_and_refuses_settings_without_effect(bert: Path, reviews: Path, tmp_path: Path):
    settings = Quantize(scheme="static-int8", calibration="minmax", calibration_rows=40)
    (tmp_path / "data").mkdir()
    for name in ("train", "validation"):  # 48 random rows do not show all that a random model does
        (tmp_path / "data" / f"{name}.jsonl").write_text((reviews / "train.jsonl").read_text())
    (tmp_path / "data" / "labels.json").write_text((reviews / "labels.json").read_text())
    source, data = checkpoints.open_checkpoint(bert), open_dataset(tmp_path / "data")
    made = stage.run(settings, source, data, out=tmp_path / "out")
    found = checkpoints.load(made).spec.quantization
    assert found is not None
    assert len(found.activations) == 13
    assert json.loads((made.path / "deploykit.json").read_text())["quantization"]["scheme"] == "static-int8"
    one = found.activations[0]
    assert one == Activation(one.name, float(np.float32(one.scale)), one.zero_point)
    with pytest.raises(ValueError, match="calibration has no effect"):
        Quantize(calibration="mse")
    with pytest.raises(ValueError, match="calibration_rows has no effect"):
        Quantize(calibration_rows=64)
