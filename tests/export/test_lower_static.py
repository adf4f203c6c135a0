"""A static int8 graph is its reference to rounding, does not depend on the batch, and runs as integer kernels."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from deploykit import environment
from deploykit.checkpoint import Quantization
from deploykit.compress.calibrate import calibrated
from deploykit.compress.fake_quant import decide, quantized_as, static_linear, weights_quantized
from deploykit.compress.first_token import reduced
from deploykit.data import open_dataset
from deploykit.export.export import Export
from deploykit.runtime.model import Model
from deploykit.spec import Activation
from deploykit.train.labelled import read_labelled
from tests.compress.test_fake_quant import saturating_pair_sums
from tests.export.exported import encodings_of, export, load, nodes, on_the_cpu, reference, worst
from tests.export.test_export import FLOAT, decided
from tests.models import make_checkpoint


def decision_of(folder: Path, data: Path) -> Quantization:
    source = reduced(load(folder))
    rows = read_labelled(source, open_dataset(data), "train")
    decision = dataclasses.replace(decide(source.model), scheme="static-int8")
    return calibrated(source, rows, decision, "minmax")


@pytest.fixture(scope="module", params=["bert", "distilbert"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp(request.param) / "model", family=request.param)


@pytest.fixture(scope="module")
def exported(folder: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("static")
    quantization = decision_of(folder, reviews)
    return export(decided(folder, out, quantization), out / "model", Export()).path, quantization


def test_it_agrees_with_the_fake_quantized_model_to_rounding(folder: Path, exported):
    model, quantization = exported
    found = on_the_cpu(model, load(folder))
    assert worst(found, reference(folder, quantization)) < FLOAT
    assert worst(found, reference(folder)) > 10 * FLOAT, "the float model is another one: the comparison can tell"


def test_one_changed_scale_is_seen(folder: Path, exported):
    model, quantization = exported
    first, *rest = quantization.activations
    other = dataclasses.replace(first, scale=first.scale * 1.05)
    changed = dataclasses.replace(quantization, activations=(other, *rest))
    assert worst(on_the_cpu(model, load(folder)), reference(folder, changed)) > 10 * FLOAT


def test_products_that_read_one_tensor_share_its_quantization(exported):
    model, _ = exported
    assert len(nodes(model, "MatMulIntegerToFloat")) == 13
    assert len(nodes(model, "DynamicQuantizeLinear")) == 0
    # per layer one each for query, key and value; the output; both feed-forward matrices; in the last layer the query
    # reads the first token alone; and the head's
    assert len(nodes(model, "QuantizeLinear")) == 4 + 5 + 1


def test_a_rows_answer_does_not_depend_on_its_batch(folder: Path, exported):
    model = Model.open(exported[0])
    encodings = encodings_of(load(folder))
    together, alone = model.run(encodings), [model.run([encoding])[0] for encoding in encodings]
    assert worst(together, alone) < FLOAT


def test_onnxruntime_runs_every_product_as_an_integer_kernel(exported, tmp_path: Path):
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(exported[0] / "model.onnx", options, providers=["CPUExecutionProvider"])
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert found["MatMulIntegerToFloat"] == 13
    assert found["DequantizeLinear"] == 0
    assert found["MatMul"] + found["Gemm"] + found["FusedGemm"] + found["FusedMatMul"] == 1  # the logits'


def session_of(weight_OI: torch.Tensor, scale_O: torch.Tensor, how: Activation) -> ort.InferenceSession:
    constants = {
        "xs": np.float32(how.scale),
        "xz": np.uint8(how.zero_point),
        "w": weight_OI.numpy().T.copy(),
        "ws": scale_O.numpy(),
    }
    made = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        helper.make_node("MatMulIntegerToFloat", ["q", "w", "xs", "ws", "xz"], ["y"], domain="com.microsoft"),
    ]
    graph = helper.make_graph(
        made,
        "static",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, weight_OI.shape[1]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None), helper.make_tensor_value_info("q", 2, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_values_out_of_range_are_cut_as_onnxruntime_cuts_them():
    x = torch.tensor([[-9.0, -1.0, -0.25, 0.0, 0.3, 1.0, 3.0, 9e9]])
    how = Activation("x", float(np.float32(4 / 255)), 64)
    weight, scale = weights_quantized(torch.eye(8), 7)
    y, q = session_of(weight, scale, how).run(None, {"x": x.numpy()})
    assert np.array_equal(q, quantized_as(x, torch.tensor(how.scale), torch.tensor(64)).numpy())
    assert np.allclose(y, static_linear(x, weight.float(), scale, None, how).numpy(), rtol=1e-6)
    assert y.max() == pytest.approx((255 - 64) * how.scale)


def test_8_bit_weights_saturate_where_there_is_no_vnni_and_7_bits_do_not():
    x, how = torch.ones(4, 64), Activation("x", float(np.float32(1 / 255)), 0)
    for bits in (7, 8):
        weight, scale = weights_quantized(torch.full((16, 64), 0.5), bits)
        y, q = session_of(weight, scale, how).run(None, {"x": x.numpy()})
        exact = static_linear(x, weight.float(), scale, None, how).numpy()
        assert exact == pytest.approx(32.0, rel=1e-5)
        if bits == 7 or environment.has_vnni():
            assert np.allclose(y, exact, rtol=1e-6)
        else:
            assert np.abs(y - exact).max() > 10.0, "16-bit pair sums should have saturated here"
            sums = saturating_pair_sums(q, weight.numpy())
            assert np.allclose(y, sums * (how.scale * scale.numpy()), rtol=1e-6)
