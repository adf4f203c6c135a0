"""The exported model answers as its checkpoint does, in order, in any company, without torch."""

import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from deploykit.errors import ArtifactError, DataError, DeploykitError
from deploykit.runtime import model_info
from deploykit.runtime.model import Model
from tests.models import classification_row, entity_row
from tests.plain_export import torch_model


def rows_for(task: str, count: int = 24) -> list[dict[str, Any]]:
    rng = random.Random(3)
    make = classification_row if task == "text-classification" else entity_row
    return [dict(make(rng)) for _ in range(count)]


@pytest.fixture(params=["text-classification", "token-classification"])
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(task: str, bert_onnx: Path, ner_onnx: Path) -> Model:
    return Model.open(bert_onnx if task == "text-classification" else ner_onnx, threads=1)


@pytest.fixture
def checkpoint(task: str, bert: Path, bert_ner: Path) -> Path:
    return bert if task == "text-classification" else bert_ner


def worst(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True))


def torch_logits(checkpoint: Path, task: str, model: Model, rows: list[dict[str, Any]]) -> list[np.ndarray]:
    reference = torch_model(checkpoint, task)
    with torch.inference_mode():
        encodings = model.encode(rows)
        return [reference(torch.tensor([encoding.ids])).logits[0].numpy() for encoding in encodings]


def test_logits_are_the_checkpoints(model: Model, task: str, checkpoint: Path) -> None:
    rows = rows_for(task)
    expected = torch_logits(checkpoint, task, model, rows)
    assert worst(model.logits(model.encode(rows), batch_size=5), expected) < 1e-4


def test_a_changed_weight_is_seen(model: Model, task: str, checkpoint: Path, tmp_path: Path) -> None:
    rows = rows_for(task)
    expected = torch_logits(checkpoint, task, model, rows)
    folder = tmp_path / "changed"
    shutil.copytree(Path(model.session._model_path).parent, folder)
    graph = onnx.load(folder / "model.onnx")
    weight = next(w for w in graph.graph.initializer if w.name.endswith("classifier.bias"))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + 0.01, weight.name))
    onnx.save(graph, folder / "model.onnx")
    assert worst(Model.open(folder, threads=1).logits(model.encode(rows)), expected) > 5e-3


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_answers_are_in_order_whatever_the_batches(model: Model, task: str, batch_size: int) -> None:
    rows = rows_for(task)
    encodings = model.encode(rows)
    alone = [model.run([encoding])[0] for encoding in encodings]
    together = model.logits(encodings, batch_size)
    assert [row.shape for row in together] == [row.shape for row in alone]
    assert worst(together, alone) < 1e-5


def test_predictions_are_in_order(model: Model, task: str) -> None:
    rows = rows_for(task)
    together = model.predict(rows, batch_size=4)
    for row, answer in zip(rows, together, strict=True):
        (alone,) = model.predict([row])
        assert str(answer).split("score")[0] == str(alone).split("score")[0]


def test_logits_are_float32_without_padding(model: Model, task: str) -> None:
    encodings = model.encode(rows_for(task))
    num_labels = len(model.info.labels)
    for logits, encoding in zip(model.logits(encodings), encodings, strict=True):
        assert logits.dtype == np.float32
        assert logits.shape == ((num_labels,) if task == "text-classification" else (len(encoding.ids), num_labels))


def test_no_row_has_no_answer(model: Model) -> None:
    assert model.predict([]) == []
    assert model.logits([]) == []


def test_a_row_that_cannot_be_answered_is_named(model: Model) -> None:
    with pytest.raises(DataError, match="row 1: "):
        model.predict([{"text": "the film"}, {"text": ""}])


def test_threads_share_a_model(model: Model, task: str) -> None:
    rows = rows_for(task)
    alone = [model.predict([row])[0] for row in rows]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda row: model.predict([row])[0], rows)) == alone


def test_running_text_is_answered_by_ner(ner_onnx: Path) -> None:
    (answer,) = Model.open(ner_onnx, threads=1).predict([{"text": "Anna saw Paris."}])
    for entity in answer["entities"]:
        assert "Anna saw Paris."[entity["start"] : entity["end"]] == entity["text"]


@pytest.mark.parametrize("field", ["inputs", "outputs"])
def test_a_graph_with_other_names_is_refused(bert_onnx: Path, tmp_path: Path, field: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bert_onnx, folder)
    info = model_info.read(folder)
    other = replace(info, inputs=("something",)) if field == "inputs" else replace(info, outputs=("something",))
    model_info.write(other, folder)
    with pytest.raises(ArtifactError, match=f"expected {field} something"):
        Model.open(folder)


def test_a_model_that_answers_nan_is_refused(bert_onnx: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bert_onnx, folder)
    graph = onnx.load(folder / "model.onnx")
    weight = next(w for w in graph.graph.initializer if w.name.endswith("classifier.bias"))
    weight.CopyFrom(numpy_helper.from_array(np.full(2, np.nan, np.float32), weight.name))
    onnx.save(graph, folder / "model.onnx")
    with pytest.raises(DeploykitError, match="NaN"):
        Model.open(folder).predict([{"text": "the film"}])


def test_serving_imports_neither_torch_nor_transformers(bert_onnx: Path) -> None:
    script = """
import sys, pathlib
import deploykit, deploykit.runtime.model, deploykit.predict
deploykit.runtime.model.Model.open(pathlib.Path(sys.argv[1])).predict([{"text": "the film"}])
heavy = {"torch", "transformers", "onnx", "sklearn", "scipy", "pandas", "datasets"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", script, str(bert_onnx)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
