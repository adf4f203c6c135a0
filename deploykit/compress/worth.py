"""Whether a step of compression is worth keeping: one that is neither smaller, better nor faster here is dropped.

The step's result is compared with what it was made from, the cheapest way first:

* smaller: the weights as exported take at least `LEAST_SAVING` fewer bytes; nothing is measured;
* better: it has more of the validation metric, by the paired 95% interval over rows;
* nearer: its answers diverge less from the original's, by more than `LEAST_NEARER`, likewise, and it has not measurably
  less of the metric. What a thousand rows cannot show of accuracy, they show of this;
* faster: both are exported and timed in turn, one row a call, on validation rows; the 95% interval of the ratio of
  their medians lies above 1. A sample is the mean of ten rows, so that what a cascade hands on has its weight.

The decision is kept in the cache under the result's digest and the machine: the same run again decides the same, and
no time enters a digest. What is smaller but slower is kept; `bench steps`, which times every step anyway, warns of it.

    N rounds
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from pydantic import TypeAdapter

import deploykit
from deploykit import artifact, checkpoint, environment, processes
from deploykit.artifact import Artifact
from deploykit.check import closed_loop
from deploykit.check.closed_loop import opened, shuffled
from deploykit.check.latency import Milliseconds, Rounds
from deploykit.check.ratio import ratio_of_interleaved, ratio_of_sums
from deploykit.check.statistics import Interval, metric_drop
from deploykit.compress import waterfall
from deploykit.compress.divergence import row_divergences
from deploykit.compress.reread import moved
from deploykit.data import Split
from deploykit.export.write import Target, write_model
from deploykit.tasks import task_named
from deploykit.tasks.task import Logits
from deploykit.train.labelled import Labelled, labelled

LEAST_SAVING = 0.01
"""Of the bytes: less is rather rounding than a reason to serve another model."""

LEAST_NEARER = 0.05
"""Of the divergence: a step that is to be served for it must have done more than stir the weights."""

_FORMAT = 3
_MEDIAN = 0.5
_ROUNDS = Rounds(count=400, warm_up=20, seconds=20.0, untimed=closed_loop.UNTIMED, turn=closed_loop.TURN)


@dataclass(frozen=True)
class Comparison:
    """A step's result beside what it was made from."""

    gain: Interval
    """Of the task's primary metric on the validation rows, in pairs; positive is better."""
    nearness: Interval | None
    """The divergence from the original's answers before over that after; None where nothing diverges, or it was not
    asked for as the gain was enough."""
    speedup: Interval | None
    """The median time of one row before over that after; None where it was not asked for."""

    @property
    def is_better(self) -> bool:
        """Whether it measurably has more of the metric, or is nearer to the original without having less."""
        if _above(self.gain, 0.0):
            return True
        is_worse = self.gain.high is not None and self.gain.high < 0
        return not is_worse and self.nearness is not None and _above(self.nearness, 1 / (1 - LEAST_NEARER))

    @property
    def is_worth_it(self) -> bool:
        """Whether it is measurably better or faster."""
        return self.is_better or (self.speedup is not None and _above(self.speedup, 1.0))


@dataclass(frozen=True)
class Judge:
    """What steps are judged by."""

    original: Artifact
    """The checkpoint that the first of them read."""
    data: Artifact
    """The validation rows."""


def dropped(before: Artifact, made: Artifact, judge: Judge) -> dict[str, Any] | None:
    """Judge a step that turned `before` into `made`; return the record of one that is dropped, else None.

    A step that missed its own target stays in sight: `compress` and `run` fail for it.

    Returns:
        JSON: the step's row of the waterfall, and `origin`, `num_bytes_before`, `gain`, `nearness` and `speedup`
        ({value, low, high}, `nearness` also null), `environment_key`, `processor`, and `reason`, which says it all in
        one line.
    """
    first, row = waterfall.read(made.path)[-2:]
    if row.get("missed") or is_smaller(first["num_bytes"], row["num_bytes"]):
        return None
    found = compared(before, made, judge)
    said = f"{row['stage']} was dropped, neither smaller, better nor faster"
    return None if found.is_worth_it else _record(made.node.origin, row, first, found, said)


def preparation_dropped(prepared: Artifact, without: Artifact, made: Artifact, judge: Judge) -> dict[str, Any] | None:
    """Judge a step that prepares a quantization by what the quantization made of it; else as `dropped`.

    Args:
        prepared: the step's result.
        without: the quantization of what the step read.
        made: the quantization of `prepared`.
        judge: what it is judged by.
    """
    first, row = waterfall.read(without.path)[-1], waterfall.read(made.path)[-1]
    if is_smaller(first["num_bytes"], row["num_bytes"]):
        return None
    found = compared(without, made, judge)
    step = waterfall.read(prepared.path)[-1]
    said = f"{step['stage']} was dropped, {row['stage']} after it neither smaller, better nor faster than without it"
    row = {**row, "stage": step["stage"], "settings": step["settings"]}
    return None if found.is_worth_it else _record(prepared.node.origin, row, first, found, said)


