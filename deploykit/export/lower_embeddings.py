"""Word embeddings as int8 rows with a scale each: looked up, widened and scaled.

Two lookups, a cast and a product. DequantizeLinear has no scale for each row that was looked up but through reshapes,
and GatherBlockQuantized, one kernel, knows only blocks of a power of two. Measured on a table of 30,522 by 384 (ORT
1.31, AVX2, one thread): 26 pieces take 19.5 us (float 18.8, DequantizeLinear 20.4, GatherBlockQuantized 22.3), 32 rows
of 40 pieces 280 us (256, 280, 489).

    N rows   L padded length   V pieces   H hidden size
"""

from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from deploykit.checkpoint import Quantization
from deploykit.compress.embeddings import lookups
from deploykit.compress.fake_quant import ROW_BITS, weights_quantized


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


def quantize_rows(model: PreTrainedModel, quantization: Quantization) -> None:
    """Swap the word embeddings for int8 ones where that is decided, in place."""
    names = lookups(model) if quantization.embeddings == "int8" else []
    made = [Int8Embedding(cast("nn.Embedding", model.get_submodule(name))) for name in names[:1]]
    for name in names:
        model.set_submodule(name, made[0])
