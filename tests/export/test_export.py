"""An exported model computes what its checkpoint computes, in every family, task, precision and provider's form."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploykit import artifact, checkpoint, families
from deploykit.artifact import Node
from deploykit.checkpoint import Quantization
from deploykit.compress.fake_quant import decide
from deploykit.errors import DeploykitError, UsageError
from deploykit.export import fuse
from deploykit.export.export import Export
from deploykit.families import Structure
from deploykit.runtime import model_info
from deploykit.runtime.model_info import Precision, Provider
from deploykit.spec import quantization_from
from tests.export.exported import encodings_of, export, load, nodes, on_the_cpu, reference, worst
from tests.models import make_checkpoint

FAMILIES = ("bert", "roberta", "distilbert")
TASKS = ("text-classification", "token-classification")
FLOAT, HALF = 2e-5, 2e-2
PRECISIONS: tuple[tuple[Precision, float], ...] = (("fp32", FLOAT), ("fp16", HALF))
PRECISIONS_ON_CPU: tuple[Precision, ...] = ("fp32", "int8")


@pytest.fixture(scope="module", params=[(family, task) for family in FAMILIES for task in TASKS], ids="-".join)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, task = request.param
    # a seed for which float noise flips no activation of these rows to the next integer (see check.int8)
    return make_checkpoint(tmp_path_factory.mktemp(family) / "model", family=family, task=task, seed=2)


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """A checkpoint whose layers keep 3 and 1 heads, 48 and 16 neurons."""
    source = load(make_checkpoint(tmp_path / "full"))
    structure = Structure((3, 1), (48, 16))
    families.resize(source.model, structure)
    torch.manual_seed(1)
    for block in families.blocks(source.model):
        for linear in block.linears():
            torch.nn.init.normal_(linear.weight, 0, 0.2)
            torch.nn.init.normal_(linear.bias, 0, 0.2)
    return sealed(dataclasses.replace(source, spec=dataclasses.replace(source.spec, structure=structure)), tmp_path)


def sealed(source: checkpoint.Checkpoint, folder: Path) -> Path:
    scratch = folder / "scratch"
    scratch.mkdir()
    checkpoint.save(source, scratch)
    return artifact.seal(scratch, folder / "sealed", Node("checkpoint", "prune", {}, (), ""), {}).path


def decided(folder: Path, out: Path, quantization: Quantization) -> Path:
    source = load(folder)
    spec = dataclasses.replace(source.spec, quantization=quantization)
    return sealed(dataclasses.replace(source, spec=spec), out)


def test_fp32_agrees_with_eager_pytorch_on_padded_rows(folder: Path, tmp_path: Path):
    model = export(folder, tmp_path / "out", Export())
    assert worst(on_the_cpu(model.path, load(folder)), reference(folder)) < FLOAT


def test_int8_agrees_with_the_fake_quantized_model_to_rounding(folder: Path, tmp_path: Path):
    model = export(folder, tmp_path / "out", Export(precision="int8"))
    found, quantization = on_the_cpu(model.path, load(folder)), decide(load(folder).model)
    assert worst(found, reference(folder, quantization)) < FLOAT
    assert worst(found, reference(folder)) > 10 * FLOAT, "the float model is another one: the comparison can tell"


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_what_is_exported_for_a_gpu_computes_the_same(folder: Path, tmp_path: Path, provider: Provider):
    for precision, tolerance in PRECISIONS:
        model = export(folder, tmp_path / precision, Export(provider=provider, precision=precision))
        assert worst(on_the_cpu(model.path, load(folder)), reference(folder)) < tolerance
        assert "not runnable here" in model.facts["warnings"][0]


def test_layers_with_different_heads_and_widths_are_exported_and_fused(uneven: Path, tmp_path: Path):
    for precision in PRECISIONS_ON_CPU:
        model = export(uneven, tmp_path / precision, Export(precision=precision)).path
        quantization = decide(load(uneven).model) if precision == "int8" else None
        assert worst(on_the_cpu(model, load(uneven)), reference(uneven, quantization)) < FLOAT
        attentions = ["QAttention", "MultiHeadAttention"]
        heads = [node.attribute[0].i for operator in attentions for node in nodes(model, operator)]
        assert heads == [3, 1]


def test_a_checkpoints_decision_is_followed(bert: Path, tmp_path: Path):
    quantization = Quantization("dynamic-int8", 7, ("bert.encoder.layer.0.output.dense", "classifier"))
    source = decided(bert, tmp_path, quantization)
    model = export(source, tmp_path / "out", Export())
    info = model_info.read(model.path)
    assert info.precision == "int8"
    assert info.quantization is not None
    assert quantization_from(info.quantization) == quantization
    assert len(nodes(model.path, "MatMulIntegerToFloat")) == 12 - 3
    assert worst(on_the_cpu(model.path, load(source)), reference(source, quantization)) < FLOAT


def test_query_key_and_value_of_one_tensor_and_their_attention_are_one_node(bert_ner: Path, tmp_path: Path):
    model = export(bert_ner, tmp_path / "out", Export(precision="int8")).path
    assert model_info.read(model).fusions["found"] == {
        "MultiHeadAttention": 0,
        "LayerNormalization": 5,
        "QAttention": 2,
        "MatMulIntegerToFloat": 6,
    }
    assert len(nodes(model, "DynamicQuantizeLinear")) == 8


def test_a_layer_with_a_product_in_float_keeps_its_attention(bert_ner: Path, tmp_path: Path):
    quantization = Quantization("dynamic-int8", 7, ("bert.encoder.layer.0.attention.self.key", "classifier"))
    source = decided(bert_ner, tmp_path, quantization)
    model = export(source, tmp_path / "out", Export()).path
    found = model_info.read(model).fusions["found"]
    assert (found["QAttention"], found["MultiHeadAttention"], found["MatMulIntegerToFloat"]) == (1, 1, 8)
    products = nodes(model, "MatMulIntegerToFloat")
    assert len(nodes(model, "DynamicQuantizeLinear")) == len({product.input[0] for product in products}) + 1
    assert worst(on_the_cpu(model, load(source)), reference(source, quantization)) < FLOAT


def test_fp32_leaves_a_decision_aside(bert: Path, tmp_path: Path):
    source = decided(bert, tmp_path, Quantization("dynamic-int8"))
    model = export(source, tmp_path / "out", Export(precision="fp32"))
    assert model_info.read(model.path).quantization is None
    assert worst(on_the_cpu(model.path, load(source)), reference(bert)) < FLOAT


def test_an_int8_decision_is_refused_where_no_kernel_runs_it(bert: Path, tmp_path: Path):
    source = decided(bert, tmp_path, Quantization("dynamic-int8"))
    with pytest.raises(UsageError, match="fp32 or fp16 for cuda"):
        export(source, tmp_path / "out", Export(provider="cuda"))


def test_two_exports_are_the_same_bytes_and_name_no_path(bert: Path, tmp_path: Path):
    one, other = (export(bert, tmp_path / name, Export(precision="int8")) for name in ("one", "other"))
    assert one.digest == other.digest
    assert b"/home" not in (one.path / "model.onnx").read_bytes()
    assert str(bert).encode() not in (one.path / "model.onnx").read_bytes()


def test_large_weights_lie_beside_the_graph(bert: Path, tmp_path: Path):
    model = export(bert, tmp_path / "out", Export(external_data_bytes=1000)).path
    assert (model / "model.onnx.data").stat().st_size > (model / "model.onnx").stat().st_size
    assert worst(on_the_cpu(model, load(bert)), reference(bert)) < FLOAT


def test_small_weights_lie_in_the_graph(bert: Path, tmp_path: Path):
    model = export(bert, tmp_path / "out", Export())
    assert sorted(model.files) == ["deploykit.json", "model.onnx", "tokenizer.json"]


def test_batch_and_length_are_free(bert_ner: Path, tmp_path: Path):
    model = export(bert_ner, tmp_path / "out", Export()).path
    source = load(bert_ner)
    alone = encodings_of(source)[:1]
    session_rows = on_the_cpu(model, source)
    assert np.abs(session_rows[0] - checkpoint.logits(source, alone)[0]).max() < FLOAT
    assert len({len(rows) for rows in session_rows}) > 2


def test_the_fusions_are_counted_against_the_layers(bert: Path, tmp_path: Path):
    model = export(bert, tmp_path / "out", Export())
    fusions = model_info.read(model.path).fusions
    assert fusions == {"found": {"MultiHeadAttention": 2, "LayerNormalization": 5}, "layers": 2}


def test_a_missing_fusion_is_an_error_that_names_the_operator(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fuse, "fuse_attention", id)
    with pytest.raises(DeploykitError, match=r"expected 2 nodes MultiHeadAttention .* found 0") as caught:
        export(bert, tmp_path / "out", Export())
    assert caught.value.exit_code == 70
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"provider": "cpu", "precision": "fp16"}, "export.precision"),
        ({"provider": "cuda", "precision": "int8"}, "export.precision"),
        ({"provider": "tensorrt", "max_batch": 0}, "export.max_batch"),
        ({"provider": "cpu", "max_batch": 8}, "export.max_batch"),
    ],
)
def test_a_combination_that_nothing_runs_is_refused(settings: dict[str, Any], named: str):
    with pytest.raises(UsageError, match=named):
        Export(**settings)


def test_a_long_padding_stays_finite_in_half_precision(bert: Path, tmp_path: Path):
    providers: tuple[Provider, ...] = ("cuda", "tensorrt")
    for provider in providers:
        model = export(bert, tmp_path / provider, Export(provider=provider, precision="fp16"))
        found = on_the_cpu(model.path, load(bert))
        assert all(np.isfinite(row).all() for row in found)
        assert found[0].dtype == np.float32
