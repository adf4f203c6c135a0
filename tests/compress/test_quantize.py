from pathlib import Path

import pytest

from deploykit import checkpoint as checkpoints
from deploykit import stage
from deploykit.checkpoint import Quantization
from deploykit.compress import waterfall
from deploykit.compress.fake_quant import fake_quantize
from deploykit.compress.quantize import Quantize
from deploykit.data import open_dataset
from deploykit.errors import UsageError


def quantized(model: Path, data: Path, out: Path, **settings):
    return stage.run(Quantize(**settings), checkpoints.open_checkpoint(model), open_dataset(data), out=out)


def test_the_decision_is_stored_and_the_weights_stay(bert: Path, reviews: Path, tmp_path: Path):
    made = quantized(bert, reviews, tmp_path / "out", keep_float=("bert.encoder.layer.0.output",))
    found = checkpoints.load(made)
    kept = ("bert.encoder.layer.0.output.dense", "classifier")
    assert found.spec.quantization == Quantization("dynamic-int8", 7, kept, embeddings="int8")
    before = checkpoints.load(checkpoints.open_checkpoint(bert))
    assert all((tensor == before.model.state_dict()[name]).all() for name, tensor in found.model.state_dict().items())


def test_the_waterfall_judges_the_int8_model_and_not_the_float_one(
    bert: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    swapped = []

    def counted(model, quantization):
        swapped.append(model)
        fake_quantize(model, quantization)

    monkeypatch.setattr("deploykit.compress.waterfall.fake_quantize", counted)
    made = quantized(bert, reviews, tmp_path / "out")
    original, row = waterfall.read(made.path)
    assert len(swapped) == 1
    assert original["num_bytes"] > 1.5 * row["num_bytes"]
    assert original["parameters"] == row["parameters"]


def test_deciding_twice_is_refused(bert: Path, reviews: Path, tmp_path: Path):
    made = quantized(bert, reviews, tmp_path / "out")
    with pytest.raises(UsageError, match="put quantize last"):
        stage.run(Quantize(), made, open_dataset(reviews), out=tmp_path / "again")


def test_an_unknown_module_leaves_nothing_behind(bert: Path, reviews: Path, tmp_path: Path):
    with pytest.raises(UsageError, match=r"quantize\.keep_float"):
        quantized(bert, reviews, tmp_path / "out", keep_float=("nowhere",))
    assert list(tmp_path.iterdir()) == []
