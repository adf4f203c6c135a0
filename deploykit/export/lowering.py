"""Which lowering a quantization decision asks for."""

import onnx_ir as ir
from transformers import PreTrainedModel

from deploykit.checkpoint import Quantization
from deploykit.export import lower_embeddings, lower_int4, lower_int8, lower_static


def prepare(model: PreTrainedModel, quantization: Quantization) -> dict[str, int]:
    """Swap the decided modules for ones that are traced as quantized; return how often each kernel must come."""
    expected = lower_embeddings.quantize_rows(model, quantization)
    match quantization.scheme:
        case "static-int8":
            return expected | {lower_int8.PRODUCT: lower_static.quantize_linears(model, quantization)}
        case "int4":
            return expected | {lower_int4.PRODUCT: lower_int4.quantize_linears(model, quantization)}
        case _:
            return expected | {lower_int8.PRODUCT: lower_int8.quantize_linears(model, quantization)}


def lower(graph: ir.Model) -> None:
    """Turn every traced product and lookup into the kernels of ONNX Runtime, in place."""
    lower_embeddings.lower_rows(graph)
    lower_int8.lower_linears(graph)
    lower_static.lower_linears(graph)
    lower_int4.lower_linears(graph)