def _record(
    origin: str, row: Mapping[str, Any], first: Mapping[str, Any], found: Comparison, said: str
) -> dict[str, Any]:
    return {
        **row,
        "origin": origin,
        "num_bytes_before": first["num_bytes"],
        **asdict(found),
        "environment_key": environment.key(),
        "processor": environment.describe().get("processor"),
        "reason": f"{said}: {_reason(first, row, found)}",
    }


def is_smaller(before: int, now: int) -> bool:
    """Tell whether a number of bytes is smaller by enough to count."""
    return now <= (1 - LEAST_SAVING) * before


def compared(before: Artifact, made: Artifact, judge: Judge) -> Comparison:
    """Return the comparison of a step's result with what it was made from; measured once on this machine.

    Of several processes the first one measures.
    """
    key = artifact.digest_of([_FORMAT, deploykit.__version__, made.digest, judge.original.digest, environment.key()])
    file = environment.cache_dir() / "decisions" / f"{key}.json"
    if processes.is_first():
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if not file.is_file():
                artifact.write_json(file.with_suffix(".partial"), asdict(compare(before, made, judge)))
                file.with_suffix(".partial").replace(file)
    processes.wait()
    return TypeAdapter(Comparison).validate_json(file.read_bytes())


def compare(before: Artifact, made: Artifact, judge: Judge) -> Comparison:
    """Score two checkpoints on the validation rows and, unless the second is better, time them."""
    original, *loaded = (checkpoint.load(each) for each in (judge.original, before, made))
    task = task_named(original.spec.task)
    split = task.read(judge.data.path, "validation")
    rows = [labelled(each, split) for each in loaded]
    answers = [
        checkpoint.logits(waterfall.as_exported(each), own.encodings) for each, own in zip(loaded, rows, strict=True)
    ]
    first, second = (
        task.score(given, own.targets, each.labels) for given, own, each in zip(answers, rows, loaded, strict=True)
    )
    lost = metric_drop(second.row_stats, first.row_stats, first.statistic)  # by going back
    found = Comparison(Interval(lost.value, lost.low, lost.high), None, None)
    if not found.is_better:
        found = replace(found, nearness=nearness(original, labelled(original, split), rows, answers))
    if found.is_better:
        return found
    before_N, after_N = timed(loaded, split)
    return replace(found, speedup=ratio_of_interleaved(before_N, after_N, _MEDIAN))


def nearness(
    original: checkpoint.Checkpoint, asked: Labelled, rows: Sequence[Labelled], answers: Sequence[Sequence[Logits]]
) -> Interval | None:
    """Return how many times nearer to the original's answers the second model's are than the first's, rows in pairs.

    Args:
        original: whose answers count.
        asked: the rows as it reads them.
        rows: the same rows, as each of the two models reads them.
        answers: the logits of each.

    Returns:
        None where either of the two answers as the original does, or an answer is not finite.
    """
    theirs = checkpoint.logits(waterfall.as_exported(original), asked.encodings)
    first_N, second_N = (
        row_divergences(moved(asked, own.encodings, theirs, 0), given, own.targets)[:, 0]
        for own, given in zip(rows, answers, strict=True)
    )
    sums = first_N.sum(), second_N.sum()
    if not np.isfinite(sums).all() or min(sums) <= 0:
        return None
    return ratio_of_sums(first_N, second_N)


def timed(loaded: Sequence[checkpoint.Checkpoint], split: Split) -> list[Milliseconds]:
    """Export checkpoints for the CPU and time them in turn, one row a call: per checkpoint (N).

    The rows come as they are, so their lengths are the user's; one process times at a time on this machine.
    """
    systems = {}
    with tempfile.TemporaryDirectory() as folder:
        for index, each in enumerate(loaded):
            path = Path(folder) / str(index)
            path.mkdir()
            write_model(each, path, Target())
            systems[str(index)] = opened(path, split, None).predict
    with FileLock(environment.cache_dir() / "timing.lock"):
        return list(closed_loop.means_of_turns(systems, shuffled(split, 0), _ROUNDS).values())


def _reason(before: Mapping[str, Any], row: Mapping[str, Any], found: Comparison) -> str:
    assert found.speedup is not None
    near = f"{_in_words(found.nearness, '.3g')} times as near to the original, " if found.nearness else ""
    size = f"{before['num_bytes'] / 1e6:.4g} MB before and {row['num_bytes'] / 1e6:.4g} after"
    gain, speedup = _in_words(found.gain, "+.4f"), _in_words(found.speedup, ".3g")
    metric = f"{row['metric']} {gain} on validation"
    return f"{size}, {metric}, {near}{speedup} times as fast"


def _in_words(found: Interval, form: str) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:{form}} (too few rows to say more)"
    return f"{found.value:{form}} (95% {found.low:{form}} to {found.high:{form}})"


def _above(found: Interval, bound: float) -> bool:
    return found.low is not None and found.low > bound
