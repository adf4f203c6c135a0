"""A loaded checkpoint as a folder that the runtime opens, for one provider: what `export` does, as a plain function."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx
import onnx_ir as ir

from deploykit import checkpoint, families
from deploykit.checkpoint import Checkpoint, Quantization, input_names
from deploykit.compress.fake_quant import decide, decide_int4
from deploykit.compress.first_token import keep_first_token
from deploykit.compress.half import to_half
from deploykit.errors import DeploykitError, EnvironmentMissing, UsageError
from deploykit.evidence import Metric
from deploykit.export import fuse, lower_int8, lowering, operators
from deploykit.export.provider_options import Limits, provider_options
from deploykit.export.trace import OUTPUT, trace
from deploykit.runtime import model_info
from deploykit.runtime.model_info import FIRST, ModelInfo, Precision, Provider
from deploykit.runtime.session import open_session

PRECISIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"cpu": ("fp32", "int8", "int4"), "cuda": ("fp32", "fp16"), "tensorrt": ("fp32", "fp16")}
)
"""Provider to what its kernels run."""
EXTERNAL_DATA_BYTES = 1_500_000_000
_ATTENTION = {"cpu": operators.MASKED_ROWS, "cuda": operators.ROW_LENGTHS, "tensorrt": "eager"}
"""TensorRT knows ONNX's own operators only, and fuses attention itself."""
_DEFAULT_MAX_BATCH = 32


@dataclass(frozen=True)
class Target:
    """For what a model is written; as the settings of `Export`, which checks them."""

    provider: Provider = "cpu"
    precision: Precision | None = None
    max_batch: int | None = None
    external_data_bytes: int = EXTERNAL_DATA_BYTES


def write_model(source: Checkpoint, folder: Path, target: Target) -> Mapping[str, Any]:
    """Write the tokenizer, and `model.onnx` and `deploykit.json` of each model, into `folder`; return the facts.

    The smaller model of a cascade goes to the folder `first` inside, likewise. The checkpoint's PyTorch models are
    rewritten on the way and are of no use afterwards.

    Raises:
        UsageError: the provider does not run what the checkpoint decides.
    """
    checkpoint.save_tokenizer(source, folder)
    return _written(source, folder, target)


def _written(source: Checkpoint, folder: Path, target: Target) -> Mapping[str, Any]:
    """Write one model, and below it the smaller one that stands before it."""
    precision = _precision_for(source, target)
    quantization = _decision(source, precision) if precision in ("int8", "int4") else None
    graph, expected = _lowered(source, quantization, target.provider, precision)
    found = fuse.count(graph)
    fuse.require_fusions(found, expected, source.path)
    _save(graph, folder, target.external_data_bytes)
    info = _info(source, target, precision, quantization)
    fusions = {
        "found": {name: found.get(name, 0) for name in expected},
        "layers": len(families.layer_list(source.model)),
    }
    model_info.write(replace(info, fusions=fusions), folder)
    facts: dict[str, Any] = {"precision": precision, "operators": found, "warnings": _unusable(folder, info)}
    if source.first is not None:
        (folder / FIRST).mkdir()
        facts[FIRST] = _written(source.first, folder / FIRST, target)
    size = model_info.num_bytes(folder)
    return {"metrics": [asdict(Metric("size_bytes", size, "bytes", "lower"))], **facts}


def _precision_for(source: Checkpoint, target: Target) -> str:
    if target.precision is not None:
        return target.precision
    if source.spec.quantization is None:
        return "fp32"
    decided = precision_of(source.spec.quantization)
    if decided not in PRECISIONS[target.provider]:
        found = f"{source.spec.quantization.scheme} in the checkpoint"
        raise refused("precision", f"{' or '.join(PRECISIONS[target.provider])} for {target.provider}", found)
    return decided


def _info(source: Checkpoint, target: Target, precision: str, quantization: Quantization | None) -> ModelInfo:
    names, limits = input_names(source.model), Limits(target.max_batch or _DEFAULT_MAX_BATCH, source.spec.max_length)
    return ModelInfo(
        task=source.spec.task,
        labels=source.labels,
        max_length=source.spec.max_length,
        pad_id=source.spec.pad_id,
        inputs=names,
        outputs=(OUTPUT,),
        provider=target.provider,
        precision=precision,
        provider_options=provider_options(target.provider, precision, names, limits),
        quantization=asdict(quantization) if quantization else None,
        threshold=source.spec.threshold,
    )


def refused(setting: str, expected: str, found: object) -> UsageError:
    """Make the error of a setting that no kernel serves."""
    return UsageError(f"export.{setting}", expected=expected, found=str(found), next_step="change the setting")


def precision_of(quantization: Quantization) -> Precision:
    """Return the precision that a decision is lowered to."""
    match quantization.scheme:
        case "int4" | "fp16":
            return quantization.scheme
        case _:
            return "int8"


def _decision(source: Checkpoint, precision: str) -> Quantization:
    """Return the checkpoint's decision; without one, the default of `quantize` at that precision."""
    decided = source.spec.quantization
    if decided is None:
        return decide(source.model) if precision == "int8" else decide_int4(source.model)
    if precision_of(decided) != precision:
        raise refused("precision", f"{precision_of(decided)} or a float one, as the checkpoint decides", precision)
    return decided


def _lowered(
    source: Checkpoint, quantization: Quantization | None, provider: str, precision: str
) -> tuple[ir.Model, dict[str, int]]:
    """Lower a checkpoint's model, rewriting it; return the graph and how often each kernel must be there."""
    model = source.model
    layers = len(families.layer_list(model))
    expected = {"Softmax" if provider == "tensorrt" else "MultiHeadAttention": layers}
    expected["LayerNormalization"] = 2 * layers + 1
    keep_first_token(model)
    if quantization is not None:
        expected |= lowering.prepare(model, quantization)
    if precision == "fp16":
        _to_half(source, provider)
    graph = trace(model, input_names(model), _ATTENTION[provider])
    fuse.fuse_attention(graph)
    lowering.lower(graph)
    fuse.clean(graph)
    if joined := lower_int8.join_attention(graph):
        expected["MultiHeadAttention"] -= joined
        expected |= {lower_int8.ATTENTION: joined, lower_int8.PRODUCT: expected[lower_int8.PRODUCT] - 3 * joined}
        fuse.clean(graph)
    return graph, expected


def _to_half(source: Checkpoint, provider: str) -> None:
    """Turn the model to fp16 as the checkpoint decides, all of it where nothing is decided."""
    decided = source.spec.quantization
    if decided is None or decided.scheme != "fp16":
        return to_half(source.model)
    if decided.bf16 and provider == "tensorrt":
        raise refused("provider", f"cuda, as the checkpoint decides bf16 for {decided.bf16[0]}", provider)
    return to_half(source.model, decided.keep_float, decided.bf16)


def _save(graph: ir.Model, folder: Path, external_data_bytes: int) -> None:
    """Write the graph, its weights beside it where they are large, and have ONNX check what was written."""
    path = folder / model_info.GRAPH
    num_bytes = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value)
    ir.save(graph, path, external_data=f"{path.name}.data" if num_bytes > external_data_bytes else None)
    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        raise DeploykitError(
            path, expected="a valid ONNX model", found=str(error), next_step="report this bug"
        ) from error


def _unusable(folder: Path, info: ModelInfo) -> list[str]:
    """Open the model where it will run; say so where this machine cannot run it."""
    try:
        open_session(folder / model_info.GRAPH, provider=info.provider, options=info.provider_options)
    except EnvironmentMissing as error:
        return [f"exported, but not runnable here: {error}"]
    return []
