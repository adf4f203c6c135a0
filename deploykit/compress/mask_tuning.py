"""After pruning, make each layer's output what it was, by least squares: no labels, no gradients, one pass.

From the first layer to the last, attention before feed-forward, each pruned output matrix is fitted to what the
unpruned model has at the same place, on what the tuned layers below now give. `masks` scales every head or neuron that
stayed (Kwon et al. 2022, section 4.3) and folds the scale into its columns; `weights` fits the whole matrix and its
bias, which costs the same sums and one more solution. Layers run in bf16 where that is faster (DistilBERT pruned to
0.55: fitted in 0.7 of the time, and as near to the original, divergence 0.0339); sums and solutions never do.

    N rows   L padded length   T tokens that count   H hidden size   K inputs of an output matrix (heads * head size,
    or neurons), one more where the bias is among them   G groups of inputs with one mask each (heads, or neurons)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from deploykit import families
from deploykit.compress.first_token import reads_first_token
from deploykit.compress.gram import add_gram, damped_factor, whole
from deploykit.compress.teacher import autocast
from deploykit.train import progress

Method = Literal["masks", "weights"]
Inputs = Mapping[str, Tensor]
Change = Callable[["Sums", float], Tensor]
"""Sums and a damping to a change of the transposed matrix, (K,H)."""

MASK_LIMIT = 10.0
"""A mask beyond this has blown up, and the matrix keeps its masks of one (Kwon et al. 2022, in their code)."""
_DAMPINGS = (1e-6, 1e-4, 1e-2, 1.0)
"""Added to the normal equations, as shares of their mean diagonal: what nothing speaks for stays as it was."""
_HELD_OUT = 4
"""One batch in so many judges the dampings."""
_PARTS = (("attention_output", "attention_norm"), ("ffn_out", "ffn_norm"))
"""An output matrix, and the norm whose input is that matrix's output and the residual: what is fitted."""


@dataclass(frozen=True)
class Fit:
    """How far a layer's output was from the unpruned model's, as a share of its square."""

    layer: int
    part: str
    """`attention_output` or `ffn_out`."""
    before: float
    after: float
    """Both on rows held out; where no fit was better there, the matrix stays and both are equal."""


@dataclass(frozen=True)
class Sums:
    """All that a fit needs of the tokens, in float64: X the inputs of the matrix, R what its output lacks."""

    gram: Tensor
    """X^T X, (K,K)"""
    cross: Tensor
    """X^T R, (K,H)"""
    lacking: float
    """The square of R."""
    target: float
    """The square of what the unpruned model has."""

    def plus(self, other: "Sums") -> "Sums":
        """Add the sums of other tokens."""
        return Sums(
            self.gram + other.gram,
            self.cross + other.cross,
            self.lacking + other.lacking,
            self.target + other.target,
        )

    def error(self, change_KH: Tensor) -> float:
        """Return the square of what lacks once `change_KH` is added to the matrix, as a share of the target's."""
        left = self.lacking + float((change_KH * (self.gram @ change_KH - 2 * self.cross)).sum())
        return max(left, 0.0) / self.target if self.target else 0.0


def mask_change(sums: Sums, weight_HK: Tensor, group: int, damping: float) -> Tensor:
    """Fit a mask for each group of `group` inputs; return how that changes the transposed matrix, (K,H).

    The design matrix, a column of T * H numbers for each group, is never made: its normal equations are the product,
    element by element, of two small matrices.
    """
    weight_HK = weight_HK.double()
    gram_GG = _blocks(sums.gram * (weight_HK.T @ weight_HK), group)
    cross_G = (sums.cross * weight_HK.T).sum(dim=1).reshape(-1, group).sum(dim=1)
    scales_G = _solved(gram_GG, cross_G[:, None], damping)[:, 0]
    if (scales_G + 1.0).abs().max() > MASK_LIMIT:
        scales_G = torch.zeros_like(scales_G)
    return scales_G.repeat_interleave(group)[:, None] * weight_HK.T


