import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from deploykit import checkpoint as checkpoints
from deploykit import stage
from deploykit.compress import waterfall
from deploykit.compress.half import LIMIT, BFloat16Linear, decide_half, peaks_of
from deploykit.compress.quantize import Quantize
from deploykit.data import open_dataset
from deploykit.errors import ArtifactError, UsageError
from deploykit.export.export import Export
from deploykit.train.labelled import read_labelled
from tests.export.exported import (
    encodings_of,
    export,
    load,
    on_the_cpu,
    reference,
    with_bf16_products_in_float,
    worst,
)
from tests.export.test_export import HALF, sealed
from tests.models import make_checkpoint

HUGE = {"bert": "bert.encoder.layer.0.output", "distilbert": "distilbert.transformer.layer.0"}
PARTS = {"bert": ("dense", "LayerNorm"), "distilbert": ("ffn.lin2", "output_layer_norm")}


@pytest.fixture(params=list(HUGE))
def planted(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, tuple[str, ...]]:
    """A model of which one feed-forward network overflows fp16, and the norm that reads it; and their names."""
    source = load(make_checkpoint(tmp_path / "model", family=request.param))
    kept = tuple(f"{HUGE[request.param]}.{part}" for part in PARTS[request.param])
    with torch.no_grad():
        source.model.get_submodule(kept[0]).bias[::2] += 3e5  # type: ignore[operator, index]
    return sealed(source, tmp_path), kept


def test_what_overflows_is_found_and_nothing_else(planted, reviews: Path):
    source = load(planted[0])
    peaks = peaks_of(source, read_labelled(source, open_dataset(reviews), "train"))
    assert decide_half(peaks, source.model).keep_float == planted[1]
    assert {name for name, peak in peaks.items() if peak > LIMIT} == set(planted[1])


def test_the_export_for_cuda_is_right_with_the_decision_and_not_a_number_without(
    planted, reviews: Path, tmp_path: Path
):
    folder, kept = planted
    made = stage.run(
        Quantize(scheme="fp16"), checkpoints.open_checkpoint(folder), open_dataset(reviews), out=tmp_path / "q"
    )
    assert made.facts["peaks"][kept[0]] > LIMIT
    source = load(folder)
    reference = checkpoints.logits(source, encodings_of(source))
    right = export(made.path, tmp_path / "right", Export(provider="cuda"))
    assert worst(on_the_cpu(right.path, source), reference) < HALF
    wrong = export(folder, tmp_path / "wrong", Export(provider="cuda", precision="fp16"))
    assert not np.isfinite(np.stack(on_the_cpu(wrong.path, source))).all()


def test_the_waterfall_judges_the_fp16_model_and_counts_its_bytes(planted, reviews: Path, tmp_path: Path):
    folder, _ = planted
    made = stage.run(
        Quantize(scheme="fp16"), checkpoints.open_checkpoint(folder), open_dataset(reviews), out=tmp_path / "q"
    )
    original, row = waterfall.read(made.path)
    assert row["value"] == pytest.approx(original["value"], abs=0.05)
    extra = 2 * (64 * 32 + 32 + 2 * 32)
    assert row["num_bytes"] == original["num_bytes"] // 2 + extra


def test_a_matrix_that_overflows_is_multiplied_in_bf16_where_asked_and_its_norm_in_fp32(
    planted, reviews: Path, tmp_path: Path
):
    folder, (matrix, norm) = planted
    made = stage.run(
        Quantize(scheme="fp16", overflow="bf16"),
        checkpoints.open_checkpoint(folder),
        open_dataset(reviews),
        out=tmp_path / "q",
    )
    assert (made.facts["bf16"], made.facts["keep_float"]) == ([matrix], [norm])
    original, row = waterfall.read(made.path)
    assert row["value"] == pytest.approx(original["value"], abs=0.05)
    assert row["num_bytes"] == original["num_bytes"] // 2 + 2 * (32 + 2 * 32)
    source = load(folder)
    model = export(made.path, tmp_path / "right", Export(provider="cuda"))
    with pytest.raises(ArtifactError, match="Could not find an implementation for MatMul"):
        on_the_cpu(model.path, source)
    assert with_bf16_products_in_float(model.path) == 1
    found = on_the_cpu(model.path, source)
    assert worst(found, checkpoints.logits(source, encodings_of(source))) < HALF
    assert worst(found, reference(folder, load(made.path).spec.quantization)) < 5e-3
    with pytest.raises(UsageError, match=f"cuda, as the checkpoint decides bf16 for {matrix}, found tensorrt"):
        export(made.path, tmp_path / "other", Export(provider="tensorrt"))


def test_the_product_in_bf16_rounds_what_it_is_given_and_adds_the_bias_in_float():
    linear = torch.nn.Linear(2, 1)
    with torch.no_grad():
        linear.weight[:] = torch.tensor([[1.0, 1.0 + 2**-9]])  # half of bf16's last bit: rounds to 1
        linear.bias[:] = 2.0**-12
    made = BFloat16Linear(linear)
    assert made(torch.tensor([[2.0**100, -(2.0**100)]])).item() == 2.0**-12
    assert made(torch.tensor([[1.0, 2.0]])).item() == 3.0 + 2**-12


def test_a_named_matrix_stays_in_fp32_though_bf16_would_take_it(planted, reviews: Path):
    folder, (matrix, norm) = planted
    source = load(folder)
    peaks = peaks_of(source, read_labelled(source, open_dataset(reviews), "train"))
    decision = decide_half(peaks, source.model, [matrix], "bf16")
    assert (decision.keep_float, decision.bf16) == ((matrix, norm), ())


def test_attention_that_overflows_and_unknown_names_are_refused(bert: Path, reviews: Path):
    source = load(bert)
    peaks = peaks_of(source, read_labelled(source, open_dataset(reviews), "train"))
    assert decide_half(peaks, source.model).keep_float == ()
    value = "bert.encoder.layer.1.attention.self.value"
    with pytest.raises(UsageError, match=f"1e\\+05 at {value}"):
        decide_half({**peaks, value: 1e5}, source.model)
    assert "classifier" in decide_half({**peaks, "classifier": float("nan")}, source.model).keep_float
    with pytest.raises(UsageError, match="nowhere"):
        decide_half(peaks, source.model, ["nowhere"])


def test_a_cpu_takes_no_fp16_decision_and_fp16_no_budget(planted, tmp_path: Path):
    source = load(planted[0])
    spec = dataclasses.replace(source.spec, quantization=checkpoints.Quantization("fp16", 16))
    (tmp_path / "other").mkdir()
    folder = sealed(dataclasses.replace(source, spec=spec), tmp_path / "other")
    with pytest.raises(UsageError, match="fp32 or int8 or int4 for cpu, found fp16 in the checkpoint"):
        export(folder, tmp_path / "out", Export())
    with pytest.raises(ValueError, match="max_drop is for int8"):
        Quantize(scheme="fp16", max_drop=0.01)
    with pytest.raises(ValueError, match="overflow has no effect with scheme int4"):
        Quantize(scheme="int4", overflow="bf16")
