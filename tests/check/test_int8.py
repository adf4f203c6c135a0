from collections import Counter

import numpy as np
import onnx
import pytest

from deploykit import checkpoint
from deploykit.check import int8
from deploykit.check.outputs import decision
from deploykit.check.parity import TOLERANCES, compare
from deploykit.errors import ArtifactError
from deploykit.runtime.model import Model
from tests.check.known import exported, flip_weight, make_known, spoiled

ROWS = [{"text": text} for text in ("bad", "the film was good", "a story with plot in paris and berlin was superb")]


@pytest.fixture(scope="module", params=["bert", "distilbert", "roberta"])
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    source, _ = make_known(folder, family=request.param)
    return checkpoint.load(source), exported(source, folder / "onnx", "int8")


def opened(sealed):
    model = Model.open(sealed.path)
    quantization = decision(model)
    assert quantization is not None
    return model, quantization


def test_the_graph_in_float_agrees_with_the_reference_in_float(case):
    source, sealed = case
    model, quantization = opened(sealed)
    encodings = model.encode(ROWS)
    reference = checkpoint.logits(int8.weights_reference(source, quantization), encodings)
    found = compare(reference, int8.float_activations(model, sealed.path).logits(encodings))
    assert found.worst < TOLERANCES["fp32"] / 5


def test_one_flipped_weight_moves_the_graph_in_float_beyond_the_tolerance(case, tmp_path):
    source, sealed = case
    faulty = spoiled(sealed, tmp_path / "onnx", flip_weight("layer.0/"))
    model, quantization = opened(faulty)
    encodings = model.encode(ROWS)
    reference = checkpoint.logits(int8.weights_reference(source, quantization), encodings)
    found = compare(reference, int8.float_activations(model, faulty.path).logits(encodings))
    assert found.worst > TOLERANCES["fp32"]


def test_every_integer_product_is_as_defined(case):
    model, _ = opened(case[1])
    found = int8.product_parity(model, case[1].path, model.encode(ROWS))
    operators = Counter(node.op_type for node in onnx.load(case[1].path / "model.onnx").graph.node)
    assert operators[int8.ATTENTION] == 1  # three products, and what they and the attention give together
    assert len(found) == operators[int8.PRODUCT] + 4
    assert int8.worst_of(found)[1].worst < TOLERANCES["fp32"] / 5


def test_an_integer_product_with_a_wrong_scale_is_named(case, tmp_path):
    def change(folder):
        graph = onnx.load(folder / "model.onnx")
        node = next(node for node in graph.graph.node if node.op_type == int8.PRODUCT)
        node.input[2] = "wrong_scale"  # instead of the one that the activation was quantized with
        graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.5, np.float32), "wrong_scale"))
        onnx.save(graph, folder / "model.onnx")

    faulty = spoiled(case[1], tmp_path / "onnx", change)
    model, _ = opened(faulty)
    name, worst = int8.worst_of(int8.product_parity(model, faulty.path, model.encode(ROWS)))
    assert worst.worst > TOLERANCES["fp32"]
    assert "layer.0" in name


def test_a_joined_attention_that_is_not_its_parts_is_named(case, monkeypatch):
    model, _ = opened(case[1])
    taken_apart = int8._parts

    def other_heads(*given):
        nodes = taken_apart(*given)
        nodes[-1].attribute[0].i //= 2
        return nodes

    monkeypatch.setattr(int8, "_parts", other_heads)
    name, worst = int8.worst_of(int8.product_parity(model, case[1].path, model.encode(ROWS)))
    assert worst.worst > TOLERANCES["fp32"]
    assert name.endswith("Attention")


def test_one_flipped_weight_of_a_joined_attention_moves_the_graph_in_float(case, tmp_path):
    def change(folder):
        graph = onnx.load(folder / "model.onnx")
        name = next(node for node in graph.graph.node if node.op_type == int8.ATTENTION).input[1]
        weight = next(tensor for tensor in graph.graph.initializer if tensor.name == name)
        values = onnx.numpy_helper.to_array(weight).copy()
        values[np.unravel_index(np.abs(values).argmax(), values.shape)] *= -1
        weight.CopyFrom(onnx.numpy_helper.from_array(values, name))
        onnx.save(graph, folder / "model.onnx")

    source, sealed = case
    faulty = spoiled(sealed, tmp_path / "onnx", change)
    model, quantization = opened(faulty)
    encodings = model.encode(ROWS)
    reference = checkpoint.logits(int8.weights_reference(source, quantization), encodings)
    assert compare(reference, int8.float_activations(model, faulty.path).logits(encodings)).worst > TOLERANCES["fp32"]


@pytest.mark.parametrize(("operator", "index"), [(int8.PRODUCT, 5), (int8.ATTENTION, 7)])
def test_a_product_of_another_form_is_refused(case, tmp_path, operator, index):
    def change(folder):
        graph = onnx.load(folder / "model.onnx")
        node = next(node for node in graph.graph.node if node.op_type == operator)
        node.input[index] = "zero"
        zero = np.ones(1, np.int8)
        graph.graph.initializer.append(onnx.numpy_helper.from_array(zero, "zero"))
        onnx.save(graph, folder / "model.onnx")

    faulty = spoiled(case[1], tmp_path / "onnx", change)
    model, _ = opened(case[1])
    with pytest.raises(ArtifactError, match="another form"):
        int8.float_activations(model, faulty.path)


def test_the_references_leave_the_checkpoint_as_it_is(case):
    source, sealed = case
    model, quantization = opened(sealed)
    encodings = model.encode(ROWS)
    before = checkpoint.logits(source, encodings)
    int8.weights_reference(source, quantization)
    int8.quantized_reference(source, quantization)
    assert all((a == b).all() for a, b in zip(before, checkpoint.logits(source, encodings), strict=True))
