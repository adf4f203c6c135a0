"""The graphs that `benchmarks.export_variants` compares: what others' tools make, and ours with one choice changed.

I inputs   O outputs   B blocks of a row of weights   M, K, N sizes of a product (M,K) x (K,N)
"""

import contextlib
import io
import logging
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import nn

from deploykit.artifact import Artifact
from deploykit.checkpoint import Checkpoint, Quantization, input_names, load_base
from deploykit.compress.fake_quant import decide
from deploykit.compress.first_token import keep_first_token
from deploykit.export import fuse, lower_int8, operators
from deploykit.export.fuse import CONTRIB
from deploykit.export.trace import OPSET, trace

LABELS = ("negative", "positive")
BLOCK = 32

Session = Literal["onnxruntime", "deploykit"]
"""Whose session settings a graph is run with."""


@dataclass(frozen=True)
class Variant:
    """One way from a checkpoint to a graph; `make` writes it to a file."""

    name: str
    precision: Literal["fp32", "int8"]
    make: Callable[[Artifact, Path], None]
    session: Session = "deploykit"


def fresh(source: Artifact) -> Checkpoint:
    """Load a base with a new head, always the same one."""
    return load_base(source, "text-classification", LABELS, seed=0)


def plain(source: Artifact, file: Path) -> None:
    """Trace eager attention with the TorchScript exporter."""
    model = fresh(source).model
    ir.save(trace(model, input_names(model), "eager"), file)


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, type_ids: torch.Tensor) -> Any:
        return self.model(input_ids=ids, attention_mask=mask, token_type_ids=type_ids).logits


def dynamo(source: Artifact, file: Path) -> None:
    """Export through torch.export."""
    model, names = fresh(source).model, ("input_ids", "attention_mask", "token_type_ids")
    examples = tuple(torch.ones(2, 7, dtype=torch.int64) for _ in names)  # one tensor thrice would become one input
    free = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Logits(model).eval(),
            examples,
            file,
            dynamo=True,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=(free,) * 3,
            external_data=False,
        )


def optimized(source: Artifact, file: Path) -> None:
    """Fuse the plain graph with ONNX Runtime's transformer optimizer, offline."""
    from onnxruntime.transformers import optimizer

    logging.getLogger("onnxruntime.transformers").setLevel(logging.ERROR)
    config = fresh(source).model.config
    with tempfile.TemporaryDirectory() as folder:
        plain(source, Path(folder) / "plain.onnx")
        made = optimizer.optimize_model(
            str(Path(folder) / "plain.onnx"),
            model_type="bert",
            num_heads=config.num_attention_heads,
            hidden_size=config.hidden_size,
        )
    made.save_model_to_file(str(file))


def quantized(make: Callable[[Artifact, Path], None]) -> Callable[[Artifact, Path], None]:
    """Quantize another variant with ONNX Runtime's `quantize_dynamic`, per channel, 7 bits."""

    def quantize(source: Artifact, file: Path) -> None:
        from onnxruntime.quantization import quantize_dynamic

        with tempfile.TemporaryDirectory() as folder:
            make(source, Path(folder) / "float.onnx")
            model = onnx.load(Path(folder) / "float.onnx")
        del model.graph.value_info[:]  # it transposes weights and leaves their old shapes
        kinds = ["MatMul", "Attention"]
        typed = {"DefaultTensorType": onnx.TensorProto.FLOAT}  # what its shape inference loses behind Attention
        quantize_dynamic(
            model, file, op_types_to_quantize=kinds, per_channel=True, reduce_range=True, extra_options=typed
        )

    return quantize


def ours(
    quantization: Quantization | None = None,
    *,
    prepare: Callable[..., None] = keep_first_token,
    join: Callable[[ir.Model], object] = lower_int8.join_attention,
    change: Callable[[ir.Model], None] = id,  # type: ignore[assignment] # id changes nothing
) -> Callable[[Artifact, Path], None]:
    """Export as deploykit does, with one step before the trace, of the lowering or after it replaced."""

    def make(source: Artifact, file: Path) -> None:
        model = fresh(source).model
        prepare(model)
        if quantization is not None:
            decision = decide(model, weight_bits=quantization.weight_bits)
            lower_int8.quantize_linears(model, decision)
        graph = trace(model, input_names(model), operators.MASKED_ROWS)
        fuse.fuse_attention(graph)
        lower_int8.lower_linears(graph)
        fuse.clean(graph)
        join(graph)
        fuse.clean(graph)
        change(graph)
        graph.graph.sort()
        ir.save(graph, file)
        onnx.checker.check_model(file)

    return make


