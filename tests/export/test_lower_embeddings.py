"""A word's embedding comes out of the graph as the reference has it, bit for bit, in a quarter of the bytes or less."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from deploykit.check import outputs
from deploykit.checkpoint import Checkpoint
from deploykit.compress import waterfall
from deploykit.compress.embeddings import word_embeddings
from deploykit.compress.fake_quant import fake_quantize
from deploykit.compress.quantize import Quantize
from deploykit.data import open_dataset
from deploykit.export.export import Export
from deploykit.runtime.batching import pad
from deploykit.runtime.model import Model
from deploykit.runtime.session import open_session
from deploykit.stage import run
from tests.export.exported import encodings_of, export, load, source_of
from tests.models import make_checkpoint

TABLE = "word_embeddings.weight"


@pytest.fixture(scope="module", params=["bert-int8", "roberta-int8", "distilbert-int8", "bert-int4", "distilbert-int4"])
def pair(
    request: pytest.FixtureRequest, reviews: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Checkpoint, Path]:
    """A checkpoint whose embeddings are quantized, and its graph's folder."""
    family, kind = request.param.split("-")
    folder = tmp_path_factory.mktemp(request.param)
    source = source_of(make_checkpoint(folder / "model", family=family))
    made = run(Quantize(embeddings=kind), source, open_dataset(reviews), out=folder / "quantized")
    return load(made.path), export(made.path, folder / "onnx", Export()).path


def looked_up(graph: onnx.ModelProto, source: Checkpoint, folder: Path) -> np.ndarray:
    """Run a graph with the scaled rows as its output."""
    table = next(tensor.name for tensor in graph.graph.initializer if tensor.name.endswith(TABLE))
    name = next(node.output[0] for node in graph.graph.node if table in node.input)
    if kind_of(graph) == "GatherBlockQuantized":
        return run_to(name, graph, source, folder)
    while (node := next(node for node in graph.graph.node if name in node.input)).op_type in ("Cast", "Mul"):
        name = node.output[0]
    return run_to(name, graph, source, folder)


def kind_of(graph: onnx.ModelProto) -> str:
    """Return the operator that reads the table."""
    return str(next(node.op_type for node in graph.graph.node if any(name.endswith(TABLE) for name in node.input)))


def run_to(name: str, graph: onnx.ModelProto, source: Checkpoint, folder: Path) -> np.ndarray:
    graph.graph.output.append(helper.make_empty_tensor_value_info(name))
    onnx.save(graph, folder / "tap.onnx")
    session = open_session(folder / "tap.onnx", provider="cpu", options={})
    feeds = pad(encodings_of(source), source.spec.pad_id, [node.name for node in graph.graph.input])
    return np.asarray(session.run([name], feeds)[0])


def changed_once(graph: onnx.ModelProto, row: int) -> onnx.ModelProto:
    tensor = next(tensor for tensor in graph.graph.initializer if tensor.name.endswith(TABLE))
    values = numpy_helper.to_array(tensor).copy()
    values[row, 3] = values[row, 3] ^ 1  # the last bit of an int8 weight, or of the first of two int4 ones
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return graph


def test_looked_up_rows_are_the_references_bit_for_bit(pair: tuple[Checkpoint, Path], tmp_path: Path):
    source, folder = pair
    reference = load(source.path).model
    assert source.spec.quantization is not None
    fake_quantize(reference, source.spec.quantization)
    ids_NL = torch.from_numpy(pad(encodings_of(source), source.spec.pad_id, ["input_ids"])["input_ids"])
    expected = word_embeddings(reference).weight.detach()[ids_NL].numpy()
    graph = onnx.load(folder / "model.onnx")
    assert np.array_equal(looked_up(graph, source, tmp_path), expected)
    first = int(ids_NL[0, 1])
    assert not np.array_equal(
        looked_up(changed_once(onnx.load(folder / "model.onnx"), first), source, tmp_path), expected
    )


def test_parity_fails_where_one_weight_of_one_row_is_another(pair: tuple[Checkpoint, Path], tmp_path: Path):
    source, folder = pair
    encodings = encodings_of(source)
    rows = outputs.Rows(range(len(encodings)), encodings, encodings)

    def verdicts(faulty: bool) -> set[str]:
        for name in ("deploykit.json", "tokenizer.json"):
            (tmp_path / name).write_bytes((folder / name).read_bytes())
        graph = onnx.load(folder / "model.onnx")
        onnx.save(changed_once(graph, encodings[0].ids[1]) if faulty else graph, tmp_path / "model.onnx")
        found = outputs.own_parity(Model.open(tmp_path), tmp_path, source, rows)
        return {part.gate.verdict for part in found.parts}

    assert verdicts(faulty=False) == {"pass"}
    assert "fail" in verdicts(faulty=True)


def test_a_table_kept_in_float_is_the_checkpoints(bert: Path, reviews: Path, tmp_path: Path):
    made = run(Quantize(embeddings="float32"), source_of(bert), open_dataset(reviews), out=tmp_path / "out")
    graph = onnx.load(export(made.path, tmp_path / "onnx", Export()).path / "model.onnx").graph
    table = next(numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name.endswith(TABLE))
    assert np.array_equal(table, word_embeddings(load(bert).model).weight.detach().numpy())


def test_the_waterfalls_bytes_are_the_files_but_for_the_graphs_nodes(reviews: Path, tmp_path: Path):
    source, sizes = make_checkpoint(tmp_path / "model"), {}
    for kind in ("int4", "int8", "float32"):
        made = run(Quantize(embeddings=kind), source_of(source), open_dataset(reviews), out=tmp_path / kind)
        file = export(made.path, tmp_path / f"{kind}-onnx", Export()).path / "model.onnx"
        graph = onnx.load(file)
        sizes[kind] = file.stat().st_size, waterfall.read(made.path)[-1]["num_bytes"]
        del graph.graph.initializer[:]
        assert abs(sizes[kind][0] - sizes[kind][1] - graph.ByteSize()) < 10_000
    for small in ("int4", "int8"):
        saved = [large - less for large, less in zip(sizes["float32"], sizes[small], strict=True)]
        assert abs(saved[0] - saved[1]) < 1_000
    assert sizes["int4"][1] < sizes["int8"][1]
