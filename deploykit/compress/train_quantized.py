"""Quantization-aware training: the model learns with int8's rounding in the way, from itself in float.

Every matrix product rounds its weight and its input as dynamic int8 will; the gradient takes the rounding for the
identity (straight-through estimator, Bengio et al. 2013, section 2; Jacob et al. 2018, section 3, for whole networks).
The teacher is the float model before. The trained weights are floats again, which `quantize` then rounds.

    N tokens, in any number of dimensions   I inputs   O outputs
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from deploykit import families
from deploykit.artifact import Artifact, Kind
from deploykit.checkpoint import Quantization
from deploykit.compress import waterfall
from deploykit.compress.distillation import Objective, distil_from, matching_layers
from deploykit.compress.fake_quant import activations_quantized, decide, quantized_names, rounded_weight, with_weight
from deploykit.compress.source import load_float
from deploykit.train.labelled import read_labelled
from deploykit.train.loop import training_of


@dataclass(frozen=True)
class TrainQuantized:
    """Train a model under the rounding of dynamic int8, distilled from itself in float; `quantize` comes after."""

    epochs: int = 1
    learning_rate: float = 2e-5
    weight_bits: Literal[7, 8] = 7
    """As `quantize` is told after it."""
    keep_float: tuple[str, ...] = ()
    """As `quantize` is told after it."""
    temperature: float = 2.0
    alpha: float = 0.3
    hidden_weight: float = 1.0
    batch_size: int = 32
    seed: int = 0
    max_train_samples: int | None = None

    verb: ClassVar[str] = "train-quantized"
    reads: ClassVar[tuple[Kind, ...]] = ("checkpoint", "dataset")
    makes: ClassVar[Kind] = "checkpoint"
    resumes: ClassVar[bool] = True
    judged_later: ClassVar[bool] = True
    """Whether it was worth it, `compress` asks of the quantization right after it, which has the gain in accuracy."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: one is out of range.
        """
        if self.max_train_samples is not None and self.max_train_samples < 1:
            raise ValueError(f"max_train_samples must be at least 1, not {self.max_train_samples}")
        self._objective(1), training_of(self, 0)

    def __call__(self, *sources: Artifact, scratch: Path) -> Mapping[str, Any]:
        """Write the trained checkpoint.

        Raises:
            UsageError: a quantization is decided already, or a module is unknown.
        """
        source, data = sources
        before = load_float(source, self.verb)
        decision = decide(before.model, weight_bits=self.weight_bits, keep_float=self.keep_float)
        rows = read_labelled(before, data, "train").trainable().sample(self.max_train_samples, self.seed)
        validation = read_labelled(before, data, "validation")
        made = replace(before, model=copy.deepcopy(before.model))
        put_rounding_in(made.model, decision)
        history = distil_from(
            (source, before),
            made,
            (rows, validation),
            self._objective(len(families.blocks(before.model))),
            (training_of(self, before.spec.pad_id), scratch / ".train"),
        )
        take_rounding_out(made.model)
        facts = waterfall.finish(made, (source, before), validation, self, scratch)
        return {**facts, "history": [asdict(epoch) for epoch in history.epochs]}

    def _objective(self, depth: int) -> Objective:
        return Objective(self.temperature, self.alpha, self.hidden_weight, matching_layers(depth, depth))


class RoundedLinear(nn.Module):
    """A linear module whose weight and input are rounded as int8 has them, and which can be trained all the same."""

    def __init__(self, linear: nn.Linear, quantization: Quantization) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.quantization = quantization

    def forward(self, x_NI: Tensor) -> Tensor:
        """Multiply and add the bias: (N,I) to (N,O); in float32, as bf16 would round int8's levels once more."""
        with torch.autocast(x_NI.device.type, enabled=False):
            x_NI = x_NI.float()
            weight_OI = straight_through(self.weight, rounded_weight(self.weight, self.quantization))
            return F.linear(straight_through(x_NI, rounded_activation(x_NI)), weight_OI, self.bias)


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """Return `rounded`, with the gradient of `x`."""
    return x + (rounded - x).detach()


@torch.no_grad()
def rounded_activation(x_NI: Tensor) -> Tensor:
    """Return what dynamic int8 makes of an activation, as float (N,I)."""
    quantized, scale, zero_point = activations_quantized(x_NI)
    return (quantized.float() - zero_point.float()) * scale


def put_rounding_in(model: PreTrainedModel, quantization: Quantization) -> None:
    """Swap the decided linear modules for `RoundedLinear`, in place; the names of parameters stay."""
    for name in quantized_names(model, quantization):
        model.set_submodule(name, RoundedLinear(cast("nn.Linear", model.get_submodule(name)), quantization))


def take_rounding_out(model: PreTrainedModel) -> None:
    """Undo `put_rounding_in`, keeping the trained weights."""
    rounded = [(name, module) for name, module in model.named_modules() if isinstance(module, RoundedLinear)]
    for name, module in rounded:
        width_O, width_I = module.weight.shape
        shell: nn.Linear = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Linear, width_I, width_O, bias=module.bias is not None
        )
        shell.bias = module.bias
        model.set_submodule(name, with_weight(shell, module.weight.detach()))
