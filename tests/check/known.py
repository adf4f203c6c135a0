"""A tiny model that knows its labels, because they are its own answers; and ways to spoil what was made from it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from safetensors.torch import load_file, save_file

from deploykit import artifact, checkpoint, stage
from deploykit.artifact import Artifact
from deploykit.data import read_split
from deploykit.export.export import Export
from deploykit.runtime.model_info import Precision
from deploykit.runtime.token_classification import encode, word_rows
from tests.models import make_checkpoint, make_dataset

ROWS = 120


def make_known(folder: Path, task: str = "text-classification", family: str = "bert") -> tuple[Artifact, Artifact]:
    """Make a checkpoint, and a data set labelled by its answers."""
    source = make_checkpoint(folder / "model", task=task, family=family, seed=1)
    data = make_dataset(folder / "data", task=task, rows=ROWS)
    if task == "text-classification":
        balance(source, data)
    label_by(source, data, task)
    return artifact.adopt(source, "checkpoint"), artifact.adopt(data, "dataset")


def balance(source: Path, data: Path) -> None:
    """Shift the head's bias so that half of the rows get each label."""
    loaded = checkpoint.load(artifact.adopt(source, "checkpoint"))
    rows = read_split(data, "test").rows
    logits = np.stack(checkpoint.logits(loaded, loaded.tokenizer.encode([row["text"] for row in rows])))
    tensors = load_file(source / "model.safetensors")
    shift = torch.tensor([0.0, float(np.median(logits[:, 1] - logits[:, 0]))])
    bias = next(name for name in ("classifier.bias", "classifier.out_proj.bias") if name in tensors)
    tensors[bias] = tensors[bias] - shift
    save_file(tensors, source / "model.safetensors", {"format": "pt"})


def label_by(source: Path, data: Path, task: str) -> None:
    """Replace the test split's labels by the model's answers."""
    loaded = checkpoint.load(artifact.adopt(source, "checkpoint"))
    rows = list(read_split(data, "test").rows)
    if task == "text-classification":
        encodings = loaded.tokenizer.encode([row["text"] for row in rows])
        for index, (row, logits) in enumerate(zip(rows, checkpoint.logits(loaded, encodings), strict=True)):
            row |= {"label": loaded.labels[logits.argmax()], "source": "even" if index % 2 == 0 else "odd"}
    else:
        encodings = encode(loaded.tokenizer, rows)
        for row, logits, encoding in zip(rows, checkpoint.logits(loaded, encodings), encodings, strict=True):
            row["ner_tags"] = [loaded.labels[index] for index in word_rows(logits, encoding).argmax(axis=-1)]
    write_rows(data, rows)


def write_rows(data: Path, rows: list[dict[str, Any]]) -> None:
    (data / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def exported(source: Artifact, out: Path, precision: Precision = "fp32") -> Artifact:
    return stage.run(Export(precision=precision), source, out=out)


def spoiled(sealed: Artifact, out: Path, change: Callable[[Path], None]) -> Artifact:
    """Copy an artifact, change its payload, and seal it as if it had been made so."""
    scratch = out.parent / f".{out.name}"
    shutil.copytree(sealed.path, scratch)
    change(scratch)
    return artifact.seal(scratch, out, sealed.node, sealed.facts)


def flip_weight(module: str) -> Callable[[Path], None]:
    """Flip the sign of the largest weight of the graph's first product whose name holds `module`."""

    def change(folder: Path) -> None:
        graph = onnx.load(folder / "model.onnx")
        matrices = {tensor.name: tensor for tensor in graph.graph.initializer if len(tensor.dims) == 2}
        tensor = next(
            matrices[name]
            for node in graph.graph.node
            if module in node.name
            for name in node.input
            if name in matrices
        )
        weight = numpy_helper.to_array(tensor).copy()
        index = np.unravel_index(np.abs(weight.astype(np.float64)).argmax(), weight.shape)
        weight[index] = -weight[index]
        tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
        onnx.save(graph, folder / "model.onnx")

    return change


def forget_mask(folder: Path) -> None:
    """Make every position count, padding too."""
    graph = onnx.load(folder / "model.onnx")
    for node in graph.graph.node:
        node.input[:] = ["every_position" if name == "attention_mask" else name for name in node.input]
    one = numpy_helper.from_array(np.array([1], np.int64), "one")
    for index, node in enumerate(
        (
            helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
            helper.make_node("ConstantOfShape", ["mask_shape"], ["every_position"], value=one),
        )
    ):
        graph.graph.node.insert(index, node)
    onnx.save(graph, folder / "model.onnx")


def swap_labels(folder: Path) -> None:
    info = json.loads((folder / "deploykit.json").read_text())
    info["labels"] = info["labels"][::-1]
    (folder / "deploykit.json").write_text(json.dumps(info))


def other_tokenizer(shift: int) -> Callable[[Path], None]:
    """Number the words another way: by `shift` further on; out of the model's vocabulary where that is large."""

    def change(folder: Path) -> None:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        special = {token["id"] for token in tokenizer["added_tokens"]}
        words = [word for word, index in tokenizer["model"]["vocab"].items() if index not in special]
        size = len(tokenizer["model"]["vocab"])
        numbers = [tokenizer["model"]["vocab"][word] for word in words]
        moved = numbers[shift:] + numbers[:shift] if shift < size else [number + shift for number in numbers]
        tokenizer["model"]["vocab"] |= dict(zip(words, moved, strict=True))
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))

    return change
