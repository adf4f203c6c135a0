"""Search the recipes of a pipeline for the fastest model within a budget; what lies in OUT is told in `front`.

A pipeline's stages are where the search starts from, its section `search` says what may be tried. Everything is
measured on validation rows; the chosen model is then validated on the pipeline's `validate.split`, which no trial saw.
A search that was stopped, or killed, goes on where it was; so does one that is asked for again with more trials.
"""

import multiprocessing
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from deploykit import artifact, checkpoint, environment, evidence, families, processes, stage
from deploykit.artifact import Artifact
from deploykit.check.bench import Bench
from deploykit.check.ratio import percentile
from deploykit.data import open_dataset
from deploykit.errors import BUG, OutputExists, RecipeError
from deploykit.evidence import Evidence, Gate, Metric, Verdict
from deploykit.families import Structure
from deploykit.pipeline import PipelineSteps
from deploykit.recipe import Pipeline
from deploykit.search import confirm
from deploykit.search.choose import Budget, Point
from deploykit.search.front import BEST, FILE, FORMAT, gates_of, record_of, write
from deploykit.search.settings import SearchSettings
from deploykit.search.space import Facts, space_of
from deploykit.search.study import open_storage
from deploykit.search.trial import MEDIAN, MODEL, ORIGINAL, Subject, score_of, timed
from deploykit.search.worker import Job, Say, work
from deploykit.tasks import task_named

SPLIT = "validation"


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    model: Artifact
    """The best model; its checkpoint and its recipe lie beside it."""
    gates: tuple[Gate, ...]
    metrics: tuple[Metric, ...]
    warnings: tuple[str, ...]
    record: dict[str, Any]
    """As pareto.json."""
    report: Path | None
    """The folder of the report, where the pipeline asks for one."""

    @property
    def verdict(self) -> Verdict:
        """The worst of the gates."""
        return evidence.overall(self.gates)


def search(pipeline: Pipeline, out: Path, settings: SearchSettings, *, say: Say) -> Found:
    """Try recipes until the budget of trials or minutes is spent, then choose and confirm.

    Raises:
        OutputExists: `out` holds something else.
        UsageError: `out` holds a search under other conditions, or several processes were started to do it.
        DeploykitError: whatever is not the fault of one recipe.
    """
    processes.require_one("deploykit search")
    until = time.time() + 60 * settings.minutes if settings.minutes else None
    _claim(out)
    with _threads(settings.workers):
        job = _prepared(pipeline, out, settings, until, say)
        with _helpers(pipeline, out, settings, until, say):
            work(job, say)
        if settings.workers > 1:
            work(job, say)  # what a worker that died has left
    return _concluded(pipeline, job, say)


def _claim(out: Path) -> None:
    if out.exists() and any(out.iterdir()) and not (out / ".trials").is_dir():
        raise OutputExists(
            out, expected="a new folder, or a search's", found="another", next_step="choose another --out"
        )
    (out / ".trials").mkdir(parents=True, exist_ok=True)


def _prepared(pipeline: Pipeline, out: Path, settings: SearchSettings, until: float | None, say: Say) -> Job:
    """Make what all trials share, once, whichever process comes first."""
    with FileLock(out / ".prepare.lock"):
        subject, structure = _subject(pipeline, out, say)
    facts = Facts(structure, pipeline.export.provider, pipeline.export.precision)
    space = space_of(facts, pipeline.compress, pipeline.search)
    identity = {
        "format": FORMAT,
        "checkpoint": subject.checkpoint.digest,
        "data": subject.data.digest,
        "export": stage.settings_of(pipeline.export),
        "search_space": space.described(),
        "machine_or_runtime": environment.key(),
        "threads": subject.threads,
    }
    storage = open_storage(out, space, settings.seed, identity, lambda: _original_ms(subject))
    with storage.alone():
        storage.begin(space.gentlest(), pipeline.compress)
    max_drop = pipeline.validate.max_drop if settings.max_drop is None else settings.max_drop
    num_rows = len(task_named(pipeline.task).read(subject.data.path, "train").rows)
    return Job(subject, storage, Budget(max_drop, settings.target_ms), settings.most, until, num_rows)


