"""The tensors of a checkpoint folder, read from safetensors alone."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deploykit import artifact
from deploykit.errors import CheckpointError

WEIGHTS = "model.safetensors"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a folder's safetensors files, shards included; all values are finite.

    Raises:
        CheckpointError: a file is missing, pickled or broken, or a value is NaN or infinite.
    """
    files = sorted(path.glob("*.safetensors"))
    if not files:
        pickles = [*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.ckpt")]
        found = f"only pickled weights ({pickles[0].name}), which are never loaded" if pickles else "no weights"
        raise CheckpointError(
            path, expected=WEIGHTS, found=found, next_step="save the model as safetensors with save_pretrained"
        )
    if (index := path / f"{WEIGHTS}.index.json").is_file():
        wanted = set(artifact.read_json(index, CheckpointError)["weight_map"].values())
        if absent := wanted - {file.name for file in files}:
            raise CheckpointError(
                path, expected=f"shard {min(absent)}", found="no such file", next_step="copy the checkpoint again"
            )
        files = [path / name for name in sorted(wanted)]
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as handle:
                tensors |= {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError, ValueError) as cause:
            raise CheckpointError(
                file, expected="a whole safetensors file", found=str(cause), next_step="copy the checkpoint again"
            ) from cause
    _require_finite(path, tensors)
    return tensors


def _require_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                path,
                expected="finite weights",
                found=f"{count} NaN or infinite values in {name}",
                next_step="use an earlier checkpoint",
            )
