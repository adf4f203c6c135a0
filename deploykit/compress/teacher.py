"""A teacher's outputs on the training rows: computed once, kept in the cache by digest, read as memory maps.

The key holds the teacher's digest and the rows' token ids, so recipes that share teacher and data share the outputs.
Rows are written as they come, longest first, so that a full disk is an error and not a crash. States (`observe`) are
kept in float16: their rounding, 5e-4 of a value, is far below what a student reaches. The teacher multiplies in the
precision that its student trains in. What was used longest ago makes room: six layers on 150,000 short rows are 6 GB.

Attention maps and relations grow with the square of the length and are not kept. What an attention reads is, one vector
a token as a hidden state; queries, keys and values are computed from it again, at three matrices a layer. Where the
states of a training would take more than 16 GiB, only the logits are kept, and the teacher runs beside its student.

    L tokens of a row   C labels   H hidden size
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from deploykit import artifact, environment, families
from deploykit.checkpoint import Checkpoint, collate, input_names
from deploykit.compress import observe
from deploykit.runtime.batching import length_sorted_batches
from deploykit.runtime.tasks import decoder_of
from deploykit.runtime.tokenizer import Encoding
from deploykit.train import progress
from deploykit.train.loop import precision

_BATCH_SIZE = 32
_FORMAT = 1
MOST_BYTES = 16 * 2**30
"""Of the states of all rows of a training on the disk."""
_SHARE = 0.5
"""Of the disk's free space, were none kept: no more than this is taken by the outputs of all teachers."""


@dataclass(frozen=True)
class TeacherOutputs:
    """What the teacher says of each row, in the order of the rows."""

    logits: list[NDArray[np.float32]]
    """(C,) or (L,C) each."""
    states: Mapping[str, list[NDArray[np.float16]]]
    """Name to (L,H) each."""


def states_to_keep(teacher: Checkpoint, sets: Sequence[Sequence[Encoding]], names: Sequence[str]) -> Sequence[str]:
    """Return the names of states if those of all sets of rows together are few enough to keep, else none.

    All sets or none: a batch mixes their rows.
    """
    one = 2 * families.hidden_size(teacher.model) * sum(len(encoding.ids) for rows in sets for encoding in rows)
    return names if one * len(names) <= MOST_BYTES else ()


def teacher_outputs(
    digest: str, teacher: Checkpoint, encodings: Sequence[Encoding], names: Sequence[str]
) -> TeacherOutputs:
    """Return the teacher's logits and the states of these names (`observe`), from the cache where they are there.

    Args:
        digest: the teacher artifact's.
        teacher: left as it is.
        encodings: the rows.
        names: of hidden states and of what attentions read.

    Raises:
        OSError: the disk is full.
    """
    folder = environment.cache_dir() / "teacher" / _key(digest, encodings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    batches = length_sorted_batches([len(encoding.ids) for encoding in encodings], _BATCH_SIZE)
    order = np.concatenate(batches)
    lengths = np.array([len(encodings[index].ids) for index in order])
    with _turn(folder):
        folder.mkdir(exist_ok=True)
        missing = [name for name in names if not _file(folder, name).is_file()]
        if missing or not (folder / "logits.npy").is_file():
            _make_room(folder, 2 * int(lengths.sum()) * families.hidden_size(teacher.model) * len(missing))
            _compute(folder, teacher, encodings, batches, missing)
        folder.touch()  # it was used
        return TeacherOutputs(
            _rows(folder / "logits.npy", order, lengths),
            {name: _rows(_file(folder, name), order, lengths) for name in names},
        )


def _key(digest: str, encodings: Sequence[Encoding]) -> str:
    rows = hashlib.sha256()
    for encoding in encodings:
        rows.update(np.array([len(encoding.ids), *encoding.ids, *encoding.type_ids], np.int64).tobytes())
    return artifact.digest_of([_FORMAT, digest, rows.hexdigest(), torch.__version__, precision()])


def _turn(folder: Path, timeout: float = -1) -> FileLock:
    """Return the lock of whoever computes, opens or removes a folder's outputs; what is open outlives a removal."""
    return FileLock(folder.with_suffix(".lock"), timeout=timeout)


def _make_room(folder: Path, num_bytes: int) -> None:
    """Remove other outputs, those used longest ago first, until they and so many new bytes take no more than a share.

    Those that another process has in hand are left alone.
    """
    cache = folder.parent
    with FileLock(cache / ".room.lock"):
        others = sorted(
            (each for each in cache.iterdir() if each.is_dir() and each != folder),
            key=lambda each: each.stat().st_mtime,
        )
        held = {each: sum(file.stat().st_size for file in each.glob("*.npy")) for each in others}
        most = _SHARE * (shutil.disk_usage(cache).free + sum(held.values()))
        for each in others:
            if sum(held.values()) + num_bytes <= most:
                return
            with suppress(Timeout), _turn(each, timeout=0):
                shutil.rmtree(each, ignore_errors=True)
                del held[each]


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _compute(
    folder: Path,
    teacher: Checkpoint,
    encodings: Sequence[Encoding],
    batches: Sequence[NDArray[np.int64]],
    names: Sequence[str],
) -> None:
    """Run the teacher once over all rows; every file appears whole or not at all."""
    num_tokens = sum(len(encoding.ids) for encoding in encodings)
    shape = (num_tokens, families.hidden_size(teacher.model))
    logits = []
    with ExitStack() as opened:
        files = {name: opened.enter_context(_partial(_file(folder, name)).open("wb")) for name in names}
        for file in files.values():
            _write_header(file, shape)
        for rows, states in _forward(teacher, encodings, batches, names):
            logits += [np.atleast_2d(row) for row in rows]
            for name, file in files.items():
                file.write(states[name].tobytes())
    with _partial(folder / "logits.npy").open("wb") as file:
        np.save(file, np.concatenate(logits))
    for final in (folder / "logits.npy", *(_file(folder, name) for name in names)):
        _partial(final).replace(final)


def _forward(
    teacher: Checkpoint,
    encodings: Sequence[Encoding],
    batches: Sequence[NDArray[np.int64]],
    names: Sequence[str],
) -> Iterator[tuple[list[NDArray[np.float32]], dict[str, NDArray[np.float16]]]]:
    """Yield a batch's logits, row by row, and its states without padding, rows one after the other."""
    unpad = decoder_of(teacher.spec.task).unpad
    with on_accelerator(teacher.model) as model, autocast(model):
        for indices in progress.through(batches, len(batches), "teacher: batch"):
            batch = [encodings[index] for index in indices]
            inputs = collate(batch, teacher.spec.pad_id, input_names(model))
            inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
            with torch.inference_mode():  # not around: leaving it would end an autocast that began inside
                seen = observe.states(model, inputs, names)
            real = inputs["attention_mask"].bool()
            states = {name: seen[name][real].half().cpu().numpy() for name in names}
            yield unpad(seen["logits"].float().cpu().numpy(), batch), states


def autocast(model: PreTrainedModel) -> torch.autocast:
    """Return the precision that students train in; around all batches, so that each weight is rounded once."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=precision() == "bf16")


@contextmanager
def on_accelerator(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
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
