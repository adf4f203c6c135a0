"""How much the loss would change without a head or a neuron: the diagonal empirical Fisher information of masks.

A mask of ones multiplies each head's output and each feed-forward neuron. To second order, setting one to zero costs
half the mean squared gradient of a row's loss by that mask (Kwon et al. 2022, section 4.1; for heads Michel et al.
2019, section 4.1, with the absolute gradient). Each row has its own copy of the masks, so one backward pass gives every
row's gradient, and no gradient of a weight is computed.

    N rows   L padded length   A heads   F feed-forward width   H hidden size
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from deploykit import families

Scores = NDArray[np.float64]
RowGradients = NDArray[np.float32]
RowLoss = Callable[[Any], Tensor]
"""A batch to the sum of its rows' losses; it must be the sum, or rows of one batch would share a scale."""


@dataclass(frozen=True)
class MaskGradients:
    """Each row's gradient of its loss by the masks, layer by layer."""

    heads: tuple[RowGradients, ...]
    """(N,A) each."""
    neurons: tuple[RowGradients, ...]
    """(N,F) each."""


def mask_gradients(model: PreTrainedModel, batches: Iterable[Any], loss: RowLoss) -> MaskGradients:
    """Return every row's gradients, which also tell how parts of one layer work together; the model is left as it was.

    Memory is 4 bytes a row and part.

    Args:
        model: in evaluation mode; `loss` runs it.
        batches: at least one; anything that `loss` takes, with `input_ids` (N,L).
        loss: the sum of the rows' losses.
    """
    found = [torch.cat(parts).numpy() for parts in zip(*_gradients(model, batches, loss), strict=True)]
    return MaskGradients(tuple(found[0::2]), tuple(found[1::2]))


def half_mean_square(gradients_NW: RowGradients) -> Scores:
    """Return the diagonal of the Fisher information of masks, halved: (W,)."""
    squares_W: Scores = np.einsum("nw,nw->w", gradients_NW, gradients_NW, dtype=np.float64)
    return squares_W / (2 * len(gradients_NW))


def _gradients(model: PreTrainedModel, batches: Iterable[Any], loss: RowLoss) -> Iterator[list[Tensor]]:
    """Yield a batch's gradients (N,A), (N,F), (N,A) and so on, layer by layer, on the CPU."""
    masked = [module for block in families.blocks(model) for module in (block.attention_output, block.ffn_out)]
    structure = families.structure_of(model)
    widths = [width for pair in zip(structure.heads, structure.ffn, strict=True) for width in pair]
    with frozen(model):
        for batch in batches:
            rows = len(batch["input_ids"])
            masks = [torch.ones(rows, width, device=model.device, requires_grad=True) for width in widths]
            with _applied(masked, masks):
                yield [gradient.cpu() for gradient in torch.autograd.grad(loss(batch), masks)]


@contextmanager
def _applied(modules: Sequence[nn.Module], masks: Sequence[Tensor]) -> Iterator[None]:
    """Multiply each module's input by its mask (N,groups), a group being a run of equal width."""
    handles = [module.register_forward_pre_hook(_masking(mask)) for module, mask in zip(modules, masks, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _masking(mask: Tensor) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    def multiplied(_module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (x_NLW,) = inputs
        group = x_NLW.shape[-1] // mask.shape[-1]
        return (x_NLW * mask.repeat_interleave(group, dim=-1)[:, None, :],)

    return multiplied


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Switch the parameters' gradients off for a while: only the masks need any."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad = False
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad = True
