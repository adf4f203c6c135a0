"""Provider truth sees a heavy node on the wrong provider."""

import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest

from deploykit import artifact, stage
from deploykit.check.provider import placement, provider_truth
from deploykit.errors import EnvironmentMissing
from deploykit.export.export import Export

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
ROWS = [{"text": "the film was good"}, {"text": "bad"}]


def event(operator: str, provider: str, micros: int = 10) -> dict[str, Any]:
    name = f"/layer/{operator}_kernel_time"
    return {"cat": "Node", "name": name, "dur": micros, "args": {"op_name": operator, "provider": provider}}


@pytest.fixture(scope="module")
def model(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "model"
    return stage.run(Export(precision="int8"), artifact.adopt(bert, "checkpoint"), out=out).path


def test_every_heavy_node_of_an_exported_model_runs_where_it_was_asked_to(model: Path):
    truth = provider_truth(model, ROWS)
    assert truth["ok"]
    assert truth["misplaced"] == ()
    assert truth["copies"] == 0
    assert truth["time_share"] == {CPU: 1.0}
    assert truth["heavy"] == 10 + 2 + 1
    assert truth["operators"]["MultiHeadAttention"] + truth["operators"]["QAttention"] == 2
    assert truth["fusions"]["layers"] == 2


def test_all_but_the_time_is_the_same_in_every_run(model: Path):
    assert provider_truth(model, ROWS) == provider_truth(model, ROWS[:1])


def test_one_heavy_node_on_the_cpu_is_named():
    found = placement([event("MatMul", CUDA), event("MultiHeadAttention", CPU), event("Add", CPU)], CUDA)
    assert found.misplaced == ("/layer/MultiHeadAttention",)
    assert found.nodes == {CPU: 2, CUDA: 1}


def test_copies_between_devices_are_counted_apart():
    found = placement([event("MatMul", CUDA), event("MemcpyToHost", CUDA), event("MemcpyFromHost", CUDA)], CUDA)
    assert (found.copies, found.nodes) == (2, {CUDA: 1})


def test_a_tensorrt_subgraph_is_one_heavy_node_and_one_left_to_cuda_is_misplaced():
    found = placement([event("TRTKernel_graph_0", TENSORRT), event("MatMul", CUDA)], TENSORRT)
    assert (found.heavy, found.misplaced) == (2, ("/layer/MatMul",))


def test_time_shares_add_up():
    found = placement([event("MatMul", CUDA, 30), event("Add", CPU, 10)], CUDA)
    assert found.time_share == {CPU: 0.25, CUDA: 0.75}


def test_an_empty_profile_is_no_proof():
    found = placement([{"cat": "Session", "name": "session_initialization", "dur": 1}], CPU)
    assert (found.heavy, found.nodes, found.time_share) == (0, {}, {})


def test_a_missing_attention_kernel_shows_in_the_operators(model: Path, tmp_path: Path):
    changed = shutil.copytree(model, tmp_path / "changed")
    graph = onnx.load(changed / "model.onnx")
    fused = [node for node in graph.graph.node if node.op_type == "MultiHeadAttention"]
    fused[0].op_type, fused[0].domain = "Identity", ""
    del fused[0].input[1:], fused[0].attribute[:]
    onnx.save(graph, changed / "model.onnx")
    assert "MultiHeadAttention" not in provider_truth(changed, ROWS)["operators"]


def test_a_provider_that_is_not_here_is_not_replaced(bert: Path, tmp_path: Path):
    exported = stage.run(Export(provider="cuda"), artifact.adopt(bert, "checkpoint"), out=tmp_path / "cuda")
    with pytest.raises(EnvironmentMissing, match="provider cuda"):
        provider_truth(exported.path, ROWS)
