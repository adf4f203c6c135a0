"""What a stopped training needs to go on: one safetensors file, replaced in one step, no pickle."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

_PROGRESS = "progress"
_MODEL, _OPTIMIZER = "model.", "optimizer."


def save_weights(file: Path, model: nn.Module) -> None:
    """Write a model's parameters."""
    _replace(file, _parameters(model), {})


def load_weights(file: Path, model: nn.Module) -> None:
    """Fill a model with the parameters that `save_weights` wrote, in place."""
    _fill(model, load_file(file))


def save_state(file: Path, model: nn.Module, optimizer: Optimizer, progress: Mapping[str, Any]) -> None:
    """Write parameters, the optimizer's moments and how far training is."""
    tensors = {f"{_MODEL}{name}": tensor for name, tensor in _parameters(model).items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"{_OPTIMIZER}{index}.{name}": tensor for name, tensor in moments.items()}
    _replace(file, tensors, {_PROGRESS: json.dumps(progress)})


def load_state(file: Path, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Fill model and optimizer in place and return the progress."""
    with safe_open(file, "pt") as handle:
        progress: dict[str, Any] = json.loads(handle.metadata()[_PROGRESS])
    tensors = load_file(file)
    _fill(model, {name.removeprefix(_MODEL): tensor for name, tensor in tensors.items() if name.startswith(_MODEL)})
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(_OPTIMIZER):
            index, _, moment = name.removeprefix(_OPTIMIZER).partition(".")
            moments.setdefault(int(index), {})[moment] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    """Name every parameter once, shared ones by their first name."""
    return {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}


def _fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.data.copy_(tensors[name])


def _replace(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write beside `file`, to the disk, then rename: a reader finds the old bytes or the new ones."""
    partial = file.with_suffix(".partial")
    save_file(tensors, partial, metadata)
    with partial.open("rb") as handle:
        os.fsync(handle.fileno())
    partial.replace(file)
