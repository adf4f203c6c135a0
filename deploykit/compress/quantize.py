"""Decide the quantization: which scheme, how many bits, and what stays in float.

The weights stay as they are, except that GPTQ puts them on the grid of int4.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from transformers import PreTrainedModel

from deploykit import artifact
from deploykit.artifact import Artifact, Kind
from deploykit.checkpoint import Checkpoint, Quantization
from deploykit.compress import waterfall
from deploykit.compress.calibrate import Calibration, calibrated, require_enough, require_kindred
from deploykit.compress.fake_quant import decide, decide_int4
from deploykit.compress.first_token import reduced
from deploykit.compress.gptq import round_weights
from deploykit.compress.half import decide_half, peaks_of
from deploykit.compress.sensitivity import Sensitivity, fewest_kept, sensitivities
from deploykit.compress.source import load_float
from deploykit.spec import Embeddings, Overflow, Scheme
from deploykit.train.labelled import Labelled, read_labelled, score

SENSITIVITY = "sensitivity.json"
"""What each matrix costs, the worst first, beside the weights; where `max_drop` asked for it."""
_SENSITIVITY_ROWS = 256
_CALIBRATION_ROWS = 512
_EFFECTIVE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "dynamic-int8": ("weight_bits",),
        "static-int8": ("weight_bits", "calibration", "calibration_rows"),
        "int4": ("block_size", "rounding", "calibration_rows"),
        "fp16": ("calibration_rows", "overflow"),
    }
)
"""Which of the settings that may be left out mean something to a scheme."""


@dataclass(frozen=True)
class Quantize:
    """Decide int8 (weights per output channel; activations by each batch's range, or calibrated), int4 weights or fp16.

    fp16 is for GPUs; modules whose values come near its end on training rows are fp32, or, the matrices, bf16.
    """

    scheme: Scheme = "dynamic-int8"
    weight_bits: Literal[7, 8] | None = None
    """int8 only. 7, the default, is exact on every processor; 8 saturates on those without VNNI (see `fake_quant`)."""
    keep_float: tuple[str, ...] = ()
    """Modules, relative to the model, whose matrices stay in float, besides the last one of the head."""
    embeddings: Embeddings = "int8"
    """Of the words: int8 with one scale a row, int4 with one for each 64 weights of a row, or float."""
    max_drop: float | None = None
    """How much of the task's primary metric int8 may cost on the validation rows, absolute: the matrices that cost
    most stay in float until it is met. None: every matrix is quantized, whatever it costs."""
    calibration: Calibration | None = None
    """static-int8 only: how a tensor's range is picked (see `calibrate`); None means mse."""
    calibration_rows: int | None = None
    """static-int8, gptq and fp16 only: training rows that are observed; None means 512."""
    block_size: Literal[32, 64, 128] | None = None
    """int4 only: weights that share a scale; None means 32."""
    rounding: Literal["nearest", "gptq"] | None = None
    """int4 only: to the nearest level, or by GPTQ on training rows; None means gptq."""
    overflow: Overflow | None = None
    """fp16 only: what takes a matrix that would overflow it; None means fp32. bf16 needs CUDA and compute 8.0."""

    verb: ClassVar[str] = "quantize"
    reads: ClassVar[tuple[Kind, ...]] = ("checkpoint", "dataset")
    makes: ClassVar[Kind] = "checkpoint"
    resumes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: one is out of range.
        """
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise ValueError(f"max_drop must be a share from 0 to 1, not {self.max_drop}")
        for name in ("weight_bits", "calibration", "calibration_rows", "block_size", "rounding", "overflow"):
            if getattr(self, name) is not None and name not in _EFFECTIVE[self.scheme]:
                raise ValueError(f"{name} has no effect with scheme {self.scheme}")
        if self.calibration_rows is not None and self.rounding == "nearest":
            raise ValueError("calibration_rows has no effect with rounding nearest")
        if self.calibration_rows is not None and self.calibration_rows < 1:
            raise ValueError(f"calibration_rows must be at least 1, not {self.calibration_rows}")
        if self.max_drop is not None and (self._rounds_by_gptq or self.scheme == "fp16"):
            raise ValueError("max_drop is for int8, and for int4 rounded to nearest")

    def __call__(self, *sources: Artifact, scratch: Path) -> Mapping[str, Any]:
        """Write the same weights with the decision in `deploykit.json`.

        Raises:
            UsageError: a module is unknown, or `max_drop` cannot be met.
        """
        source, data = sources
        before = load_float(source, self.verb)
        validation = read_labelled(before, data, "validation")
        decision, facts = self._decided(before, data, validation)
        if self.max_drop is not None:
            found = sensitivities(before, validation.sample(_SENSITIVITY_ROWS, 0), decision)
            decision = within(before, validation, decision, [one.name for one in found], self.max_drop)
            facts |= _write_sensitivity(found, decision, scratch)
        model = copy.deepcopy(before.model)
        made = replace(before, model=model, spec=replace(before.spec, quantization=decision))
        if self._rounds_by_gptq:
            round_weights(made, self._calibration_rows(before, data), decision)
        finished = waterfall.finish(made, (source, before), validation, self, scratch)
        return {**finished, **facts, "warnings": [*finished["warnings"], *facts.get("warnings", ())]}

    @property
    def _rounds_by_gptq(self) -> bool:
        return self.scheme == "int4" and self.rounding != "nearest"

    def _decided(self, before: Checkpoint, data: Artifact, validation: Labelled) -> tuple[Quantization, dict[str, Any]]:
        """Decide by the scheme; return facts too."""
        model = before.model
        match self.scheme:
            case "dynamic-int8":
                return self._decided_int8(model), {}
            case "static-int8":
                return self._calibrated(before, data, validation)
            case "int4":
                decision = decide_int4(model, block_size=self.block_size or 32, keep_float=self.keep_float)
                return replace(decision, embeddings=self.embeddings), {}
            case "fp16":
                peaks = peaks_of(before, self._calibration_rows(before, data))
                decision = decide_half(peaks, model, self.keep_float, self.overflow or "fp32")
                return decision, {"peaks": peaks, "keep_float": list(decision.keep_float), "bf16": list(decision.bf16)}

    def _decided_int8(self, model: PreTrainedModel) -> Quantization:
        decision = decide(model, weight_bits=self.weight_bits or 7, keep_float=self.keep_float)
        return replace(decision, scheme=self.scheme, embeddings=self.embeddings)

    def _calibrated(
        self, before: Checkpoint, data: Artifact, validation: Labelled
    ) -> tuple[Quantization, dict[str, Any]]:
        """Decide the activations' ranges on training rows; return warnings too."""
        decision, probe = self._decided_int8(before.model), reduced(before)
        rows = self._calibration_rows(before, data)
        warnings = require_kindred(probe, rows, validation.sample(_CALIBRATION_ROWS, 0), decision)
        return calibrated(probe, rows, decision, self.calibration or "mse"), {"warnings": warnings}

    def _calibration_rows(self, before: Checkpoint, data: Artifact) -> Labelled:
        """Draw training rows.

        Raises:
            DataError: there are too few.
        """
        rows = read_labelled(before, data, "train").sample(self.calibration_rows or _CALIBRATION_ROWS, 0)
        require_enough(rows)
        return rows


def within(
    source: Checkpoint, rows: Labelled, quantization: Quantization, worst_first: Sequence[str], max_drop: float
) -> Quantization:
    """Keep the fewest of the worst modules in float with which the rows' metric drops by at most `max_drop`.

    Raises:
        UsageError: no quantized module is cheap enough.
    """
    before = score(source, rows).metrics[0].value

    def keeping(names: Sequence[str]) -> Quantization:
        activations = tuple(one for one in quantization.activations if one.name not in names)
        return replace(quantization, keep_float=(*quantization.keep_float, *names), activations=activations)

    def drop_of(names: Sequence[str]) -> float:
        spec = replace(source.spec, quantization=keeping(names))
        return before - score(waterfall.as_exported(replace(source, spec=spec)), rows).metrics[0].value

    return keeping(fewest_kept(worst_first, drop_of, max_drop))


def _write_sensitivity(found: Sequence[Sensitivity], decision: Quantization, folder: Path) -> dict[str, Any]:
    """Write what each module costs and whether it stays in float; return the facts."""
    rows = [{**asdict(one), "keep_float": one.name in decision.keep_float} for one in found]
    artifact.write_json(folder / SENSITIVITY, rows)
    return {"sensitivity": rows, "keep_float": list(decision.keep_float)}
