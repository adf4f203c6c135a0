"""The int4 decision as ONNX Runtime's MatMulNBits: weights unpacked inside the kernel, activations in float32.

O outputs   I inputs   B blocks   S block size
"""

from typing import Any, cast

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from deploykit.checkpoint import Quantization
from deploykit.compress.fake_quant import quantized_names
from deploykit.compress.int4 import LOWEST, int4_quantized
from deploykit.export import operators
from deploykit.export.fuse import CONTRIB, replace

PRODUCT = "MatMulNBits"
INT4_LINEAR = "Int4Linear"
_FLOAT32 = 1
"""MatMulNBits' accuracy level at which activations are not quantized."""


class _Int4Linear(torch.autograd.Function):
    @staticmethod
    def forward(*given: Any) -> Any:
        """Stand in for the kernel: the trace reads shape and type only."""
        _ctx, x_NI, packed_OBP, *_ = given
        return x_NI.new_zeros(*x_NI.shape[:-1], packed_OBP.shape[0])

    @staticmethod
    def symbolic(g: Any, *given: Any) -> Any:
        *tensors, block_size, width = given
        x, *_, bias = tensors
        shape = x.type().sizes()  # None where the exporter has lost it
        made = x.type() if shape is None else x.type().with_sizes([*shape[:-1], *bias.type().sizes()])
        sizes = {"block_size_i": block_size, "width_i": width}
        return g.op(f"{operators.DOMAIN}::{INT4_LINEAR}", *tensors, **sizes).setType(made)


class Int4Linear(nn.Module):
    """A linear module that is traced as one operator with int4 weights."""

    packed: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear, block_size: int) -> None:
        super().__init__()
        self.block_size, self.width = block_size, linear.in_features
        quantized_OBS, scale_OB = int4_quantized(linear.weight, block_size)
        self.register_buffer("packed", torch.from_numpy(packed(quantized_OBS.numpy())))
        self.register_buffer("scale", scale_OB)
        bias = linear.bias if linear.bias is not None else torch.zeros(linear.out_features)
        self.register_buffer("bias", bias.detach())

    def forward(self, x_NI: Tensor) -> Tensor:
        """Multiply: (...,I) to (...,O)."""
        given = x_NI, self.packed, self.scale, self.bias, self.block_size, self.width
        return cast("Tensor", _Int4Linear.apply(*given))  # type: ignore[no-untyped-call]


def packed(quantized_OBS: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack levels from -8 to 7 as MatMulNBits reads them: 8 added, two a byte, the first in the low half; (O,B,S/2)."""
    shifted = (quantized_OBS - LOWEST).astype(np.uint8)
    low, high = shifted[..., 0::2], shifted[..., 1::2]
    return np.bitwise_or(low, np.left_shift(high, np.uint8(4)), dtype=np.uint8)


def quantize_linears(model: PreTrainedModel, quantization: Quantization) -> int:
    """Swap the decided linear modules for ones that are traced as int4, in place; returns how many."""
    assert quantization.block_size is not None
    names = quantized_names(model, quantization)
    for name in names:
        linear = cast("nn.Linear", model.get_submodule(name))
        model.set_submodule(name, Int4Linear(linear, quantization.block_size))
    return len(names)


def lower_linears(model: ir.Model) -> None:
    """Turn each traced int4 product into ONNX Runtime's kernel, in place."""
    for node in list(model.graph):
        if node.domain == operators.DOMAIN and node.op_type == INT4_LINEAR:
            x, weight, scale, bias = node.inputs
            assert weight is not None
            assert weight.shape is not None
            sizes = {"K": node.attributes["width"].as_int(), "N": int(cast("int", weight.shape[0]))}
            how = {"bits": 4, "block_size": node.attributes["block_size"].as_int(), "accuracy_level": _FLOAT32}
            inputs = [x, weight, scale, None, None, bias]
            product = ir.node(PRODUCT, inputs, {**sizes, **how}, domain=CONTRIB, name=node.name)
            replace(model, node, [product], node.outputs[0])
