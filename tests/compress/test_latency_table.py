from dataclasses import replace

import pytest

from deploykit.compress.latency_table import TOLERANCE, Curve, LatencyTable, LayerCost, fitted, plan
from deploykit.families import Structure

FULL = Structure((12,) * 6, (1536,) * 6)
TRUE = LatencyTable(
    base_ms=0.2,
    inner=LayerCost(0.05, Curve((6, 12), (0.01, 0.02)), Curve((768, 1536), (2e-4, 3e-4))),
    last=LayerCost(0.0, Curve((12,), (0.004,)), Curve((1536,), (5e-5,))),
)
EVEN = replace(TRUE, last=TRUE.inner)


def measured(true: LatencyTable, full: Structure = FULL) -> dict[Structure, float]:
    return {structure: true.predict(structure) for structure in plan(full, 32)}


@pytest.mark.parametrize(("true", "first_token"), [(TRUE, True), (EVEN, False)])
def test_additive_costs_are_found_exactly(true: LatencyTable, first_token: bool):
    found = fitted(measured(true), first_token=first_token)
    for structure in (FULL, Structure((1, 5, 12, 7, 3, 2), (32, 800, 1536, 96, 640, 32)), Structure((4,), (64,))):
        assert found.predict(structure) == pytest.approx(true.predict(structure), rel=1e-6)
    assert found.error == pytest.approx(0.0, abs=1e-6)
    assert found.inner.fixed_ms == pytest.approx(0.05, rel=1e-6)
    assert found.inner.heads.at(3) == pytest.approx(0.03)
    assert found.inner.ffn.at(1152) == pytest.approx(768 * 2e-4 + 384 * 3e-4)


def test_a_model_that_is_uneven_already_can_be_measured():
    full = Structure((3, 12, 7), (96, 1536, 800))
    found = fitted(measured(TRUE, full), first_token=True)
    assert found.error == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("full", [Structure((1,), (32,)), Structure((4,), (20,)), Structure((2, 2), (8, 8))])
def test_small_models_have_a_plan_within_their_own_sizes(full: Structure):
    for structure in plan(full, 32):
        depth = len(structure.heads)
        for kept, most in ((structure.heads, full.heads[-depth:]), (structure.ffn, full.ffn[-depth:])):
            assert all(1 <= one <= other for one, other in zip(kept, most, strict=True))


def test_the_check_fails_where_costs_do_not_add_up():
    times = measured(TRUE)
    *_, checked = times
    times[checked] *= 1.5
    assert fitted(times, first_token=True).error > TOLERANCE


def test_what_all_uneven_structures_cost_more_is_learnt():
    times = measured(TRUE)
    dearer = {each: ms * (1.12 if len(set(each.ffn)) > 2 else 1.0) for each, ms in times.items()}
    assert fitted(dearer, first_token=True).error < 0.08


def test_the_check_fails_on_a_planted_wrong_cost():
    found = fitted(measured(TRUE), first_token=True)
    wrong = replace(found, inner=replace(found.inner, ffn=Curve((768, 1536), (4e-4, 6e-4))))
    errors = [abs(wrong.predict(check.structure) / check.measured_ms - 1) for check in found.checks]
    assert max(errors) > TOLERANCE


def test_what_checks_is_not_fitted():
    times = measured(TRUE)
    changed = {**times, **dict.fromkeys(list(times)[-3:], 1e3)}
    assert fitted(changed, first_token=True).predict(FULL) == pytest.approx(TRUE.predict(FULL))


def test_a_cost_never_falls_where_the_clock_was_wrong():
    times = {structure: 5.0 - TRUE.predict(structure) / 2 for structure in plan(FULL, 32)}
    found = fitted(times, first_token=True)
    assert found.inner.heads.at(12) >= found.inner.heads.at(1) >= 0
    assert found.inner.ffn.at(1536) >= found.inner.ffn.at(32) >= 0


def test_a_layer_less_is_a_layer_cheaper():
    fewer = Structure(FULL.heads[1:], FULL.ffn[1:])
    assert TRUE.predict(FULL) - TRUE.predict(fewer) == pytest.approx(TRUE.inner.at(12, 1536))
