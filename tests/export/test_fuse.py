"""The detours that `shorten` takes out, and what it must leave."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from deploykit import checkpoint
from deploykit.export import fuse
from deploykit.export.write import Target, write_model
from deploykit.runtime.model import Model
from tests.models import make_checkpoint

ROWS = [{"text": "the film was superb"}, {"text": "bad"}, {"text": "a sad story with a good plot in paris"}]


def written(folder: Path, family: str) -> Path:
    model = make_checkpoint(folder / "model", family=family)
    (folder / "out").mkdir()
    write_model(checkpoint.load(checkpoint.open_checkpoint(model)), folder / "out", Target())
    return folder / "out"


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_the_mask_is_cast_once_and_nothing_is_cast_to_what_it_is(family: str, tmp_path: Path):
    graph = onnx.load(written(tmp_path, family) / "model.onnx").graph
    casts = [node for node in graph.node if node.op_type == "Cast"]
    masks = [node for node in casts if node.input[0] == "attention_mask"]
    assert [onnx.helper.get_attribute_value(node.attribute[0]) for node in masks] == [onnx.TensorProto.INT32]
    assert not [node for node in casts if node.output[0] == "logits"]


def test_positions_are_the_tables_first_rows_where_they_count_from_zero(tmp_path: Path, monkeypatch):
    (tmp_path / "short").mkdir(), (tmp_path / "long").mkdir()
    short = written(tmp_path / "short", "bert")
    monkeypatch.setattr(fuse, "_counts_from_zero", lambda _value: False)
    long = written(tmp_path / "long", "bert")
    sliced, gathered = (
        [node for node in onnx.load(path / "model.onnx").graph.node if "position_embeddings" in "".join(node.input[:1])]
        for path in (short, long)
    )
    assert [node.op_type for node in sliced] == ["Slice"]
    assert [node.op_type for node in gathered] == ["Gather"]
    answers = [Model.open(path).logits(Model.open(path).encode(ROWS)) for path in (short, long)]
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize(("ids", "known"), [([[0, 1, 2]], True), ([[1, 2, 3]], False), ([0, 1, 2], False)])
def test_other_positions_are_looked_up(ids: list[int], known: bool):
    value = ir.Value(name="ids", const_value=ir.tensor(np.array(ids)))
    assert fuse._counts_from_zero(value) is known
    assert not fuse._counts_from_zero(ir.Value(name="ids"))
    assert not fuse._counts_from_zero(None)
