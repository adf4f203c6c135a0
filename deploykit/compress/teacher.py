"""A teacher's outputs on the training rows: computed once, kept in the cache by digest, read as memory maps.

The key holds the teacher's digest and the rows' token ids, so recipes that share teacher and data share the outputs.
Rows are written as they come, longest first, so that a full disk is an error and not a crash. Hidden states are kept
in float16: their rounding, 5e-4 of a value, is far below what a student reaches.

    L tokens of a row   C labels   H hidden size
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from deploykit import artifact, environment
from deploykit.checkpoint import Checkpoint, collate, input_names
from deploykit.runtime.batching import length_sorted_batches
from deploykit.runtime.tasks import decoder_of
from deploykit.runtime.tokenizer import Encoding

_BATCH_SIZE = 32
_FORMAT = 1


@dataclass(frozen=True)
class TeacherOutputs:
    """What the teacher says of each row, in the order of the rows."""

    logits: list[NDArray[np.float32]]
    """(C,) or (L,C) each."""
    hidden: Mapping[int, list[NDArray[np.float16]]]
    """Layer, counted from 1 as in `hidden_states`, to (L,H) each."""


def teacher_outputs(
    digest: str, teacher: Checkpoint, encodings: Sequence[Encoding], layers: Sequence[int]
) -> TeacherOutputs:
    """Return the teacher's logits and the hidden states after `layers`, from the cache where they are there.

    Args:
        digest: the teacher artifact's.
        teacher: left as it is.
        encodings: the rows.
        layers: counted from 1.

    Raises:
        OSError: the disk is full.
    """
    folder = environment.cache_dir() / "teacher" / _key(digest, encodings)
    folder.mkdir(parents=True, exist_ok=True)
    batches = length_sorted_batches([len(encoding.ids) for encoding in encodings], _BATCH_SIZE)
    with FileLock(folder.with_suffix(".lock")):
        missing = [layer for layer in layers if not _hidden_file(folder, layer).is_file()]
        if missing or not (folder / "logits.npy").is_file():
            _compute(folder, teacher, encodings, batches, missing)
    order = np.concatenate(batches)
    lengths = np.array([len(encodings[index].ids) for index in order])
    return TeacherOutputs(
        _rows(folder / "logits.npy", order, lengths),
        {layer: _rows(_hidden_file(folder, layer), order, lengths) for layer in layers},
    )


def _key(digest: str, encodings: Sequence[Encoding]) -> str:
    rows = hashlib.sha256()
    for encoding in encodings:
        rows.update(np.array([len(encoding.ids), *encoding.ids, *encoding.type_ids], np.int64).tobytes())
    return artifact.digest_of([_FORMAT, digest, rows.hexdigest(), torch.__version__])


def _hidden_file(folder: Path, layer: int) -> Path:
    return folder / f"hidden-{layer}.npy"


def _compute(
    folder: Path,
    teacher: Checkpoint,
    encodings: Sequence[Encoding],
    batches: Sequence[NDArray[np.int64]],
    layers: Sequence[int],
) -> None:
    """Run the teacher once over all rows; every file appears whole or not at all."""
    num_tokens = sum(len(encoding.ids) for encoding in encodings)
    shape = (num_tokens, int(teacher.model.config.hidden_size))
    logits = []
    with ExitStack() as files:
        hidden = {layer: files.enter_context(_partial(_hidden_file(folder, layer)).open("wb")) for layer in layers}
        for file in hidden.values():
            _write_header(file, shape)
        for rows, states in _forward(teacher, encodings, batches, layers):
            logits += [np.atleast_2d(row) for row in rows]
            for layer, file in hidden.items():
                file.write(states[layer].tobytes())
    with _partial(folder / "logits.npy").open("wb") as file:
        np.save(file, np.concatenate(logits))
    for final in (folder / "logits.npy", *(_hidden_file(folder, layer) for layer in layers)):
        _partial(final).replace(final)


@torch.inference_mode()
def _forward(
    teacher: Checkpoint,
    encodings: Sequence[Encoding],
    batches: Sequence[NDArray[np.int64]],
    layers: Sequence[int],
) -> Iterator[tuple[list[NDArray[np.float32]], dict[int, NDArray[np.float16]]]]:
    """Yield a batch's logits, row by row, and its hidden states without padding, rows one after the other."""
    names = input_names(teacher.model)
    unpad = decoder_of(teacher.spec.task).unpad
    with _on_accelerator(teacher.model) as model:
        for indices in batches:
            batch = [encodings[index] for index in indices]
            inputs = collate(batch, teacher.spec.pad_id, names)
            inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
            output = model(**inputs, output_hidden_states=bool(layers))
            real = inputs["attention_mask"].bool()
            states = {layer: output.hidden_states[layer][real].half().cpu().numpy() for layer in layers}
            yield unpad(output.logits.float().cpu().numpy(), batch), states


@contextmanager
def _on_accelerator(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Lend the model to the GPU, where there is one."""
    place: nn.Module = model
    try:
        if torch.cuda.is_available():
            place.cuda()
        yield model
    finally:
        place.cpu()


def _partial(file: Path) -> Path:
    return file.with_suffix(".partial")


def _write_header(file: BinaryIO, shape: tuple[int, int]) -> None:
    header: dict[str, Any] = {"descr": "<f2", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _rows(file: Path, order: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[NDArray[Any]]:
    """Map a file and cut it into rows, in the rows' own order; one line a row means one vector a row."""
    table = np.load(file, mmap_mode="r")
    rows = list(table) if len(table) == len(order) else np.split(table, np.cumsum(lengths)[:-1])
    return [rows[position] for position in np.argsort(order)]
