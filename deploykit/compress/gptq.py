"""GPTQ: int4 weights whose rounding errors are made up for by the weights that are not rounded yet.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", section 3:
the columns are rounded one by one, and each error is spread over the later columns by the inverse Hessian
H = X'X of the layer's squared output error, of which only the upper Cholesky factor is needed. Layers are rounded in
order, each on what the rounded ones before it give.

    O outputs   I inputs   S block size   M tokens
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from deploykit import checkpoint as checkpoints
from deploykit import families
from deploykit.checkpoint import Checkpoint, Quantization
from deploykit.compress.activations import watched
from deploykit.compress.fake_quant import quantized_names
from deploykit.compress.first_token import reduced
from deploykit.compress.gram import damped_factor
from deploykit.compress.int4 import levels, scales_of
from deploykit.train.labelled import Labelled

_DAMPING = 0.01
"""Added to the Hessian's diagonal, as a share of its mean (section 3.3)."""


def round_weights(source: Checkpoint, rows: Labelled, quantization: Quantization) -> None:
    """Round every int4 module's weight by GPTQ, in place; the weights end on the grid of `int4`."""
    assert quantization.block_size is not None
    for names in _in_order(source, quantized_names(source.model, quantization)):
        for name, hessian_II in hessians(source, rows, names).items():
            weight_OI = cast("nn.Linear", source.model.get_submodule(name)).weight
            with torch.no_grad():
                weight_OI.copy_(gptq_rounded(weight_OI, hessian_II, quantization.block_size))


def hessians(source: Checkpoint, rows: Labelled, names: Sequence[str]) -> dict[str, Tensor]:
    """Return X'X over the rows' tokens of each module's input: float32 (I,I)."""
    found: dict[str, Tensor] = {}

    def add(name: str, x_MI: Tensor) -> None:
        product_II = x_MI.T @ x_MI
        found[name] = found[name] + product_II if name in found else product_II

    probe = reduced(source)
    with watched(probe.model, names, add):
        checkpoints.logits(probe, rows.encodings)
    return found


def gptq_rounded(weight_OI: Tensor, hessian_II: Tensor, block_size: int) -> Tensor:
    """Round a weight to int4 blocks (O,I), each block's scale taken when its turn comes."""
    factor_II = _inverse_factor(hessian_II)
    left_OI = weight_OI.detach().double()
    rounded_OI = torch.zeros_like(left_OI)
    for start in range(0, left_OI.shape[1], block_size):
        block = slice(start, min(start + block_size, left_OI.shape[1]))
        rounded, errors = _round_block(left_OI[:, block], factor_II[block, block])
        rounded_OI[:, block] = rounded
        left_OI[:, block.stop :] -= errors @ factor_II[block, block.stop :]
    return rounded_OI.to(weight_OI.dtype)


def _round_block(left_OS: Tensor, factor_SS: Tensor) -> tuple[Tensor, Tensor]:
    """Round one block column by column; return it and its errors over the factor's diagonal, (O,S) each."""
    left_OS, scale_O = left_OS.clone(), scales_of(left_OS).float().double()
    rounded_OS, errors_OS = torch.zeros_like(left_OS), torch.zeros_like(left_OS)
    for column in range(left_OS.shape[1]):
        now = left_OS[:, column]
        rounded_OS[:, column] = levels(now[:, None], scale_O)[:, 0] * scale_O
        errors_OS[:, column] = (now - rounded_OS[:, column]) / factor_SS[column, column]
        left_OS[:, column:] -= errors_OS[:, column, None] * factor_SS[None, column, column:]
    return rounded_OS, errors_OS


def _inverse_factor(hessian_II: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the damped Hessian's inverse: float64 (I,I)."""
    inverse_II = torch.cholesky_inverse(damped_factor(hessian_II, _DAMPING))
    factor_II: Tensor = torch.linalg.cholesky(inverse_II, upper=True)
    return factor_II


def _in_order(source: Checkpoint, names: Sequence[str]) -> list[list[str]]:
    """Group the modules by layer, in the order of the forward pass; those after the layers come last."""
    inside = {name for name, _ in families.block_linears(source.model)}
    by_layer: dict[str, list[str]] = {}
    for name in names:
        layer = _layer_of(name) if name in inside else ""
        by_layer.setdefault(layer, []).append(name)
    after = by_layer.pop("", [])
    return [*by_layer.values(), after] if after else list(by_layer.values())


def _layer_of(name: str) -> str:
    """Return the part of a name up to its layer's number."""
    steps = name.split(".")
    number = next(index for index, step in enumerate(steps) if step.isdigit())
    return ".".join(steps[: number + 1])
