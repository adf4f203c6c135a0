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
_MODEL, _OPTIMIZER, _MEAN = "model.", "optimizer.", "mean."

Weights = dict[str, Tensor]
"""A model's parameters by name, shared ones once, by their first name."""


def save_weights(file: Path, model: nn.Module) -> None:
    """Write a model's parameters."""
    _replace(file, weights_of(model), {})


def load_weights(file: Path, model: nn.Module) -> None:
    """Fill a model with the parameters that `save_weights` wrote, in place."""
    fill(model, load_file(file))


def save_state(
    file: Path, model: nn.Module, optimizer: Optimizer, mean: Mapping[str, Tensor], progress: Mapping[str, Any]
) -> None:
    """Write parameters, the optimizer's moments, the mean of earlier parameters and how far training is."""
    tensors = {f"{_MODEL}{name}": tensor for name, tensor in weights_of(model).items()}
    tensors |= {f"{_MEAN}{name}": tensor for name, tensor in mean.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"{_OPTIMIZER}{index}.{name}": tensor for name, tensor in moments.items()}
    _replace(file, tensors, {_PROGRESS: json.dumps(progress)})


def load_state(file: Path, model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Any], Weights]:
    """Fill model and optimizer in place and return the progress and the mean of earlier parameters."""
    with safe_open(file, "pt") as handle:
        progress: dict[str, Any] = json.loads(handle.metadata()[_PROGRESS])
    tensors = load_file(file)
    fill(model, _under(_MODEL, tensors))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(_OPTIMIZER):
            index, _, moment = name.removeprefix(_OPTIMIZER).partition(".")
            moments.setdefault(int(index), {})[moment] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress, _under(_MEAN, tensors)


def weights_of(model: nn.Module) -> Weights:
    """Return a model's parameters on the CPU, where they may share memory with the model's."""
    return {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy parameters into a model, in place."""
    for name, parameter in model.named_parameters():
        parameter.data.copy_(tensors[name])


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> Weights:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _replace(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write beside `file`, to the disk, then rename: a reader finds the old bytes or the new ones."""
    partial = file.with_suffix(".partial")
    save_file(tensors, partial, metadata)
    with partial.open("rb") as handle:
        os.fsync(handle.fileno())
    partial.replace(file)
