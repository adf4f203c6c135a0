import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deploykit import artifact, stage
from deploykit import checkpoint as checkpoints
from deploykit.compress import waterfall
from deploykit.compress.divergence import divergence
from deploykit.compress.fake_quant import decide, linear_names
from deploykit.compress.quantize import SENSITIVITY, Quantize, within
from deploykit.compress.sensitivity import fewest_kept, sensitivities
from deploykit.data import open_dataset
from deploykit.errors import UsageError
from deploykit.families import blocks
from deploykit.train.labelled import read_labelled
from tests.models import make_checkpoint

FRAGILE = "encoder.layer.1.output.dense"


@pytest.fixture(scope="module", params=["bert", "distilbert"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> checkpoints.Checkpoint:
    """A model of which one matrix alone suffers from int8: one input of it is a thousand times the others."""
    source = checkpoints.load(checkpoints.open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("planted") / "m")))
    block = blocks(source.model)[1]
    with torch.no_grad():
        block.ffn_in.bias[0] = 1000.0
        block.ffn_out.weight[:, 0] = 0.0
    return source


def rows_of(source, data: Path):
    return read_labelled(source, open_dataset(data), "validation")


def test_each_modules_cost_is_that_of_quantizing_it_alone(family: str, reviews: Path, tmp_path: Path):
    source = checkpoints.load(checkpoints.open_checkpoint(make_checkpoint(tmp_path / "model", family=family)))
    rows, decision = rows_of(source, reviews), decide(source.model, embeddings="float32")
    logits = checkpoints.logits(source, rows.encodings)
    found = {one.name: one for one in sensitivities(source, rows, decision)}
    assert set(found) == set(linear_names(source.model)) - set(decision.keep_float)
    for name, one in found.items():
        others = tuple(other for other in linear_names(source.model) if other != name)
        spec = dataclasses.replace(source.spec, quantization=dataclasses.replace(decision, keep_float=others))
        alone = waterfall.as_exported(dataclasses.replace(source, spec=spec))
        expected = divergence(logits, checkpoints.logits(alone, rows.encodings), rows.targets)
        assert one.divergence == pytest.approx(expected, rel=1e-3, abs=1e-12)


def test_the_model_is_left_as_it_was(bert: Path, reviews: Path):
    source = checkpoints.load(checkpoints.open_checkpoint(bert))
    before = [type(module) for module in source.model.modules()]
    sensitivities(source, rows_of(source, reviews), decide(source.model))
    assert [type(module) for module in source.model.modules()] == before


def test_the_matrix_with_a_planted_outlier_is_the_worst(planted: checkpoints.Checkpoint, reviews: Path):
    found = sensitivities(planted, rows_of(planted, reviews), decide(planted.model))
    assert found[0].name == f"bert.{FRAGILE}"
    assert found[0].divergence > 10 * found[1].divergence


def test_the_planted_matrix_and_no_other_is_kept_in_float_for_a_budget(planted: checkpoints.Checkpoint, reviews: Path):
    rows, decision = rows_of(planted, reviews), decide(planted.model)
    labels = [int(row.argmax()) for row in checkpoints.logits(planted, rows.encodings)]
    rows = dataclasses.replace(rows, targets=[np.array(label) for label in labels])  # the float model is right
    names = [one.name for one in sensitivities(planted, rows, decision)]
    assert within(planted, rows, decision, names, 0.05).keep_float == ("classifier", f"bert.{FRAGILE}")
    assert within(planted, rows, decision, names, 0.9).keep_float == ("classifier",)


def test_the_stage_records_every_matrix_and_the_decision(bert: Path, reviews: Path, tmp_path: Path):
    source, data = checkpoints.open_checkpoint(bert), open_dataset(reviews)
    made = stage.run(Quantize(max_drop=0.02), source, data, out=tmp_path / "out")
    rows = artifact.read_json(made.path / SENSITIVITY)
    decision = checkpoints.load(made).spec.quantization
    assert decision is not None
    assert len(rows) == 13
    assert {row["name"] for row in rows if row["keep_float"]} == set(decision.keep_float) - {"classifier"}
    original, quantized = waterfall.read(made.path)
    assert original["value"] - quantized["value"] <= 0.02
    assert not (stage.run(Quantize(), source, data, out=tmp_path / "plain").path / SENSITIVITY).exists()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0, 1))
def test_the_fewest_that_hold_the_budget_are_kept(costs: list[float], budget: float):
    costs = sorted(costs, reverse=True)
    names = [str(index) for index in range(len(costs))]

    def drop_of(kept) -> float:
        return costs[len(kept)]

    slow = next((count for count, cost in enumerate(costs) if cost <= budget), None)
    if slow is None:
        with pytest.raises(UsageError, match="each costs more"):
            fewest_kept(names, drop_of, budget)
    else:
        assert fewest_kept(names, drop_of, budget) == names[:slow]


@pytest.mark.parametrize("budget", [-0.1, 1.0, float("nan")])
def test_a_budget_that_is_no_share_is_refused(budget: float):
    with pytest.raises(ValueError, match="max_drop"):
        Quantize(max_drop=budget)
