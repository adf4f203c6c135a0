"""Examples to padded batches, and which examples go together.

An example is a dict of arrays, so that a method may add its own (a teacher's logits and hidden
states) beside the inputs and labels.

    N examples of a batch   L tokens of the longest of them
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deploykit.runtime.tokenizer import Encoding
from deploykit.tasks.task import IGNORED, Targets

Example = Mapping[str, NDArray[Any]]
"""Key to one array. Arrays of one key may differ in their first axis, which is then padded."""
Batch = Mapping[str, Tensor]

LENGTH_KEY = "input_ids"
"""The array whose first axis is an example's length."""
LABELS = "labels"
FILLS: Mapping[str, int] = MappingProxyType({LABELS: IGNORED})
"""What a key is padded with; 0 for the others."""

_GROUPED_BATCHES = 50
"""Examples are sorted by length within groups of this many batches: little padding, and still a new mix each epoch."""


def examples_of(encodings: Sequence[Encoding], targets: Sequence[Targets], names: Sequence[str]) -> list[Example]:
    """Make examples of the model's inputs `names` and `labels`."""
    return [_example(encoding, target, names) for encoding, target in zip(encodings, targets, strict=True)]


def _example(encoding: Encoding, target: Targets, names: Sequence[str]) -> Example:
    inputs = {
        "input_ids": np.array(encoding.ids, np.int64),
        "attention_mask": np.ones(len(encoding.ids), np.int64),
        "token_type_ids": np.array(encoding.type_ids, np.int64),
    }
    return {**{name: inputs[name] for name in names}, LABELS: target}


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """Stack examples key by key: (N,) of scalars, (N,L,...) of arrays, padded to the longest of the batch."""
    fills = {**FILLS, "input_ids": pad_id}
    return {key: _stacked([example[key] for example in examples], fills.get(key, 0)) for key in examples[0]}


def _stacked(arrays: Sequence[NDArray[Any]], fill: int) -> Tensor:
    first = arrays[0]
    if first.ndim == 0:
        return torch.from_numpy(np.stack(arrays))
    length = max(len(array) for array in arrays)
    stacked = np.full((len(arrays), length, *first.shape[1:]), fill, first.dtype)
    for row, array in zip(stacked, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(stacked)


def grouped_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Draw one epoch's batches of indices: every example once, neighbours in length together, in random order.

    The same `seed` and `epoch` give the same batches.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    group = batch_size * _GROUPED_BATCHES
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(order), group):
        members = order[start : start + group]
        members = members[np.argsort(-np.asarray(lengths)[members], kind="stable")]
        batches += [members[first : first + batch_size] for first in range(0, len(members), batch_size)]
    return [batches[index] for index in rng.permutation(len(batches))]
