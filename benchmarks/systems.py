"""The systems that `benchmarks.peers` compares: PyTorch, ONNX Runtime and OpenVINO as their users run them, and ours.

Every peer is made from the same checkpoint, reads the same encodings and gets the same padded batches; only what runs
them differs. Heavy packages are imported where a peer needs them, so that one that is not installed is one failure.

    N rows   L padded length   C labels
"""

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import UsageError
from deploykit.runtime import model_info
from deploykit.runtime.batching import pad
from deploykit.runtime.model import Model
from deploykit.runtime.session import open_session
from deploykit.runtime.tasks import decoder_of
from deploykit.runtime.tokenizer import Encoding

if TYPE_CHECKING:
    import torch

    from deploykit.checkpoint import Checkpoint

Row = Mapping[str, Any]
Logits = NDArray[np.float32]
Forward = Callable[[Mapping[str, NDArray[np.int64]]], Logits]
"""Padded inputs (N,L) by name to logits (N,C) or (N,L,C)."""

CALIBRATION_ROWS = 300
"""NNCF's own default."""


@dataclass(frozen=True)
class Source:
    """What every peer is made from."""

    checkpoint: "Checkpoint"
    calibration: Sequence[Row]
    """Rows of the train split, for static quantization."""
    folder: Path
    """Where the peers' model files lie; each is made once."""


@dataclass(frozen=True)
class Peer:
    """A system of others: how its model file is made, and how it is opened with a number of threads."""

    name: str
    precision: Literal["fp32", "int8"]
    make: Callable[[Source], Path]
    open: Callable[[Source, Path, int], Forward]


@dataclass(frozen=True)
class System:
    """Something that answers rows."""

    name: str
    kind: Literal["peer", "deploykit"]
    precision: str
    num_bytes: int
    """The files of graph and weights, without the tokenizer."""
    encode: Callable[[Sequence[Row]], list[Encoding]]
    run: Callable[[Sequence[Encoding]], list[Logits]]
    """A batch, which peers pad to its longest row; per row (C,), or (L,C) without padding."""
    decode: Callable[[Sequence[Logits], Sequence[Encoding], Sequence[Row]], list[dict[str, Any]]]


def open_peer(peer: Peer, source: Source, threads: int) -> System:
    """Make a peer's model file, if it is not there, and load it. It raises whatever the peer raises."""
    checkpoint = source.checkpoint
    task, labels = decoder_of(checkpoint.spec.task), checkpoint.labels
    file = peer.make(source)
    forward, names = peer.open(source, file, threads), _input_names(source)

    def run(encodings: Sequence[Encoding]) -> list[Logits]:
        return task.unpad(forward(pad(encodings, checkpoint.spec.pad_id, names)), encodings)

    return System(
        name=peer.name,
        kind="peer",
        precision=peer.precision,
        num_bytes=_num_bytes(file),
        encode=partial(task.encode, checkpoint.tokenizer),
        run=run,
        decode=lambda logits, encodings, rows: task.decode(logits, encodings, rows, labels),
    )


def open_model(path: Path, checkpoint: "Checkpoint", threads: int) -> System:
    """Load a model that `deploykit export` wrote.

    Raises:
        UsageError: it answers other labels, or another task, than the checkpoint.
    """
    model = Model.open(path, threads=threads)
    info = model.info
    if (info.task, info.labels) != (checkpoint.spec.task, checkpoint.labels):
        raise UsageError(
            path,
            expected=f"a model for {checkpoint.spec.task} with {len(checkpoint.labels)} labels",
            found=f"one for {info.task} with {len(info.labels)}, or other names",
            next_step="give a model that was made from this checkpoint",
        )
    return System(
        name=f"deploykit {path.resolve().name}",
        kind="deploykit",
        precision=info.precision,
        num_bytes=model_info.num_bytes(path),
        encode=model.encode,
        run=model.answers,
        decode=lambda logits, encodings, rows: model.task.decode(logits, encodings, rows, info.labels),
    )


def _input_names(source: Source) -> tuple[str, ...]:
    from deploykit.checkpoint import input_names

    return input_names(source.checkpoint.model)


def _num_bytes(file: Path) -> int:
    """Add up a model's files: those of one stem (graph and weights), or all shards of a checkpoint."""
    pattern = "*.safetensors" if file.suffix == ".safetensors" else f"{file.stem}.*"
    return sum(part.stat().st_size for part in file.parent.glob(pattern))


def _checkpoint_file(source: Source) -> Path:
    return source.checkpoint.path / "model.safetensors"


def _open_eager(source: Source, _file: Path, threads: int) -> Forward:
    """Run the checkpoint's own module, with the attention that transformers picks for its users."""
    import torch

    torch.set_num_threads(threads)
    model = copy.deepcopy(source.checkpoint.model)
    model.set_attn_implementation("sdpa")
    return _torch_forward(model)


def _open_compiled(source: Source, _file: Path, threads: int) -> Forward:
    """Compile for shapes that change; the code holds the thread count, so that nothing older may be reused."""
    import torch

    torch.set_num_threads(threads)
    torch.compiler.reset()
    model = copy.deepcopy(source.checkpoint.model)
    model.set_attn_implementation("sdpa")
    return _torch_forward(torch.compile(model, dynamic=True))


def _torch_forward(model: "Callable[..., Any]") -> Forward:
    import torch

    @torch.inference_mode()
    def forward(feeds: Mapping[str, NDArray[np.int64]]) -> Logits:
        outputs = model(**{name: torch.from_numpy(value) for name, value in feeds.items()})
        return outputs.logits.numpy()  # type: ignore[no-any-return]

    return forward


