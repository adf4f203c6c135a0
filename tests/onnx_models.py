"""Tiny exported models whose answers can be read off the text: each word adds its own logits."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploykit import artifact, evidence
from deploykit.artifact import Artifact, Node
from deploykit.evidence import Evidence, Gate, Measure, Verdict, subject_of
from deploykit.runtime import model_info
from deploykit.runtime.model_info import ModelInfo
from tests.models import CLASS_LABELS, ENTITY_LABELS, NEGATIVE, POSITIVE, VOCABULARY, tiny_tokenizer

MAX_LENGTH = 16
TAGS = {"paris": "B-location", "berlin": "B-location", "anna": "B-person", "peter": "B-person"}


def make_onnx(out: Path, task: str = "text-classification", provider: str = "cpu") -> Artifact:
    """Seal an exported model: classification by the sum of its words' polarity, entities by `TAGS`."""
    scratch = out.parent / f".{out.name}"
    scratch.mkdir(parents=True)
    onnx.save(_graph(task), scratch / "model.onnx")
    tiny_tokenizer().save(str(scratch / "tokenizer.json"))
    labels = CLASS_LABELS if task == "text-classification" else ENTITY_LABELS
    inputs = ("input_ids", "attention_mask")
    info = ModelInfo(task, tuple(labels), MAX_LENGTH, 0, inputs, ("logits",), provider, "fp32")
    model_info.write(info, scratch)
    return artifact.seal(scratch, out, Node("onnx", "export", {"provider": provider}, (), ""), {})


def make_proof(
    model: Artifact, out: Path, *, verdict: Verdict = "pass", gate: Verdict = "pass", measure: Measure = "validation"
) -> Artifact:
    """Seal evidence about a model."""
    scratch = out.parent / f".{out.name}"
    scratch.mkdir(parents=True)
    gates = (Gate("parity", 0.0, 1e-4, "lower", gate, "the outputs differ by 0"),)
    evidence.write(Evidence(measure, subject_of(model), verdict, gates, (), {}, "key"), scratch)
    return artifact.seal(scratch, out, Node("evidence", "validate", {}, (model.node,), ""), {})


def resealed(sealed: Artifact, out: Path, change: Callable[[Path], object]) -> Path:
    """Copy a sealed folder, change it, and seal it as if it had been made so."""
    scratch = out.parent / f".{out.name}"
    shutil.copytree(sealed.path, scratch)
    change(scratch)
    return artifact.seal(scratch, out, sealed.node, {}).path


def _graph(task: str) -> onnx.ModelProto:
    """Gather each word's logits (V,C), mask them, and for classification sum them over the text."""
    classifies = task == "text-classification"
    table = numpy_helper.from_array(_class_logits() if classifies else _tag_logits(), "table")
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["words", "wide"], ["masked" if classifies else "logits"]),
    ]
    if classifies:
        nodes.append(helper.make_node("ReduceSum", ["masked", "first"], ["logits"], keepdims=0))
    axes = [numpy_helper.from_array(np.array([axis]), name) for axis, name in ((2, "last"), (1, "first"))]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "l"]) for name in ("input_ids", "attention_mask")
    ]
    shape: list[str | int | None] = ["n", 2] if classifies else ["n", "l", len(ENTITY_LABELS)]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "tiny", inputs, [output], [table, *axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def _class_logits() -> np.ndarray:
    polarity = np.array([(word in POSITIVE) - (word in NEGATIVE) for word in VOCABULARY], dtype=np.float32)
    return np.stack([-polarity, polarity], axis=1)


def _tag_logits() -> np.ndarray:
    tags = [ENTITY_LABELS.index(TAGS.get(word, "O")) for word in VOCABULARY]
    return 4 * np.eye(len(ENTITY_LABELS), dtype=np.float32)[tags]
