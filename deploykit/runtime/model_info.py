"""What `deploykit.json` of an exported model says: all that serving it needs beside the graph and the tokenizer."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from deploykit.artifact import read_json, write_json
from deploykit.errors import ArtifactError

FILE = "deploykit.json"
GRAPH = "model.onnx"
FIRST = "first"
"""The folder of a cascade's smaller model, inside the larger one's: of an exported model and of a checkpoint alike."""
FORMAT = 1

Provider = Literal["cpu", "cuda", "tensorrt"]
Precision = Literal["fp32", "fp16", "int8", "int4"]
PROVIDERS: tuple[str, ...] = get_args(Provider)
PRECISIONS: tuple[str, ...] = get_args(Precision)


@dataclass(frozen=True)
class ModelInfo:
    """The facts of an exported model."""

    task: str
    labels: tuple[str, ...]
    max_length: int
    """Tokens, special ones included."""
    pad_id: int
    inputs: tuple[str, ...]
    """The graph's inputs, int64 (N,L) each."""
    outputs: tuple[str, ...]
    provider: str
    precision: str
    provider_options: Mapping[str, Any] = field(default_factory=dict)
    """ONNX Runtime's options for the provider."""
    fusions: Mapping[str, Any] = field(default_factory=dict)
    quantization: Mapping[str, Any] | None = None
    threshold: float | None = None
    """The confidence from which the answer of the smaller model in the folder `first` stands; None: there is none."""


def write(info: ModelInfo, folder: Path) -> None:
    """Write `deploykit.json`."""
    write_json(folder / FILE, {"format": FORMAT, **dataclasses.asdict(info)})


def read(folder: Path) -> ModelInfo:
    """Read `deploykit.json`.

    Raises:
        ArtifactError: it is missing or broken, or a field is.
    """
    file = folder / FILE
    if not file.is_file():
        raise ArtifactError(
            file, expected="an exported model", found="no such file", next_step="give the folder that export wrote"
        )
    value = read_json(file)
    try:
        return _from_json(value)
    except (KeyError, TypeError, ValueError) as cause:
        raise ArtifactError(
            file,
            expected=f"an exported model of format {FORMAT}",
            found=f"a broken field ({cause})",
            next_step="export the checkpoint anew",
        ) from cause


def folders(folder: Path) -> list[Path]:
    """Return an exported model's folder, and after it those of the smaller ones that are asked before it.

    Raises:
        ArtifactError: `deploykit.json` of one is missing or broken.
    """
    return [folder] if read(folder).threshold is None else [folder, *folders(folder / FIRST)]


def num_bytes(folder: Path) -> int:
    """Add up an exported model's graphs and weights, those of the smaller ones before it too.

    Raises:
        ArtifactError: `deploykit.json` of one is missing or broken.
    """
    return sum(file.stat().st_size for part in folders(folder) for file in part.glob(f"{GRAPH}*"))


def _from_json(value: Mapping[str, Any]) -> ModelInfo:
    if value["format"] != FORMAT:
        raise ValueError(f"format {value['format']}")
    given = {name: item for name, item in value.items() if name != "format"}
    lists = {name: tuple(given[name]) for name in ("labels", "inputs", "outputs")}
    info = ModelInfo(**{**given, **lists})
    if info.provider not in PROVIDERS or info.precision not in PRECISIONS:
        raise ValueError(f"provider {info.provider}, precision {info.precision}")
    return info
