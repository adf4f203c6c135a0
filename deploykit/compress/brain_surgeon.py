"""What heads and neurons cost when those that stay make up for them: the Optimal Brain Surgeon.

Heads and neurons end in an output matrix W. Where the inputs S of it go and least squares fits the others anew, the
squared error of its output is tr(W_S C^-1 W_S^T), with C the block S of the inverse of the inputs' second moment
(Hassibi and Stork 1993, section 2, for one weight). The loss does not mind every output alike: weighted by the second
moment of its gradient by the outputs, the error is what the loss rises by, with the curvature of Kronecker factors
(Martens and Grosse 2015, section 3; van der Ouderaa et al. 2024, section 3, prune so). The cheapest part goes, W and
the inverse become those of what is left, and so on: what two parts do alike is cheap to lose once.

    A heads   F feed-forward width   H hidden size   K inputs of an output matrix, and one more, a one, for the bias
    P parts (heads, or neurons), of K / P inputs each
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from deploykit import families
from deploykit.compress.fisher import RowLoss, frozen
from deploykit.compress.gram import add_gram, damped_factor, whole
from deploykit.compress.mask_search import Removals
from deploykit.compress.slicing import Kept
from deploykit.compress.teacher import autocast

_DAMPING = 1e-4
"""Added to the inputs' second moment, as a share of its mean diagonal."""
_STEPS = 32
"""Of many parts one in so many goes at a time."""
_CANDIDATES = 4
"""Of parts that go together each is chosen among so many times as many, those that are cheap alone."""


@dataclass(frozen=True)
class Curvature:
    """The two factors of the loss's curvature in one output matrix."""

    inputs: Tensor
    """Mean over tokens of the inputs' products, (K,K)."""
    outputs: Tensor
    """Mean over rows of the products of the loss's gradients by the output, summed over tokens, (H,H)."""


@dataclass(frozen=True)
class SuccessiveRemoval:
    """The parts of one layer in the order in which they are lost, and what that costs.

    P parts   K widths
    """

    order: Kept
    """(P,), the cheapest first; those never removed come last."""
    widths: NDArray[np.int64]
    """(K,), ascending: how many parts may stay."""
    losses: NDArray[np.float64]
    """(K,): what the loss has risen by."""

    def kept(self, width: int) -> Kept:
        """Return the parts that stay, ascending."""
        return np.sort(self.order[len(self.order) - width :])


def removals(model: PreTrainedModel, batches: Iterable[Any], loss: RowLoss, multiple: int) -> Removals:
    """Order every layer's heads, and its neurons in groups of `multiple`; the model is left as it was.

    Args:
        model: in evaluation mode; `loss` runs it.
        batches: at least one; anything that `loss` takes, with `input_ids` and `attention_mask` (N,L).
        loss: the sum of the rows' losses.
        multiple: of the feed-forward widths.
    """
    heads, neurons = [], []
    size = families.head_size(model)
    for block, (attention, ffn) in zip(families.blocks(model), curvatures(model, batches, loss), strict=True):
        heads.append(successive(attention, block.attention_output.weight, size, 1))
        neurons.append(successive(ffn, block.ffn_out.weight, 1, multiple))
    return heads, neurons


