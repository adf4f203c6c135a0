"""Passes over the graph."""

from pathlib import Path

import onnx
import onnx_ir as ir

from deploykit import checkpoint
from deploykit.export import fuse
from deploykit.export.write import Target, write_model


def test_nothing_is_cast_to_what_it_is(bert: Path, tmp_path: Path):
    write_model(checkpoint.load(checkpoint.open_checkpoint(bert)), tmp_path, Target())
    graph = onnx.load(tmp_path / "model.onnx").graph
    (last,) = (node for node in graph.node if "logits" in node.output)
    assert last.op_type != "Cast"


def test_a_node_that_gives_the_graphs_output_can_be_replaced():
    x, made = ir.val("x", ir.DataType.FLOAT, [2]), ir.val("logits", ir.DataType.FLOAT, [2])
    old = ir.node("Relu", [x], outputs=[made])
    model = ir.Model(ir.Graph([x], [made], nodes=[old], opset_imports={"": 20}), ir_version=10)
    fuse.replace(model, old, [ir.node("Neg", [x]), ir.node("Abs", [x])], made)
    fuse.clean(model)
    assert [(node.op_type, node.outputs[0].name) for node in model.graph] == [("Abs", "logits")]
    assert [(value.name, value.dtype) for value in model.graph.outputs] == [("logits", ir.DataType.FLOAT)]
