"""Word embeddings as int8 rows with a scale each, or as int4 with a scale for each block of a row.

int8: two lookups, a cast and a product. DequantizeLinear has no scale for each row that was looked up but through
reshapes, and GatherBlockQuantized, one kernel, knows only blocks of a power of two. Measured on a table of 30,522 by
384 (ORT 1.31, AVX2, one thread): 26 pieces take 19.5 us (float 18.8, DequantizeLinear 20.4, GatherBlockQuantized 22.3),
32 rows of 40 pieces 280 us (256, 280, 489). int4 has no other kernel.

    N rows   L padded length   V pieces   H hidden size   B blocks   S block size
"""

from typing import Any, cast

import onnx_ir as ir
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from deploykit.checkpoint import Quantization
from deploykit.compress.embeddings import lookups
from deploykit.compress.fake_quant import ROW_BITS, ROW_BLOCK, int4_rows, weights_quantized
from deploykit.export import operators
from deploykit.export.fuse import CONTRIB, replace
from deploykit.export.lower_int4 import packed

LOOKUP = "GatherBlockQuantized"
_INT4_EMBEDDING = "Int4Embedding"


class Int8Embedding(nn.Module):
    """A table that is held in int8; a row comes out as `fake_quant` has it, bit for bit."""

    weight: Tensor
    scale: Tensor

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        quantized_VH, scale_V = weights_quantized(embedding.weight, ROW_BITS)
        self.register_buffer("weight", quantized_VH)
        self.register_buffer("scale", scale_V[:, None])

    def forward(self, ids_NL: Tensor) -> Tensor:
        """Look up: int64 (N,L) to float32 (N,L,H)."""
        return nn.functional.embedding(ids_NL, self.weight).float() * nn.functional.embedding(ids_NL, self.scale)


class _Int4Lookup(torch.autograd.Function):
    @staticmethod
    def forward(*given: Any) -> Any:
        """Stand in for the kernel: the trace reads shape and type only."""
        _ctx, ids_NL, packed, scale_VB = given
        return scale_VB.new_zeros(*ids_NL.shape, 2 * packed.shape[1])

    @staticmethod
    def symbolic(g: Any, *given: Any) -> Any:
        _ids, packed, scale = given
        made = scale.type().with_sizes([None, None, 2 * packed.type().sizes()[1]])  # else the traced length stays
        return g.op(f"{operators.DOMAIN}::{_INT4_EMBEDDING}", *given).setType(made)


class Int4Embedding(nn.Module):
    """A table that is traced as one lookup in int4."""

    weight: Tensor
    scale: Tensor

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        quantized_VBS, scale_VB = int4_rows(embedding.weight)
        rows = packed(quantized_VBS.numpy()).reshape(len(quantized_VBS), -1)
        self.register_buffer("weight", torch.from_numpy(rows[:, : embedding.embedding_dim // 2].copy()))
        self.register_buffer("scale", scale_VB)

    def forward(self, ids_NL: Tensor) -> Tensor:
        """Look up: int64 (N,L) to float32 (N,L,H)."""
        return cast("Tensor", _Int4Lookup.apply(ids_NL, self.weight, self.scale))  # type: ignore[no-untyped-call]


def quantize_rows(model: PreTrainedModel, quantization: Quantization) -> dict[str, int]:
    """Swap the word embeddings for quantized ones where that is decided, in place; return how often a kernel comes."""
    if quantization.embeddings == "float32":
        return {}
    names = lookups(model)
    table = cast("nn.Embedding", model.get_submodule(names[0]))
    made = Int4Embedding(table) if quantization.embeddings == "int4" else Int8Embedding(table)
    for name in names:
        model.set_submodule(name, made)
    return {LOOKUP: len(names)} if quantization.embeddings == "int4" else {}


def lower_rows(model: ir.Model) -> None:
    """Turn each traced int4 lookup into ONNX Runtime's kernel, in place."""
    for node in list(model.graph):
        if node.domain == operators.DOMAIN and node.op_type == _INT4_EMBEDDING:
            ids, weight, scale = node.inputs
            how = {"bits": 4, "block_size": ROW_BLOCK, "gather_axis": 0, "quantize_axis": 1}
            lookup = ir.node(LOOKUP, [weight, ids, scale], how, domain=CONTRIB, name=node.name)
            replace(model, node, [lookup], node.outputs[0])
