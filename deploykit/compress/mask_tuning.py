"""After pruning, make each layer's output what it was, by least squares: no labels, no gradients, one pass over the rows.

From the first layer to the last, attention before feed-forward, each pruned output matrix is fitted to what the
unpruned model has at the same place, on what the tuned layers below now give. `masks` scales every head or neuron that
stayed (Kwon et al. 2022, section 4.3) and folds the scale into its columns; `weights` fits the whole matrix and its
bias, which costs the same sums and one more solution.

    N rows   L padded length   T tokens that count   H hidden size   K inputs of an output matrix (heads * head size,
    or neurons), one more where the bias is among them   G groups of inputs with one mask each (heads, or neurons)
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from deploykit import families
from deploykit.compress.first_token import reads_first_token

Method = Literal["masks", "weights"]
Inputs = Mapping[str, Tensor]

MASK_LIMIT = 10.0
"""A mask beyond this has blown up, and the matrix keeps its masks of one (Kwon et al. 2022, in their code)."""
_DAMPING = 1e-4
"""What is added to the normal equations, as a share of their mean diagonal: what nothing speaks for stays as it was."""
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
    """On the rows of the fit."""


@dataclass(frozen=True)
class Sums:
    """All that a fit needs of the tokens, in float64: X the inputs of the matrix, R what its output lacks."""

    gram_KK: Tensor
    """X^T X"""
    cross_KH: Tensor
    """X^T R"""
    lacking: float
    """The square of R."""
    target: float
    """The square of what the unpruned model has."""

    def plus(self, other: "Sums") -> "Sums":
        """Add the sums of other tokens."""
        return Sums(
            self.gram_KK + other.gram_KK,
            self.cross_KH + other.cross_KH,
            self.lacking + other.lacking,
            self.target + other.target,
        )

    def error(self, change_KH: Tensor) -> float:
        """Return the square of what lacks once `change_KH` is added to the matrix, as a share of the target's."""
        left = self.lacking + float((change_KH * (self.gram_KK @ change_KH - 2 * self.cross_KH)).sum())
        return max(left, 0.0) / self.target if self.target else 0.0


def mask_change(sums: Sums, weight_HK: Tensor, group: int, damping: float = _DAMPING) -> Tensor:
    """Fit a mask for each group of `group` inputs; return how that changes the transposed matrix, (K,H).

    The design matrix, a column of T * H numbers for each group, is never made: its normal equations are the product,
    element by element, of two small matrices.
    """
    weight_HK = weight_HK.double()
    gram_GG = _blocks(sums.gram_KK * (weight_HK.T @ weight_HK), group)
    cross_G = (sums.cross_KH * weight_HK.T).sum(dim=1).unflatten(0, (-1, group)).sum(dim=1)
    scales_G = _solved(gram_GG, cross_G[:, None], damping)[:, 0]
    if (scales_G + 1.0).abs().max() > MASK_LIMIT:
        scales_G = torch.zeros_like(scales_G)
    return scales_G.repeat_interleave(group)[:, None] * weight_HK.T


def weight_change(sums: Sums, damping: float = _DAMPING) -> Tensor:
    """Fit the whole matrix; return how the transposed one changes, (K,H)."""
    return _solved(sums.gram_KK, sums.cross_KH, damping)


def _blocks(gram_KK: Tensor, group: int) -> Tensor:
    return gram_KK.unflatten(1, (-1, group)).sum(dim=2).unflatten(0, (-1, group)).sum(dim=1)


def _solved(gram: Tensor, cross: Tensor, damping: float) -> Tensor:
    """Solve damped normal equations; all zeros where the inputs are."""
    scale = gram.diagonal().mean()
    if scale == 0:
        return torch.zeros_like(cross)
    return torch.linalg.solve(gram + damping * scale * torch.eye(len(gram), dtype=gram.dtype), cross)