def _subject(pipeline: Pipeline, out: Path, say: Say) -> tuple[Subject, Structure]:
    """Fine-tune where asked, export the original and score it; return its structure too."""
    data = open_dataset(pipeline.data)
    task = task_named(pipeline.task)
    split = task.read(data.path, SPLIT)
    if task.read(data.path, pipeline.validate.split).file == split.file:
        raise RecipeError(
            "validate.split", expected="a split that the search does not see", found=SPLIT, next_step="name another"
        )
    steps = PipelineSteps(pipeline, out, say, force=False)
    original = steps.checkpoint()
    exported = steps.exported_original(original)
    threads = pipeline.bench.threads if pipeline.bench else None
    subject = Subject(original, exported, data, split, pipeline.export, threads, score_of(exported.path, split))
    return subject, families.structure_of(checkpoint.load(original, task.name).model)


def _original_ms(subject: Subject) -> float:
    samples = timed({ORIGINAL: subject.original.path}, subject.split, subject.threads)
    return percentile(samples[ORIGINAL], MEDIAN)


def _concluded(pipeline: Pipeline, job: Job, say: Say) -> Found:
    """Choose, confirm and seal."""
    storage, subject, budget = job.storage, job.subject, job.budget
    with storage.alone():
        say("the finalists, measured together with the original")
        best = confirm.settle(storage, subject, budget)
        record = record_of(storage, subject, budget, best)
        write(storage.out, record, best)
    model = artifact.read((storage.out / BEST).resolve() / MODEL)
    confirm.discard_others(storage.out, model)
    gates = gates_of(best, budget, record["metric"])
    confirm.seal(storage.out, model, subject, record, gates)
    say(f"the choice: {record['best']['reason']}")
    proof = None
    if budget.met(best):
        say(f"validate: trial {best.trial} on {pipeline.validate.split}, which the search never saw")
        proof = confirm.confirm(storage.out, subject, replace(pipeline.validate, max_drop=budget.max_drop))
    return _found(pipeline, job, model, best, proof, say)


def _found(pipeline: Pipeline, job: Job, model: Artifact, best: Point, proof: Evidence | None, say: Say) -> Found:
    out = job.storage.out
    warnings = list(proof.warnings) if proof else []
    failed = job.storage.failed().items()
    warnings += [f"trial {trial}: {reason}" for trial, reason in failed if reason.startswith(BUG)]
    if proof and (looks := job.storage.confirmed(model.digest)) > 1:
        warnings.append(
            f"{looks} models were confirmed on {proof.split} in this search: the last verdict is a little kind"
        )
    report = _reported(pipeline, job.subject, model, out, say) if proof and pipeline.report else None
    speed = Metric("p50_ms", best.ms, "ms", "lower")
    seen = Metric(f"validation_{job.subject.score.metrics[0].name}", best.metric, n=len(job.subject.split.rows))
    metrics = (*(proof.metrics if proof else (seen, Metric("size_bytes", best.num_bytes, "bytes", "lower"))), speed)
    gates = (*gates_of(best, job.budget, job.subject.score.metrics[0].name), *(proof.gates if proof else ()))
    record = artifact.read_json(out / FILE)
    return Found(model, gates, metrics, tuple(warnings), record, report)


def _reported(pipeline: Pipeline, subject: Subject, model: Artifact, out: Path, say: Say) -> Path | None:
    """Write the report of the best against the original, with the evidence that it needs."""
    bench = pipeline.bench or Bench(scenarios=("single",))
    steps = PipelineSteps(replace(pipeline, bench=bench), out, say, force=False)
    steps.latency(model, steps.original_model(subject.checkpoint))
    made = steps.report()
    return made.path if made else None


@contextmanager
def _threads(workers: int) -> Iterator[None]:
    """Share the processor among the workers while they train."""
    before = torch.get_num_threads()
    if workers > 1:
        torch.set_num_threads(max(1, environment.num_cores() // workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _helpers(pipeline: Pipeline, out: Path, settings: SearchSettings, until: float | None, say: Say) -> Iterator[None]:
    """Have the other workers run; they end by themselves, or with this process."""
    context = multiprocessing.get_context("spawn")
    asked = [(pipeline, out, settings, until, index) for index in range(2, settings.workers + 1)]
    started = [context.Process(target=_help, args=arguments, daemon=True) for arguments in asked]
    for process in started:
        process.start()
    try:
        yield
        for process in started:
            process.join()
            if process.exitcode:
                say(f"a worker ended with exit status {process.exitcode}")
    finally:
        for process in started:
            process.terminate()


def _help(pipeline: Pipeline, out: Path, settings: SearchSettings, until: float | None, index: int) -> None:
    """Work beside the first worker, until it is gone."""

    def say(line: str) -> None:
        print(f"[{index}] {line}", file=sys.stderr, flush=True)

    first = multiprocessing.parent_process()
    with _threads(settings.workers):
        work(_prepared(pipeline, out, settings, until, say), say, lambda: first is not None and first.is_alive())
