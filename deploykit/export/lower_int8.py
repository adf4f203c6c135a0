"""The int8 decision as ONNX Runtime's integer kernels.

One DynamicQuantizeLinear (uint8, one scale for the whole tensor) serves every product that reads the same tensor;
MatMulIntegerToFloat multiplies by int8 weights of one scale per output, scales back and adds the bias. These are the
quantization points of `compress.fake_quant`, so each product has an exact reference. To measure it beside one matrix
for query, key and value, QAttention and MatMulNBits: benchmarks/export_variants.py.
"""

from typing import cast

import onnx_ir as ir
from torch import nn
from transformers import PreTrainedModel

from deploykit.checkpoint import Quantization
from deploykit.compress.fake_quant import quantized_names
from deploykit.export import operators
from deploykit.export.fuse import CONTRIB, replace

PRODUCT = "MatMulIntegerToFloat"


def quantize_linears(model: PreTrainedModel, quantization: Quantization) -> int:
    """Swap the decided linear modules for ones that are traced as int8, in place; returns how many."""
    names = quantized_names(model, quantization)
    for name in names:
        linear = cast("nn.Linear", model.get_submodule(name))
        model.set_submodule(name, operators.DynamicLinear(linear, quantization.weight_bits))
    return len(names)


def lower_linears(model: ir.Model) -> None:
    """Turn each traced int8 product into ONNX Runtime's kernels, in place.

    Products that read the same tensor get equal quantization nodes, which `fuse.clean` makes one.
    """
    for node in list(model.graph):
        if node.domain == operators.DOMAIN and node.op_type == operators.DYNAMIC_LINEAR:
            x, weight, scale, bias = node.inputs
            quantize = ir.node("DynamicQuantizeLinear", [x], num_outputs=3)
            quantized, x_scale, x_zero = quantize.outputs
            inputs = [quantized, weight, x_scale, scale, x_zero, None, bias]
            product = ir.node(PRODUCT, inputs, domain=CONTRIB, name=node.name)
            replace(model, node, [quantize, product], node.outputs[0])
