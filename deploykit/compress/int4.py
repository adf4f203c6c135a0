"""The arithmetic of int4 weights, once: what export lowers and what the reference computes. Activations stay in float.

A block of consecutive inputs of one output channel shares a float32 scale; a weight is scale * q with q from -8 to 7
(round to nearest). A block whose weights already lie on such a grid, as GPTQ leaves them, keeps them exactly, so the
decision needs no tensor of its own.

    O outputs   I inputs   B blocks   S block size
"""

import torch
from torch import Tensor
from torch.nn import functional as F

LOWEST, HIGHEST = -8, 7
_ON_GRID = 1e-4
"""How far, in steps, a weight may be from a level to be on it; float32 rounding is far below."""


def int4_quantized(weight_OI: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Quantize a linear module's weight; the last block is padded with zeros.

    Returns:
        int8 (O,B,S) from -8 to 7, float32 scale (O,B); a block of zeros has scale 1.
    """
    blocks_OBS = blocked(weight_OI.detach(), block_size)
    scale_OB = _grid_of(blocks_OBS)
    return levels(blocks_OBS, scale_OB).to(torch.int8), scale_OB


def int4_rounded(weight_OI: Tensor, block_size: int) -> Tensor:
    """Return the weight that int4 stands for (O,I)."""
    quantized_OBS, scale_OB = int4_quantized(weight_OI, block_size)
    rounded_OBS = quantized_OBS.float() * scale_OB[..., None]
    return rounded_OBS.flatten(1)[:, : weight_OI.shape[1]]


def blocked(weight_OI: Tensor, block_size: int) -> Tensor:
    """Cut each row into blocks (O,B,S), zeros at the end."""
    missing = -weight_OI.shape[1] % block_size
    return F.pad(weight_OI, (0, missing)).reshape(len(weight_OI), -1, block_size)


def levels(weight: Tensor, scale: Tensor) -> Tensor:
    """Return the nearest level of each weight (...,S), as float, for scales (...)."""
    return torch.round(weight / scale[..., None]).clamp(LOWEST, HIGHEST)


def scales_of(blocks: Tensor) -> Tensor:
    """Return the scale (...) that puts the largest magnitude of each block (...,S) at -8: that end reaches further."""
    at = blocks.abs().argmax(dim=-1, keepdim=True)
    extreme = blocks.gather(-1, at)[..., 0]
    return torch.where(extreme == 0, torch.ones_like(extreme), extreme / LOWEST)


def _grid_of(blocks_OBS: Tensor) -> Tensor:
    """Return each block's scale: of the grid that its weights lie on already, else by its largest magnitude."""
    scale_OB = scales_of(blocks_OBS)
    extreme_OB = scale_OB * LOWEST
    for level in (*range(LOWEST, 0), *range(HIGHEST, 0, -1)):
        candidate_OB = torch.where(blocks_OBS.any(dim=-1), extreme_OB / level, scale_OB)
        steps_OBS = blocks_OBS / candidate_OB[..., None]
        inside = (steps_OBS > LOWEST - 0.5) & (steps_OBS < HIGHEST + 0.5)
        on_grid = (inside & ((steps_OBS - steps_OBS.round()).abs() < _ON_GRID)).all(dim=-1)
        scale_OB = torch.where(on_grid, candidate_OB, scale_OB)
    return scale_OB
