from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploykit import checkpoint as checkpoints
from deploykit import families
from deploykit.check.latency import Rounds
from deploykit.compress import latency_probes
from deploykit.compress.first_token import reads_first_token
from deploykit.compress.latency_probes import Conditions, conditions, latency_table, measurements, timed
from deploykit.compress.latency_table import Curve, LatencyTable, LayerCost
from deploykit.compress.slicing import slice_parts
from deploykit.export.write import write_model
from deploykit.families import Structure
from tests.models import tiny_tokenizer

COST = LayerCost(1.0, Curve((4,), (0.5,)), Curve((64,), (0.01,)))
TRUE = LatencyTable(2.0, COST, COST)
UNDER = Conditions("int8", 1, (4, 9))


@pytest.fixture
def loaded(bert: Path):
    return checkpoints.load(checkpoints.open_checkpoint(bert))


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class FakeMachine:
    """Takes what a table says, and counts how often it was asked."""

    def __init__(self, table: LatencyTable) -> None:
        self.table, self.asked = table, 0

    def measurements(self, _checkpoint, structures, _under):
        while True:
            self.asked += 1
            yield {structure: self.table.predict(structure) for structure in structures}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def call(self, milliseconds: list[float]):
        def spend(index: int) -> None:
            self.now += milliseconds[index % len(milliseconds)] / 1e3

        return spend


def test_a_latency_is_the_mean_over_lengths_of_medians():
    clock = Clock()
    one, two = Structure((1,), (8,)), Structure((2,), (8,))
    calls = {one: clock.call([1.0, 3.0, 1.0, 3.0, 50.0, 3.0]), two: clock.call([2.0, 6.0])}
    found = timed(calls, 2, Rounds(30, 2, 1e9), clock=clock)
    assert found == {one: pytest.approx(2.0), two: pytest.approx(4.0)}


def test_lengths_are_the_middles_of_fifths():
    rows = tiny_tokenizer().encode_batch(["the " * count for count in range(1, 11)])
    assert conditions(rows, "int8", 3) == Conditions("int8", 3, (3, 5, 7, 9, 11))  # type: ignore[arg-type]
    assert conditions(rows[:1], "fp32", None).lengths == (3,) * 5  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_probes_are_the_structures_asked_for_in_the_runtime(loaded, precision, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[Structure, bool, str]] = []

    def spy(source, folder, target):
        seen.append((families.structure_of(source.model), reads_first_token(source.model), target.precision))
        return write_model(source, folder, target)

    monkeypatch.setattr(latency_probes, "write_model", spy)
    asked = [Structure((4, 4), (64, 64)), Structure((1, 3), (8, 32)), Structure((2,), (16,))]
    measured = measurements(loaded, asked, replace(UNDER, precision=precision), Rounds(6, 1, 1.0))
    found, again = next(measured), next(measured)
    assert [each for each, _, _ in seen] == asked == list(found) == list(again)  # exported once, timed twice
    assert found != again
    assert {(first, used) for _, first, used in seen} == {(True, precision)}
    assert all(value > 0 for value in found.values())
    assert families.structure_of(loaded.model) == asked[0]


def test_a_layer_may_be_asked_for_that_is_wider_than_the_one_in_its_place(loaded):
    slice_parts(loaded.model, [np.arange(4), np.arange(1)], [np.arange(64), np.arange(8)])
    asked = [Structure((4, 1), (64, 8)), Structure((4,), (64,))]  # the last layer went
    assert list(next(measurements(loaded, asked, UNDER, Rounds(2, 1, 1.0)))) == asked


def test_a_table_is_measured_once_per_conditions(loaded, own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    machine = FakeMachine(TRUE)
    monkeypatch.setattr(latency_probes, "measurements", machine.measurements)
    first, again = (latency_table(loaded, UNDER, 8) for _ in range(2))
    assert first == again
    assert first.predict(Structure((3, 2), (24, 40))) == pytest.approx(TRUE.predict(Structure((3, 2), (24, 40))))
    assert machine.asked == 1
    for other in (replace(UNDER, threads=2), replace(UNDER, precision="fp32"), replace(UNDER, lengths=(4, 10))):
        latency_table(loaded, other, 8)
    latency_table(loaded, UNDER, 16)
    monkeypatch.setattr("deploykit.environment.key", lambda: "another machine")
    latency_table(loaded, UNDER, 8)
    assert machine.asked == 6


def test_a_table_that_fails_its_check_is_measured_again_and_not_kept(loaded, own_cache: Path, monkeypatch):
    machine = FakeMachine(TRUE)

    def disturbed(*asked):
        for found in machine.measurements(*asked):
            last = list(found)[-1]
            yield {**found, last: 2 * found[last]}

    monkeypatch.setattr(latency_probes, "measurements", disturbed)
    assert latency_table(loaded, UNDER, 8).error > 0.4
    assert machine.asked == 2
    assert not list(own_cache.rglob("*.json"))