def skip_layer_normalization(model: ir.Model) -> None:
    """Fuse each residual sum with its norm, as ONNX Runtime does where it can infer that the shapes are equal."""
    norms = [node for node in model.graph if node.op_type == "LayerNormalization"]
    for norm in norms[1:]:  # the first one is of the embeddings
        total, weight, bias = norm.inputs
        epsilon = {"epsilon": norm.attributes["epsilon"].as_float()}
        fused = ir.node("SkipLayerNormalization", [*_producer(total).inputs, weight, bias], epsilon, domain=CONTRIB)
        _take_over(model, norm, fused)
    RemoveUnusedNodesPass()(model)


def packed(model: ir.Model) -> None:
    """Make products of the same quantized tensor one product, and split what comes out."""
    for products in _groups(model):
        joined = _joined(model, products)
        sizes = [_constant(product.inputs[3]).shape[0] for product in products]
        split = ir.node(
            "Split", [joined.outputs[0], _initializer(model, np.array(sizes))], {"axis": -1}, num_outputs=len(sizes)
        )
        model.graph.insert_before(products[0], [joined, split])
        for product, output in zip(products, split.outputs, strict=True):
            product.outputs[0].replace_all_uses_with(output)
        model.graph.remove(products, safe=True)


def without_mask(model: ir.Model) -> None:
    """Let attention read every token, as it may where nothing is padded; without a mask its kernel is another one."""
    for node in model.graph:
        if node.op_type in ("MultiHeadAttention", lower_int8.ATTENTION):
            node.replace_input_with(4 if node.op_type == "MultiHeadAttention" else 5, None)
    RemoveUnusedNodesPass()(model)


def fast_gelu(model: ir.Model) -> None:
    """Approximate Gelu by a hyperbolic tangent: another function, by up to 5e-4."""
    for gelu in [node for node in model.graph if node.op_type == "Gelu"]:
        _take_over(model, gelu, ir.node("FastGelu", [gelu.inputs[0]], domain=CONTRIB))


def embed_layer_normalization(model: ir.Model) -> None:
    """Fuse the embeddings, their sum and its norm."""
    norm = next(node for node in model.graph if node.op_type == "LayerNormalization")
    inputs = {value.name: value for value in model.graph.inputs}
    casts = [ir.node("Cast", [inputs[name]], {"to": ir.DataType.INT32}) for name in ("input_ids", "token_type_ids")]
    model.graph.insert_before(norm, casts)
    tables = [
        model.graph.initializers[f"model.bert.embeddings.{name}_embeddings.weight"]
        for name in ("word", "position", "token_type")
    ]
    given = [*(node.outputs[0] for node in casts), *tables, *norm.inputs[1:]]
    epsilon = {"epsilon": norm.attributes["epsilon"].as_float()}
    _take_over(model, norm, ir.node("EmbedLayerNormalization", given, epsilon, num_outputs=2, domain=CONTRIB))
    RemoveUnusedNodesPass()(model)


def matmul_nbits(model: ir.Model) -> None:
    """Turn products into MatMulNBits of 8 bits: one scale a block for weights and, per row, for activations."""
    for product in _products(model):
        weight_OI = (_constant(product.inputs[1]) * _constant(product.inputs[3])).T.astype(np.float32)
        blocks_OBI = weight_OI.reshape(weight_OI.shape[0], -1, BLOCK)
        scale_OB = np.maximum(np.abs(blocks_OBI).max(-1) / 127, np.finfo(np.float32).tiny)
        codes = (np.rint(blocks_OBI / scale_OB[..., None]) + 128).astype(np.uint8)
        inputs = [
            _producer(product.inputs[0]).inputs[0],
            _initializer(model, codes),
            _initializer(model, scale_OB.reshape(-1)),
            None,
            None,
            product.inputs[6],
        ]
        size = {"K": weight_OI.shape[1], "N": weight_OI.shape[0], "bits": 8, "block_size": BLOCK, "accuracy_level": 4}
        blockwise = ir.node("MatMulNBits", inputs, size, domain=CONTRIB)
        _take_over(model, product, blockwise)
    RemoveUnusedNodesPass()(model)


