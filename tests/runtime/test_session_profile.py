"""What the runtime makes of a graph, seen in its own profile."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from deploykit.runtime.session import open_session


def norm_after_sum(file: Path) -> Path:
    """Write y = LayerNormalization(x + skip) with shapes that ONNX Runtime can infer."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "l", 32]) for name in ("x", "skip", "y")]
    nodes = [
        helper.make_node("Add", ["x", "skip"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "weight", "bias"], ["y"]),
    ]
    constants = [helper.make_tensor(name, TensorProto.FLOAT, [32], [1.0] * 32) for name in ("weight", "bias")]
    graph = helper.make_graph(nodes, "norm", ends[:2], ends[2:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
    return file


def operators_run(session: ort.InferenceSession) -> set[str]:
    session.run(None, {name: np.zeros((1, 4, 32), np.float32) for name in ("x", "skip")})
    events = json.loads(Path(session.end_profiling()).read_text())
    return {event["args"]["op_name"] for event in events if event["cat"] == "Node"}


def test_the_cpu_keeps_sum_and_norm_apart_where_onnxruntime_would_fuse_them(tmp_path: Path) -> None:
    file = norm_after_sum(tmp_path / "norm.onnx")
    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "default")
    default = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    assert operators_run(default) == {"SkipLayerNormalization"}
    ours = open_session(file, provider="cpu", options={}, profile=tmp_path / "ours")
    assert operators_run(ours) == {"Add", "LayerNormalization"}
