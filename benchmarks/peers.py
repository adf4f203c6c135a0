"""deploykit's models beside PyTorch, torch.compile, ONNX Runtime and OpenVINO: speed, with accuracy beside every speed.

    python -m benchmarks.peers CHECKPOINT --model ONNX_DIR [--model ...] --data D [--threads 2 1] [--rows 300] [--out F]

All systems answer the same rows of the test split, in one interleaved run (see `benchmarks.interleave`), on a fixed
number of threads. `batch 1` is one text per call at its own length: tokenize, run, decode, with the model alone beside
it; median over the rows. `offline` is the whole test split in length-sorted batches of 32, one batch at a time; its
answers give the accuracy. Every system tokenizes and decodes with the same code. Compilers and caches by shape are
warmed up apart. Ratios are speeds: 2 means twice as fast; intervals are 95%, bootstrapped over pairs of samples.

The best int8 peer is the fastest one, whatever its accuracy. A peer that cannot be built or run is named with its
reason. Run it on an idle machine: `load_before` in the JSON tells how busy it was, and a second load on the same cores
slows PyTorch far more than the others. The peers need `pip install deploykit[peers]`. Prints a table, then one line of
JSON; `--out` keeps the JSON, from which `benchmarks.readme` makes the README's table.
"""

import argparse
import contextlib
import dataclasses
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import table
from benchmarks.interleave import Batch, Samples, Schedule, interleave, total, warm_up
from benchmarks.systems import BASELINE, CALIBRATION_ROWS, PEERS, Peer, Row, Source, System, open_model, open_peer
from benchmarks.turns import report
from deploykit import environment
from deploykit.artifact import Artifact
from deploykit.check.latency import Clock
from deploykit.check.ratio import ratio_of_interleaved, ratio_of_sums
from deploykit.check.statistics import Interval, metric_drop, percentile
from deploykit.data import Split, open_dataset, read_split
from deploykit.runtime.batching import length_sorted_batches
from deploykit.runtime.tasks import decoder_of

if TYPE_CHECKING:
    from deploykit.tasks.task import Score

BATCH_SIZE = 32
SINGLE_TURN = 10
OFFLINE_TURN = 1
SEED = 0
PACKAGES = ("torch", "transformers", "onnxruntime-gpu", "onnxruntime", "openvino", "nncf", "olive-ai")


@dataclass(frozen=True)
class Question:
    """What every system is asked."""

    rows: Sequence[Row]
    """The test split."""
    single: Sequence[Batch]
    """One row each, a random sample."""
    offline: Sequence[Batch]
    """Length-sorted batches of the whole split."""
    score: Callable[[System, Samples], "Score"]
    """How good the answers of the offline run are."""


def compare(
    systems: Sequence[System],
    question: Question,
    clock: Clock,
    beside: Mapping[str, str] = MappingProxyType({}),
    baseline: str = BASELINE,
) -> dict[str, Any]:
    """Time the systems against each other; returns `systems` in their order, and `best_int8_peer` by scenario.

    Args:
        systems: at least one.
        question: what they answer.
        clock: seconds.
        beside: further references for the ratios: key to a system's name.
        baseline: the system whose metric and speed the others' are compared with, if it is among them.
    """
    single = interleave(systems, Schedule(question.rows, question.single, SINGLE_TURN, SEED), clock)
    offline = interleave(systems, Schedule(question.rows, question.offline, OFFLINE_TURN, SEED), clock)
    scores = {system.name: question.score(system, offline[system.name]) for system in systems}
    original = scores.get(baseline)
    rivals = [system.name for system in systems if (system.kind, system.precision) == ("peer", "int8")]
    best = {
        "single": min(rivals, key=lambda name: float(np.median(single[name].total_s)), default=None),
        "offline": min(rivals, key=lambda name: sum(offline[name].total_s), default=None),
    }

    def references(rival: str | None) -> Mapping[str, str | None]:
        return {"over_baseline": baseline, "over_best_int8_peer": rival, **beside}

    results = [
        {
            "name": system.name,
            "kind": system.kind,
            "precision": system.precision,
            "size_bytes": system.num_bytes,
            **_accuracy(scores[system.name], original),
            "single": _latency(single, system.name, references(best["single"])),
            "offline": _throughput(offline, system.name, references(best["offline"]), len(question.rows)),
        }
        for system in systems
    ]
    return {"best_int8_peer": best, "systems": results}


def _accuracy(score: "Score", original: "Score | None") -> dict[str, Any]:
    """Tell the metric, the share of the original's, and the drop with its interval, rows resampled in pairs."""
    metric = dataclasses.asdict(score.metrics[0])
    if original is None:
        return {"metric": metric, "kept": None, "drop": None}
    whole = original.metrics[0].value
    drop = metric_drop(original.row_stats, score.row_stats, original.statistic)
    kept = score.metrics[0].value / whole if whole else None
    return {"metric": metric, "kept": kept, "drop": {"value": drop.value, "low": drop.low, "high": drop.high}}


def _latency(samples: Mapping[str, Samples], name: str, references: Mapping[str, str | None]) -> dict[str, Any]:
    """Summarize calls of one row: medians, and how many times faster than the baseline and than the best int8 peer.

    `mean` says the same of all calls together, in which the rows that a cascade hands on have their weight.
    """
    own = np.asarray(samples[name].total_s)
    p50 = percentile(own * 1e3, 0.5)
    return {
        "p50_ms": p50.value,
        "low_ms": p50.low,
        "high_ms": p50.high,
        "p95_ms": percentile(own * 1e3, 0.95).value,
        "model_p50_ms": float(np.median(samples[name].model_s)) * 1e3,
        "n": len(own),
        **_ratios(samples, references, lambda other: ratio_of_interleaved(np.asarray(other.total_s), own, 0.5)),
        "mean": {
            "ms": float(own.mean()) * 1e3,
            "model_ms": float(np.mean(samples[name].model_s)) * 1e3,
            **_ratios(samples, references, lambda other: ratio_of_sums(np.asarray(other.total_s), own)),
        },
    }


