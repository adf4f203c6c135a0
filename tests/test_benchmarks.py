"""The side-by-side benchmark: on a fake clock, without any peer installed."""

import dataclasses
import json
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import peers, readme, systems, table
from benchmarks.interleave import Schedule, interleave, total, warm_up
from benchmarks.peers import Question, compare, opened
from benchmarks.systems import BASELINE, Peer, Source, System, open_model, open_peer
from deploykit.artifact import finite, read_json
from deploykit.check.closed_loop import UNTIMED
from deploykit.check.ratio import ratio_of_sums
from deploykit.check.statistics import Interval
from deploykit.checkpoint import Checkpoint, load, open_checkpoint
from deploykit.data import read_split
from deploykit.errors import DataError, UsageError
from deploykit.evidence import Metric
from deploykit.runtime import model_info
from deploykit.runtime.tokenizer import Encoding
from deploykit.tasks.task import Score
from deploykit.tasks.text_classification import accuracy

ROOT = Path(__file__).parents[1]
ROWS = [{"text": "x" * length} for length in (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8)]


class FakeClock:
    """A clock that moves only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def fake_system(name: str, clock: FakeClock, *, ms_per_token: float, precision: str = "int8", kind="peer") -> System:
    """A system that takes 0.1 ms to tokenize a batch and `ms_per_token` to run each of its tokens."""

    def encode(rows):
        clock.now += 1e-4
        return [_encoding(len(row["text"])) for row in rows]

    def run(encodings):
        clock.now += ms_per_token * 1e-3 * sum(len(encoding.ids) for encoding in encodings)
        return [np.asarray([len(encoding.ids), 0.0], np.float32) for encoding in encodings]

    return System(name, kind, precision, 1000, encode, run, lambda *_answers: [])


def scored(right: int) -> Score:
    """A score of 1000 rows, the first of which are right."""
    stats_NK = np.stack([np.arange(1000) < right, np.ones(1000)], axis=-1).astype(np.float64)
    return Score((Metric("accuracy", right / 1000),), (), (), stats_NK, accuracy)


def noting(system: System, names: list[str]) -> System:
    """The same system; it writes down its name whenever it runs."""

    def run(encodings):
        names.append(system.name)
        return system.run(encodings)

    return dataclasses.replace(system, run=run)


def _encoding(length: int) -> Encoding:
    return Encoding([1] * length, [0] * length, [(0, 0)] * length, [None] * length, [False] * length, False)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _seconds: None)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def question():
    single = [[index] for index in range(len(ROWS))]
    batches = [list(range(start, start + 4)) for start in (0, 4, 8)]
    return Question(ROWS, single, batches, lambda system, _samples: scored(800 + len(system.name)))


@pytest.fixture
def compared(clock, question):
    asked = [
        fake_system(BASELINE, clock, ms_per_token=8, precision="fp32"),
        fake_system("peer int8", clock, ms_per_token=2),
        fake_system("slow int8", clock, ms_per_token=4),
        fake_system("deploykit m", clock, ms_per_token=1, kind="deploykit"),
    ]
    return compare(asked, question, clock)


@pytest.fixture
def result(compared):
    """A whole result, as `--out` writes it."""
    failed = [{"name": "OpenVINO int8 (NNCF)", "reason": "ModuleNotFoundError: No module named 'nncf'"}]
    return finite(
        {
            "benchmark": "peers",
            "task": "text-classification",
            "checkpoint": {"name": "original", "digest": "0"},
            "data": {"name": "reviews", "digest": "1", "split": "test", "rows": len(ROWS)},
            "environment": {"processor": "a processor", "cores": 2, "isa": ["AVX2"]},
            "runs": [{"threads": 2, **compared, "failed": failed}],
        }
    )


@pytest.fixture(scope="module")
def source(bert, reviews, tmp_path_factory) -> Source:
    rows = [json.loads(line) for line in (reviews / "train.jsonl").read_text().splitlines()[:8]]
    return Source(load(open_checkpoint(bert)), rows, tmp_path_factory.mktemp("peers"))


def by_name(compared, name):
    return next(system for system in compared["systems"] if system["name"] == name)


def test_a_system_that_takes_twice_as_long_has_half_the_speed(clock):
    fast, slow = fake_system("fast", clock, ms_per_token=1), fake_system("slow", clock, ms_per_token=2)
    samples = interleave([fast, slow], Schedule(ROWS, [[index] for index in range(len(ROWS))], turn=5), clock)
    found = ratio_of_sums(*(np.asarray(samples[name].model_s) for name in ("fast", "slow")))
    assert found.value == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5)
    assert found.high == pytest.approx(0.5)


def test_a_total_is_a_sum_within_its_interval():
    seconds = list(np.random.default_rng(0).lognormal(0, 0.5, 300))
    found = total(seconds)
    assert found.value == pytest.approx(sum(seconds))
    assert found.low is not None
    assert found.high is not None
    assert 0.8 * found.value < found.low < found.value < found.high < 1.2 * found.value


def test_every_batch_is_timed_once_on_every_system_and_answers_keep_their_rows(clock):
    asked = [fake_system(name, clock, ms_per_token=1) for name in ("a", "b", "c")]
    samples = interleave(asked, Schedule(ROWS, [[2, 0], [1, 5]], turn=1), clock)
    for name in ("a", "b", "c"):
        assert samples[name].model_s == pytest.approx([7e-3, 10e-3])
        assert samples[name].total_s == pytest.approx([7.1e-3, 10.1e-3])
        assert {index: row[0] for index, row in samples[name].logits.items()} == {2: 4, 0: 3, 1: 1, 5: 9}


def test_the_order_of_turns_changes(clock):
    order: list[str] = []
    asked = [noting(fake_system(name, clock, ms_per_token=1), order) for name in "abcd"]
    interleave(asked, Schedule(ROWS, [[index] for index in range(12)], turn=1), clock)
    firsts = {order[start] for start in range(0, len(order), 4 * (UNTIMED + 1))}  # a turn: untimed rows, one batch
    assert len(firsts) > 1


def test_a_system_that_is_slow_after_others_is_timed_at_its_own_speed_on_rows_that_it_did_not_just_answer(clock):
    rows = [{"text": "x" * length} for length in range(1, 13)]
    of_a_turn = 2

    def slow_at_first(system: System) -> System:
        answered: list[int] = []

        def run(encodings):
            turn = answered[len(answered) // (UNTIMED + of_a_turn) * (UNTIMED + of_a_turn) :]
            assert len(encodings[0].ids) not in turn
            clock.now += 1.0 if len(turn) < UNTIMED else 0.0
            answered.append(len(encodings[0].ids))
            return system.run(encodings)

        return dataclasses.replace(system, run=run)

    asked = [slow_at_first(fake_system(name, clock, ms_per_token=1)) for name in "ab"]
    samples = interleave(asked, Schedule(rows, [[index] for index in range(12)], of_a_turn), clock)
    assert samples["a"].model_s == pytest.approx(np.arange(1, 13) * 1e-3)


def test_every_padded_shape_is_warmed_up_once(clock):
    ran: list[str] = []
    warm_up(noting(fake_system("a", clock, ms_per_token=1), ran), ROWS, [[index] for index in range(len(ROWS))])
    assert len(ran) == len({len(row["text"]) for row in ROWS})


def test_one_batch_alone_bounds_nothing():
    assert total([2.0]) == Interval(2.0, None, None)


def test_the_best_int8_peer_is_the_fastest_of_others(compared):
    assert compared["best_int8_peer"] == {"single": "peer int8", "offline": "peer int8"}
    ours = by_name(compared, "deploykit m")
    assert ours["single"]["over_best_int8_peer"]["value"] == pytest.approx(2, rel=0.05)
    assert ours["offline"]["over_baseline"]["value"] == pytest.approx(8, rel=0.05)


def test_offline_counts_rows_per_second(compared):
    tokens = sum(len(row["text"]) for row in ROWS)
    assert by_name(compared, "peer int8")["offline"]["model_rows_per_s"] == pytest.approx(len(ROWS) / (tokens * 2e-3))


def test_accuracy_stands_beside_every_speed(compared):
    original = by_name(compared, BASELINE)["metric"]["value"]
    for system in compared["systems"]:
        assert system["kept"] == pytest.approx(system["metric"]["value"] / original)


def test_a_drop_is_told_with_an_interval_of_rows_in_pairs(compared):
    original, ours = by_name(compared, BASELINE), by_name(compared, "deploykit m")
    assert original["drop"]["value"] == 0
    assert ours["drop"]["value"] == pytest.approx((len(BASELINE) - len("deploykit m")) / 1000)
    assert 0 < ours["drop"]["low"] < ours["drop"]["value"] < ours["drop"]["high"] < 0.02


def test_another_baseline_can_be_named(clock, question):
    asked = [fake_system(name, clock, ms_per_token=ms) for name, ms in ((BASELINE, 8), ("a", 2), ("bb", 1))]
    found = compare(asked, question, clock, {"over_b": "bb"}, "a")
    bb = by_name(found, "bb")
    assert bb["single"]["over_baseline"]["value"] == pytest.approx(2, rel=0.05)
    assert bb["single"]["over_b"]["value"] == 1
    assert bb["drop"]["value"] == pytest.approx(-0.001)


def test_without_the_baseline_there_are_no_ratios_against_it(clock, question):
    found = compare([fake_system("only", clock, ms_per_token=1)], question, clock)["systems"][0]
    assert found["kept"] is None
    assert found["drop"] is None
    assert found["single"]["over_baseline"] is None


def test_a_peer_that_fails_is_named_with_its_reason_and_the_others_run(source, question):
    def not_installed(_source):
        raise ModuleNotFoundError("No module named 'nncf'")

    broken = Peer("broken", "int8", not_installed, systems._open_onnx)
    words = Question([{"text": "good film"}], [[0]], [[0]], question.score)
    running, failed = opened([broken, systems.PEERS[0]], source, 1, words)
    assert [system.name for system in running] == [BASELINE]
    assert failed == [{"name": "broken", "reason": "ModuleNotFoundError: No module named 'nncf'"}]


def ran(source, monkeypatch, *, writes: bool, stderr: str) -> dict[str, str]:
    """Have Olive's command run by a fake; returns the environment that it got."""
    environments: list[dict[str, str]] = []

    def run(command, *, env, cwd, **_how):
        environments.append(env)
        assert str(source.checkpoint.path) in command
        if writes:
            (cwd / "olive").mkdir()
            (cwd / "olive" / "model.onnx").write_bytes(b"")
        return subprocess.CompletedProcess(command, 0, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    for _ in range(2):
        systems._olive_int8(source)
    (environment,) = environments
    return environment


def test_olive_is_run_once_and_without_reporting_its_use(source, tmp_path, monkeypatch):
    own = dataclasses.replace(source, folder=tmp_path)
    assert ran(own, monkeypatch, writes=True, stderr="a warning")["CI"] == "1"


def test_olives_last_words_are_the_reason_why_it_does_not_run(source, tmp_path, monkeypatch):
    own = dataclasses.replace(source, folder=tmp_path)
    with pytest.raises(RuntimeError, match=r"^python: No module named olive$"):
        ran(own, monkeypatch, writes=False, stderr="a warning\npython: No module named olive\n")


@pytest.mark.parametrize("peer", [peer for peer in systems.PEERS if "PyTorch" in peer.name or "ORT" in peer.name])
def test_peers_of_torch_and_onnx_runtime_answer_as_the_checkpoint_does(peer, source):
    system = open_peer(peer, source, 1)
    encodings = system.encode([{"text": "the film was superb"}, {"text": "a sad story with an ugly plot in paris"}])
    found = np.stack(system.run(encodings))
    expected = np.stack(_reference(source.checkpoint, encodings))
    tolerance = 1e-4 if peer.precision == "fp32" else 0.5 * float(np.abs(expected).max())  # 8 bits may saturate
    assert found == pytest.approx(expected, abs=tolerance)
    assert system.num_bytes > 0


def _reference(checkpoint: Checkpoint, encodings):
    from deploykit.checkpoint import logits

    return logits(checkpoint, encodings)


@pytest.mark.parametrize(
    ("model", "data", "metric"), [("bert", "reviews", "accuracy"), ("bert_ner", "entities", "entity_f1")]
)
def test_each_task_is_scored_by_its_own_metric(model, data, metric, request, tmp_path):
    checkpoint = load(open_checkpoint(request.getfixturevalue(model)))
    made, test = Source(checkpoint, [], tmp_path), read_split(request.getfixturevalue(data), "test")
    asked = peers.ask(made, test, 5)
    running, failed = opened(systems.PEERS[0:1] + systems.PEERS[2:3], made, 1, asked)
    found = compare(running, asked, time.perf_counter)["systems"]
    assert not failed
    assert [system["metric"]["name"] for system in found] == [metric, metric]
    assert found[0]["metric"] == found[1]["metric"]
    assert {system["single"]["n"] for system in found} == {5}


def test_int8_files_are_smaller(source):
    sizes = {peer.name: open_peer(peer, source, 1).num_bytes for peer in systems.PEERS if peer.name.startswith("ORT")}
    assert sizes["ORT dynamic int8"] < sizes["ORT fp32"]


def test_our_model_runs_beside_its_peers(source, tmp_path):
    path = _exported(source, tmp_path, ("negative", "positive"))
    system = open_model(path, source.checkpoint, 1)
    rows = [{"text": "the film was superb"}]
    encodings = system.encode(rows)
    assert system.run(encodings)[0] == pytest.approx(_reference(source.checkpoint, encodings)[0], abs=1e-4)
    assert system.decode(system.run(encodings), encodings, rows)[0]["label"] in source.checkpoint.labels


def test_a_model_of_other_labels_is_refused(source, tmp_path):
    with pytest.raises(UsageError, match="made from this checkpoint"):
        open_model(_exported(source, tmp_path, ("positive", "negative")), source.checkpoint, 1)


def _exported(source: Source, folder: Path, labels: tuple[str, ...]) -> Path:
    """An artifact folder as `export` writes it, around a peer's graph."""
    names = systems._input_names(source)
    info = model_info.ModelInfo("text-classification", labels, 64, 0, names, ("logits",), "cpu", "fp32")
    model_info.write(info, folder)
    (folder / model_info.GRAPH).write_bytes(systems._plain_onnx(source).read_bytes())
    (folder / "tokenizer.json").write_bytes((source.checkpoint.path / "tokenizer.json").read_bytes())
    return folder


def test_the_last_line_is_json_and_the_file_holds_the_same(result, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(peers, "run", lambda _arguments: print("progress") or result)
    assert peers.main(["c", "--model", "m", "--data", "d", "--out", str(tmp_path / "r.json")]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1]) == result == read_json(tmp_path / "r.json")
    assert "progress" in said.err


def test_bad_input_is_one_line_and_its_exit_code(capsys, tmp_path, bert):
    assert peers.main([str(bert), "--model", "m", "--data", str(tmp_path / "none")]) == DataError.exit_code
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1


def test_the_table_shows_every_system_and_every_failure(result):
    shown = table.markdown(result)
    assert "| **deploykit m** " in shown
    assert "8.00 (8.00 to 8.00)" not in shown  # tokenizing takes its share
    assert "not run: ModuleNotFoundError" in shown
    assert "Best int8 peer: peer int8 at batch 1" in shown
    assert "**, 2 threads on a processor (2 cores, AVX2)" in shown
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {12}


def test_a_page_keeps_its_words_around_the_table(result):
    page = f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n"
    new = readme.replaced(page, "README.md", readme.rendered([result]))
    assert new.startswith("before\n")
    assert new.endswith("after\n")
    assert readme.read(new) == readme.rendered([result])
    assert readme.replaced(new, "README.md", readme.rendered([result])) == new


def test_results_of_other_benchmarks_are_not_in_the_table(result):
    assert readme.rendered([{"benchmark": "gpu"}, result]) == table.markdown(result)


def test_a_page_without_markers_is_refused():
    with pytest.raises(DataError, match="results:begin"):
        readme.replaced("no markers", "README.md", "new")


def test_the_readme_and_the_results_agree():
    files = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.read(text) == readme.rendered(map(read_json, files))
