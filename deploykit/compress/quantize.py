"""Decide the quantization: which scheme, how many bits, and what stays in float. The weights stay as they are."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from deploykit.artifact import Artifact, Kind
from deploykit.compress import waterfall
from deploykit.compress.fake_quant import decide
from deploykit.compress.source import load_float
from deploykit.train.labelled import read_labelled


@dataclass(frozen=True)
class Quantize:
    """Decide dynamic int8: activations by the range of each batch, weights per output channel."""

    scheme: Literal["dynamic-int8"] = "dynamic-int8"
    weight_bits: Literal[7, 8] = 7
    """7 is exact on every processor; 8 saturates on those without VNNI (see `fake_quant`)."""
    keep_float: tuple[str, ...] = ()
    """Modules, relative to the model, whose matrices stay in float, besides the last one of the head."""

    verb: ClassVar[str] = "quantize"
    reads: ClassVar[tuple[Kind, ...]] = ("checkpoint", "dataset")
    makes: ClassVar[Kind] = "checkpoint"
    resumes: ClassVar[bool] = False

    def __call__(self, *sources: Artifact, scratch: Path) -> Mapping[str, Any]:
        """Write the same weights with the decision in `deploykit.json`."""
        source, data = sources
        before = load_float(source, self.verb)
        decision = decide(before.model, weight_bits=self.weight_bits, keep_float=self.keep_float)
        validation = read_labelled(before, data, "validation")
        made = replace(before, spec=replace(before.spec, quantization=decision))
        return waterfall.finish(made, (source, before), validation, self, scratch)
