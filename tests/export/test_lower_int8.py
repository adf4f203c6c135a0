"""Each integer product of an exported graph is the reference's product, bit for bit, on the same input.

Those inside QAttention: tests/check/test_int8.py.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from deploykit.compress.fake_quant import dynamic_linear
from deploykit.export.export import Export
from deploykit.runtime.batching import pad
from deploykit.runtime.session import open_session
from tests.export.exported import encodings_of, export, load

Products = list[tuple[np.ndarray, list[np.ndarray], np.ndarray]]


@pytest.fixture(scope="module")
def products(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Products:
    """Run an int8 graph with its inner tensors as outputs: per product input, [weight, scale, bias], output."""
    folder = tmp_path_factory.mktemp("int8")
    model = onnx.load(export(bert, folder / "out", Export(precision="int8")).path / "model.onnx")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    quantized = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "DynamicQuantizeLinear"}
    nodes = [node for node in model.graph.node if node.op_type == "MatMulIntegerToFloat"]
    taps = sorted({name for node in nodes for name in (quantized[node.input[0]], node.output[0])})
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in taps)
    onnx.save(model, folder / "taps.onnx")
    feeds = pad(encodings_of(load(bert)), 0, [node.name for node in model.graph.input])
    session = open_session(folder / "taps.onnx", provider="cpu", options={})
    found = dict(zip(taps, session.run(taps, feeds), strict=True))
    return [
        (found[quantized[node.input[0]]], [constants[node.input[index]] for index in (1, 3, 6)], found[node.output[0]])
        for node in nodes
    ]


def computed(x: np.ndarray, weight_IO: np.ndarray, scale_O: np.ndarray, bias_O: np.ndarray) -> np.ndarray:
    weight_OI = torch.tensor(weight_IO.T.copy()).float()
    return dynamic_linear(torch.tensor(x), weight_OI, torch.tensor(scale_O), torch.tensor(bias_O)).numpy()


def test_every_product_is_the_references_on_its_own_input(products: Products):
    assert len(products) == 10
    for x, constants, y in products:
        np.testing.assert_allclose(y, computed(x, *constants), rtol=1e-6, atol=1e-6)


def test_one_weight_off_by_one_step_is_seen(products: Products):
    for x, (weight_IO, scale_O, bias_O), y in products:
        changed_IO = weight_IO.copy()
        changed_IO[0, 0] += 1 if changed_IO[0, 0] < 64 else -1
        assert np.abs(y - computed(x, changed_IO, scale_O, bias_O)).max() > 1e-5
