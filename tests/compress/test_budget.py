from pathlib import Path

import numpy as np
import pytest

from deploykit import checkpoint as checkpoints
from deploykit import families
from deploykit.compress import latency_probes
from deploykit.compress.budget import (
    budget,
    latency_costs,
    measured,
    parts_within,
    require_targets,
    size_costs,
    warnings,
)
from deploykit.compress.fake_quant import decide
from deploykit.compress.fisher import MaskGradients
from deploykit.compress.latency_probes import Conditions
from deploykit.compress.latency_table import Check, Curve, LatencyTable, LayerCost, smallest
from deploykit.compress.mask_search import by_fisher
from deploykit.compress.slicing import sliced
from deploykit.compress.waterfall import exported_bytes
from deploykit.errors import UsageError
from deploykit.families import Structure

COST = LayerCost(0.1, Curve((4,), (0.1,)), Curve((64,), (0.01,)))
CHEAP = LayerCost(0.0, Curve((4,), (0.02,)), Curve((64,), (0.001,)))
FULL = Structure((4, 4), (64, 64))
TRUE = LatencyTable(0.2, COST, CHEAP)
EVEN = LatencyTable(0.2, COST, COST)


def costs(table):
    return latency_costs(table, 2)


def random_removals(seed: int = 0):
    rng = np.random.default_rng(seed)
    heads, neurons = (tuple(rng.standard_normal((50, width)).astype(np.float32) for _ in range(2)) for width in (4, 64))
    return by_fisher(MaskGradients(heads, neurons), 8)


def test_costs_of_a_structure_are_what_the_table_predicts():
    uneven = Structure((1, 3), (8, 40))
    for table in (TRUE, EVEN):
        assert costs(table).of(uneven) == pytest.approx(table.predict(uneven))


def test_dear_parts_go_before_cheap_ones_of_the_same_worth():
    removals = random_removals()
    heads, neurons = parts_within(TRUE.predict(FULL) / 1.5, costs(TRUE), removals)
    assert len(heads[0]) < len(heads[1])
    assert len(neurons[0]) < len(neurons[1])
    assert len(neurons[0]) % 8 == len(neurons[1]) % 8 == 0
    least = parts_within(TRUE.predict(smallest(FULL, 8)), costs(TRUE), removals)
    assert [list(map(len, part)) for part in least] == [[1, 1], [8, 8]]
    even_heads, even_neurons = parts_within(EVEN.predict(FULL) / 1.5, costs(EVEN), removals)
    assert abs(len(even_neurons[0]) - len(even_neurons[1])) < abs(len(neurons[0]) - len(neurons[1]))
    assert len(even_heads[1]) <= len(heads[1])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_parts_weigh_what_the_exported_model_weighs_less_without_them(precision, bert: Path):
    before = checkpoints.load(checkpoints.open_checkpoint(bert))
    weights = size_costs(before.model, precision)
    for structure in (FULL, Structure((1, 3), (8, 40))):
        parts = [[np.arange(width) for width in widths] for widths in (structure.heads, structure.ffn)]
        made = sliced(before, (parts[0], parts[1])).model
        weighed = exported_bytes(made, decide(made) if precision == "int8" else None)
        assert weights.of(structure) == pytest.approx(weighed / 1e6)
    assert families.structure_of(before.model) == FULL


@pytest.mark.parametrize("seed", range(5))
def test_a_size_is_met_and_not_undershot_by_more_than_one_unit(seed: int, bert: Path):
    weights = size_costs(checkpoints.load(checkpoints.open_checkpoint(bert)).model, "int8")
    now, least = weights.of(FULL), weights.of(smallest(FULL, 8))
    for share in (0.1, 0.5, 0.9):
        limit = least + share * (now - least)
        heads, neurons = parts_within(limit, weights, random_removals(seed))
        found = weights.of(Structure(tuple(map(len, heads)), tuple(map(len, neurons))))
        unit = max(weights.heads[0].at(1), weights.ffn[0].at(8))
        assert limit - unit < found <= limit


def test_a_budget_goes_from_now_to_its_limit_and_tells_what_is_out_of_reach():
    asked = budget("prune", ("speedup", 4.0), 2.0)
    assert [asked.after(share) for share in (0, 0.5, 1)] == [2.0, 1.25, 0.5]
    assert asked.missed(0.5) is None
    assert asked.missed(0.8) == (
        "prune.speedup 4 (0.5 ms) is out of reach: at best 0.8 ms, 2.5 times as fast, with one head a layer; "
        "ask for at most that, or for fewer layers"
    )
    assert "at best 5 MB, 2 times smaller" in (budget("prune", ("size_mb", 4.0), 10.0).missed(5.0) or "")


@pytest.mark.parametrize(("target", "unit"), [(("target_ms", 2.0), "ms"), (("size_mb", 3.0), "MB")])
def test_a_target_that_is_met_already_is_refused(target: tuple[str, float], unit: str):
    with pytest.raises(UsageError, match=rf"prune\.{target[0]}: expected less than the 2 {unit} .* found"):
        budget("prune", target, 2.0)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["speedup", "target_ms", "size_mb"])
def test_a_target_of_nothing_or_everything_is_refused(name: str, value: float):
    with pytest.raises(ValueError, match=f"{name} must be above"):
        require_targets({name: value})
    require_targets({name: None})
    require_targets({name: 1.5})


def test_a_wrong_table_and_a_missed_target_are_said():
    right, wrong = (LatencyTable(0.2, COST, CHEAP, (Check(FULL, 1.0, measured),)) for measured in (1.05, 1.3))
    assert warnings(right, asked=1.5, found=1.45) == []
    assert "off by up to 23%" in warnings(wrong, asked=1.5, found=1.45)[0]
    assert "1.2 times as fast when measured, and not 1.5" in warnings(right, asked=1.5, found=1.2)[0]


@pytest.mark.parametrize(
    ("slowed", "found", "timings"),
    [
        ((1.0,), 1.0, 1),
        ((1.06,), 1.06, 1),
        ((1.6, 1.02, 1.0), 1.02, 3),
        ((0.5, 1.02, 1.0), 1.0, 3),
        ((1.4, 1.5, 1.45), 1.45, 3),
    ],
)
def test_a_timing_far_from_the_table_is_taken_twice_more_and_the_median_counts(
    slowed, found, timings, bert: Path, monkeypatch
):
    before = checkpoints.load(checkpoints.open_checkpoint(bert))
    made = sliced(before, parts_within(1.0, costs(EVEN), random_removals()))
    now, left = families.structure_of(made.model), list(slowed)

    def measurements(_model, structures, _under):
        while True:
            by = left.pop(0)
            yield {each: EVEN.predict(each) * (by if each == now else 1.0) for each in structures}

    monkeypatch.setattr(latency_probes, "measurements", measurements)
    told = measured(before, made, Conditions("int8", 1, (8,)), EVEN)
    assert told["after_ms"] == pytest.approx(EVEN.predict(now) * found)
    assert told["speedup"] == pytest.approx(told["predicted_speedup"] / found)
    assert len(slowed) - len(left) == timings
