"""Export a tiny checkpoint and run both sides on rows of uneven length."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from deploykit import artifact, checkpoint, stage
from deploykit.artifact import Artifact
from deploykit.checkpoint import Checkpoint
from deploykit.compress.fake_quant import fake_quantize
from deploykit.export.export import Export
from deploykit.runtime import model_info
from deploykit.runtime.batching import pad
from deploykit.runtime.session import open_session
from deploykit.runtime.tasks import decoder_of
from deploykit.runtime.tokenizer import Encoding

TEXTS = ("bad", "the film was good", "a story with plot in paris and berlin was superb and anna saw it", "peter")
Logits = Sequence[np.ndarray]


def load(folder: Path) -> Checkpoint:
    return checkpoint.load(source_of(folder))


def source_of(folder: Path) -> Artifact:
    return artifact.read(folder) if artifact.is_sealed(folder) else artifact.adopt(folder, "checkpoint")


def export(folder: Path, out: Path, settings: Export) -> Artifact:
    return stage.run(settings, source_of(folder), out=out)


def encodings_of(source: Checkpoint) -> list[Encoding]:
    return decoder_of(source.spec.task).encode(source.tokenizer, [{"text": text} for text in TEXTS])


def reference(folder: Path, quantization: checkpoint.Quantization | None = None) -> Logits:
    source = load(folder)
    if quantization is not None:
        fake_quantize(source.model, quantization)
    return checkpoint.logits(source, encodings_of(source))


def on_the_cpu(model: Path, source: Checkpoint) -> Logits:
    """Run one padded batch on the CPU, whatever provider the model was exported for."""
    info = model_info.read(model)
    session = open_session(model / model_info.GRAPH, provider="cpu", options={})
    encodings = encodings_of(source)
    (outputs,) = session.run(list(info.outputs), pad(encodings, info.pad_id, info.inputs))
    return decoder_of(info.task).unpad(outputs, encodings)


def with_bf16_products_in_float(model: Path) -> int:
    """Rewrite an exported graph for the CPU, which has no kernel for bf16 products; return how many there were.

    Inputs stay rounded to bf16, sums are of float32 and the result is rounded to bf16, as a GPU's kernel does.
    """
    path = model / model_info.GRAPH
    graph = onnx.shape_inference.infer_shapes(onnx.load(path))
    bf16 = {one.name for one in graph.graph.initializer if one.data_type == onnx.TensorProto.BFLOAT16}
    products = [node for node in graph.graph.node if node.op_type == "MatMul" and bf16 & set(node.input)]
    for node in products:
        at = list(graph.graph.node).index(node)
        given, made = list(node.input), node.output[0]
        for index, name in enumerate(given):
            node.input[index] = f"{name}_float"
        node.output[0] = f"{made}_float"
        casts = [onnx.helper.make_node("Cast", [name], [f"{name}_float"], to=onnx.TensorProto.FLOAT) for name in given]
        back = onnx.helper.make_node("Cast", [node.output[0]], [made], to=onnx.TensorProto.BFLOAT16)
        graph.graph.node.insert(at + 1, back)
        for cast in casts:
            graph.graph.node.insert(at, cast)
    onnx.save(graph, path)
    return len(products)


def worst(one: Logits, other: Logits) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


def nodes(model: Path, op_type: str) -> list[onnx.NodeProto]:
    graph = onnx.load(model / model_info.GRAPH, load_external_data=False).graph
    return [node for node in graph.node if node.op_type == op_type]
