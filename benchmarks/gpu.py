"""deploykit on an NVIDIA GPU beside PyTorch: what ran where, parity, and speed. One command for any CUDA machine.

    python -m benchmarks.gpu CHECKPOINT --data D [--runs 200] [--out F]

CHECKPOINT is fine-tuned, D has a test split. Exports fp32 and fp16 for CUDA, and for TensorRT where it starts, and for
each shows which provider ran the heavy nodes, and the largest difference of a logit from PyTorch float32 on the CPU.
Then every system answers the same tensors, already on the GPU, in interleaved turns: ONNX Runtime with IO binding, the
same with a CUDA graph for each fixed shape, PyTorch eager float32, SDPA in bfloat16, and torch.compile of that. A call
ends when its answer is ready. A system that cannot run is named with its reason. Takes some minutes; without a GPU it
exits 4. Prints a table, then one line of JSON; `--out` keeps the JSON.

    N rows   L tokens
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from benchmarks.turns import TURN, Call, report, samples_ms
from deploykit import checkpoint, environment, stage
from deploykit.artifact import Artifact
from deploykit.check.provider import provider_truth
from deploykit.data import open_dataset, read_split
from deploykit.errors import EnvironmentMissing
from deploykit.export.export import Export
from deploykit.runtime import model_info
from deploykit.runtime.model import Model, Row
from deploykit.runtime.model_info import Precision, Provider
from deploykit.runtime.session import open_session

SHAPES = ((1, 32), (1, 128), (32, 32), (32, 128))
PARITY_ROWS = 64
WARM_UP = 10
TARGETS: tuple[tuple[Provider, Precision], ...] = (
    ("cuda", "fp32"),
    ("cuda", "fp16"),
    ("tensorrt", "fp32"),
    ("tensorrt", "fp16"),
)

Tensors = Mapping[str, torch.Tensor]


def require_gpu() -> None:
    """Check that PyTorch sees a GPU.

    Raises:
        EnvironmentMissing: it does not.
    """
    if not torch.cuda.is_available():
        raise EnvironmentMissing(
            "benchmarks.gpu",
            expected="an NVIDIA GPU and PyTorch built for CUDA",
            found=f"PyTorch {torch.__version__} without a GPU",
            next_step="run it on a CUDA machine",
        )


def run(source: Artifact, rows: Sequence[Row], runs: int) -> dict[str, Any]:
    """Export, check and time everything; returns the result as JSON has it."""
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        exported = _exported(source, Path(folder), failed)
        checked = {name: _checked(path, source, rows) for name, path in exported.items()}
        speeds = [_speeds(source, exported, shape, runs, failed) for shape in SHAPES]
    return {
        "benchmark": "gpu",
        "checkpoint": source.path.name,
        "environment": {**environment.describe(), "gpu": torch.cuda.get_device_name()},
        "exports": checked,
        "shapes": speeds,
        "failed": failed,
    }


def table(result: Mapping[str, Any]) -> str:
    """Draw what ran where, then the median of a call and the throughput for each shape."""
    lines = [
        f"{name}: heavy nodes on {found['provider']} {found['heavy'] - len(found['misplaced'])}/{found['heavy']}, "
        f"copies {found['copies']}, largest difference from PyTorch {found['max_abs']:.1e}"
        for name, found in result["exports"].items()
    ]
    for found in result["shapes"]:
        num_rows, length = found["shape"]
        lines.append(f"{num_rows} x {length} tokens")
        for name, median in sorted(found["p50_ms"].items(), key=lambda item: item[1]):
            lines.append(f"  {name:<24} {median:9.3f} ms  {1000 * num_rows / median:10.0f} rows/s")
    return "\n".join([*lines, *(f"{name}: not run: {reason}" for name, reason in result["failed"].items())])


def attempted(calls: dict[str, Call], failed: dict[str, str], name: str, make: Callable[[], Call]) -> None:
    """Make a call and warm it up; one that fails is named with its reason and left out."""
    try:
        call = make()
        for _ in range(WARM_UP):
            call()
    except Exception as error:  # noqa: BLE001 - whatever a compiler or driver raises is the reason
        failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        calls[name] = call


def _exported(source: Artifact, folder: Path, failed: dict[str, str]) -> dict[str, Path]:
    """Export for every target; one that this machine cannot run is exported all the same, and left out here.

    Raises:
        EnvironmentMissing: none can run.
    """
    paths = {}
    for provider, precision in TARGETS:
        name = f"deploykit {provider} {precision}"
        made = stage.run(Export(provider, precision), source, out=folder / f"{provider}-{precision}")
        if made.facts["warnings"]:
            failed[name] = made.facts["warnings"][0]
        else:
            paths[name] = made.path
    if not paths:
        raise EnvironmentMissing(
            "benchmarks.gpu",
            expected="ONNX Runtime to start on the GPU",
            found=next(iter(failed.values())),
            next_step="install the libraries it names",
        )
    return paths


def _checked(path: Path, source: Artifact, rows: Sequence[Row]) -> dict[str, Any]:
    reference, model = checkpoint.load(source), Model.open(path)
    encodings = model.encode(rows[:PARITY_ROWS])
    pairs = zip(model.logits(encodings), checkpoint.logits(reference, encodings), strict=True)
    apart = max(float(np.abs(found - expected).max()) for found, expected in pairs)
    return {**provider_truth(path, rows), "max_abs": apart}


def _speeds(
    source: Artifact, exported: Mapping[str, Path], shape: tuple[int, int], runs: int, failed: dict[str, str]
) -> dict[str, Any]:
    calls: dict[str, Call] = {}
    model = checkpoint.load(source).model
    tensors = _tensors(checkpoint.input_names(model), shape)
    for name, path in exported.items():
        attempted(calls, failed, name, partial(bound, path, tensors, {}))
        if "cuda" in name:
            attempted(calls, failed, f"{name} graph", partial(bound, path, tensors, {"enable_cuda_graph": 1}))
    for name, make in _pytorch(source).items():
        attempted(calls, failed, name, partial(_forward, make, tensors))
    samples = samples_ms(calls, -(-runs // TURN))
    return {"shape": list(shape), "p50_ms": {name: float(np.median(found)) for name, found in samples.items()}}


def _tensors(names: Sequence[str], shape: tuple[int, int]) -> Tensors:
    """Make rows of one token without padding, on the GPU: int64 (N,L) each."""
    return {name: torch.full(shape, int(name != "token_type_ids"), device="cuda") for name in names}


def bound(path: Path, tensors: Tensors, more: Mapping[str, Any]) -> Call:
    """Open an exported model with its input and output bound to memory of the GPU."""
    info = model_info.read(path)
    options = {**info.provider_options, **more}
    session = open_session(path / model_info.GRAPH, provider=info.provider, options=options)
    binding = session.io_binding()
    for name, tensor in tensors.items():
        binding.bind_input(name, "cuda", 0, np.int64, tuple(tensor.shape), tensor.data_ptr())
    num_labels = len(info.labels)
    num_rows, length = next(iter(tensors.values())).shape
    shape = [num_rows, length, num_labels] if info.task == "token-classification" else [num_rows, num_labels]
    binding.bind_ortvalue_output(info.outputs[0], ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, "cuda"))

    def call() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return call


def _pytorch(source: Artifact) -> dict[str, Callable[[], Any]]:
    """Return how each of PyTorch's ways is made."""

    def eager() -> Any:
        return checkpoint.load(source).model.to("cuda")  # type: ignore[arg-type] # transformers' wrapper hides its type

    def sdpa() -> Any:
        model = eager()
        model.set_attn_implementation("sdpa")
        return model.to(torch.bfloat16)

    return {
        "PyTorch eager fp32": eager,
        "PyTorch SDPA bf16": sdpa,
        "torch.compile bf16": lambda: torch.compile(sdpa()),
    }


def _forward(make: Callable[[], Any], tensors: Tensors) -> Call:
    model = make()

    def call() -> None:
        with torch.inference_mode():
            model(**tensors)
        torch.cuda.synchronize()

    return call


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("checkpoint")
    parser.add_argument("--data", required=True)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)

    def make() -> dict[str, Any]:
        require_gpu()
        rows = read_split(open_dataset(arguments.data).path, "test").rows
        return run(checkpoint.open_checkpoint(arguments.checkpoint), rows, arguments.runs)

    return report(make, table, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
