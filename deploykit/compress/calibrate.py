"""Static int8: each activation tensor's range, decided on calibration rows once and for all.

Two passes over the rows: the lowest and highest value of every tensor, then a histogram between them. A method picks
the magnitude t at which values are cut, so that the range is [max(low, -t), min(high, t)], always with zero inside:

    minmax      nothing is cut
    percentile  0.01% of the magnitudes are
    entropy     the 256 levels lose the least information (Migacz 2017, "8-bit inference with TensorRT")
    mse         the mean squared error of rounding and cutting is least

    B bins   M tokens   I inputs
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deploykit import checkpoint as checkpoints
from deploykit.checkpoint import Checkpoint, Quantization
from deploykit.compress.activations import watched
from deploykit.compress.fake_quant import quantized_names
from deploykit.errors import DataError
from deploykit.spec import Activation
from deploykit.train.labelled import Labelled

Calibration = Literal["minmax", "percentile", "entropy", "mse"]
CALIBRATIONS: tuple[str, ...] = get_args(Calibration)

_BINS = 2048
_CANDIDATES = 128
_PERCENTILE = 0.9999
_LEVELS = 255
FEWEST_ROWS = 32
"""Fewer rows say more about themselves than about the task."""
_STRANGE, _TOO_STRANGE = 0.01, 0.1
"""Shares of tokens outside the range of all calibration tokens: of the same kind, one of M would be two in M."""


@dataclass(frozen=True)
class Histogram:
    """The values that one tensor takes."""

    low: float
    high: float
    """The lowest and highest value, and zero; equal only where all are zero."""
    counts: NDArray[np.int64]
    """(B,): how many values lie in each of equal bins from low to high."""

    @property
    def centers(self) -> NDArray[np.float64]:
        """The middle of each bin (B,)."""
        width = (self.high - self.low) / len(self.counts)
        return np.asarray(self.low + width * (np.arange(len(self.counts)) + 0.5), np.float64)


def calibrated(source: Checkpoint, rows: Labelled, quantization: Quantization, method: Calibration) -> Quantization:
    """Decide every quantized module's activation range on rows.

    Args:
        source: in float, its last layer reduced as it will be exported (`first_token`).
        rows: calibration rows.
        quantization: which modules are quantized.
        method: how a range is picked.

    Raises:
        DataError: there are too few rows.
    """
    require_enough(rows)
    found = histograms(source, rows, quantized_names(source.model, quantization))
    activations = tuple(activation(name, *cut(histogram, method)) for name, histogram in found.items())
    return replace(quantization, activations=activations)


def histograms(source: Checkpoint, rows: Labelled, names: Sequence[str]) -> dict[str, Histogram]:
    """Count the values of each module's input, padding left out."""
    ranges = observed_ranges(source, rows, names)
    counts = {name: torch.zeros(_BINS, dtype=torch.float64) for name in names}

    def count(name: str, x_MI: Tensor) -> None:
        low, high = ranges[name]
        counts[name] += torch.histc(x_MI, _BINS, low, high if high > low else low + 1.0).double()

    with watched(source.model, names, count):
        checkpoints.logits(source, rows.encodings)
    return {name: Histogram(*ranges[name], counts[name].numpy().astype(np.int64)) for name in names}


