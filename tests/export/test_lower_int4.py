"""An int4 graph is the model with rounded weights, in every block size, and its kernels are MatMulNBits."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from deploykit.compress.fake_quant import decide, decide_int4
from deploykit.compress.int4 import int4_quantized, int4_rounded
from deploykit.errors import UsageError
from deploykit.export.export import Export
from deploykit.export.lower_int4 import packed
from tests.export.exported import export, load, nodes, on_the_cpu, reference, worst
from tests.export.test_export import FLOAT, decided
from tests.models import make_checkpoint


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("block_size", [32, 64, 128])
def test_it_agrees_with_the_model_of_rounded_weights(family: str, block_size: int, tmp_path: Path):
    folder = make_checkpoint(tmp_path / "model", family=family)
    quantization = decide_int4(load(folder).model, block_size=block_size)
    model = export(decided(folder, tmp_path, quantization), tmp_path / "out", Export()).path
    found = on_the_cpu(model, load(folder))
    assert len(nodes(model, "MatMulNBits")) == 13
    assert worst(found, reference(folder, quantization)) < FLOAT
    assert worst(found, reference(folder)) > 10 * FLOAT, "the float model is another one: the comparison can tell"


def test_asked_for_without_a_decision_it_is_rounded_to_nearest(bert: Path, tmp_path: Path):
    model = export(bert, tmp_path / "out", Export(precision="int4")).path
    assert worst(on_the_cpu(model, load(bert)), reference(bert, decide_int4(load(bert).model))) < FLOAT


def test_another_precision_than_the_decided_one_is_refused(bert: Path, tmp_path: Path):
    folder = decided(bert, tmp_path, decide(load(bert).model))
    with pytest.raises(UsageError, match="int8 or a float one, as the checkpoint decides"):
        export(folder, tmp_path / "out", Export(precision="int4"))


@pytest.mark.parametrize(("outputs", "inputs"), [(8, 32), (5, 100), (48, 384), (1, 1)])
def test_the_kernel_reads_the_packed_weights_as_they_are_meant(outputs: int, inputs: int):
    rng = torch.Generator().manual_seed(0)
    weight, x = torch.randn(outputs, inputs, generator=rng), torch.randn(3, inputs, generator=rng)
    quantized, scale = int4_quantized(weight, 32)
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft")
    for name, value in {"K": inputs, "N": outputs, "bits": 4, "block_size": 32, "accuracy_level": 1}.items():
        node.attribute.append(helper.make_attribute(name, value))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    constants = [numpy_helper.from_array(packed(quantized.numpy()), "w"), numpy_helper.from_array(scale.numpy(), "s")]
    graph = helper.make_graph([node], "int4", ends[:1], ends[1:], constants)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    session = ort.InferenceSession(
        helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString(),
        providers=["CPUExecutionProvider"],
    )
    (y,) = session.run(None, {"x": x.numpy()})
    expected = (x @ int4_rounded(weight, 32).T).numpy()
    assert np.abs(y - expected).max() < 1e-5 * max(1.0, np.abs(expected).max())
    assert np.abs(y - (x @ weight.T).numpy()).max() > 1e-4 or inputs == 1
