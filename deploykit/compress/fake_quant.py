"""The arithmetic of int8, once: what export lowers and what the fake-quantized reference computes.

Activations are uint8 with one scale for the whole padded batch (ONNX DynamicQuantizeLinear-11) or, static, with the
scale that calibration decided (QuantizeLinear-19), weights are int8 with one scale per output channel and no zero
point. Products accumulate in 32 bits, as MatMulInteger says. Processors
without VNNI add pairs of uint8 x int8 products in 16 bits (vpmaddubsw) and saturate: 2 * 255 * 127 does not fit,
2 * 255 * 64 does. Hence weights of 7 bits, within [-64, 64], are exact on every processor, and weights of 8 bits,
within [-127, 127], only where `environment.has_vnni()`.

Word embeddings are int8 of 8 bits with one scale a row, or int4 (`int4`) with one for each `ROW_BLOCK` weights of a
row: what is looked up is multiplied by its scale, which gives the same floats in PyTorch and in ONNX Runtime.

    N tokens, in any number of dimensions   I inputs   O outputs   V pieces   H hidden size   B blocks   S block size
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from deploykit import families
from deploykit.checkpoint import Quantization
from deploykit.compress.embeddings import lookups
from deploykit.compress.first_token import keep_first_token
from deploykit.compress.half import to_half
from deploykit.compress.int4 import blocked, int4_rounded, levels, scales_of
from deploykit.errors import UsageError
from deploykit.spec import Activation, Embeddings

WEIGHT_LIMITS = {7: 64, 8: 127}
"""Weight bits to the largest magnitude of a quantized weight."""

ROW_BITS = 8
"""Of a row of embeddings in int8: it is only scaled, so nothing can saturate."""
ROW_BLOCK = 64
"""Weights of a row of embeddings in int4 that share a scale."""

_EXACT_FLOAT32 = 2**24
"""Every integer up to here is a float32, so a sum that stays below it is exact in any order."""


def activations_quantized(x_NI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize as DynamicQuantizeLinear does: range over the whole tensor and zero, halves to even.

    Returns:
        uint8 (N,I), float32 scale (), uint8 zero point ().
    """
    low, high = x_NI.amin().clamp(max=0.0), x_NI.amax().clamp(min=0.0)
    scale = torch.where(high == low, torch.ones_like(high), (high - low) / 255.0)
    zero_point = torch.round((0.0 - low / scale).clamp(0.0, 255.0))
    quantized = (torch.round(x_NI / scale) + zero_point).clamp(0.0, 255.0)
    return quantized.to(torch.uint8), scale, zero_point.to(torch.uint8)


