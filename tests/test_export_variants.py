"""The graphs beside deploykit's: which compute the same, and how much integer work there is."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from benchmarks import export_graphs
from benchmarks.export_graphs import APART, SEVEN, large_product, ours
from benchmarks.export_variants import INPUTS, int8_operations, table
from deploykit import artifact


@pytest.fixture(scope="module")
def made(bert: Path, tmp_path_factory: pytest.TempPathFactory):
    """Make a variant of the tiny model; returns its file."""
    folder = tmp_path_factory.mktemp("variants")

    def make(**changed) -> Path:
        file = folder / f"{len(list(folder.iterdir()))}.onnx"
        ours(SEVEN, **changed)(artifact.adopt(bert, "checkpoint"), file)
        return file

    return make


def logits(file: Path):
    ids = np.random.default_rng(0).integers(5, 20, (2, 7))
    feeds = dict(zip(INPUTS, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))
    return ort.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


EXACT = {
    "apart": {"join": APART},
    "packed": {"join": APART, "change": export_graphs.packed},
    "without mask": {"change": export_graphs.without_mask},
    "embed": {"change": export_graphs.embed_layer_normalization},
}


@pytest.mark.parametrize("changed", EXACT.values(), ids=EXACT)
def test_graphs_that_differ_in_kernels_alone_agree(made, changed):
    assert np.abs(logits(made(**changed)) - logits(made())).max() < 1e-5


def test_fast_gelu_is_another_function(made):
    assert np.abs(logits(made(change=export_graphs.fast_gelu)) - logits(made())).max() > 1e-5


def test_operations_are_counted_alike_whether_attention_is_joined_or_not(made):
    inputs = {name: np.full((2, 7), int(name != "token_type_ids")) for name in INPUTS}
    joined, apart = (int8_operations(file, inputs) for file in (made(), made(join=APART)))
    hidden, wide = 32, 64
    whole = 2 * 7 * (4 * hidden * hidden + 2 * hidden * wide)
    last = 2 * 7 * 2 * hidden * hidden + 2 * (2 * hidden * hidden + 2 * hidden * wide)
    pooler = 2 * hidden * hidden
    assert joined == apart == 2 * (whole + last + pooler)


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_the_large_product_is_a_product(precision):
    x, graph = large_product(precision, (3, 8, 16))
    weight = onnx.numpy_helper.to_array(graph.graph.initializer[0]).astype(np.float64)
    (found,) = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.testing.assert_allclose(found, x.astype(np.float64) @ weight, rtol=1e-4, atol=1e-4)


def test_the_table_shows_speeds_and_the_share_of_the_rate():
    speed = {"median_ms": 2.0, "speed": {"value": 1.0, "low": 0.9, "high": 1.1}}
    row = {"name": "deploykit", "precision": "int8", "error": 0.1, "from_reference": 1e-7}
    result = {
        "rates_gops": {"1": {"int8": 200.0, "fp32": 90.0}},
        "int8_gop": {"1 x 26": 0.2},
        "variants": [{**row, "threads": {"1": {"1 x 26": speed}}}],
    }
    drawn = table(result)
    assert "2.00 1.00x (0.90 to 1.10)" in drawn
    assert drawn.endswith("of the first: 1 x 26 50%")