def observed_ranges(source: Checkpoint, rows: Labelled, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return the lowest and highest value of each module's input; zero is always within."""
    ranges = dict.fromkeys(names, (0.0, 0.0))

    def widen(name: str, x_MI: Tensor) -> None:
        low, high = ranges[name]
        ranges[name] = min(low, float(x_MI.min())), max(high, float(x_MI.max()))

    with watched(source.model, names, widen):
        checkpoints.logits(source, rows.encodings)
    return ranges


def cut(histogram: Histogram, method: Calibration) -> tuple[float, float]:
    """Pick the range to quantize by a method; where several are as good, the widest."""
    peak = max(-histogram.low, histogram.high)
    magnitudes = peak * np.arange(_CANDIDATES, 0, -1) / _CANDIDATES
    match method:
        case "minmax":
            return histogram.low, histogram.high
        case "percentile":
            return _within(histogram, _percentile(histogram))
        case "entropy":
            losses = [_information_lost(histogram, *_within(histogram, t)) for t in magnitudes]
        case "mse":
            losses = [_squared_error(histogram, *_within(histogram, t)) for t in magnitudes]
    return _within(histogram, float(magnitudes[int(np.argmin(losses))]))


def activation(name: str, low: float, high: float) -> Activation:
    """Return the scale and zero point that map [low, high], with zero inside, to 0..255."""
    scale = np.float32((high - low) / _LEVELS)
    if not scale > 0:
        return Activation(name, 1.0, 0)
    return Activation(name, float(scale), int(np.clip(np.rint(-low / float(scale)), 0, _LEVELS)))


def strangers(source: Checkpoint, rows: Labelled, fresh: Labelled, names: Sequence[str]) -> tuple[str, float]:
    """Return the module into which most fresh tokens bring values beyond all that calibration saw, and their share."""
    ranges = observed_ranges(source, rows, names)
    outside, seen = dict.fromkeys(names, 0), dict.fromkeys(names, 0)

    def count(name: str, x_MI: Tensor) -> None:
        low, high = ranges[name]
        outside[name] += int(((x_MI < low) | (x_MI > high)).any(dim=1).sum())
        seen[name] += len(x_MI)

    with watched(source.model, names, count):
        checkpoints.logits(source, fresh.encodings)
    shares = {name: outside[name] / max(seen[name], 1) for name in names}
    worst = max(shares, key=lambda name: shares[name])
    return worst, shares[worst]


def require_kindred(source: Checkpoint, rows: Labelled, fresh: Labelled, quantization: Quantization) -> list[str]:
    """Check that fresh rows stay within what calibration rows show; return warnings.

    Raises:
        DataError: the rows are of another kind.
    """
    name, share = strangers(source, rows, fresh, quantized_names(source.model, quantization))
    found = f"{share:.1%} of the tokens of {fresh.file.name} bring values into {name} that no calibration row does"
    if share > _TOO_STRANGE:
        raise DataError(
            rows.file,
            expected=f"calibration rows of the kind of {fresh.file.name}",
            found=found,
            next_step="calibrate on rows like those that the model will see, or use scheme dynamic-int8",
        )
    return [f"calibration: {found}; more rows would help"] if share > _STRANGE else []


def require_enough(rows: Labelled) -> None:
    """Check that there are rows enough to calibrate on.

    Raises:
        DataError: there are not.
    """
    if len(rows.encodings) < FEWEST_ROWS:
        raise DataError(
            rows.file,
            expected=f"at least {FEWEST_ROWS} rows to calibrate on",
            found=str(len(rows.encodings)),
            next_step="add rows, or use a method that needs none",
        )


def _within(histogram: Histogram, magnitude: float) -> tuple[float, float]:
    return max(histogram.low, -magnitude), min(histogram.high, magnitude)


def _percentile(histogram: Histogram) -> float:
    """Return the magnitude that the given share of values does not exceed, to the bin."""
    magnitudes = np.abs(histogram.centers)
    order = np.argsort(magnitudes)
    reached = np.cumsum(histogram.counts[order]) >= _PERCENTILE * histogram.counts.sum()
    half_width = (histogram.high - histogram.low) / len(histogram.counts) / 2
    return float(magnitudes[order][int(reached.argmax())] + half_width)


def _levels(histogram: Histogram, low: float, high: float) -> NDArray[np.int64]:
    """Return the level that each bin is rounded or cut to (B,)."""
    step = (high - low) / _LEVELS or 1.0
    return np.clip(np.rint((histogram.centers - low) / step), 0, _LEVELS).astype(np.int64)


def _squared_error(histogram: Histogram, low: float, high: float) -> float:
    values = low + _levels(histogram, low, high) * (high - low) / _LEVELS
    return float((histogram.counts * (histogram.centers - values) ** 2).sum())


def _information_lost(histogram: Histogram, low: float, high: float) -> float:
    """Return the divergence of the levels' distribution from that of the values cut at low and high, in nats."""
    centers, levels = histogram.centers, _levels(histogram, low, high)
    inside = (centers >= low) & (centers <= high)
    if not inside.any():
        return np.inf
    first, last = np.flatnonzero(inside)[[0, -1]]
    kept = np.where(inside, histogram.counts, 0).astype(np.float64)
    cut_off = kept.copy()
    cut_off[first] += histogram.counts[:first].sum()
    cut_off[last] += histogram.counts[last + 1 :].sum()
    filled = cut_off > 0
    sums = np.bincount(levels[filled], kept[filled], _LEVELS + 1)
    shares = np.bincount(levels[filled], minlength=_LEVELS + 1)
    spread = sums[levels] / np.maximum(shares[levels], 1)
    p, q = cut_off[filled] / cut_off.sum(), spread[filled] / max(kept.sum(), 1.0)
    return float((p * np.log(p / np.maximum(q, 1e-12))).sum())
