"""Calls timed in turns, on a clock of the tests' own."""

import itertools

import numpy as np
import pytest

from benchmarks import turns
from benchmarks.turns import TURN, Call, report, samples_ms
from deploykit.artifact import read_json
from deploykit.errors import UsageError


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(turns, "PAUSE_S", 0.0)


def test_every_call_has_its_turns_and_one_untimed_call_in_each():
    made = {"one": 0, "other": 0}

    def counting(name: str) -> Call:
        def call() -> None:
            made[name] += 1

        return call

    ticks = itertools.count()
    found = samples_ms({name: counting(name) for name in made}, 3, clock=lambda: next(ticks) / 1000)
    assert {name: samples.shape for name, samples in found.items()} == {"one": (3 * TURN,), "other": (3 * TURN,)}
    assert np.concatenate(list(found.values())) == pytest.approx(1.0)
    assert made == {"one": 3 * (TURN + 1), "other": 3 * (TURN + 1)}


def test_ten_percent_slower_is_seen():
    now = [0.0]

    def taking(seconds: float) -> Call:
        def call() -> None:
            now[0] += seconds

        return call

    found = samples_ms({"base": taking(0.010), "slower": taking(0.011)}, 2, clock=lambda: now[0])
    assert np.median(found["slower"]) / np.median(found["base"]) == pytest.approx(1.1)


def test_nothing_to_time_is_no_samples():
    assert samples_ms({}, 2) == {}


def test_a_report_is_a_table_one_line_of_json_and_the_same_in_a_file(tmp_path, capsys):
    assert report(lambda: {"value": float("inf")}, lambda _result: "a table", tmp_path / "result.json") == 0
    assert capsys.readouterr().out == 'a table\n{"value": null}\n'
    assert read_json(tmp_path / "result.json") == {"value": None}


def test_a_failure_is_one_line_its_exit_code_and_no_file(tmp_path, capsys):
    def fail():
        raise UsageError("here", expected="this", found="that", next_step="change it")

    assert report(fail, str, tmp_path / "result.json") == UsageError.exit_code
    said = capsys.readouterr()
    assert (said.out, len(said.err.splitlines())) == ("", 1)
    assert not (tmp_path / "result.json").exists()
