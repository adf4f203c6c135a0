"""Exact parity of a dynamic int8 graph, in two parts that do not amplify rounding.

End to end, an int8 graph and its reference drift apart: float noise of 1e-7 flips an activation to the next integer,
and each layer passes on more flips. On MiniLM-L6 they end as far apart as quantization itself moved them, so that a
flipped weight would go unseen. Taken apart, each part is held to the tolerance of fp32:

* the graph with float activations (its own int8 weights scaled back to float) against the reference model with
  the same: every weight, the structure and all that is not quantized;
* every integer product on the inputs that it really got, against `compress.fake_quant`: the kernels of this processor.

QAttention hides the products of query, key and value. It is taken apart into these and MultiHeadAttention, and held to
what they give on the same inputs.

    N rows   L tokens   I inputs   O outputs
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from deploykit.check.parity import Outputs, Parity, compare
from deploykit.checkpoint import Checkpoint, Quantization
from deploykit.compress.fake_quant import (
    dynamic_linear,
    fake_quantize,
    fake_quantize_rows,
    quantized_names,
    rounded_weight,
    static_linear,
)
from deploykit.errors import ArtifactError
from deploykit.runtime.batching import pad
from deploykit.runtime.model import Model
from deploykit.runtime.model_info import GRAPH
from deploykit.runtime.session import open_session, run_session
from deploykit.runtime.tokenizer import Encoding
from deploykit.spec import Activation

QUANTIZE = ("DynamicQuantizeLinear", "QuantizeLinear")
PRODUCT = "MatMulIntegerToFloat"
ATTENTION = "QAttention"
"""The operators that export lowers a quantized linear module to; the last is three of them and the attention."""


@dataclass(frozen=True)
class _Product:
    """One integer product of a graph: y = x W, scaled back, + bias."""

    node: NodeProto
    x: str
    """The float tensor (...,I) that is quantized for it."""
    weight: NDArray[np.int8]
    """(I,O)."""
    scale: NDArray[np.float32]
    """(O,)."""
    bias: str
    """The name of the bias (O,); empty where there is none."""
    activation: Activation | None
    """How x is quantized; None: by the range of the batch."""


def quantized_reference(source: Checkpoint, quantization: Quantization) -> Checkpoint:
    """Copy a checkpoint's model as the exported graph computes it: weights and activations in int8."""
    model = copy.deepcopy(source.model)
    fake_quantize(model, quantization)
    return replace(source, model=model)


def weights_reference(source: Checkpoint, quantization: Quantization) -> Checkpoint:
    """Copy a checkpoint's model with weights as int8 has them, and activations in float."""
    model = copy.deepcopy(source.model)
    with torch.no_grad():
        for name in quantized_names(model, quantization):
            weight = cast("nn.Linear", model.get_submodule(name)).weight
            weight.copy_(rounded_weight(weight, quantization))
    fake_quantize_rows(model, quantization)
    return replace(source, model=model)


def float_activations(model: Model, folder: Path) -> Model:
    """Open an int8 model's graph with float activations: each product becomes x (W * scale) + bias.

    Raises:
        ArtifactError: a product is not fed by a quantization.
    """
    graph = onnx.load(folder / GRAPH)
    _take_apart(graph, folder)
    replaced = {product.node.output[0]: _in_float(product, graph) for product in _products(graph, folder)}
    nodes = [new for node in graph.graph.node for new in replaced.get(node.output[0], [node])]
    del graph.graph.node[:]
    graph.graph.node.extend(node for node in nodes if node.op_type not in QUANTIZE)
    return _opened(model, graph)


def product_parity(
    model: Model, folder: Path, encodings: Sequence[Encoding], activations: Sequence[Activation] = ()
) -> dict[str, Parity]:
    """Compare every integer product, on the inputs that one batch gives it, with its definition; by node.

    Args:
        model: the graph that lies in `folder`.
        folder: the exported model.
        encodings: at least one row.
        activations: the static decision; what the graph says of itself proves nothing.

    Raises:
        ArtifactError: a product is not fed by a quantization, or the decision knows nothing of it.
    """
    graph = onnx.load(folder / GRAPH)
    joined = [node for node in graph.graph.node if node.op_type == ATTENTION]
    for node in joined:
        graph.graph.node.extend(_parts(node, graph, folder, f"{node.output[0]}.of_parts"))
    products = [_as_decided(product, activations, folder) for product in _products(graph, folder)]
    pairs = {node.name: (f"{node.output[0]}.of_parts", node.output[0]) for node in joined}
    compared = [(product.x, product.node.output[0]) for product in products] + list(pairs.values())
    seen = list(dict.fromkeys(name for pair in compared for name in pair))
    graph.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in seen)
    session = _opened(model, graph).session
    feeds = pad(encodings, model.info.pad_id, model.info.inputs)
    values = dict(zip(seen, run_session(session, seen, feeds), strict=True))
    biases = _initializers(graph)
    attended = {name: compare(list(values[parts]), list(values[whole])) for name, (parts, whole) in pairs.items()}
    return attended | {
        product.node.name or product.node.output[0]: compare(
            list(_defined(product, values[product.x], biases)), list(values[product.node.output[0]])
        )
        for product in products
    }