def large_product(precision: str, sizes: tuple[int, int, int]) -> tuple[np.ndarray[Any, Any], onnx.ModelProto]:
    """Return a graph of one matrix product with constant weights, and an input `x` for it."""
    num_rows, depth, width = sizes
    rng = np.random.default_rng(0)
    if precision == "int8":
        operator, kinds = "MatMulInteger", (onnx.TensorProto.UINT8, onnx.TensorProto.INT32)
        x = rng.integers(0, 256, (num_rows, depth)).astype(np.uint8)
        weight = rng.integers(-64, 65, (depth, width)).astype(np.int8)
    else:
        operator, kinds = "MatMul", (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT)
        x = rng.normal(size=(num_rows, depth)).astype(np.float32)
        weight = rng.normal(size=(depth, width)).astype(np.float32)
    ends = [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in zip("xy", kinds, strict=True)]
    node = onnx.helper.make_node(operator, ["x", "weight"], ["y"])
    graph = onnx.helper.make_graph(
        [node], "product", ends[:1], ends[1:], [onnx.numpy_helper.from_array(weight, "weight")]
    )
    return x, onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10)


def _take_over(model: ir.Model, old: ir.Node, new: ir.Node) -> None:
    model.graph.insert_before(old, new)
    old.outputs[0].replace_all_uses_with(new.outputs[0])
    model.graph.remove(old, safe=True)


def _products(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == lower_int8.PRODUCT]


def _groups(model: ir.Model) -> list[list[ir.Node]]:
    """Group products that read the same quantized tensor, in the order of the graph."""
    groups: dict[ir.Value | None, list[ir.Node]] = defaultdict(list)
    for product in _products(model):
        groups[product.inputs[0]].append(product)
    return [products for products in groups.values() if len(products) > 1]


def _joined(model: ir.Model, products: list[ir.Node]) -> ir.Node:
    weight, scale, bias = (
        _initializer(model, np.concatenate([_constant(product.inputs[index]) for product in products], axis=-1))
        for index in (1, 3, 6)
    )
    x, _, x_scale, _, x_zero, *_ = products[0].inputs
    return ir.node(lower_int8.PRODUCT, [x, weight, x_scale, scale, x_zero, None, bias], domain=CONTRIB)


def _constant(value: ir.Value | None) -> np.ndarray[Any, Any]:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _producer(value: ir.Value | None) -> ir.Node:
    assert value is not None
    node = value.producer()
    assert node is not None
    return node


def _initializer(model: ir.Model, array: np.ndarray[Any, Any]) -> ir.Value:
    value = ir.val(f"variant_{len(model.graph.initializers)}", const_value=ir.tensor(array))
    model.graph.register_initializer(value)
    return value


SEVEN, EIGHT = Quantization("dynamic-int8", 7), Quantization("dynamic-int8", 8)
ALL_ROWS: Callable[..., None] = id  # type: ignore[assignment] # leaves the last layer as it is
APART: Callable[[ir.Model], object] = id

VARIANTS = (
    Variant("TorchScript exporter", "fp32", plain, "onnxruntime"),
    Variant("torch.export exporter", "fp32", dynamo, "onnxruntime"),
    Variant("onnxruntime.transformers optimizer", "fp32", optimized, "onnxruntime"),
    Variant("deploykit", "fp32", ours()),
    Variant("quantize_dynamic of TorchScript", "int8", quantized(plain), "onnxruntime"),
    Variant("quantize_dynamic of the optimizer's", "int8", quantized(optimized), "onnxruntime"),
    Variant("ours, all rows of the last layer", "int8", ours(SEVEN, prepare=ALL_ROWS)),
    Variant("ours, query, key and value apart", "int8", ours(SEVEN, join=APART)),
    Variant("ours, one product for q, k, v", "int8", ours(SEVEN, join=APART, change=packed)),
    Variant("ours, MatMulNBits of 8 bits", "int8", ours(SEVEN, join=APART, change=matmul_nbits)),
    Variant("ours, SkipLayerNormalization", "int8", ours(SEVEN, change=skip_layer_normalization)),
    Variant("ours, EmbedLayerNormalization", "int8", ours(SEVEN, change=embed_layer_normalization)),
    Variant("ours, attention without mask", "int8", ours(SEVEN, change=without_mask)),
    Variant("ours, FastGelu", "int8", ours(SEVEN, change=fast_gelu)),
    Variant("ours, 8-bit weights", "int8", ours(EIGHT)),
    Variant("ours, ONNX Runtime's own session", "int8", ours(SEVEN), "onnxruntime"),
    Variant("deploykit", "int8", ours(SEVEN)),
)
