"""Which heads and neurons stay, and the smaller matrices without the others.

W parts of a layer (heads, or feed-forward neurons)   K parts kept
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from deploykit import families
from deploykit.checkpoint import Checkpoint
from deploykit.errors import UsageError
from deploykit.families import Block, Structure

Kept = NDArray[np.int64]
"""(K,) indices of the parts that stay, ascending."""
Parts = tuple[list[Kept], list[Kept]]
"""The heads and the neurons kept, layer by layer."""


def require_reachable(where: str, share: float, widths: Sequence[int], multiple: int) -> None:
    """Check that `share` of all parts can go, in groups of `multiple`, with one group left in each layer.

    Raises:
        UsageError: nothing would go, or too much.
    """
    total = sum(widths)
    highest = sum(sum(_group_sizes(width, multiple)[:-1]) for width in widths) / total
    lowest = multiple / (2 * total)
    if not lowest <= share <= highest:
        raise UsageError(
            where,
            expected=f"a share from {lowest:.3g} to {highest:.3g} (groups of {multiple}, at least one in each layer)",
            found=f"{share:g} of {total} in {len(widths)} layers",
            next_step="change the share",
        )


def _group_sizes(width: int, multiple: int) -> list[int]:
    """Return the sizes of a layer's groups, least valuable first; the odd one goes first."""
    odd = width % multiple
    return ([odd] if odd else []) + [multiple] * (width // multiple)


def sliced(checkpoint: Checkpoint, parts: Parts) -> Checkpoint:
    """Copy a checkpoint with only the parts kept."""
    model = copy.deepcopy(checkpoint.model)
    structure = slice_parts(model, *parts)
    return replace(checkpoint, model=model, spec=replace(checkpoint.spec, structure=structure))


def slice_parts(model: PreTrainedModel, heads: Sequence[Kept], neurons: Sequence[Kept]) -> Structure:
    """Cut every layer down to the parts kept, in place; the rest of the model stays bit for bit."""
    size = families.head_size(model)
    cut = [_cut(*parts, size) for parts in zip(families.blocks(model), heads, neurons, strict=True)]
    structure = Structure(tuple(map(len, heads)), tuple(map(len, neurons)))
    families.resize(model, structure)
    for block, tensors in zip(families.blocks(model), cut, strict=True):
        for linear, (weight, bias) in zip(block.linears(), tensors, strict=True):
            _fill(linear, weight, bias)
    return structure


def _cut(block: Block, heads: Kept, neurons: Kept, size: int) -> list[tuple[Tensor, Tensor | None]]:
    """Return the six smaller matrices and biases, in the order of `Block.linears`."""
    columns = torch.from_numpy((heads[:, None] * size + np.arange(size)).ravel())
    width = torch.from_numpy(neurons)
    inside = [_rows(linear, columns) for linear in (block.query, block.key, block.value)]
    return [
        *inside,
        _columns(block.attention_output, columns),
        _rows(block.ffn_in, width),
        _columns(block.ffn_out, width),
    ]


def _rows(linear: nn.Linear, kept: Tensor) -> tuple[Tensor, Tensor | None]:
    bias = cast("Tensor | None", linear.bias)
    return linear.weight.detach()[kept], None if bias is None else bias.detach()[kept]


def _columns(linear: nn.Linear, kept: Tensor) -> tuple[Tensor, Tensor | None]:
    bias = cast("Tensor | None", linear.bias)
    return linear.weight.detach()[:, kept], None if bias is None else bias.detach().clone()


@torch.no_grad()
def _fill(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    linear.weight.copy_(weight)
    if bias is not None:
        linear.bias.copy_(bias)
