"""The waterfall: what each stage did to the metric, the parameters and the bytes.

`waterfall.json` of a compressed checkpoint holds its parent's rows and its own; the first row is the original.
The metric is the task's primary one on the validation split, with the arithmetic that will be exported.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

from deploykit import artifact
from deploykit.artifact import Artifact
from deploykit.checkpoint import Checkpoint, Quantization, num_parameters, save
from deploykit.compress.embeddings import is_tied, word_embeddings
from deploykit.compress.fake_quant import ROW_BLOCK, fake_quantize, quantized_names
from deploykit.errors import CheckpointError, GateFailed
from deploykit.evidence import Metric
from deploykit.spec import Embeddings
from deploykit.stage import Stage, settings_of
from deploykit.tasks import Score
from deploykit.train.labelled import Labelled, score

FILE = "waterfall.json"
ORIGINAL = "original"
DROPPED = "dropped"
"""The fact of a compressed checkpoint that lists the steps that were dropped on the way to it (see `worth`)."""

_RESAMPLES = 2000


@dataclass(frozen=True)
class Row:
    """One step of the waterfall."""

    stage: str
    """A stage's verb, or `original`."""
    settings: Mapping[str, Any]
    metric: str
    value: float
    low: float
    high: float
    """The 95% interval over rows of the validation split."""
    n: int
    parameters: int
    num_bytes: int
    """What the weights take as exported."""
    warnings: tuple[str, ...] = ()
    """What a user of the model should know of this step."""
    missed: str | None = None
    """The target that this step could not reach, and the nearest point, which it made."""


def finish(
    made: Checkpoint, parent: tuple[Artifact, Checkpoint], validation: Labelled, stage: Stage, folder: Path
) -> dict[str, Any]:
    """Write a stage's checkpoint and its waterfall into `folder`; return the facts.

    Args:
        made: the stage's result.
        parent: what the stage read.
        validation: the rows that judge both.
        stage: its verb and settings enter the row.
        folder: the payload.
    """
    return add(made, begun(parent, validation), measure(made, validation, stage.verb, settings_of(stage)), folder)


def begun(parent: tuple[Artifact, Checkpoint], validation: Labelled) -> list[dict[str, Any]]:
    """Return the rows up to what a stage read: its own waterfall, or the original's row, measured now."""
    source, before = parent
    return read(source.path) or [asdict(measure(before, validation, ORIGINAL, {}))]


def add(made: Checkpoint, rows: Sequence[Mapping[str, Any]], row: Row, folder: Path) -> dict[str, Any]:
    """Write a stage's checkpoint and its waterfall, `rows` and its own, into `folder`; return the facts."""
    save(made, folder)
    every = [*rows, asdict(row)]
    artifact.write_json(folder / FILE, every)
    primary = Metric(row.metric, row.value, low=row.low, high=row.high, n=row.n)
    return {
        "metrics": [asdict(primary), asdict(Metric("size_bytes", row.num_bytes, "bytes", "lower"))],
        "warnings": [*missed(every), *(warning for each in every for warning in each.get("warnings", ()))],
    }


def missed(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what the targets are that these steps could not reach; none where all is well."""
    return [each["missed"] for each in rows if each.get("missed")]


def require_reached(rows: Sequence[Mapping[str, Any]], where: object, next_step: str) -> None:
    """Check that every target of some steps was reached.

    Raises:
        GateFailed: one was not; the nearest point is named.
    """
    if found := missed(rows):
        raise GateFailed(where, expected="every target to be met", found="; ".join(found), next_step=next_step)


def read(folder: Path) -> list[dict[str, Any]]:
    """Read a checkpoint's waterfall; empty where it is an original."""
    return list(artifact.read_json(folder / FILE, CheckpointError)) if (folder / FILE).is_file() else []


def measure(checkpoint: Checkpoint, validation: Labelled, stage: str, settings: Mapping[str, Any]) -> Row:
    """Score a checkpoint as it will be exported, and count its parameters and bytes."""
    found = score(as_exported(checkpoint), validation)
    primary = found.metrics[0]
    low, high = interval(found)
    return Row(
        stage,
        settings,
        primary.name,
        primary.value,
        low,
        high,
        len(found.row_stats),
        sum(num_parameters(each.model) for each in checkpoint.parts),
        sum(exported_bytes(each.model, each.spec.quantization) for each in checkpoint.parts),
    )


def as_exported(checkpoint: Checkpoint) -> Checkpoint:
    """Return the reference of the exported model: fake-quantized where a quantization is decided."""
    if checkpoint.first is not None:
        checkpoint = replace(checkpoint, first=as_exported(checkpoint.first))
    if checkpoint.spec.quantization is None:
        return checkpoint
    model = copy.deepcopy(checkpoint.model)
    fake_quantize(model, checkpoint.spec.quantization)
    return replace(checkpoint, model=model)


def exported_bytes(model: PreTrainedModel, quantization: Quantization | None) -> int:
    """Count the bytes of the weights: 4 a parameter; where quantized, 1 or 1/2 a weight and each float32 scale."""
    num_bytes = 4 * num_parameters(model)
    if quantization is None:
        return num_bytes
    if quantization.scheme == "fp16":
        kept = [model.get_submodule(name) for name in quantization.keep_float]
        biases = [cast("nn.Linear", model.get_submodule(name)).bias for name in quantization.bf16]
        in_float = [*(tensor for module in kept for tensor in module.parameters()), *biases]
        return num_bytes // 2 + sum(2 * tensor.numel() for tensor in in_float if tensor is not None)
    for name in quantized_names(model, quantization):
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        num_bytes += _quantized_bytes(linear, quantization) - 4 * linear.weight.numel()
    if quantization.embeddings != "float32":
        table_VH = word_embeddings(model).weight
        num_bytes += _row_bytes(table_VH, quantization.embeddings) - (0 if is_tied(model) else 4 * table_VH.numel())
    return num_bytes


def _row_bytes(table_VH: Tensor, kind: Embeddings) -> int:
    """Count the bytes of a quantized table of word embeddings, and of its float32 scales."""
    if kind == "int8":
        return table_VH.numel() + 4 * len(table_VH)
    return table_VH.numel() // 2 + 4 * len(table_VH) * math.ceil(table_VH.shape[1] / ROW_BLOCK)


def _quantized_bytes(linear: nn.Linear, quantization: Quantization) -> int:
    if quantization.block_size is None:
        return linear.weight.numel() + 4 * linear.out_features
    num_blocks = linear.out_features * math.ceil(linear.in_features / quantization.block_size)
    return num_blocks * (quantization.block_size // 2 + 4)


def interval(found: Score, *, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a score's primary metric over its rows."""
    kinds, counts = np.unique(found.row_stats, axis=0, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(counts.sum(), counts / counts.sum(), size=_RESAMPLES)
    tail = (1 - level) / 2
    low, high = np.quantile(found.statistic(drawn @ kinds), [tail, 1 - tail])
    return float(low), float(high)