@torch.no_grad()
def tune(model: PreTrainedModel, original: PreTrainedModel, batches: Sequence[Inputs], method: Method) -> list[Fit]:
    """Fit every output matrix of a pruned model to the unpruned one, in place.

    Args:
        model: pruned.
        original: the same model unpruned.
        batches: at least one, of the model's inputs (N,L).
        method: what is fitted.
    """
    ours, theirs = _Line(model, batches), _Line(original, batches)
    fits = []
    for index, layer in enumerate(families.layer_list(model)):
        targets = theirs.seen(index, [norm for _, norm in _PARTS])
        for part, norm in _PARTS:
            seen = ours.seen(index, [part, norm])
            sums = _sums(ours.counted(index), seen[part], seen[norm], targets[norm], bias=method == "weights")
            linear = cast("nn.Linear", layer.get_submodule(getattr(ours.family, part)))
            group = families.head_size(model) if part == "attention_output" else 1
            change = weight_change(sums) if method == "weights" else mask_change(sums, linear.weight, group)
            _add(linear, change)
            fits.append(Fit(index, part, sums.error(torch.zeros_like(change)), sums.error(change)))
        ours.advance(index)
        theirs.advance(index)
    return fits


def _add(linear: nn.Linear, change_KH: Tensor) -> None:
    """Add a change to a matrix, and to its bias where there is a row for it."""
    linear.weight += change_KH[: linear.in_features].T.to(linear.weight.dtype)
    if len(change_KH) > linear.in_features:
        linear.bias += change_KH[-1].to(linear.bias.dtype)


def _sums(
    counted: Sequence[Tensor], inputs: Sequence[Tensor], found: Sequence[Tensor], wanted: Sequence[Tensor], *, bias: bool
) -> Sums:
    """Sum over the tokens that count, batch by batch; with `bias`, a last input is one everywhere."""
    total: Sums | None = None
    for mask_NL, x_NLK, ours_NLH, theirs_NLH in zip(counted, inputs, found, wanted, strict=True):
        x_TK, target_TH = x_NLK[mask_NL], theirs_NLH[mask_NL]
        if bias:
            x_TK = torch.cat([x_TK, x_TK.new_ones(len(x_TK), 1)], dim=1)
        sums = _sums_of(x_TK, target_TH - ours_NLH[mask_NL], target_TH)
        total = sums if total is None else total.plus(sums)
    assert total is not None
    return total


def _sums_of(x_TK: Tensor, lacking_TH: Tensor, target_TH: Tensor) -> Sums:
    squares = (float(each.double().square().sum()) for each in (lacking_TH, target_TH))
    return Sums((x_TK.T @ x_TK).double(), (x_TK.T @ lacking_TH).double(), *squares)


class _Line:
    """A model's rows on their way through its layers, one layer at a time."""

    def __init__(self, model: PreTrainedModel, batches: Sequence[Inputs]) -> None:
        self.family = families.FAMILIES[model.config.model_type]
        self._layers = families.layer_list(model)
        self._first_token = reads_first_token(model)
        self._calls = [_first_call(model, self._layers[0], batch) for batch in batches]
        self._masks = [batch["attention_mask"].bool() for batch in batches]

    def seen(self, index: int, names: Sequence[str]) -> dict[str, list[Tensor]]:
        """Run one layer on all batches; return what some of its modules were given."""
        seen: dict[str, list[Tensor]] = {name: [] for name in names}
        layer = self._layers[index]
        with _watched({name: layer.get_submodule(getattr(self.family, name)) for name in names}, seen):
            for args, named in self._calls:
                layer(*args, **named)
        return seen

    def advance(self, index: int) -> None:
        """Take all batches through one layer."""
        layer = self._layers[index]
        self._calls = [((layer(*args, **named), *args[1:]), named) for args, named in self._calls]

    def counted(self, index: int) -> list[Tensor]:
        """Tell which tokens (N,L) of each batch count: no padding, and only what the head reads of the last layer."""
        if not (self._first_token and index == len(self._layers) - 1):
            return self._masks
        return [mask & (torch.arange(mask.shape[1]) == 0) for mask in self._masks]


class _Reached(Exception):  # noqa: N818 - not an error
    """The first layer was called."""


def _first_call(model: PreTrainedModel, layer: nn.Module, batch: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a model gives its first layer."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def stop(_layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append((args, named))
        raise _Reached

    handle = layer.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(**batch)
    except _Reached:
        pass
    finally:
        handle.remove()
    return calls[0]


@contextmanager
def _watched(modules: Mapping[str, nn.Module], seen: Mapping[str, list[Tensor]]) -> Iterator[None]:
    def keep(name: str) -> Any:
        return lambda _module, inputs: seen[name].append(inputs[0])

    handles = [module.register_forward_pre_hook(keep(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
