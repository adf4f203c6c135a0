"""Measure how fast a model answers the user's own rows: an exported model here, or a served one at its address.

Both take the same path, rows in and predictions out, so tokenizing, padding and decoding are in every number. Systems
are timed in turn, with one that does nothing.

    single    one row at a time, the next when the last is answered
    offline   many rows in length-sorted batches, several passes
    server    rows arrive at random (Poisson), whether or not the last ones are answered; needs an address

N calls, passes or requests
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np

from deploykit import environment, evidence, stage
from deploykit.artifact import Artifact, Kind
from deploykit.check import closed_loop, latency
from deploykit.check.closed_loop import Predict, Row, opened, shuffled
from deploykit.check.latency import NULL, Milliseconds, Rounds
from deploykit.check.latency_tables import AGAINST, HEAD, Samples, metrics_of, table_of, warnings_of
from deploykit.check.service import Service, connected
from deploykit.data import read_split
from deploykit.errors import OutputExists, UsageError
from deploykit.evidence import Evidence, Subject, subject_of

Scenario = Literal["single", "offline", "server"]

OF_MODEL: tuple[Scenario, ...] = ("single", "offline")
OF_SERVICE: tuple[Scenario, ...] = ("single", "server")
_WARM_UP_PASSES = 1


@dataclass(frozen=True)
class Bench:
    """Measure an exported model, in turn with another one where two are given."""

    scenarios: tuple[Scenario, ...] | None = None
    """None: single and offline for a model, single and server for an address."""
    split: str = "test"
    calls: int = 500
    """single: rounds; server: requests. 368 are needed to bound a p99 on both sides."""
    warm_up: int = 20
    """Calls before the first that counts."""
    rows: int = 256
    """offline: rows of one pass."""
    passes: int = 10
    batch_size: int = 32
    rate_per_s: float = 20.0
    """server: requests that arrive in a second, on average."""
    seconds: float = 60.0
    """A scenario ends after so long; a closed loop has at least six samples by then, the least that bound a median."""
    threads: int | None = None
    """Of a local model; every core that the process may use if not given."""
    seed: int = 0
    """Draws the order of the rows, whose turn it is, and the arrivals."""

    verb: ClassVar[str] = "bench"
    reads: ClassVar[tuple[Kind, ...]] = ("dataset", "onnx")
    """The rows, the model; and another one to be measured in turn with it."""
    makes: ClassVar[Kind] = "evidence"
    resumes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if self.scenarios is not None and len(set(self.scenarios)) != max(1, len(self.scenarios)):
            raise ValueError(f"scenarios must be single, offline or server, each once, not {list(self.scenarios)}")
        for name in ("calls", "rows", "passes", "batch_size", "rate_per_s", "seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.warm_up < 0 or (self.threads is not None and self.threads < 1):
            raise ValueError("warm_up must not be negative, and threads must be positive")

    def __call__(self, *sources: Artifact, scratch: Path) -> Mapping[str, Any]:
        """Write `evidence.json` and the raw samples."""
        dataset, *models = sources
        scenarios = self.scenarios or OF_MODEL
        if "server" in scenarios:
            raise UsageError(
                "bench.scenarios",
                expected="the address of a served model for the scenario server",
                found=str(models[0].path),
                next_step="`deploykit package` and `deploykit serve` it, then bench its address",
            )
        split = read_split(dataset.path, self.split)
        named = dict(zip(_names(models), models, strict=True))
        running = {name: opened(model.path, split, self.threads) for name, model in named.items()}
        systems: dict[str, Predict] = {NULL: _nothing}
        systems |= {name: partial(model.predict, batch_size=self.batch_size) for name, model in running.items()}
        rows = shuffled(split, self.seed)
        samples: dict[str, Samples] = {name: _closed(name, systems, rows, self) for name in scenarios}
        against = subject_of(named[AGAINST]) if AGAINST in named else None
        plans = {name: model.thread_plan() for name, model in running.items()}
        subjects = _Subjects(subject_of(named[HEAD]), against, subject_of(dataset))
        return _written(self, subjects, samples, scratch, {"thread_plans": plans})


@dataclass(frozen=True)
class BenchService:
    """Measure a served model: the same as `Bench`, at an address."""

    url: str
    settings: Bench

    verb: ClassVar[str] = "bench service"
    reads: ClassVar[tuple[Kind, ...]] = ("dataset",)
    makes: ClassVar[Kind] = "evidence"
    resumes: ClassVar[bool] = False

    def __call__(self, *sources: Artifact, scratch: Path) -> Mapping[str, Any]:
        """Write `evidence.json` and the raw samples."""
        (dataset,) = sources
        settings = self.settings
        rows = shuffled(read_split(dataset.path, settings.split), settings.seed)
        samples: dict[str, Samples] = {}
        with connected(self.url) as (service, null):
            clients = {HEAD: service, NULL: null}
            systems = {name: _in_requests(client, settings.batch_size) for name, client in clients.items()}
            for scenario in settings.scenarios or OF_SERVICE:
                if scenario == "server":
                    samples[scenario] = {name: _open(client, rows, settings) for name, client in clients.items()}
                else:
                    samples[scenario] = _closed(scenario, systems, rows, settings)
            subject = service.subject()
        return _written(settings, _Subjects(subject, None, subject_of(dataset)), samples, scratch)


def bench_url(url: str, settings: Bench, dataset: Artifact, out: Path, *, force: bool = False) -> Artifact:
    """Measure the model that is served at `url`; the evidence is sealed at `out`.

    Raises:
        OutputExists: `out` is there; what an address serves may have changed, so nothing is reused.
        EnvironmentMissing: nothing answers there.
        UsageError: `threads` is set, which is the server's business.
    """
    if settings.threads is not None:
        raise UsageError(
            "bench.threads",
            expected="none for a served model",
            found=str(settings.threads),
            next_step="remove it: the server has set its threads",
        )
    if out.exists() and not force:
        raise OutputExists(
            out, expected="a new folder", found="an existing one", next_step="choose another --out or pass --force"
        )
    return stage.run(BenchService(url, settings), dataset, out=out, force=force)


@dataclass(frozen=True)
class _Subjects:
    head: Subject
    against: Subject | None
    data: Subject


def _names(models: Sequence[Artifact]) -> list[str]:
    if len(models) > 2:
        raise UsageError(
            "bench", expected="one model, and one to compare with", found=str(len(models)), next_step="remove some"
        )
    return [HEAD, AGAINST][: len(models)]


def _nothing(rows: Sequence[Row]) -> object:
    return rows


def _in_requests(service: Service, batch_size: int) -> Predict:
    """Send any number of rows in requests of `batch_size`, one after the other."""

    def predict(rows: Sequence[Row]) -> None:
        for start in range(0, len(rows), batch_size):
            service.predict(rows[start : start + batch_size])

    return predict


def _closed(
    scenario: str, systems: Mapping[str, Predict], rows: Sequence[Row], settings: Bench
) -> dict[str, Milliseconds]:
    """Time systems in turn on one row a call (single), or on the same many rows a pass (offline, a row's share)."""
    if scenario == "single":
        rounds = Rounds(settings.calls, settings.warm_up, settings.seconds, settings.seed)
        if AGAINST in systems:
            rounds = replace(rounds, untimed=closed_loop.UNTIMED, turn=closed_loop.TURN)
        return closed_loop.single(systems, rows, rounds)
    rounds = Rounds(settings.passes, _WARM_UP_PASSES, settings.seconds, settings.seed)
    return closed_loop.offline(systems, rows[: settings.rows], rounds)


def _open(service: Service, rows: Sequence[Row], settings: Bench) -> Milliseconds:
    """Time requests that arrive at random, after a warm-up one by one."""
    for index in range(max(1, settings.warm_up)):  # at least one: a wrong address is an error, not a slow service
        service.predict([rows[index % len(rows)]])
    count = max(1, min(settings.calls, int(settings.rate_per_s * settings.seconds)))
    arrivals_N = latency.poisson_arrivals(settings.rate_per_s, count, settings.seed)
    return service.loop.run_until_complete(
        latency.open_loop(lambda index: service.ask(rows[index % len(rows)]), arrivals_N)
    )


def _written(
    settings: Bench,
    subjects: _Subjects,
    samples: Mapping[str, Samples],
    scratch: Path,
    details: Mapping[str, Any] = MappingProxyType({}),
) -> Mapping[str, Any]:
    """Write the evidence and every raw sample (`single.head.npy`, milliseconds (N)); return the facts."""
    tables = {name: table_of(name, found) for name, found in samples.items()}
    found = Evidence(
        measure="latency",
        subject=subjects.head,
        verdict=evidence.overall(()),
        gates=(),
        metrics=tuple(metrics_of(tables)),
        environment=environment.describe(),
        environment_key=environment.key(),
        reference=subjects.against,
        data=subjects.data,
        split=settings.split,
        warnings=tuple(warnings_of(tables)),
        details={"scenarios": tables, **details},
    )
    evidence.write(found, scratch)
    for scenario, systems in samples.items():
        for name, values_N in systems.items():
            np.save(scratch / f"{scenario}.{name}.npy", values_N, allow_pickle=False)
    return {"metrics": [asdict(metric) for metric in found.metrics], "warnings": list(found.warnings)}
