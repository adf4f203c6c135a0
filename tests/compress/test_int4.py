import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deploykit.compress.int4 import int4_quantized, int4_rounded

BLOCKS = (32, 64, 128)


def weight_of(outputs: int, inputs: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize("inputs", [1, 32, 100, 384])
def test_each_weight_is_the_nearest_level_of_its_own_block(inputs: int, block_size: int):
    weight = weight_of(5, inputs)
    quantized, scale = int4_quantized(weight, block_size)
    assert quantized.shape == (5, -(-inputs // block_size), block_size)
    assert (int(quantized.min()), int(quantized.max())) >= (-8, -8)
    assert int(quantized.max()) <= 7
    rounded = int4_rounded(weight, block_size)
    for output in range(5):
        for index in range(inputs):
            step = scale[output, index // block_size]
            levels = step * torch.arange(-8, 8)
            distances = (levels - weight[output, index]).abs()
            assert (rounded[output, index] - weight[output, index]).abs() <= distances.min() + 1e-6


def test_the_largest_magnitude_of_a_block_is_exact():
    weight = weight_of(64, 96)
    blocks, rounded = weight.unflatten(1, (3, 32)), int4_rounded(weight, 32).unflatten(1, (3, 32))
    at = blocks.abs().argmax(-1, keepdim=True)
    assert torch.allclose(blocks.gather(-1, at), rounded.gather(-1, at), rtol=1e-6)


@given(st.lists(st.integers(-8, 7), min_size=1, max_size=40), st.floats(2**-10, 10, width=32))
def test_weights_on_a_grid_stay_exactly_what_they_are(levels: list[int], step: float):
    weight = torch.tensor([levels], dtype=torch.float32) * step
    assert torch.allclose(int4_rounded(weight, 32), weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize("block_size", BLOCKS)
def test_rounding_twice_is_rounding_once(block_size: int):
    once = int4_rounded(weight_of(16, 200), block_size)
    assert torch.allclose(int4_rounded(once, block_size), once, rtol=1e-6, atol=0)


def test_smaller_blocks_round_better():
    weight = weight_of(64, 512)
    errors = [float((int4_rounded(weight, size) - weight).square().mean()) for size in BLOCKS]
    assert errors == sorted(errors)
    assert errors[0] < 0.9 * errors[2]


def test_zeros_stay_zero_and_nan_stays_visible():
    assert torch.equal(int4_rounded(torch.zeros(2, 40), 32), torch.zeros(2, 40))
    weight = weight_of(1, 32)
    weight[0, 3] = torch.nan
    assert int4_rounded(weight, 32).isnan().any()
