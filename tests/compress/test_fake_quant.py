from typing import cast

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, BertForMaskedLM

from deploykit import environment
from deploykit.checkpoint import Quantization
from deploykit.compress.embeddings import word_embeddings
from deploykit.compress.fake_quant import (
    activations_quantized,
    decide,
    dynamic_linear,
    fake_quantize,
    fake_quantize_rows,
    integer_product,
    quantized_names,
    weights_quantized,
)
from deploykit.errors import UsageError
from tests.models import CLASS_LABELS, tiny_config

HEAD_ENDS = {"bert": "classifier", "roberta": "classifier.out_proj", "distilbert": "classifier"}


def tiny_bert():
    return AutoModelForSequenceClassification.from_config(tiny_config("bert", CLASS_LABELS))


def dynamic_session(weight_OI: torch.Tensor, scale_O: torch.Tensor, bias_O: torch.Tensor) -> ort.InferenceSession:
    """The graph that ONNX's specification asks for: DynamicQuantizeLinear, MatMulInteger, Cast, Mul, Add."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("MatMulInteger", ["xq", "w", "xz"], ["acc"]),
        helper.make_node("Cast", ["acc"], ["accf"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["xs", "ws"], ["scale"]),
        helper.make_node("Mul", ["accf", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "b"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(weight_OI.numpy().T.copy(), "w"),
        numpy_helper.from_array(scale_O.numpy(), "ws"),
        numpy_helper.from_array(bias_O.numpy(), "b"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, weight_OI.shape[1]])]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("acc", TensorProto.INT32, None),
        helper.make_tensor_value_info("xq", TensorProto.UINT8, None),
        helper.make_tensor_value_info("xz", TensorProto.UINT8, None),
    ]
    graph = helper.make_graph(nodes, "dynamic", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def tensors(inputs: int, outputs: int, rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=rng) for shape in ((rows, inputs), (outputs, inputs), (outputs,)))  # type: ignore[return-value]


def saturating_pair_sums(x: np.ndarray, weight_OI: np.ndarray) -> np.ndarray:
    """What vpmaddubsw + vpmaddwd give: products added in pairs in 16 bits, saturated, then in 32."""
    products = x.astype(np.int64)[:, None, :] * weight_OI.astype(np.int64)[None]
    pairs = products.reshape(*products.shape[:2], -1, 2).sum(-1)
    return np.asarray(np.clip(pairs, -(2**15), 2**15 - 1).sum(-1))


@pytest.mark.parametrize(("inputs", "outputs", "rows"), [(32, 7, 5), (384, 96, 26), (1536, 33, 9), (3, 1, 1)])
def test_with_7_bits_the_reference_agrees_with_onnxruntime_to_float_rounding(inputs: int, outputs: int, rows: int):
    x, weight, bias = tensors(inputs, outputs, rows, seed=inputs)
    quantized, scale = weights_quantized(weight, 7)
    y, acc, xq, xz = dynamic_session(quantized, scale, bias).run(None, {"x": x.numpy()})
    ours, _, zero_point = activations_quantized(x)
    assert np.array_equal(ours.numpy(), xq)
    assert zero_point.item() == xz
    assert np.array_equal(integer_product(ours.float() - zero_point.float(), quantized.float()).numpy(), acc)
    assert np.abs(dynamic_linear(x, quantized.float(), scale, bias).numpy() - y).max() <= 4e-7 * np.abs(y).max()


def test_full_8_bits_agree_only_on_a_processor_with_vnni():
    x = torch.full((4, 64), 1.0)
    weight, bias = torch.full((16, 64), 0.5), torch.zeros(16)
    quantized, scale = weights_quantized(weight, 8)
    session = dynamic_session(quantized, scale, bias)
    y, acc, xq, _ = session.run(None, {"x": x.numpy()})
    exact = dynamic_linear(x, quantized.float(), scale, bias).numpy()
    assert exact == pytest.approx(32.0, rel=1e-5)
    if environment.has_vnni():
        assert np.allclose(y, exact, rtol=1e-6)
    else:
        assert np.abs(y - exact).max() > 10.0, "16-bit pair sums should have saturated here"
        assert np.array_equal(acc, saturating_pair_sums(xq, quantized.numpy()))


def test_7_bits_never_saturate_and_8_bits_can():
    x = np.full((1, 2), 255, np.uint8)
    for bits, saturates in ((7, False), (8, True)):
        for sign in (-1.0, 1.0):
            quantized, _ = weights_quantized(torch.full((1, 2), sign), bits)
            exact = x.astype(np.int64) @ quantized.numpy().T.astype(np.int64)
            assert (saturating_pair_sums(x, quantized.numpy()) != exact).all() == saturates


def test_a_reference_with_one_changed_weight_does_not_agree():
    x, weight, bias = tensors(64, 8, 4, seed=1)
    quantized, scale = weights_quantized(weight, 7)
    changed = quantized.clone()
    changed[3, 5] += 1
    y = dynamic_session(quantized, scale, bias).run(None, {"x": x.numpy()})[0]
    assert np.abs(dynamic_linear(x, changed.float(), scale, bias).numpy() - y).max() > 1e-3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40))
def test_activations_agree_with_onnxruntime_for_any_range(values: list[float]):
    x = torch.tensor([values])
    x[x.abs() < 1e-30] = 0.0  # a step that is no normal number is flushed to zero by some processors
    xq, scale, zero_point = activations_quantized(x)
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    kinds = (TensorProto.UINT8, TensorProto.FLOAT, TensorProto.UINT8)
    outputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in zip("qsz", kinds, strict=True)]
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, len(values)])], outputs
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    q, s, z = session.run(None, {"x": x.numpy()})
    assert np.array_equal(xq.numpy(), q)
    assert (scale.item(), zero_point.item()) == (s.item(), z.item())


def test_zeros_one_element_and_constant_tensors_quantize_without_division_by_zero():
    for x in (torch.zeros(2, 3), torch.tensor([[5.0]]), torch.full((2, 2), -3.0)):
        quantized, scale, zero_point = activations_quantized(x)
        assert torch.allclose((quantized.float() - zero_point.float()) * scale, x, rtol=1e-6)
    quantized, scale = weights_quantized(torch.zeros(2, 3), 7)
    assert quantized.abs().sum() == 0
    assert torch.equal(scale, torch.ones(2))


def test_a_nan_stays_visible():
    x = torch.tensor([[1.0, float("nan")]])
    assert dynamic_linear(x, torch.ones(1, 2), torch.ones(1), None).isnan().any()


@pytest.mark.parametrize("bits", [7, 8])
def test_a_quantized_weight_is_within_half_a_step_and_uses_its_whole_range(bits: int):
    _, weight, _ = tensors(48, 6, 1, seed=3)
    quantized, scale = weights_quantized(weight, bits)
    assert ((quantized.float() * scale[:, None] - weight).abs() <= scale[:, None] / 2 + 1e-7).all()
    assert (quantized.abs().amax(1) == {7: 64, 8: 127}[bits]).all()


def test_a_long_product_is_exact_where_one_float32_product_is_not():
    x = torch.full((1, 3071), 255.0)
    weight = torch.full((1, 3071), 127.0)
    assert integer_product(x, weight).item() == np.float32(3071 * 255 * 127)
    odd = torch.tensor([[255.0] * 3070 + [1.0]])
    exact = np.float32(int((odd.double() * weight.double()).sum()))
    assert integer_product(odd, weight).item() == exact


@pytest.mark.parametrize("family", HEAD_ENDS)
def test_every_linear_module_but_the_last_of_the_head_becomes_int8(family: str):
    model = AutoModelForSequenceClassification.from_config(tiny_config(family, CLASS_LABELS))
    decision = decide(model)
    assert decision == Quantization("dynamic-int8", 7, (HEAD_ENDS[family],), embeddings="int8")
    names = quantized_names(model, decision)
    assert len(names) == 2 * 6 + 1
    fake_quantize(model, decision)
    left = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert left == [HEAD_ENDS[family]]


@pytest.mark.parametrize("family", HEAD_ENDS)
def test_each_row_of_the_embeddings_is_rounded_by_its_own_largest_weight(family: str):
    model = AutoModelForSequenceClassification.from_config(tiny_config(family, CLASS_LABELS))
    before_VH = word_embeddings(model).weight.detach().clone()
    fake_quantize_rows(model, decide(model, embeddings="float32"))
    assert torch.equal(word_embeddings(model).weight, before_VH)
    fake_quantize_rows(model, decide(model))
    step_V = before_VH.abs().amax(dim=1, keepdim=True) / 127
    moved_VH = (word_embeddings(model).weight - before_VH).abs()
    assert 0 < moved_VH.max() <= 0.501 * step_V.max()
    assert (moved_VH <= 0.501 * step_V + 1e-9).all()


def test_a_head_that_shares_the_table_keeps_it():
    model = BertForMaskedLM(cast("BertConfig", tiny_config("bert", CLASS_LABELS)))
    before_VH = word_embeddings(model).weight.detach().clone()
    fake_quantize_rows(model, Quantization("dynamic-int8", embeddings="int8"))
    assert not torch.equal(word_embeddings(model).weight, before_VH)
    assert torch.equal(model.get_output_embeddings().weight, before_VH)


def test_a_module_kept_in_float_keeps_all_matrices_inside():
    model = tiny_bert()
    decision = decide(model, keep_float=["bert.encoder.layer.1"])
    assert len(decision.keep_float) == 7
    assert not any(".layer.1." in name for name in quantized_names(model, decision))


def test_an_unknown_module_is_refused_by_name():
    model = tiny_bert()
    with pytest.raises(UsageError, match=r"bert\.encoder\.layer\.9"):
        decide(model, keep_float=["bert.encoder.layer.9"])
