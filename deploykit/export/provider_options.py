"""ONNX Runtime's options for each provider, as they are written into an exported model.

N rows   L tokens
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ENGINE_CACHE = "tensorrt-engines"
"""Where TensorRT keeps its engines; a relative path is below deploykit's cache folder (`DEPLOYKIT_CACHE`)."""

_TYPICAL_ROWS = 8
_TYPICAL_TOKENS = 32


@dataclass(frozen=True)
class Limits:
    """The largest batch and length that an engine is built for."""

    max_batch: int
    max_length: int


def provider_options(provider: str, precision: str, names: Sequence[str], limits: Limits) -> dict[str, Any]:
    """Return the options of a provider; the runtime hands them over as they are."""
    if provider == "cuda":
        return _cuda(precision)
    if provider == "tensorrt":
        return _tensorrt(precision, names, limits)
    return {}


def _cuda(precision: str) -> dict[str, Any]:
    """fp32 means fp32: TF32 keeps ten bits of a product's inputs and would not pass parity."""
    return {"use_tf32": int(precision != "fp32"), "arena_extend_strategy": "kSameAsRequested"}


def _tensorrt(precision: str, names: Sequence[str], limits: Limits) -> dict[str, Any]:
    """One profile over every batch and length, tuned for the middle; engines and timings are kept between starts."""
    typical = (min(_TYPICAL_ROWS, limits.max_batch), min(_TYPICAL_TOKENS, limits.max_length))
    return {
        "trt_fp16_enable": int(precision == "fp16"),
        "trt_profile_min_shapes": _shapes(names, (1, 1)),
        "trt_profile_opt_shapes": _shapes(names, typical),
        "trt_profile_max_shapes": _shapes(names, (limits.max_batch, limits.max_length)),
        "trt_engine_cache_enable": 1,
        "trt_engine_cache_path": ENGINE_CACHE,
        "trt_timing_cache_enable": 1,
        "trt_timing_cache_path": ENGINE_CACHE,
    }


def _shapes(names: Sequence[str], shape_NL: tuple[int, int]) -> str:
    return ",".join(f"{name}:{shape_NL[0]}x{shape_NL[1]}" for name in names)