def worst_of(parities: Mapping[str, Parity]) -> tuple[str, Parity]:
    """Return the product that is furthest off."""
    return max(parities.items(), key=lambda item: item[1].worst)


def _defined(product: _Product, x: NDArray[np.float32], biases: Mapping[str, NDArray[Any]]) -> Outputs:
    bias = torch.from_numpy(biases[product.bias].copy()) if product.bias else None
    weight_OI = torch.from_numpy(product.weight.T.astype(np.float32))
    given = torch.from_numpy(x), weight_OI, torch.from_numpy(product.scale.copy()), bias
    outputs = static_linear(*given, product.activation) if product.activation else dynamic_linear(*given)
    return list(outputs.numpy())


def _take_apart(graph: ModelProto, folder: Path) -> None:
    """Put its parts in the place of each QAttention."""
    nodes = [
        part
        for node in list(graph.graph.node)
        for part in (_parts(node, graph, folder, node.output[0]) if node.op_type == ATTENTION else [node])
    ]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)


def _parts(node: NodeProto, graph: ModelProto, folder: Path, output: str) -> list[NodeProto]:
    """Return the products and the attention that a QAttention stands for; their weights join the graph."""
    x, weight, bias, x_scale, scale, mask, x_zero, weight_zero = node.input
    constants = _initializers(graph)
    if constants[weight_zero].any():
        raise _another_form(node, folder)
    parts = []
    thirds = zip(*(np.split(constants[name], 3, axis=-1) for name in (weight, scale, bias)), strict=True)
    for name, arrays in zip(("query", "key", "value"), thirds, strict=True):
        names = [f"{output}.{name}.{what}" for what in ("weight", "scale", "bias")]
        graph.graph.initializer.extend(map(numpy_helper.from_array, arrays, names))
        inputs = [x, names[0], x_scale, names[1], x_zero, "", names[2]]
        product = f"{node.name}.{name}"
        parts.append(helper.make_node(PRODUCT, inputs, [f"{output}.{name}"], product, domain=node.domain))
    rows = [*(part.output[0] for part in parts), "", mask]
    attention = helper.make_node("MultiHeadAttention", rows, [output], f"{node.name}.parts", domain=node.domain)
    attention.attribute.extend(node.attribute)
    return [*parts, attention]


def _products(graph: ModelProto, folder: Path) -> Iterator[_Product]:
    constants = _initializers(graph)
    producers = {name: node for node in graph.graph.node for name in node.output}
    for node in graph.graph.node:
        if node.op_type == PRODUCT:
            quantized, weight, _, scale, _, weight_zero, bias = [*node.input, "", ""][:7]
            source = producers.get(quantized)
            if source is None or source.op_type not in QUANTIZE or weight_zero or weight not in constants:
                raise _another_form(node, folder)
            static = _static(source, constants)
            yield _Product(node, source.input[0], constants[weight], constants[scale], bias, static)


def _as_decided(product: _Product, activations: Sequence[Activation], folder: Path) -> _Product:
    """Return the product with the activation that was decided for its module, whose name the node bears."""
    if product.activation is None:
        return product
    decided = next((one for one in activations if one.name == product.node.name), None)
    if decided is None:
        raise ArtifactError(
            folder / GRAPH,
            expected="a calibrated activation for every static product",
            found=f"none for {product.node.name}",
            next_step="export the checkpoint anew",
        )
    return replace(product, activation=decided)


def _static(source: NodeProto, constants: Mapping[str, NDArray[Any]]) -> Activation | None:
    if len(source.input) == 1:
        return None
    _, scale, zero_point = source.input
    return Activation(source.name, float(constants[scale]), int(constants[zero_point]))


def _another_form(node: NodeProto, folder: Path) -> ArtifactError:
    return ArtifactError(
        folder / GRAPH,
        expected=f"{node.op_type} of {' or '.join(QUANTIZE)} and symmetric constant weights",
        found=f"another form at {node.name or node.output[0]}",
        next_step="export the checkpoint anew",
    )


def _in_float(product: _Product, graph: ModelProto) -> list[NodeProto]:
    """Return the nodes that compute a product in float, and add its weights to the graph."""
    output = product.node.output[0]
    weight, sums = f"{output}.float_weight", f"{output}.sums" if product.bias else output
    weight_IO = product.weight.astype(np.float32) * product.scale
    graph.graph.initializer.append(numpy_helper.from_array(weight_IO, weight))
    nodes = [helper.make_node("MatMul", [product.x, weight], [sums])]
    return [*nodes, helper.make_node("Add", [sums, product.bias], [output])] if product.bias else nodes


def _initializers(graph: ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


def _opened(model: Model, graph: ModelProto) -> Model:
    """Open a changed graph as the model is."""
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / GRAPH
        onnx.save(graph, path, save_as_external_data=graph.ByteSize() > 2**30)
        session = open_session(path, provider=model.info.provider, options=model.info.provider_options)
    return Model(model.info, model.tokenizer, session)
