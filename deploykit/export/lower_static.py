"""The static int8 decision as ONNX Runtime's integer kernels.

QuantizeLinear with the calibrated scale takes the place of DynamicQuantizeLinear, before the same
MatMulIntegerToFloat: no pass over the tensor for its range, and a row's answer does not depend on its batch. The
float output and the bias stay inside the product, so nothing is quantized between products, which QLinearMatMul
would need.
"""

from typing import Any, cast

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from deploykit.checkpoint import Quantization
from deploykit.compress.fake_quant import activation_of, quantized_names
from deploykit.export import operators
from deploykit.export.fuse import CONTRIB, replace
from deploykit.export.lower_int8 import PRODUCT
from deploykit.spec import Activation

STATIC_LINEAR = "StaticLinear"


class _StaticLinear(torch.autograd.Function):
    @staticmethod
    def forward(*given: Any) -> Any:
        """Stand in for the kernel: the trace reads shape and type only."""
        _ctx, x_NI, weight_IO, *_ = given
        return x_NI.new_zeros(*x_NI.shape[:-1], weight_IO.shape[1])

    @staticmethod
    def symbolic(g: Any, *given: Any) -> Any:
        *tensors, activation = given
        x, _weight, scale, _bias = tensors
        shape = x.type().sizes()  # None where the exporter has lost it
        made = x.type() if shape is None else x.type().with_sizes([*shape[:-1], *scale.type().sizes()])
        how = {"x_scale_f": activation.scale, "x_zero_i": activation.zero_point, "module_s": activation.name}
        return g.op(f"{operators.DOMAIN}::{STATIC_LINEAR}", *tensors, **how).setType(made)


class StaticLinear(nn.Module):
    """A linear module that is traced as one int8 operator with a calibrated activation."""

    def __init__(self, linear: nn.Linear, bits: int, activation: Activation) -> None:
        super().__init__()
        self.dynamic, self.activation = operators.DynamicLinear(linear, bits), activation

    def forward(self, x_NI: Tensor) -> Tensor:
        """Multiply: (...,I) to (...,O)."""
        given = self.dynamic
        product = _StaticLinear.apply(x_NI, given.weight, given.scale, given.bias, self.activation)  # type: ignore[no-untyped-call]
        return cast("Tensor", product)


def quantize_linears(model: PreTrainedModel, quantization: Quantization) -> int:
    """Swap the decided linear modules for ones that are traced as static int8, in place; returns how many."""
    names = quantized_names(model, quantization)
    for name in names:
        linear = cast("nn.Linear", model.get_submodule(name))
        activation = activation_of(name, quantization)
        model.set_submodule(name, StaticLinear(linear, quantization.weight_bits, activation))
    return len(names)


def lower_linears(model: ir.Model) -> None:
    """Turn each traced static product into ONNX Runtime's kernels, in place; equal quantizations are made once."""
    made: dict[tuple[ir.Value, float, int], list[ir.Value]] = {}
    for node in list(model.graph):
        if node.domain == operators.DOMAIN and node.op_type == STATIC_LINEAR:
            x, weight, scale, bias = node.inputs
            assert x is not None
            how = x, node.attributes["x_scale"].as_float(), node.attributes["x_zero"].as_int()
            new: list[ir.Node] = []
            if how not in made:
                constants = _constants(model, f"{node.name}.x", *how[1:])
                new = [ir.node("QuantizeLinear", [x, *constants])]
                made[how] = [new[0].outputs[0], *constants]
            quantized, x_scale, x_zero = made[how]
            inputs = [quantized, weight, x_scale, scale, x_zero, None, bias]
            module = node.attributes["module"].as_string()  # by which `check.int8` finds the decided activation
            product = ir.node(PRODUCT, inputs, domain=CONTRIB, name=module)
            replace(model, node, [*new, product], node.outputs[0])


def _constants(model: ir.Model, name: str, scale: float, zero_point: int) -> list[ir.Value]:
    values: tuple[NDArray[Any], ...] = (np.array(scale, np.float32), np.array(zero_point, np.uint8))
    found = []
    for suffix, value in zip(("scale", "zero"), values, strict=True):
        tensor = ir.tensor(value, name=f"{name}_{suffix}")
        constant = ir.Value(
            name=f"{name}_{suffix}", shape=ir.Shape(()), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        model.graph.register_initializer(constant)
        found.append(constant)
    return found
