"""The int8 decision as ONNX Runtime's integer kernels.

One DynamicQuantizeLinear (uint8, one scale for the whole tensor) serves every product that reads the same tensor;
MatMulIntegerToFloat multiplies by int8 weights of one scale per output, scales back and adds the bias. These are the
quantization points of `compress.fake_quant`, so each product has an exact reference. Where query, key and value come
from one tensor, QAttention makes their products and attends, bit for bit the same: at batch 1 as fast on one thread and
1.05 to 1.1 times as fast on two (2 cores with AVX2; benchmarks/results/export-variants.json, where it stands beside one
matrix for the three, MatMulNBits and others), with AMX 1.02 to 1.18 times (export-variants-amx.json).
"""

from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from deploykit.checkpoint import Quantization
from deploykit.compress.fake_quant import quantized_names
from deploykit.export import operators
from deploykit.export.fuse import CONTRIB, replace

PRODUCT = "MatMulIntegerToFloat"
QUANTIZE = "DynamicQuantizeLinear"
ATTENTION = "QAttention"


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
            quantize = ir.node(QUANTIZE, [x], num_outputs=3)
            quantized, x_scale, x_zero = quantize.outputs
            inputs = [quantized, weight, x_scale, scale, x_zero, None, bias]
            product = ir.node(PRODUCT, inputs, domain=CONTRIB, name=node.name)
            replace(model, node, [quantize, product], node.outputs[0])


def join_attention(model: ir.Model) -> int:
    """Make the products that give query, key and value, and the attention over them, one QAttention, in place.

    Wants a graph that `fuse.clean` left, where they read one quantized tensor. It computes the same, bit for bit: a
    product for each head, in the layout that attention reads. That saves copies, and meetings of threads.

    Returns:
        How many there are; a layer with one of the three in float or static, or with queries of another tensor, has
        none. (The check of a static product finds its calibration by the product's name, which QAttention has not.)
    """
    joined = 0
    for node in list(model.graph):
        if node.op_type == "MultiHeadAttention" and (products := _products_of_one_tensor(node)):
            replace(model, node, [_qattention(model, node, products)], node.outputs[0])
            joined += 1
    return joined


def _products_of_one_tensor(attention: ir.Node) -> list[ir.Node]:
    """Return the integer products of query, key and value if all three read one dynamically quantized tensor."""
    producers = [value.producer() for value in attention.inputs[:3] if value is not None]
    products = [node for node in producers if node is not None and node.op_type == PRODUCT]
    sources = {node for product in products if (value := product.inputs[0]) and (node := value.producer())}
    return products if len(products) == 3 and [node.op_type for node in sources] == [QUANTIZE] else []


def _qattention(model: ir.Model, attention: ir.Node, products: list[ir.Node]) -> ir.Node:
    x, _, x_scale, _, x_zero, *_ = products[0].inputs
    weight, scale, bias = (
        _initializer(
            model,
            f"{attention.name}.{name}",
            np.concatenate([_constant(product.inputs[index]) for product in products], axis=-1),
        )
        for name, index in (("weight", 1), ("scale", 3), ("bias", 6))
    )
    zero = _initializer(model, f"{attention.name}.zero_point", np.zeros(1, np.int8))
    inputs = [x, weight, bias, x_scale, scale, attention.inputs[4], x_zero, zero]
    heads = {"num_heads": attention.attributes["num_heads"].as_int()}
    return ir.node(ATTENTION, inputs, heads, domain=CONTRIB, name=attention.name)


def _constant(value: ir.Value | None) -> NDArray[Any]:
    return cast("ir.TensorProtocol", cast("ir.Value", value).const_value).numpy()


def _initializer(model: ir.Model, name: str, array: NDArray[Any]) -> ir.Value:
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    model.graph.register_initializer(value)
    return value
