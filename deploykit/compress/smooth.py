"""Smooth: move the range of activations into weights, where int8 has a scale for every channel (SmoothQuant).

Xiao et al. 2023, "SmoothQuant", equation 4: channel j of an activation is divided by
s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), and the weights that read it are multiplied by s_j. The model computes
what it did; the activation, which int8 gives one scale, has smaller outliers.

The division must fold into what makes the activation. The paper folds it into the norm before query, key, value and the
first feed-forward matrix, which needs a norm that nothing else reads. In the families here norms come after the
residual sum and the next residual reads them too, so dividing there would take a multiplication of every token at run
time. What folds exactly is the value matrix: attention mixes tokens and never channels, so 1/s_j goes into the rows of
the value matrix, whose int8 scales are by row anyway, and s_j into the columns of the attention's output matrix.

    A heads * head size   M tokens
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deploykit import checkpoint as checkpoints
from deploykit import families
from deploykit.artifact import Artifact, Kind
from deploykit.checkpoint import Checkpoint
from deploykit.compress import waterfall
from deploykit.compress.activations import watched
from deploykit.compress.calibrate import require_enough
from deploykit.compress.source import load_float
from deploykit.train.labelled import Labelled, read_labelled

_LEAST = 1e-5
"""Channels are taken to reach at least this, so that a dead one gives no infinite factor."""


@dataclass(frozen=True)
class Smooth:
    """Move outliers of the attention's context into the output matrices; in float nothing changes."""

    alpha: float = 0.5
    """How much of the difficulty moves: 0 evens out the weights, 1 the activations."""
    calibration_rows: int = 512
    """Training rows that the activations are observed on."""

    verb: ClassVar[str] = "smooth"
    reads: ClassVar[tuple[Kind, ...]] = ("checkpoint", "dataset")
    makes: ClassVar[Kind] = "checkpoint"
    resumes: ClassVar[bool] = False
    judged_later: ClassVar[bool] = True
    """Whether it was worth it, `compress` asks of the quantization right after it: in float nothing changes."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: one is out of range.
        """
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be from 0 to 1, not {self.alpha}")
        if self.calibration_rows < 1:
            raise ValueError(f"calibration_rows must be at least 1, not {self.calibration_rows}")

    def __call__(self, *sources: Artifact, scratch: Path) -> Mapping[str, Any]:
        """Write the smoothed checkpoint.

        Raises:
            UsageError: a quantization is decided already.
            DataError: there are too few rows.
        """
        source, data = sources
        made, before = load_float(source, self.verb), load_float(source, self.verb)
        rows = read_labelled(made, data, "train").sample(self.calibration_rows, 0)
        require_enough(rows)
        smooth(made, rows, self.alpha)
        validation = read_labelled(before, data, "validation")
        return waterfall.finish(made, (source, before), validation, self, scratch)


def smooth(source: Checkpoint, rows: Labelled, alpha: float) -> None:
    """Smooth the context of every layer's attention, in place."""
    names = {id(module): name for name, module in source.model.named_modules()}
    blocks = families.blocks(source.model)
    peaks = peak_of_channels(source, rows, [names[id(block.attention_output)] for block in blocks])
    for block, peak_A in zip(blocks, peaks.values(), strict=True):
        fold(block.value, block.attention_output, smoothing_factors(peak_A, block.attention_output.weight, alpha))


def peak_of_channels(source: Checkpoint, rows: Labelled, names: list[str]) -> dict[str, Tensor]:
    """Return the largest magnitude of each channel of each module's input (A,), padding left out."""
    peaks: dict[str, Tensor] = {}

    def widen(name: str, x_MA: Tensor) -> None:
        peak_A = x_MA.abs().amax(dim=0)
        peaks[name] = torch.maximum(peaks[name], peak_A) if name in peaks else peak_A

    with watched(source.model, names, widen):
        checkpoints.logits(source, rows.encodings)
    return {name: peaks[name] for name in names}


def smoothing_factors(peak_A: Tensor, weight_HA: Tensor, alpha: float) -> Tensor:
    """Return what each channel is divided by (A,): equation 4."""
    reached_A = weight_HA.detach().abs().amax(dim=0).clamp(min=_LEAST)
    return peak_A.clamp(min=_LEAST) ** alpha / reached_A ** (1 - alpha)


@torch.no_grad()
def fold(value: nn.Linear, output: nn.Linear, factors_A: Tensor) -> None:
    """Divide the channels between two matrices by factors, in the matrices, in place."""
    value.weight.div_(factors_A[:, None])
    if value.bias is not None:
        value.bias.div_(factors_A)
    output.weight.mul_(factors_A)