def weights_quantized(weight_OI: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Quantize a linear module's weight symmetrically, per output channel.

    Returns:
        int8 (O,I), float32 scale (O,); a channel of zeros has scale 1.
    """
    limit = WEIGHT_LIMITS[bits]
    peak_O = weight_OI.detach().abs().amax(dim=1)
    scale_O = torch.where(peak_O == 0.0, torch.ones_like(peak_O), peak_O / limit)
    quantized_OI = torch.round(weight_OI.detach() / scale_O[:, None]).clamp(-limit, limit)
    return quantized_OI.to(torch.int8), scale_O


def integer_product(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """Multiply integers held as float32 exactly: |x| <= 255, |weight| <= 127; returns float32 (N,O).

    A float32 product is exact while its sums stay below 2^24, so the inputs are taken in slices that cannot
    exceed it; the slices are added in float64 and rounded once, as the cast from int32 does.
    """
    width = _EXACT_FLOAT32 // (255 * max(WEIGHT_LIMITS.values()))
    if x_NI.shape[-1] <= width:
        return nn.functional.linear(x_NI, weight_OI)
    slices = zip(torch.split(x_NI, width, dim=-1), torch.split(weight_OI, width, dim=-1), strict=True)
    products = [nn.functional.linear(x, weight).double() for x, weight in slices]
    return torch.stack(products).sum(dim=0).float()


def dynamic_linear(x_NI: Tensor, weight_OI: Tensor, scale_O: Tensor, bias_O: Tensor | None) -> Tensor:
    """Multiply by a quantized weight (integers held as float32) as the exported graph does; float32 (N,O)."""
    x_quantized, scale, zero_point = activations_quantized(x_NI)
    product_NO = integer_product(x_quantized.float() - zero_point.float(), weight_OI) * (scale * scale_O)
    return product_NO if bias_O is None else product_NO + bias_O


def quantized_as(x_NI: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Quantize as QuantizeLinear does: halves to even, what is out of range is cut; uint8 (N,I)."""
    return (torch.round(x_NI / scale) + zero_point.float()).clamp(0.0, 255.0).to(torch.uint8)


def static_linear(
    x_NI: Tensor, weight_OI: Tensor, scale_O: Tensor, bias_O: Tensor | None, activation: Activation
) -> Tensor:
    """Multiply as `dynamic_linear` does, activations quantized as calibration decided; float32 (N,O)."""
    scale, zero_point = torch.tensor(activation.scale), torch.tensor(activation.zero_point)
    x_quantized = quantized_as(x_NI, scale, zero_point)
    product_NO = integer_product(x_quantized.float() - zero_point.float(), weight_OI) * (scale * scale_O)
    return product_NO if bias_O is None else product_NO + bias_O


class FakeQuantLinear(nn.Module):
    """A linear module that computes what the exported int8 graph computes."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, bits: int, activation: Activation | None = None) -> None:
        super().__init__()
        self.activation = activation
        quantized_OI, scale_O = weights_quantized(linear.weight, bits)
        self.register_buffer("weight", quantized_OI.float())
        self.register_buffer("scale", scale_O)
        self.bias = linear.bias

    def forward(self, x_NI: Tensor) -> Tensor:
        """Quantize, multiply, scale back and add the bias."""
        if self.activation is None:
            return dynamic_linear(x_NI, self.weight, self.scale, self.bias)
        return static_linear(x_NI, self.weight, self.scale, self.bias, self.activation)


def fake_quantize(model: PreTrainedModel, quantization: Quantization) -> None:
    """Swap every quantized linear module for one that imitates the exported graph, in place; or turn to fp16.

    A sentence classifier's last layer is reduced to its first token, as in that graph.
    """
    keep_first_token(model)
    if quantization.scheme == "fp16":
        to_half(model, quantization.keep_float, quantization.bf16)
        return
    for name in quantized_names(model, quantization):
        linear = cast("nn.Linear", model.get_submodule(name))
        model.set_submodule(name, imitation(linear, name, quantization))
    fake_quantize_rows(model, quantization)


def imitation(linear: nn.Linear, name: str, quantization: Quantization) -> nn.Module:
    """Return a module that computes what a quantized linear module does in the exported graph."""
    match quantization.scheme:
        case "dynamic-int8":
            return FakeQuantLinear(linear, quantization.weight_bits)
        case "static-int8":
            return FakeQuantLinear(linear, quantization.weight_bits, activation_of(name, quantization))
        case _:
            return with_weight(linear, rounded_weight(linear.weight, quantization))


def rounded_weight(weight_OI: Tensor, quantization: Quantization) -> Tensor:
    """Return the float weight that a decision's quantized one stands for (O,I)."""
    if quantization.scheme == "int4":
        assert quantization.block_size is not None
        return int4_rounded(weight_OI, quantization.block_size)
    quantized_OI, scale_O = weights_quantized(weight_OI, quantization.weight_bits)
    return quantized_OI * scale_O[:, None]


def with_weight(linear: nn.Linear, weight_OI: Tensor) -> nn.Linear:
    """Return a linear module with another weight and the same bias."""
    shape = linear.in_features, linear.out_features
    made: nn.Linear = nn.utils.skip_init(nn.Linear, *shape, bias=linear.bias is not None)  # type: ignore[no-untyped-call]
    made.weight = nn.Parameter(weight_OI, requires_grad=False)
    made.bias = linear.bias
    return made


def activation_of(name: str, quantization: Quantization) -> Activation:
    """Return how a module's input is quantized in a static decision."""
    return next(one for one in quantization.activations if one.name == name)


def fake_quantize_rows(model: PreTrainedModel, quantization: Quantization) -> None:
    """Where a decision says so, round the word embeddings as the exported graph has them, in place.

    A head that shares the table keeps it as it was.
    """
    if quantization.embeddings == "float32":
        return
    for embedding in {cast("nn.Embedding", model.get_submodule(name)) for name in lookups(model)}:
        embedding.weight = nn.Parameter(_rounded_rows(embedding.weight, quantization.embeddings), requires_grad=False)


def int4_rows(table_VH: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize word embeddings to int4; returns int8 (V,B,ROW_BLOCK) from -8 to 7, float32 scale (V,B)."""
    blocks_VBS = blocked(table_VH.detach(), ROW_BLOCK)
    scale_VB = scales_of(blocks_VBS)
    return levels(blocks_VBS, scale_VB).to(torch.int8), scale_VB


def _rounded_rows(table_VH: Tensor, kind: Embeddings) -> Tensor:
    """Return the float table that a quantized one stands for (V,H)."""
    if kind == "int4":
        quantized_VBS, scale_VB = int4_rows(table_VH)
        return (quantized_VBS.float() * scale_VB[..., None]).flatten(1)[:, : table_VH.shape[1]]
    quantized_VH, scale_V = weights_quantized(table_VH, ROW_BITS)
    return quantized_VH.float() * scale_V[:, None]


def quantized_names(model: PreTrainedModel, quantization: Quantization) -> list[str]:
    """Name the linear modules that a decision turns to int8: all but those kept in float."""
    kept = set(quantization.keep_float)
    return [name for name in linear_names(model) if name not in kept]


def linear_names(model: PreTrainedModel) -> list[str]:
    """Name every linear module, relative to the model."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def decide(
    model: PreTrainedModel,
    *,
    weight_bits: int = 7,
    keep_float: Iterable[str] = (),
    embeddings: Embeddings = "int8",
) -> Quantization:
    """Decide dynamic int8 for every linear module but the last of the head and those under `keep_float`.

    The head's last matrix gives the logits: it is tiny, so int8 would cost accuracy and win nothing.

    Args:
        model: a model of a known family.
        weight_bits: 7 or 8.
        keep_float: names of modules, relative to the model; every linear module inside stays in float.
        embeddings: of the words.

    Raises:
        UsageError: a name in `keep_float` is no module with a matrix inside.
    """
    names = linear_names(model)
    kept = {name for name in names if _gives_logits(model, name)}
    for prefix in keep_float:
        inside = [name for name in names if name == prefix or name.startswith(f"{prefix}.")]
        if not inside:
            raise UsageError(
                "quantize.keep_float",
                expected="a module with a matrix inside, such as " + names[0],
                found=repr(prefix),
                next_step="name one of the model's modules",
            )
        kept.update(inside)
    return Quantization(
        "dynamic-int8", weight_bits, tuple(name for name in names if name in kept), embeddings=embeddings
    )


def decide_int4(model: PreTrainedModel, *, block_size: int = 32, keep_float: Iterable[str] = ()) -> Quantization:
    """Decide int4 weights for the modules that `decide` takes.

    Raises:
        UsageError: a name in `keep_float` is no module with a matrix inside.
    """
    return replace(decide(model, keep_float=keep_float), scheme="int4", weight_bits=4, block_size=block_size)


def _gives_logits(model: PreTrainedModel, name: str) -> bool:
    heads = families.FAMILIES[model.config.model_type].heads
    linear = cast("nn.Linear", model.get_submodule(name))
    return name.split(".")[0] in heads and linear.out_features == model.config.num_labels