def _throughput(
    samples: Mapping[str, Samples], name: str, references: Mapping[str, str | None], num_rows: int
) -> dict[str, Any]:
    """Summarize a pass over the whole split."""
    own = np.asarray(samples[name].total_s)
    seconds = total(samples[name].total_s)
    return {
        "rows_per_s": num_rows / seconds.value,
        "low_per_s": num_rows / seconds.high if seconds.high else None,
        "high_per_s": num_rows / seconds.low if seconds.low else None,
        "model_rows_per_s": num_rows / sum(samples[name].model_s),
        "n": len(own),
        **_ratios(samples, references, lambda other: ratio_of_sums(np.asarray(other.total_s), own)),
    }


def _ratios(
    samples: Mapping[str, Samples], references: Mapping[str, str | None], ratio_to: Callable[[Samples], Interval]
) -> dict[str, Any]:
    """Compare with each reference that ran."""
    others = {key: samples.get(name or "") for key, name in references.items()}
    return {key: dataclasses.asdict(ratio_to(other)) if other else None for key, other in others.items()}


def opened(
    peers: Sequence[Peer], source: Source, threads: int, question: Question
) -> tuple[list[System], list[dict[str, str]]]:
    """Build, open and warm up the peers; returns those that run, and the name and reason of each that does not."""
    systems, failed = [], []
    for peer in peers:
        try:
            systems.append(warm(open_peer(peer, source, threads), question))
        except Exception as error:  # noqa: BLE001 - whatever breaks a peer is a line of the result
            failed.append({"name": peer.name, "reason": " ".join(f"{type(error).__name__}: {error}".split())[:200]})
    return systems, failed


def warm(system: System, question: Question) -> System:
    """Have a system answer what it will be asked, once."""
    warm_up(system, question.rows, [*question.single, *question.offline])
    return system


def prepared(original: Artifact, data: Artifact, num_rows: int, folder: Path) -> tuple[Source, Question]:
    """Load what the peers are made from, in `folder`, and choose what all are asked.

    Raises:
        DeploykitError: the checkpoint or the data cannot be used.
    """
    from deploykit.checkpoint import load

    train, test = read_split(data.path, "train"), read_split(data.path, "test")
    calibration = random.Random(SEED).sample(train.rows, min(CALIBRATION_ROWS, len(train.rows)))  # noqa: S311
    source = Source(load(original), calibration, folder)
    return source, ask(source, test, num_rows)


def ask(source: Source, test: Split, num_rows: int) -> Question:
    """Choose what is timed and scored: a random sample one by one, and the whole split in batches."""
    from deploykit.tasks import task_named

    checkpoint = source.checkpoint
    task, rows = task_named(checkpoint.spec.task), test.rows
    lengths = [len(encoding.ids) for encoding in decoder_of(task.name).encode(checkpoint.tokenizer, rows)]
    sample = random.Random(SEED).sample(range(len(rows)), min(num_rows, len(rows)))  # noqa: S311 - not a secret

    def score(system: System, samples: Samples) -> "Score":
        encodings = system.encode(rows)
        targets = task.targets(test, encodings, checkpoint.labels)
        logits = [samples.logits[index] for index in range(len(rows))]
        return task.score(logits, targets, checkpoint.labels)

    batches = [batch.tolist() for batch in length_sorted_batches(lengths, BATCH_SIZE)]
    return Question(rows, [[index] for index in sample], batches, score)


def asked_of(original: Artifact, data: Artifact, source: Source, question: Question) -> dict[str, Any]:
    """Describe what all systems were asked, as JSON has it."""
    return {
        "task": source.checkpoint.spec.task,
        "checkpoint": {"name": original.path.resolve().name, "digest": original.digest},
        "data": {"name": data.path.resolve().name, "digest": data.digest, "split": "test", "rows": len(question.rows)},
        "batch_size": BATCH_SIZE,
    }


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do the whole comparison, for each number of threads, and return the result as JSON has it.

    Raises:
        DeploykitError: the checkpoint, a model of ours or the data cannot be used.
    """
    from deploykit.checkpoint import open_checkpoint

    load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    data, original = open_dataset(arguments.data), open_checkpoint(arguments.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        source, question = prepared(original, data, arguments.rows, Path(folder))
        runs = [_run_threads(source, arguments.model, threads, question) for threads in arguments.threads]
    return {
        "benchmark": "peers",
        **asked_of(original, data, source, question),
        "baseline": BASELINE,
        "environment": environment.describe() | {"packages": _versions()},
        "load_before": load_before,
        "runs": runs,
    }


def _run_threads(source: Source, models: Sequence[Path], threads: int, question: Question) -> dict[str, Any]:
    systems, failed = opened(PEERS, source, threads, question)
    systems += [warm(open_model(path, source.checkpoint, threads), question) for path in models]
    return {"threads": threads, **compare(systems, question, time.perf_counter), "failed": failed}


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", help="the fine-tuned original")
    parser.add_argument("--model", type=Path, action="append", required=True, help="what `deploykit export` wrote")
    parser.add_argument("--data", required=True, help="a folder with train and test")
    parser.add_argument("--threads", type=int, nargs="+", default=[2], help="one run for each number")
    parser.add_argument("--rows", type=int, default=300, help="how many texts are timed one by one")
    parser.add_argument("--out", type=Path, help="where the JSON is kept")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = _arguments(argv)
    return report(lambda: run(arguments), table.markdown, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
