"""Measure a latency table: export a few structures of a model, time them in turn in ONNX Runtime, keep the table.

The table lies in the cache under everything that decides it: the machine and its runtime, the model's sizes, the
precision, the threads, and the lengths of the user's rows. The same conditions give the same table, and so the same
pruned model, until the cache is emptied.
"""

import copy
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from filelock import FileLock
from pydantic import TypeAdapter
from torch import nn

import deploykit
from deploykit import artifact, environment, families
from deploykit.check.closed_loop import UNTIMED
from deploykit.check.latency import Call, Clock, Rounds, interleaved
from deploykit.checkpoint import Checkpoint
from deploykit.compress.first_token import reads_first_token
from deploykit.compress.latency_table import TOLERANCE, LatencyTable, fitted, plan
from deploykit.compress.slicing import slice_parts
from deploykit.export.write import Target, write_model
from deploykit.families import Structure
from deploykit.runtime.batching import blank
from deploykit.runtime.model import Model
from deploykit.runtime.model_info import Precision
from deploykit.runtime.tokenizer import Encoding
from deploykit.train import progress

_FORMAT = 5
_QUANTILES = 5
_ROUNDS = Rounds(count=200, warm_up=_QUANTILES, seconds=20.0, untimed=UNTIMED, turn=_QUANTILES)
_ATTEMPTS = 2
"""Something else may have run on the machine: a table that fails its check is measured once more."""


@dataclass(frozen=True)
class Conditions:
    """Under which conditions a model will answer, one row at a time, on the CPU."""

    precision: Precision
    threads: int
    lengths: tuple[int, ...]
    """Tokens: what stands in the middle of each fifth of the user's rows."""


def conditions(encodings: Sequence[Encoding], precision: Precision, threads: int | None) -> Conditions:
    """Read the conditions off a sample of rows."""
    lengths = [len(encoding.ids) for encoding in encodings]
    shares = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    middles = np.quantile(lengths, shares, method="inverted_cdf")
    return Conditions(precision, threads or environment.num_cores(), tuple(int(length) for length in middles))


def latency_table(checkpoint: Checkpoint, under: Conditions, multiple: int) -> LatencyTable:
    """Return a model's latency table, from the cache where it is there; takes about a minute where it is not.

    A table that fails its check is measured once more; one that fails again is not kept.
    """
    full, first_token = families.structure_of(checkpoint.model), reads_first_token(checkpoint.model)
    file = environment.cache_dir() / "latency-tables" / f"{_key(checkpoint, under, multiple)}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        if file.is_file():
            return TypeAdapter(LatencyTable).validate_json(file.read_bytes())
        for found in islice(measurements(checkpoint, plan(full, multiple), under), _ATTEMPTS):
            table = fitted(found, first_token=first_token)
            if table.error <= TOLERANCE:
                artifact.write_json(file.with_suffix(".partial"), asdict(table))
                file.with_suffix(".partial").replace(file)
                break
    return table


def _key(checkpoint: Checkpoint, under: Conditions, multiple: int) -> str:
    config = checkpoint.model.config
    family = families.FAMILIES[config.model_type]
    sizes = [config.model_type, getattr(config, family.hidden_size), families.head_size(checkpoint.model)]
    structure = asdict(families.structure_of(checkpoint.model))
    model = [*sizes, structure, getattr(config, family.activation), reads_first_token(checkpoint.model)]
    return artifact.digest_of([_FORMAT, deploykit.__version__, environment.key(), model, asdict(under), multiple])


def measurements(
    checkpoint: Checkpoint, structures: Sequence[Structure], under: Conditions, rounds: Rounds = _ROUNDS
) -> Iterator[dict[Structure, float]]:
    """Measure structures of a model, interleaved, as often as asked; they are exported once.

    What the weights are does not matter: the first parts stay, and stand in for those that a layer does not have.

    Yields:
        per structure the mean over the lengths of the median at that length, in milliseconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked = progress.through(structures, len(structures), "latency: structure")
        models = {each: _exported(checkpoint, each, under, Path(folder) / str(i)) for i, each in enumerate(asked)}
    calls = {each: _call(model, under.lengths) for each, model in models.items()}
    while True:
        yield timed(calls, len(under.lengths), rounds)


def timed(
    calls: Mapping[Structure, Call], num_lengths: int, rounds: Rounds, *, clock: Clock = time.perf_counter
) -> dict[Structure, float]:
    """Time calls of which round i has length i modulo `num_lengths`: per structure the mean of the lengths' medians."""
    keys = {str(index): each for index, each in enumerate(calls)}
    samples = interleaved({key: calls[each] for key, each in keys.items()}, rounds, clock=clock)
    return {
        each: float(np.mean([np.median(samples[key][start::num_lengths]) for start in range(num_lengths)]))
        for key, each in keys.items()
    }


def _exported(checkpoint: Checkpoint, structure: Structure, under: Conditions, folder: Path) -> Model:
    """Export the last layers of a model, cut down to a structure, and open it; the files are not needed any more."""
    folder.mkdir()
    probe = replace(checkpoint, model=copy.deepcopy(checkpoint.model))
    family = families.FAMILIES[probe.model.config.model_type]
    layers = families.layer_list(probe.model)[-len(structure.heads) :]
    getattr(probe.model, family.backbone).set_submodule(family.layers, nn.ModuleList(layers))
    setattr(probe.model.config, family.num_layers, len(layers))
    has = families.structure_of(probe.model)
    heads, neurons = (
        [np.arange(count) % there for count, there in zip(asked, present, strict=True)]
        for asked, present in ((structure.heads, has.heads), (structure.ffn, has.ffn))
    )
    slice_parts(probe.model, heads, neurons)
    write_model(probe, folder, Target("cpu", under.precision))
    model = Model.open(folder, threads=under.threads, many=False)
    shutil.rmtree(folder)
    return model


def _call(model: Model, lengths: Sequence[int]) -> Call:
    """Return a call that runs one row of the next length."""
    feeds = [blank(length, model.info.inputs) for length in lengths]
    return lambda index: model.run_feeds(feeds[index % len(feeds)])
