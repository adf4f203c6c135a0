"""One trial: a recipe carried out, exported, scored on the validation rows and timed in turn with the original.

N rounds
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import yaml
from filelock import FileLock

from deploykit import commands
from deploykit.artifact import Artifact, read
from deploykit.check import latency
from deploykit.check.closed_loop import TURN, UNTIMED
from deploykit.check.latency import Milliseconds, Rounds
from deploykit.check.ratio import ratio_of_interleaved
from deploykit.check.statistics import metric_drop
from deploykit.compress import waterfall
from deploykit.data import Split
from deploykit.environment import cache_dir
from deploykit.export.export import Export
from deploykit.recipe import recipe_of
from deploykit.runtime.model import Model
from deploykit.stage import Stage, settings_of
from deploykit.tasks import Score, task_named

COMPRESSED, MODEL, RECIPE = "compressed", "model", "recipe.yaml"
ORIGINAL = "original"
MEDIAN = 0.5
_ROUNDS = Rounds(count=300, warm_up=20, seconds=5.0, untimed=UNTIMED, turn=TURN)
_BATCH_SIZE = 32


@dataclass(frozen=True)
class Subject:
    """What every trial starts from and is compared with."""

    checkpoint: Artifact
    original: Artifact
    """The checkpoint, exported in fp32."""
    data: Artifact
    split: Split
    """The validation rows; the final choice is confirmed on others."""
    export: Export
    threads: int | None
    """Of a model that is timed."""
    score: Score = field(repr=False)
    """The original's."""


@dataclass(frozen=True)
class Outcome:
    """What a recipe gave on the validation rows."""

    metric: float
    drop: float
    drop_low: float
    drop_high: float
    """With `drop_low` the 95% interval, rows resampled in pairs."""
    drop_upper: float
    """The one-sided 95% bound of the same."""
    pace: float
    """Median latency of one row over the original's, measured in turn with it."""
    pace_low: float | None
    pace_high: float | None
    num_bytes: int
    dropped: Sequence[int] = ()
    """Which stages of the recipe, counted from 0, gained nothing and are not in the model."""


def try_recipe(subject: Subject, stages: Sequence[Stage], folder: Path) -> Outcome:
    """Carry a recipe out and measure its model; see `carry_out`."""
    found = measured(subject, carry_out(subject, stages, folder))
    return replace(found, dropped=_dropped(subject, stages, folder)) if stages else found


def carry_out(subject: Subject, stages: Sequence[Stage], folder: Path) -> Artifact:
    """Make a recipe's checkpoint and model in `folder`, the recipe beside them; return the model.

    Stages are kept in the cache, so that what was made once is only copied and exported.

    Raises:
        GateFailed: a stage missed its target: what it made instead is another recipe's model.
        DeploykitError: whatever a stage raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE).write_text(recipe_text(stages), encoding="utf-8")
    compressed = subject.checkpoint.path
    if stages:
        out = folder / COMPRESSED
        compressed = commands.compress(compressed, stages, data=subject.data.path, out=out, force=True).path
        waterfall.require_reached(waterfall.read(compressed), compressed, "ask for less")
    return commands.export(compressed, subject.export, out=folder / MODEL, force=True)


def _dropped(subject: Subject, stages: Sequence[Stage], folder: Path) -> tuple[int, ...]:
    before, after = (made.facts.get(waterfall.DROPPED, ()) for made in (subject.checkpoint, read(folder / COMPRESSED)))
    gone = [(row["stage"], row["settings"]) for row in after[len(before) :]]
    return tuple(index for index, each in enumerate(stages) if (each.verb, settings_of(each)) in gone)


def measured(subject: Subject, model: Artifact) -> Outcome:
    """Score a model on the validation rows and time it in turn with the original."""
    found = score_of(model.path, subject.split)
    drop = metric_drop(subject.score.row_stats, found.row_stats, subject.score.statistic)
    samples = timed({MODEL: model.path, ORIGINAL: subject.original.path}, subject.split, subject.threads)
    pace = ratio_of_interleaved(samples[MODEL], samples[ORIGINAL], MEDIAN)
    size = next(int(metric["value"]) for metric in model.facts["metrics"] if metric["name"] == "size_bytes")
    metric = found.metrics[0].value
    return Outcome(metric, drop.value, drop.low, drop.high, drop.upper, pace.value, pace.low, pace.high, size)


def recipe_text(stages: Sequence[Stage]) -> str:
    """Write a recipe that `deploykit compress --recipe` reads."""
    items = recipe_of(stages)
    return yaml.safe_dump({"stages": items}, sort_keys=False, default_flow_style=None) if items else "stages: []\n"


def score_of(model: Path, split: Split) -> Score:
    """Score an exported model on labelled rows."""
    opened = Model.open(model)
    task = task_named(opened.info.task)
    encodings = task.encode(opened.tokenizer, split.rows)
    logits = opened.logits(encodings, _BATCH_SIZE)
    return task.score(logits, task.targets(split, encodings, opened.info.labels), opened.info.labels)


def timed(
    models: Mapping[str, Path], split: Split, threads: int | None, rounds: Rounds = _ROUNDS
) -> dict[str, Milliseconds]:
    """Time models in turn, one row a call: per model (N). One process times at a time on this machine."""
    order = np.random.default_rng(0).permutation(len(split.rows))
    rows = [split.rows[index] for index in order]
    calls = {name: _on_one(Model.open(path, threads=threads), rows) for name, path in models.items()}
    cache_dir().mkdir(parents=True, exist_ok=True)
    with FileLock(cache_dir() / "timing.lock"):
        return latency.interleaved(calls, rounds)


def _on_one(model: Model, rows: Sequence[Mapping[str, object]]) -> Callable[[int], object]:
    return lambda index: model.predict([rows[index % len(rows)]])
