"""fp16 module by module: what overflows it on real rows stays in fp32, or is multiplied in bf16.

fp16 ends at 65504. Some feed-forward networks and the residual sums after them go beyond, and one infinite value makes
a whole row NaN. Which modules do is measured. bf16 has the range of fp32 and eight bits of mantissa for fp16's eleven:
it takes the matrices that overflow, at the size of fp16; norms, which weigh little, stay in fp32.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from deploykit import checkpoint as checkpoints
from deploykit import families
from deploykit.checkpoint import Checkpoint, Quantization
from deploykit.errors import UsageError
from deploykit.spec import Overflow
from deploykit.train.labelled import Labelled

LIMIT = 65504.0
_HEADROOM = 4.0
"""How much larger than on the calibration rows a value may become before it overflows."""


class BFloat16Linear(nn.Module):
    """A linear module whose product alone is in bf16: float32 is rounded to nearest, and the bias added in float32."""

    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().to(torch.bfloat16), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x_NI: Tensor) -> Tensor:
        """Multiply: (...,I) of any float type to float32 (...,O)."""
        product_NO = nn.functional.linear(x_NI.to(torch.bfloat16), self.weight).float()
        return product_NO if self.bias is None else product_NO + self.bias


def decide_half(
    peaks: Mapping[str, float], model: PreTrainedModel, keep_float: Iterable[str] = (), overflow: Overflow = "fp32"
) -> Quantization:
    """Keep in fp32 the modules named, and those whose peaks come near fp16's end, unless bf16 takes the matrices.

    Raises:
        UsageError: a name is unknown, or queries, keys or values overflow: attention is one kernel of one type.
    """
    for name in keep_float:
        if name not in peaks:
            raise _refused("keep_float", f"a matrix or a norm, such as {next(iter(peaks))}", repr(name))
    over = {name for name, peak in peaks.items() if not peak <= LIMIT / _HEADROOM}
    for name in sorted((over | set(keep_float)) & set(_attention_inputs(model))):
        raise _refused("scheme", "queries, keys and values within fp16's range", f"{peaks[name]:.3g} at {name}")
    matrices = {name for name, module in _halved(model) if isinstance(module, nn.Linear)}
    bf16 = over & matrices - set(keep_float) if overflow == "bf16" else set()
    kept = (over | set(keep_float)) - bf16
    return Quantization(
        "fp16", 16, tuple(name for name in peaks if name in kept), bf16=tuple(name for name in peaks if name in bf16)
    )


def peaks_of(source: Checkpoint, rows: Labelled) -> dict[str, float]:
    """Return the largest magnitude that goes into or comes out of each matrix and norm, padding included."""
    peaks: dict[str, float] = {}

    def see(name: str, tensors: Iterable[Tensor]) -> None:
        peaks[name] = max(peaks.get(name, 0.0), *(float(tensor.abs().max()) for tensor in tensors))

    def showing(name: str) -> Any:
        return lambda _module, inputs, output: see(name, (inputs[0], output))

    handles = [module.register_forward_hook(showing(name)) for name, module in _halved(source.model)]
    checkpoints.logits(source, rows.encodings)
    for handle in handles:
        handle.remove()
    return {name: peaks[name] for name, _ in _halved(source.model) if name in peaks}


def to_half(model: PreTrainedModel, keep_float: Iterable[str] = (), bf16: Iterable[str] = ()) -> None:
    """Turn a model to fp16, in place, but for the modules named; each casts what it is given to its own type."""
    others: dict[str, nn.Module] = {name: copy.deepcopy(model.get_submodule(name)) for name in keep_float}
    others |= {name: BFloat16Linear(cast("nn.Linear", copy.deepcopy(model.get_submodule(name)))) for name in bf16}
    model.half()  # type: ignore[no-untyped-call]
    for name, module in others.items():
        model.set_submodule(name, module)
    if others:
        for _, module in _halved(model):
            module.register_forward_pre_hook(_cast)


def _cast(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].to(module.weight.dtype), *inputs[1:])


def _halved(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.LayerNorm)]


def _attention_inputs(model: PreTrainedModel) -> list[str]:
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(one)] for block in families.blocks(model) for one in (block.query, block.key, block.value)]


def _refused(setting: str, expected: str, found: str) -> UsageError:
    return UsageError(f"quantize.{setting}", expected=expected, found=found, next_step="change the setting")
