"""A plain ONNX export of the tiny checkpoints, for tests that need a model before and beside `deploykit.export`."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from deploykit.runtime import model_info
from deploykit.runtime.model_info import ModelInfo

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
AUTO: dict[str, Any] = {
    "text-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
}


class Positional(nn.Module):
    """The model with its inputs by position, as the exporter wants them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor, type_ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask, token_type_ids=type_ids).logits
        return logits


def torch_model(checkpoint: Path, task: str) -> Any:
    """The reference: eager attention, evaluation mode."""
    return AUTO[task].from_pretrained(checkpoint, attn_implementation="eager").eval()


def export_plain(checkpoint: Path, folder: Path, task: str) -> Path:
    """Write an unfused fp32 model with its tokenizer and `deploykit.json`."""
    folder.mkdir(parents=True)
    model = torch_model(checkpoint, task)
    example = torch.ones(2, 5, dtype=torch.long)
    axes = {name: {0: "rows", 1: "length"} for name in INPUTS}
    axes["logits"] = {0: "rows"} if task == "text-classification" else {0: "rows", 1: "length"}
    torch.onnx.export(
        Positional(model),
        (example, example, example * 0),
        str(folder / model_info.GRAPH),
        input_names=list(INPUTS),
        output_names=["logits"],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )
    shutil.copy(checkpoint / "tokenizer.json", folder)
    labels = tuple(model.config.id2label.values())
    model_info.write(ModelInfo(task, labels, 64, 0, INPUTS, ("logits",), "cpu", "fp32"), folder)
    return folder
