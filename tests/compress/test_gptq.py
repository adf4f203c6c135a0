import dataclasses
from pathlib import Path

import pytest
import torch

from deploykit import checkpoint as checkpoints
from deploykit import stage
from deploykit.compress import waterfall
from deploykit.compress.fake_quant import decide_int4, quantized_names
from deploykit.compress.gptq import gptq_rounded, hessians, round_weights
from deploykit.compress.int4 import int4_rounded
from deploykit.compress.quantize import Quantize
from deploykit.data import open_dataset
from deploykit.errors import DataError
from deploykit.train.labelled import read_labelled
from tests.models import make_dataset


def weight_and_inputs(correlation: float, inputs: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    common = torch.randn(400, 1, generator=rng)
    own = torch.randn(400, inputs, generator=rng)
    weight = torch.randn(24, inputs, generator=rng)
    return weight, correlation**0.5 * common + (1 - correlation) ** 0.5 * own


def output_error(weight: torch.Tensor, rounded: torch.Tensor, x: torch.Tensor) -> float:
    return float((x @ (weight - rounded).T).square().mean())


@pytest.mark.parametrize("block_size", [32, 64, 128])
def test_on_correlated_inputs_the_output_error_is_far_below_that_of_rounding(block_size: int):
    weight, x = weight_and_inputs(0.9)
    rounded = gptq_rounded(weight, x.T @ x, block_size)
    assert output_error(weight, rounded, x) < 0.5 * output_error(weight, int4_rounded(weight, block_size), x)


@pytest.mark.parametrize("block_size", [32, 64])
def test_with_an_identity_hessian_it_is_rounding_to_nearest(block_size: int):
    weight, _ = weight_and_inputs(0.0)
    rounded = gptq_rounded(weight, torch.eye(96), block_size)
    assert torch.allclose(rounded, int4_rounded(weight, block_size), rtol=1e-5)


def test_it_is_the_greedy_solution_of_the_paper_written_out():
    """Equation 2: round one column, then set the rest to the least-squares best; here by solving for it each time."""
    weight, x = weight_and_inputs(0.7, inputs=12)
    hessian = (x.T @ x).double()
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    left = weight.double().clone()
    extreme = left.gather(1, left.abs().argmax(1, keepdim=True))[:, 0]
    scale = (extreme / -8).float().double()
    for column in range(12):
        before = left[:, column].clone()
        left[:, column] = torch.round(before / scale).clamp(-8, 7) * scale
        error, rest = left[:, column] - before, slice(column + 1, 12)
        left[:, rest] -= error[:, None] * torch.linalg.solve(damped[rest, rest], damped[rest, column])
    assert torch.allclose(gptq_rounded(weight, x.T @ x, 32).double(), left, rtol=1e-5)


def test_an_input_that_is_always_zero_does_no_harm():
    weight, x = weight_and_inputs(0.9)
    x[:, 7] = 0.0
    assert gptq_rounded(weight, x.T @ x, 32).isfinite().all()
    assert gptq_rounded(weight, torch.zeros(96, 96), 32).isfinite().all()


def test_the_weights_end_on_the_grid_so_that_the_decision_is_exact(bert: Path, reviews: Path):
    source = checkpoints.load(checkpoints.open_checkpoint(bert))
    decision = decide_int4(source.model, block_size=32)
    before = {
        name: source.model.get_parameter(f"{name}.weight").clone() for name in quantized_names(source.model, decision)
    }
    round_weights(source, read_labelled(source, open_dataset(reviews), "train"), decision)
    for name, weight in before.items():
        now = source.model.get_parameter(f"{name}.weight")
        assert torch.allclose(int4_rounded(now, 32), now, rtol=1e-5, atol=1e-8)
        assert not torch.equal(now, weight)


def test_hessians_leave_padding_out(bert: Path, reviews: Path):
    source = checkpoints.load(checkpoints.open_checkpoint(bert))
    rows = read_labelled(source, open_dataset(reviews), "train")
    (name,) = names = ["bert.encoder.layer.0.attention.self.key"]
    together = hessians(source, rows, names)[name]
    alone = sum(
        hessians(source, dataclasses.replace(rows, encodings=[one], targets=[target]), names)[name]
        for one, target in zip(rows.encodings, rows.targets, strict=True)
    )
    assert torch.allclose(together, torch.as_tensor(alone), rtol=1e-4, atol=1e-3)


def test_the_stage_rounds_and_records_half_a_byte_a_weight(bert: Path, reviews: Path, tmp_path: Path):
    source, data = checkpoints.open_checkpoint(bert), open_dataset(reviews)
    gptq = Quantize(scheme="int4", block_size=64, embeddings="float32")
    made = stage.run(gptq, source, data, out=tmp_path / "gptq")
    nearest = stage.run(dataclasses.replace(gptq, rounding="nearest"), source, data, out=tmp_path / "rtn")
    weights = [checkpoints.load(one).model.state_dict()["bert.pooler.dense.weight"] for one in (source, made, nearest)]
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])
    original, row = waterfall.read(made.path)
    per_layer = 4 * 32 * 36 + 64 * 36 + 32 * 36  # (O,B) blocks of 32 bytes and a scale; 32 inputs pad to 64
    quantized = 2 * per_layer + 32 * 36
    in_float = 4 * (2 * (4 * 32 * 32 + 2 * 64 * 32) + 32 * 32)
    assert original["num_bytes"] - row["num_bytes"] == in_float - quantized


def test_too_few_rows_and_settings_without_effect_are_refused(bert: Path, tmp_path: Path):
    data = open_dataset(make_dataset(tmp_path / "data", rows=8))
    with pytest.raises(DataError, match="at least 32 rows"):
        stage.run(Quantize(scheme="int4"), checkpoints.open_checkpoint(bert), data, out=tmp_path / "out")
    for settings in ({"weight_bits": 8}, {"calibration": "mse"}, {"rounding": "nearest", "calibration_rows": 64}):
        with pytest.raises(ValueError, match="no effect"):
            Quantize(scheme="int4", **settings)
    with pytest.raises(ValueError, match="block_size has no effect"):
        Quantize(block_size=32)