def weight_change(sums: Sums, damping: float) -> Tensor:
    """Fit the whole matrix; return how the transposed one changes, (K,H)."""
    return _solved(sums.gram, sums.cross, damping)


def _blocks(gram: Tensor, group: int) -> Tensor:
    columns = gram.reshape(len(gram), -1, group).sum(dim=2)
    return columns.reshape(-1, group, columns.shape[1]).sum(dim=1)


def _solved(gram: Tensor, cross: Tensor, damping: float) -> Tensor:
    """Solve damped normal equations; all zeros where the inputs are."""
    if not gram.any():
        return torch.zeros_like(cross)
    return torch.cholesky_solve(cross, damped_factor(gram, damping))


def best_change(change: Change, fitting: Sums, held_out: Sums) -> Tensor:
    """Fit with the damping that does best on tokens held out, then on all tokens; nothing changes if none does.

    A sentence classifier's last layer has one token a row, often fewer than its matrix has inputs.
    """
    changes = [change(fitting, damping) for damping in _DAMPINGS]
    errors = [held_out.error(found) for found in changes]
    best = int(np.argmin(errors))
    if errors[best] >= held_out.error(torch.zeros_like(changes[best])):
        return torch.zeros_like(changes[best])
    return change(fitting.plus(held_out), _DAMPINGS[best])


@torch.no_grad()
def tune(model: PreTrainedModel, original: PreTrainedModel, batches: Sequence[Inputs], method: Method) -> list[Fit]:
    """Fit every output matrix of a pruned model to the unpruned one, in place.

    Args:
        model: pruned.
        original: the same model unpruned.
        batches: at least two, of the model's inputs (N,L); every fourth is held out.
        method: what is fitted.
    """
    ours, theirs = _Line(model, batches), _Line(original, batches)
    fits = []
    layers = families.layer_list(model)
    for index, layer in enumerate(progress.through(layers, len(layers), "fit: layer")):
        wanted = theirs.seen(index, [norm for _, norm in _PARTS])
        for part, norm in _PARTS:
            seen = ours.seen(index, [part, norm])
            linear = cast("nn.Linear", layer.get_submodule(getattr(ours.family, part)))
            sums = _sums(ours.counted(index), seen[part], seen[norm], wanted[norm], bias=method == "weights")
            group = families.head_size(model) if part == "attention_output" else 1
            change = best_change(_changing(method, linear, group), *sums)
            fits.append(Fit(index, part, sums[1].error(torch.zeros_like(change)), sums[1].error(change)))
            _add(linear, change)
        given = [y + _product(x, change) for x, y in zip(seen[part], seen[norm], strict=True)]
        ours.advance(index, given)
        theirs.advance(index, wanted[norm])
    return fits


def _changing(method: Method, linear: nn.Linear, group: int) -> Change:
    if method == "weights":
        return weight_change
    return lambda sums, damping: mask_change(sums, linear.weight, group, damping)


def _product(x_NLK: Tensor, change_KH: Tensor) -> Tensor:
    """Return what a change adds to the output, (N,L,H)."""
    width = x_NLK.shape[-1]
    change_KH = change_KH.to(x_NLK.dtype)
    return x_NLK @ change_KH[:width] + change_KH[width:].sum(dim=0)


def _add(linear: nn.Linear, change_KH: Tensor) -> None:
    """Add a change to a matrix, and to its bias where there is a row for it."""
    linear.weight.add_(change_KH[: linear.in_features].T.to(linear.weight.dtype))
    if len(change_KH) > linear.in_features:
        linear.bias.add_(change_KH[-1].to(linear.bias.dtype))


