import asyncio
import json
import math
import threading

import numpy as np
import pytest
from aiohttp import web

from deploykit import commands
from deploykit.check.bench import Bench
from deploykit.check.latency_tables import metrics_of, table_of, warnings_of
from deploykit.errors import DataError, EnvironmentMissing, OutputExists, UsageError
from deploykit.evidence import Metric
from tests.onnx_models import make_onnx

QUICK = Bench(calls=40, passes=7, rows=16, warm_up=2)


@pytest.fixture(scope="module")
def measured(onnx_model, reviews, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    other = make_onnx(folder / "other")
    made = commands.bench(str(onnx_model.path), QUICK, data=reviews, out=folder / "out", against=other.path)
    return made, commands.verdict_of(made)


class Server:
    """A tiny service in a thread: answers `POST /predict` as it is told to, and remembers what it was asked."""

    def __init__(self, status=200, delay_s=0.0, every=1):
        self.status, self.delay_s, self.every = status, delay_s, every
        self.asked = []
        self.url = ""
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    async def _predict(self, request):
        rows = (await request.json())["rows"]
        self.asked.append(rows)
        status = self.status if len(self.asked) % self.every == 0 else 200
        await asyncio.sleep(self.delay_s)
        return web.json_response({"predictions": [{"label": "x"}] * len(rows)}, status=status)

    async def _about(self, _request):
        return web.json_response({"info": {"title": "reviews", "version": "1a2b"}})

    def _run(self):
        app = web.Application()
        app.router.add_post("/predict", self._predict)
        app.router.add_get("/docs.json", self._about)
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        self._loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    def __enter__(self):
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


def test_two_models_are_measured_in_turn_with_one_that_does_nothing(measured, onnx_model):
    made, found = measured
    assert set(found.details["scenarios"]) == {"single", "offline"}
    for scenario, size in (("single", 40), ("offline", 7)):
        table = found.details["scenarios"][scenario]
        assert set(table["systems"]) == {"head", "against"}
        assert table["ratio"]["low"] <= table["ratio"]["value"] <= table["ratio"]["high"]
        assert table["null_ms"] < table["systems"]["head"]["p50_ms"]
        for system in ("head", "against", "null"):
            samples = np.load(made.path / f"{scenario}.{system}.npy")
            assert samples.shape == (size,)
            assert (samples > 0).all()
    assert found.subject.digest == onnx_model.digest
    assert found.reference is not None


def test_the_evidence_says_how_each_model_was_spread_over_threads(measured):
    _, found = measured
    plans = found.details["thread_plans"]
    assert set(plans) == {"head", "against"}
    assert all(set(plan) == {"threads", "alone_up_to_tokens", "side_by_side"} for plan in plans.values())


def test_metrics_bear_the_field_s_names_and_are_those_of_the_raw_samples(measured):
    made, found = measured
    metrics = {metric.name: metric for metric in found.metrics}
    assert set(metrics) == {"p50_ms", "p90_ms", "p95_ms", "p99_ms", "throughput_per_s"}
    assert metrics["p50_ms"].value in np.load(made.path / "single.head.npy")
    assert metrics["throughput_per_s"].value == pytest.approx(1e3 / np.median(np.load(made.path / "offline.head.npy")))
    assert metrics["throughput_per_s"].better == "higher"
    assert metrics["p99_ms"].high is None
    assert any("cannot bound the 99th percentile" in warning for warning in found.warnings)


def test_evidence_of_latency_judges_nothing_by_itself(measured):
    assert measured[1].gates == ()
    assert measured[1].verdict == "inconclusive"


def test_the_scenario_server_asks_for_a_served_model(onnx_model, reviews, tmp_path):
    with pytest.raises(UsageError, match="serve"):
        commands.bench(str(onnx_model.path), Bench(("server",)), data=reviews, out=tmp_path / "out")


def test_rows_that_the_model_cannot_answer_are_named(onnx_model, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.jsonl").write_text('{"text": "fine"}\n{"text": 3}\n')
    with pytest.raises(DataError, match=r"test\.jsonl:2"):
        commands.bench(str(onnx_model.path), QUICK, data=tmp_path / "data", out=tmp_path / "out")


def test_a_served_model_is_measured_in_every_scenario_through_http(reviews, tmp_path):
    settings = Bench(("single", "offline", "server"), calls=30, passes=3, rows=40, warm_up=2, rate_per_s=300.0)
    with Server() as server:
        made = commands.bench(server.url, settings, data=reviews, out=tmp_path / "out")
    found = commands.verdict_of(made)
    names = [metric.name for metric in found.metrics]
    assert names[:2] == ["p50_ms", "p90_ms"]
    assert names[-4:] == ["server_p50_ms", "server_p90_ms", "server_p95_ms", "server_p99_ms"]
    assert found.details["scenarios"]["server"]["systems"]["head"]["failed"] == 0
    assert np.load(made.path / "server.head.npy").shape == (30,)
    assert found.subject.name == "reviews 1a2b"
    assert {tuple(row) for rows in server.asked for row in rows} == {("text",)}
    assert [len(rows) for rows in server.asked[32:34]] == [32, 8]


def test_a_slow_server_is_seen_to_be_slow_and_the_harness_is_not_blamed(reviews, tmp_path):
    settings = Bench(("server",), calls=20, warm_up=1, rate_per_s=200.0)
    with Server(delay_s=0.1) as server:
        found = commands.verdict_of(commands.bench(server.url, settings, data=reviews, out=tmp_path / "out"))
    table = found.details["scenarios"]["server"]
    assert table["systems"]["head"]["p50_ms"] >= 100
    assert table["null_ms"] < 100


def test_requests_that_fail_under_load_are_counted_as_never_answered(reviews, tmp_path):
    settings = Bench(("server",), calls=20, warm_up=1, rate_per_s=500.0)
    with Server(status=503, every=4) as server:
        made = commands.bench(server.url, settings, data=reviews, out=tmp_path / "out")
    found = commands.verdict_of(made)
    failed = found.details["scenarios"]["server"]["systems"]["head"]["failed"]
    assert failed == 5
    assert np.isinf(np.load(made.path / "server.head.npy")).sum() == failed
    assert any("5 of 20 requests were not answered" in warning for warning in found.warnings)
    assert json.loads((made.path / "evidence.json").read_text())["metrics"][-1]["value"] is None


@pytest.mark.parametrize(("status", "error"), [(500, EnvironmentMissing), (400, DataError)])
def test_a_service_that_refuses_is_an_error_and_leaves_nothing(status, error, reviews, tmp_path):
    with Server(status=status) as server, pytest.raises(error, match="http://"):
        commands.bench(server.url, QUICK, data=reviews, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scenario", ["single", "server"])
def test_an_address_where_nothing_answers_is_an_error(scenario, reviews, tmp_path):
    with pytest.raises(EnvironmentMissing, match="deploykit serve"):
        commands.bench("http://127.0.0.1:9", Bench((scenario,)), data=reviews, out=tmp_path / "out")


def test_what_an_address_serves_may_have_changed_so_nothing_is_reused(reviews, tmp_path):
    with Server() as server:
        settings = Bench(("single",), calls=3, warm_up=0)
        commands.bench(server.url, settings, data=reviews, out=tmp_path / "out")
        with pytest.raises(OutputExists):
            commands.bench(server.url, settings, data=reviews, out=tmp_path / "out")
        again = commands.bench(server.url, settings, data=reviews, out=tmp_path / "out", force=True)
    assert again.path == tmp_path / "out"


def test_threads_of_a_served_model_are_not_ours_to_set(reviews, tmp_path):
    with pytest.raises(UsageError, match="threads"):
        commands.bench("http://127.0.0.1:9", Bench(threads=1), data=reviews, out=tmp_path / "out")


@pytest.mark.parametrize(
    "wrong",
    [{"scenarios": ()}, {"scenarios": ("single", "single")}, {"calls": 0}, {"seconds": math.inf}, {"threads": 0}],
)
def test_settings_that_measure_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        Bench(**wrong)


def test_a_harness_that_costs_a_tenth_is_warned_of():
    samples = {"head": np.full(400, 1.0), "null": np.full(400, 0.2)}
    assert "the harness itself takes 0.2 of 1 ms" in warnings_of({"single": table_of("single", samples)})[0]
    samples["null"] = np.full(400, 0.01)
    assert warnings_of({"single": table_of("single", samples)}) == []


def test_throughput_s_interval_is_the_pass_s_upside_down():
    table = table_of("offline", {"head": np.linspace(1, 2, 50), "null": np.full(50, 0.0)})
    (metric,) = metrics_of({"offline": table})
    assert isinstance(metric, Metric)
    assert metric.low is not None
    assert metric.high is not None
    assert metric.low < metric.value < metric.high
