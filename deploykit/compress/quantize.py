"""Decide the quantization: which scheme, how many bits, and what stays in float. The weights stay as they are."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from deploykit import artifact
from deploykit.artifact import Artifact, Kind
from deploykit.checkpoint import Checkpoint, Quantization
from deploykit.compress import waterfall
from deploykit.compress.fake_quant import decide
from deploykit.compress.sensitivity import Sensitivity, fewest_kept, sensitivities
from deploykit.compress.source import load_float
from deploykit.train.labelled import Labelled, read_labelled, score

SENSITIVITY = "sensitivity.json"
"""What each matrix costs, the worst first, beside the weights; where `max_drop` asked for it."""
_SENSITIVITY_ROWS = 256


@dataclass(frozen=True)
class Quantize:
    """Decide dynamic int8: activations by the range of each batch, weights per output channel."""

    scheme: Literal["dynamic-int8"] = "dynamic-int8"
    weight_bits: Literal[7, 8] = 7
    """7 is exact on every processor; 8 saturates on those without VNNI (see `fake_quant`)."""
    keep_float: tuple[str, ...] = ()
    """Modules, relative to the model, whose matrices stay in float, besides the last one of the head."""
    max_drop: float | None = None
    """How much of the task's primary metric int8 may cost on the validation rows, absolute: the matrices that cost
    most stay in float until it is met. None: every matrix is quantized, whatever it costs."""

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

    def __call__(self, *sources: Artifact, scratch: Path) -> Mapping[str, Any]:
        """Write the same weights with the decision in `deploykit.json`.

        Raises:
            UsageError: a module is unknown, or `max_drop` cannot be met.
        """
        source, data = sources
        before = load_float(source, self.verb)
        decision = decide(before.model, weight_bits=self.weight_bits, keep_float=self.keep_float)
        validation = read_labelled(before, data, "validation")
        facts: dict[str, Any] = {}
        if self.max_drop is not None:
            found = sensitivities(before, validation.sample(_SENSITIVITY_ROWS, 0), decision)
            decision = within(before, validation, decision, [one.name for one in found], self.max_drop)
            facts = _write_sensitivity(found, decision, scratch)
        made = replace(before, spec=replace(before.spec, quantization=decision))
        return {**waterfall.finish(made, (source, before), validation, self, scratch), **facts}


def within(
    source: Checkpoint, rows: Labelled, quantization: Quantization, worst_first: Sequence[str], max_drop: float
) -> Quantization:
    """Keep the fewest of the worst modules in float with which the rows' metric drops by at most `max_drop`.

    Raises:
        UsageError: no quantized module is cheap enough.
    """
    before = score(source, rows).metrics[0].value

    def keeping(names: Sequence[str]) -> Quantization:
        return replace(quantization, keep_float=(*quantization.keep_float, *names))

    def drop_of(names: Sequence[str]) -> float:
        spec = replace(source.spec, quantization=keeping(names))
        return before - score(waterfall.as_exported(replace(source, spec=spec)), rows).metrics[0].value

    return keeping(fewest_kept(worst_first, drop_of, max_drop))


def _write_sensitivity(found: Sequence[Sensitivity], decision: Quantization, folder: Path) -> dict[str, Any]:
    """Write what each module costs and whether it stays in float; return the facts."""
    rows = [{**asdict(one), "keep_float": one.name in decision.keep_float} for one in found]
    artifact.write_json(folder / SENSITIVITY, rows)
    return {"sensitivity": rows, "keep_float": list(decision.keep_float)}
