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


def worst(one: Logits, other: Logits) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


def nodes(model: Path, op_type: str) -> list[onnx.NodeProto]:
    graph = onnx.load(model / model_info.GRAPH, load_external_data=False).graph
    return [node for node in graph.node if node.op_type == op_type]