def _sums(
    counted: Sequence[Tensor],
    inputs: Sequence[Tensor],
    found: Sequence[Tensor],
    wanted: Sequence[Tensor],
    *,
    bias: bool,
) -> tuple[Sums, Sums]:
    """Sum over the tokens that count, of the batches to fit on and of those held out; with `bias`, one input is one."""
    shape = inputs[0].shape[-1] + int(bias), found[0].shape[-1]
    gram_KK, cross_KH = (torch.zeros(2, shape[0], size, dtype=torch.float64) for size in shape)
    squares = torch.zeros(2, 2, dtype=torch.float64)
    for index, (mask_NL, x_NLK, ours_NLH, theirs_NLH) in enumerate(zip(counted, inputs, found, wanted, strict=True)):
        x_TK, target_TH = x_NLK[mask_NL], theirs_NLH[mask_NL]
        if bias:
            x_TK = torch.cat([x_TK, x_TK.new_ones(len(x_TK), 1)], dim=1)
        lacking_TH = target_TH - ours_NLH[mask_NL]
        held_out = int(index % _HELD_OUT == 1)
        add_gram(gram_KK[held_out], x_TK)
        cross_KH[held_out] += x_TK.T @ lacking_TH
        squares[held_out] += torch.stack([each.double().square().sum() for each in (lacking_TH, target_TH)])
    fitting, judging = (Sums(whole(gram_KK[i]), cross_KH[i], *squares[i].tolist()) for i in range(2))
    return fitting, judging


class _Line:
    """A model's rows on their way through its layers, one layer at a time."""

    def __init__(self, model: PreTrainedModel, batches: Sequence[Inputs]) -> None:
        self.family = families.FAMILIES[model.config.model_type]
        self._model = model
        self._layers = families.layer_list(model)
        self._first_token = reads_first_token(model)
        self._calls = [_first_call(model, self._layers[0], batch) for batch in batches]
        self._masks = [batch["attention_mask"].bool() for batch in batches]

    def seen(self, index: int, names: Sequence[str]) -> dict[str, list[Tensor]]:
        """Run one layer on all batches, as far as the last of some of its modules; return what those were given."""
        seen: dict[str, list[Tensor]] = {name: [] for name in names}
        layer = self._layers[index]
        watched = {name: layer.get_submodule(getattr(self.family, name)) for name in names}
        with _watched(watched, seen), autocast(self._model):
            for args, named in self._calls:
                with suppress(_Reached):
                    layer(*args, **named)
        return seen

    def advance(self, index: int, given: Sequence[Tensor]) -> None:
        """Take all batches through one layer, of which the last norm is given this."""
        norm = self._layers[index].get_submodule(self.family.ffn_norm)
        self._calls = [((norm(y), *args[1:]), named) for y, (args, named) in zip(given, self._calls, strict=True)]

    def counted(self, index: int) -> list[Tensor]:
        """Tell which tokens (N,L) of each batch count: no padding, and only what the head reads of the last layer."""
        if not (self._first_token and index == len(self._layers) - 1):
            return self._masks
        return [mask & (torch.arange(mask.shape[1]) == 0) for mask in self._masks]


class _Reached(Exception):
    """The module was called after which nothing is wanted."""


def _first_call(model: PreTrainedModel, layer: nn.Module, batch: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a model gives its first layer."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def stop(_layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append((args, named))
        raise _Reached

    handle = layer.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with suppress(_Reached):
            model(**batch)
    finally:
        handle.remove()
    return calls[0]


@contextmanager
def _watched(modules: Mapping[str, nn.Module], seen: Mapping[str, list[Tensor]]) -> Iterator[None]:
    """Keep what each module is given; nothing is computed after the last."""
    last = list(modules)[-1]

    def keep(name: str, inputs: tuple[Tensor, ...]) -> None:
        seen[name].append(inputs[0].float())
        if name == last:
            raise _Reached

    def keeping(name: str) -> Any:
        return lambda _module, inputs: keep(name, inputs)

    handles = [module.register_forward_pre_hook(keeping(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
