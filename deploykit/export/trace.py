"""From a PyTorch model to an ONNX graph with dynamic batch and length.

The TorchScript exporter is used on purpose: here it is five times as fast as the one on torch.export, and the nodes
that decide speed are our own operators either way (benchmarks/results/export-variants.json).

    N rows   L padded length   C labels
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from onnx import load_from_string
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from deploykit.export import operators

OPSET = 20
"""The first with Gelu, and the last that the TorchScript exporter knows."""
OUTPUT = "logits"


class _Traced(nn.Module):
    """The model as a function of tensors in a fixed order, its answer in float32."""

    def __init__(self, model: PreTrainedModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(self.names, tensors, strict=True))).logits
        return logits if logits.dtype == torch.float32 else logits.float()  # the trace keeps a cast to the same


def trace(model: PreTrainedModel, names: Sequence[str], attention: str) -> ir.Model:
    """Trace a model in evaluation mode with an attention implementation: "eager" or one of `operators`.

    Args:
        model: left with that attention implementation.
        names: its inputs, int64 (N,L) each.
        attention: what transformers calls an attention implementation.
    """
    operators.register()
    model.set_attn_implementation(attention)
    file: Any = io.BytesIO()
    with _quiet():
        torch.onnx.export(
            _Traced(model, names).eval(),
            tuple(_example(name) for name in names),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(names),
            output_names=[OUTPUT],
            dynamic_axes=_dynamic_axes(model, names),
            custom_opsets={} if attention == "eager" else {operators.DOMAIN: 1},
        )
    return ir.from_proto(load_from_string(file.getvalue()))


def _example(name: str) -> Tensor:
    """Return two rows of seven tokens, one of them padded: (2,7) int64."""
    tensor_NL = torch.full((2, 7), int(name != "token_type_ids"))
    tensor_NL[1, 5:] = 0
    return tensor_NL


def _dynamic_axes(model: PreTrainedModel, names: Sequence[str]) -> dict[str, dict[int, str]]:
    axes = {0: "N", 1: "L"}
    per_token = type(model).__name__.endswith("ForTokenClassification")
    return {**dict.fromkeys(names, axes), OUTPUT: axes if per_token else {0: "N"}}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's and transformers' warnings off the terminal: parity checks what they fear."""
    level: Any = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
