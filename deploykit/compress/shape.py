"""Fewer layers and narrower hidden states: the sizes that all of a model shares."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deploykit import families
from deploykit.checkpoint import Checkpoint
from deploykit.compress.fisher_rows import batches, row_loss
from deploykit.compress.student import Activity, Widths, keep_layers, keep_widths
from deploykit.train.labelled import Labelled


def most_valuable_layers(checkpoint: Checkpoint, rows: Labelled, count: int) -> list[int]:
    """Choose the `count` layers to keep, counted from 0: one after the other goes the one that is missed least.

    What a layer is worth is measured, and not told from its place: the loss on labelled rows without it. Each time a
    layer is gone, the others are measured anew, as two that do the same are each worth nothing while both are there.
    """

    def loss(kept: Sequence[int]) -> float:
        return mean_loss(keep_layers(checkpoint, kept), rows)

    return fewest_missed(len(families.blocks(checkpoint.model)), count, loss)


def fewest_missed(depth: int, count: int, loss: Callable[[Sequence[int]], float]) -> list[int]:
    """Keep `count` of `depth` layers: again and again the one goes without which the loss is least; ties, the last."""
    kept = list(range(depth))
    while len(kept) > count:
        without = {layer: [other for other in kept if other != layer] for layer in reversed(kept)}
        kept = min(without.values(), key=loss)
    return kept


@torch.inference_mode()
def mean_loss(checkpoint: Checkpoint, rows: Labelled) -> float:
    """Return the rows' mean cross entropy."""
    losses: list[Tensor] = list(map(row_loss(checkpoint), batches(checkpoint, rows)))
    return float(sum(map(float, losses))) / len(rows)


def narrowed(checkpoint: Checkpoint, hidden_size: int, activity: Activity) -> Checkpoint:
    """Copy a checkpoint with only its most active hidden dimensions; every head and neuron stays.

    Args:
        checkpoint: is left as it is.
        hidden_size: a multiple of the head size.
        activity: of the checkpoint (`student`).
    """
    structure = families.structure_of(checkpoint.model)
    return keep_widths(checkpoint, Widths(hidden_size, max(structure.heads), max(structure.ffn)), activity)
