"""The two places where the traced graph must say more than PyTorch does: attention, and an int8 matrix product.

Each is one operator of the domain `deploykit` in the trace, so nothing has to be found again by matching patterns of
small nodes; `fuse` and `lower_int8` turn them into what a provider runs.

    N rows   L key length   Q query length   h heads   d head size   A = h * d   I inputs   O outputs
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from deploykit.compress.fake_quant import weights_quantized

DOMAIN = "deploykit"
ATTENTION = "Attention"
DYNAMIC_LINEAR = "DynamicLinear"
MASKED_ROWS = "deploykit_mask"
"""Attention implementation: padding as int32 (N,L), one where a token is."""
ROW_LENGTHS = "deploykit_lengths"
"""Attention implementation: padding as int32 (N,), the tokens of each row; the form that GPU kernels fuse."""


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(*given: Any) -> Any:
        """Stand in for the kernel: the trace reads shape and type only."""
        _ctx, query_NQA, _key, _value, _mask, _num_heads = given
        return torch.zeros_like(query_NQA)

    @staticmethod
    def symbolic(g: Any, *given: Any) -> Any:
        *tensors, num_heads = given
        return g.op(f"{DOMAIN}::{ATTENTION}", *tensors, num_heads_i=num_heads).setType(given[0].type())


class _DynamicLinear(torch.autograd.Function):
    @staticmethod
    def forward(*given: Any) -> Any:
        _ctx, x_NI, weight_IO, _scale, _bias = given
        return x_NI.new_zeros(*x_NI.shape[:-1], weight_IO.shape[1])

    @staticmethod
    def symbolic(g: Any, *given: Any) -> Any:
        x, _weight, scale, _bias = given
        shape = x.type().sizes()  # None where the exporter has lost it
        made = x.type() if shape is None else x.type().with_sizes([*shape[:-1], *scale.type().sizes()])
        return g.op(f"{DOMAIN}::{DYNAMIC_LINEAR}", *given).setType(made)


class DynamicLinear(nn.Module):
    """A linear module that is traced as one int8 operator."""

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear, bits: int) -> None:
        super().__init__()
        quantized_OI, scale_O = weights_quantized(linear.weight, bits)
        self.register_buffer("weight", quantized_OI.T.contiguous())
        self.register_buffer("scale", scale_O)
        bias = linear.bias if linear.bias is not None else torch.zeros_like(scale_O)
        self.register_buffer("bias", bias.detach())

    def forward(self, x_NI: Tensor) -> Tensor:
        """Multiply: (...,I) to (...,O)."""
        return _apply(_DynamicLinear, x_NI, self.weight, self.scale, self.bias)


def _apply(function: type[torch.autograd.Function], *given: object) -> Tensor:
    return cast("Tensor", function.apply(*given))  # type: ignore[no-untyped-call] # torch has no types for it


def _attend(
    _module: nn.Module,
    query_NhQd: Tensor,
    key_NhLd: Tensor,
    value_NhLd: Tensor,
    mask: Tensor,
    **_: object,  # transformers passes every attention its scaling, dropout and more
) -> tuple[Tensor, None]:
    num_heads, head_size = int(query_NhQd.shape[1]), int(query_NhQd.shape[3])
    rows = (heads.transpose(1, 2).flatten(2) for heads in (query_NhQd, key_NhLd, value_NhLd))
    context_NQA = _apply(_Attention, *rows, mask, num_heads)
    return context_NQA.reshape(*context_NQA.shape[:2], num_heads, head_size), None


def _mask(*, attention_mask: Tensor, **_: object) -> Tensor:
    return attention_mask.to(torch.int32)


def _lengths(*, attention_mask: Tensor, **_: object) -> Tensor:
    return attention_mask.sum(dim=1).to(torch.int32)


def register() -> None:
    """Tell transformers of the two attention implementations; doing so again changes nothing."""
    for name, mask in ((MASKED_ROWS, _mask), (ROW_LENGTHS, _lengths)):
        AttentionInterface.register(name, _attend)
        AttentionMaskInterface.register(name, mask)