def _plain_onnx(source: Source) -> Path:
    """Export as optimum does: TorchScript, with batch and length dynamic."""
    import torch

    file = source.folder / "plain.onnx"
    if file.is_file():
        return file
    names, model = _input_names(source), source.checkpoint.model
    token_level = source.checkpoint.spec.task == "token-classification"
    axes = {0: "batch", 1: "length"}
    torch.onnx.export(
        _positional(model, names),
        (torch.ones(2, 16, dtype=torch.int64),) * len(names),
        file,
        input_names=list(names),
        output_names=["logits"],
        dynamic_axes={**dict.fromkeys(names, axes), "logits": axes if token_level else {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    return file


def _positional(model: "torch.nn.Module", names: Sequence[str]) -> "torch.nn.Module":
    """Give a model positional inputs and one output, which is what the exporter takes."""
    import torch

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            return self.model(**dict(zip(names, tensors, strict=True))).logits  # type: ignore[no-any-return]

    return Positional().eval()


def _fused_onnx(source: Source) -> Path:
    """Fuse as optimum's and Olive's optimizers do: with ONNX Runtime's transformer optimizer."""
    from onnxruntime.transformers import optimizer

    file = source.folder / "fused.onnx"
    if not file.is_file():
        fused = optimizer.optimize_model(str(_plain_onnx(source)), model_type="bert", opt_level=0)
        fused.save_model_to_file(str(file))
    return file


def _dynamic_int8(make_float: Callable[[Source], Path], weight_bits: int, source: Source) -> Path:
    """Quantize per channel as optimum and Olive do; 7 bits is their `reduce_range`, for processors without VNNI."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    float_file = make_float(source)
    file = source.folder / f"{float_file.stem}-int8-{weight_bits}.onnx"
    if not file.is_file():
        quantize_dynamic(
            float_file,
            file,
            per_channel=True,
            reduce_range=weight_bits < 8,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # fused operators have no shape inference
        )
    return file


def _olive_int8(source: Source) -> Path:
    """Run Olive's own choice of steps for int8 on the CPU, by the command that its users type.

    That is `auto-opt`; the newer `optimize` calibrates int8 on WikiText from the hub, by CUDA, whatever the provider.

    Raises:
        RuntimeError: the command failed; its last words.
    """
    file = source.folder / "olive" / "model.onnx"
    if not file.is_file():
        model, task = source.checkpoint.path.resolve(), source.checkpoint.spec.task
        asked = ("--model_name_or_path", model, "--task", task, "--precision", "int8", "--output_path", file.parent)
        done = subprocess.run(
            [sys.executable, "-m", "olive", "auto-opt", *map(str, asked)],
            cwd=source.folder,  # it keeps a cache in the folder where it runs
            env={**os.environ, "CI": "1", "HF_HUB_OFFLINE": "1"},  # Olive reports its use over the network unless in CI
            capture_output=True,
            text=True,
            check=False,
        )
        if not file.is_file():
            raise RuntimeError((done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2])
    return file


def _open_onnx(_source: Source, file: Path, threads: int) -> Forward:
    session = open_session(file, provider="cpu", options={}, threads=threads)
    wanted = {node.name for node in session.get_inputs()}
    return lambda feeds: session.run(["logits"], {name: feeds[name] for name in wanted})[0]


def _openvino_fp32(source: Source) -> Path:
    import openvino

    file = source.folder / "openvino-fp32.xml"
    if not file.is_file():
        openvino.save_model(openvino.Core().read_model(_plain_onnx(source)), file, compress_to_fp16=False)
    return file


def _openvino_int8(source: Source) -> Path:
    """Quantize with NNCF after training, its settings for transformers, on rows of the train split."""
    os.environ.setdefault("NNCF_CI", "1")  # NNCF reports its use over the network unless this is set
    import nncf
    import openvino

    file = source.folder / "openvino-int8.xml"
    if not file.is_file():
        task, names = decoder_of(source.checkpoint.spec.task), _input_names(source)
        encodings = task.encode(source.checkpoint.tokenizer, source.calibration)
        feeds = [pad([encoding], source.checkpoint.spec.pad_id, names) for encoding in encodings]
        quantized = nncf.quantize(
            openvino.Core().read_model(_plain_onnx(source)),
            nncf.Dataset(feeds),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(feeds),
        )
        openvino.save_model(quantized, file, compress_to_fp16=False)
    return file


def _open_openvino(_source: Source, file: Path, threads: int) -> Forward:
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    request = openvino.Core().compile_model(file, "CPU", settings).create_infer_request()
    return lambda feeds: request.infer(dict(feeds), share_inputs=True)[0]


BASELINE = "PyTorch eager fp32"

PEERS = (
    Peer(BASELINE, "fp32", _checkpoint_file, _open_eager),
    Peer("torch.compile fp32", "fp32", _checkpoint_file, _open_compiled),
    Peer("ORT fp32", "fp32", _plain_onnx, _open_onnx),
    Peer("ORT fp32, fused", "fp32", _fused_onnx, _open_onnx),
    Peer("ORT dynamic int8", "int8", partial(_dynamic_int8, _plain_onnx, 8), _open_onnx),
    Peer("ORT dynamic int8, 7 bits", "int8", partial(_dynamic_int8, _plain_onnx, 7), _open_onnx),
    Peer("ORT dynamic int8, fused", "int8", partial(_dynamic_int8, _fused_onnx, 8), _open_onnx),
    Peer("ORT dynamic int8, fused, 7 bits", "int8", partial(_dynamic_int8, _fused_onnx, 7), _open_onnx),
    Peer("Olive int8 (auto-opt)", "int8", _olive_int8, _open_onnx),
    Peer("OpenVINO fp32", "fp32", _openvino_fp32, _open_openvino),
    Peer("OpenVINO int8 (NNCF)", "int8", _openvino_int8, _open_openvino),
)