@torch.no_grad()
def successive(curvature: Curvature, weight_HK: Tensor, group: int, multiple: int) -> SuccessiveRemoval:
    """Remove the cheapest parts, `multiple` at a time, of very many more, until so many are left.

    Args:
        curvature: of the matrix.
        weight_HK: the output matrix, whose inputs are `group` a part.
        group: inputs of a part.
        multiple: the widths that are wanted are multiples of it; what is odd goes first.
    """
    inverse = torch.cholesky_inverse(damped_factor(curvature.inputs, _DAMPING))
    weight = _root(curvature.outputs.double()) @ weight_HK.double()
    left = np.arange(weight.shape[1] // group)
    order, widths, losses = [], [len(left)], [0.0]
    while len(left) > multiple:
        step = multiple * max(1, len(left) // (multiple * _STEPS))
        going = _cheapest(inverse, weight, group, len(left) % multiple or step)
        gone, stays = _inputs(going, group), _inputs(np.setdiff1d(np.arange(len(left)), going), group)
        among, freed = inverse[gone][:, gone], weight[:, gone]
        losses.append(losses[-1] + 0.5 * float((freed.T @ freed * torch.linalg.inv(among)).sum()))
        made_up = torch.linalg.solve(among, inverse[gone])
        weight = weight.addmm_(freed, made_up[:, :-1], alpha=-1)[:, stays]
        stays = torch.cat([stays, torch.tensor([len(inverse) - 1])])
        inverse = inverse.addmm_(inverse[:, gone], made_up, alpha=-1)[stays][:, stays]
        order.append(left[going])
        left = np.delete(left, going)
        widths.append(len(left))
    return SuccessiveRemoval(np.concatenate([*order, left]), np.array(widths[::-1]), np.array(losses[::-1]))


def _root(moment_HH: Tensor) -> Tensor:
    """Return R with R^T R = `moment_HH`."""
    values_H, vectors_HH = torch.linalg.eigh(moment_HH)
    return cast("Tensor", values_H.clamp(min=0.0).sqrt()[:, None] * vectors_HH.T)


def _cheapest(inverse: Tensor, weight: Tensor, group: int, count: int) -> NDArray[np.int64]:
    """Return the positions of `count` parts, each the cheapest to lose after those before it.

    Of two that do the same each alone costs nothing, so the others' costs are looked at again after each: those of the
    parts that are cheap alone, no others.
    """
    weight_HPG = weight.reshape(len(weight), -1, group)
    gram_PGG = torch.stack([(weight_HPG * weight_HPG[..., [column]]).sum(dim=0) for column in range(group)], dim=2)
    alone_P = _costs(_diagonal_blocks(inverse[:-1, :-1], group), gram_PGG)
    candidates = alone_P.argsort(stable=True)[: _CANDIDATES * count]
    inputs = _inputs(candidates.numpy(), group)
    left, gram = inverse[inputs][:, inputs], weight[:, inputs].T @ weight[:, inputs]
    going: list[int] = []
    for _ in range(count):
        costs = _costs(_diagonal_blocks(left, group), _diagonal_blocks(gram, group))
        costs[going] = torch.inf
        part = int(costs.argmin())
        going.append(part)
        gone = slice(part * group, (part + 1) * group)
        made_up = left[:, gone] @ torch.linalg.inv(left[gone, gone])
        shared = gram[:, gone] - 0.5 * made_up @ gram[gone, gone]
        gram.addmm_(made_up, shared.T, alpha=-1).addmm_(shared, made_up.T, alpha=-1)
        left.addmm_(made_up, left[gone].clone(), alpha=-1)
        left[gone, gone] = torch.eye(group, dtype=left.dtype)
    return np.asarray(candidates[going].numpy())


def _costs(inverse_PGG: Tensor, gram_PGG: Tensor) -> Tensor:
    """Return what it costs to lose each part alone: (P,)."""
    return cast("Tensor", (gram_PGG * torch.linalg.inv(inverse_PGG)).sum(dim=(1, 2)))


def _diagonal_blocks(matrix: Tensor, group: int) -> Tensor:
    """Return the blocks of `group` on the diagonal: (P,group,group)."""
    parts = torch.arange(len(matrix)).reshape(-1, group)
    return matrix[parts[:, :, None], parts[:, None, :]]


def _inputs(parts: NDArray[np.int64], group: int) -> Tensor:
    """Return the inputs of some parts."""
    return torch.from_numpy((parts[:, None] * group + np.arange(group)).ravel())


def curvatures(model: PreTrainedModel, batches: Iterable[Any], loss: RowLoss) -> list[tuple[Curvature, Curvature]]:
    """Measure the curvature in every layer's output matrices, of attention and of the feed-forward network.

    One backward pass, in bf16 where that is faster, and no gradient of a weight. Args are those of `removals`; padding
    is left out.
    """
    watched = [part for block in families.blocks(model) for part in (block.attention_output, block.ffn_out)]
    totals = [[torch.zeros(width, width) for width in (part.in_features + 1, part.out_features)] for part in watched]
    num_rows, num_tokens = 0, 0
    with frozen(model), _watched(model, watched) as seen:
        for batch in batches:
            mask_NL = batch["attention_mask"].bool().cpu()
            with autocast(model):
                value = loss(batch)
            gradients = torch.autograd.grad(value, [made for _, made in seen])
            for total, (given, _), gradient in zip(totals, seen, gradients, strict=True):
                x_TK, g_TH = (tensor.cpu()[mask_NL].float() for tensor in (given, gradient))
                x_TK = torch.cat([x_TK, x_TK.new_ones(len(x_TK), 1)], dim=1)
                add_gram(total[0], x_TK)
                add_gram(total[1], g_TH)
            num_rows, num_tokens = num_rows + len(mask_NL), num_tokens + int(mask_NL.sum())
            seen.clear()
    found = [Curvature(whole(inputs) / num_tokens, whole(outputs) / num_rows) for inputs, outputs in totals]
    return list(zip(found[0::2], found[1::2], strict=True))


@contextmanager
def _watched(model: PreTrainedModel, modules: Iterable[nn.Module]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Keep what each module is given, and what it makes of it, in the order of the calls."""
    seen: list[tuple[Tensor, Tensor]] = []

    def start(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].detach().requires_grad_(), *args[1:])  # or nothing would have a gradient

    def keep(_module: Any, given: tuple[Tensor], made: Tensor) -> None:
        seen.append((given[0].detach(), made))

    handles = [families.layer_list(model)[0].register_forward_pre_hook(start)]
    handles += [module.register_forward_hook(keep) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
