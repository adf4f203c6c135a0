"""Lower a checkpoint to ONNX for one provider: trace, fuse, lower the precision, and say what the provider needs.

Nothing is decided here: the quantization is the checkpoint's, and its fake-quantized model is the exact reference.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from deploykit import checkpoint
from deploykit.artifact import Artifact, Kind
from deploykit.export.write import EXTERNAL_DATA_BYTES, PRECISIONS, Target, refused, write_model
from deploykit.runtime.model_info import Precision, Provider


@dataclass(frozen=True)
class Export:
    """Lower a checkpoint to ONNX, fused for one provider."""

    provider: Provider = "cpu"
    precision: Precision | None = None
    """None: what the checkpoint's quantization says, else fp32. fp32 and fp16 leave a decision for fewer bits aside."""
    max_batch: int | None = None
    """TensorRT only: the largest batch that an engine is built for; 32 if not given."""
    external_data_bytes: int = EXTERNAL_DATA_BYTES
    """Weights larger than this go to `model.onnx.data`; protobuf itself ends at 2 GB."""

    verb: ClassVar[str] = "export"
    reads: ClassVar[tuple[Kind, ...]] = ("checkpoint",)
    makes: ClassVar[Kind] = "onnx"
    resumes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse a combination that no kernel runs, and a setting without effect."""
        allowed = PRECISIONS[self.provider]
        if self.precision is not None and self.precision not in allowed:
            raise refused("precision", f"{' or '.join(allowed)} for provider {self.provider}", self.precision)
        if self.max_batch is not None and (self.provider != "tensorrt" or self.max_batch < 1):
            raise refused("max_batch", "a positive number, with provider tensorrt only", self.max_batch)

    def __call__(self, *sources: Artifact, scratch: Path) -> Mapping[str, Any]:
        """Write `model.onnx`, `tokenizer.json` and `deploykit.json`."""
        target = Target(self.provider, self.precision, self.max_batch, self.external_data_bytes)
        return write_model(checkpoint.load(sources[0]), scratch, target)
