"""How a student starts: some of its teacher's layers, each with the widest parts of what the teacher computes.

What a part is worth is the size of what passes through it on calibration rows (Muralidharan et al. 2024, "Compact
Language Models via Pruning and Knowledge Distillation", section 2.2): one forward pass, no label, no gradient.

    N rows   L padded length   A heads of a layer   F feed-forward width   H hidden size
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from deploykit import families
from deploykit.checkpoint import Checkpoint, collate, input_names
from deploykit.compress.slicing import slice_parts
from deploykit.families import Structure
from deploykit.runtime.batching import length_sorted_batches
from deploykit.runtime.tokenizer import Encoding

_BATCH_SIZE = 32

Sizes = NDArray[np.float64]


@dataclass(frozen=True)
class Widths:
    """How wide a student is."""

    hidden_size: int
    heads: int
    """Of every layer."""
    ffn: int
    """Feed-forward neurons of every layer."""


@dataclass(frozen=True)
class Activity:
    """The mean square of what passes through each part."""

    heads: tuple[Sizes, ...]
    """(A,) a layer."""
    neurons: tuple[Sizes, ...]
    """(F,) a layer."""
    hidden: Sizes
    """(H,): of all layers' hidden states, each layer with the same say."""


def spread(count: int, depth: int) -> list[int]:
    """Choose `count` of `depth` layers, evenly spaced, the first and the last among them; counted from 0."""
    return [round(index * (depth - 1) / max(count - 1, 1)) for index in range(count)]


def keep_layers(checkpoint: Checkpoint, kept: Sequence[int]) -> Checkpoint:
    """Copy a checkpoint with only some of its layers, in order."""
    model = copy.deepcopy(checkpoint.model)
    family = families.FAMILIES[model.config.model_type]
    layers = families.layer_list(model)
    getattr(model, family.backbone).set_submodule(family.layers, nn.ModuleList(layers[index] for index in kept))
    setattr(model.config, family.num_layers, len(kept))
    structure = checkpoint.spec.structure
    if structure is not None:
        structure = Structure(*(tuple(widths[i] for i in kept) for widths in (structure.heads, structure.ffn)))
    return replace(checkpoint, model=model, spec=replace(checkpoint.spec, structure=structure))


def keep_widths(checkpoint: Checkpoint, widths: Widths, activity: Activity) -> Checkpoint:
    """Copy a checkpoint with its most active heads, neurons and hidden dimensions; heads keep their size."""
    model = copy.deepcopy(checkpoint.model)
    structure = slice_parts(
        model,
        [_largest(sizes, widths.heads) for sizes in activity.heads],
        [_largest(sizes, widths.ffn) for sizes in activity.neurons],
    )
    family = families.FAMILIES[model.config.model_type]
    changed = {
        family.ffn_width: widths.ffn,
        family.num_heads: widths.hidden_size // families.head_size(model),
        family.hidden_size: widths.hidden_size,
    }
    made = _cut(model, structure, changed, torch.from_numpy(_largest(activity.hidden, widths.hidden_size)))
    plain = structure == families.full_structure(made.config)
    return replace(checkpoint, model=made, spec=replace(checkpoint.spec, structure=None if plain else structure))


@torch.inference_mode()
def activity(checkpoint: Checkpoint, encodings: Sequence[Encoding]) -> Activity:
    """Measure every head, neuron and hidden dimension of a checkpoint on some rows; padding does not count."""
    model, names = checkpoint.model, input_names(checkpoint.model)
    blocks, size = families.blocks(model), families.head_size(model)
    squares: dict[str, Tensor] = {}
    mask: list[Tensor] = []

    def watch(module: nn.Module, name: str) -> Any:
        def add(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found = inputs[0][mask[-1]].double().square().sum(0)
            squares[name] = squares.get(name, torch.zeros_like(found)) + found

        return module.register_forward_pre_hook(add)

    watched = [(block.attention_output, f"heads-{i}") for i, block in enumerate(blocks)]
    watched += [(block.ffn_out, f"neurons-{i}") for i, block in enumerate(blocks)]
    handles = [watch(module, name) for module, name in watched]
    hidden = torch.zeros(len(blocks) + 1, families.hidden_size(model), dtype=torch.float64)
    try:
        for indices in length_sorted_batches([len(encoding.ids) for encoding in encodings], _BATCH_SIZE):
            inputs = collate([encodings[index] for index in indices], checkpoint.spec.pad_id, names)
            mask.append(inputs["attention_mask"].bool())
            states = model(**inputs, output_hidden_states=True).hidden_states
            hidden += torch.stack([state[mask[-1]].double().square().sum(0) for state in states])
    finally:
        for handle in handles:
            handle.remove()
    each = range(len(blocks))
    return Activity(
        tuple(squares[f"heads-{i}"].view(-1, size).sum(1).numpy() for i in each),
        tuple(squares[f"neurons-{i}"].numpy() for i in each),
        (hidden / hidden.sum(1, keepdim=True)).sum(0).numpy(),
    )


def _largest(sizes: Sizes, count: int) -> NDArray[np.int64]:
    """Return the indices of the `count` largest, ascending; the first of equal ones."""
    return np.sort(np.argsort(-sizes, kind="stable")[:count])


def _cut(model: PreTrainedModel, structure: Structure, changed: dict[str, int], kept: Tensor) -> PreTrainedModel:
    """Build the smaller model and fill it: each axis that is shorter there keeps only the `kept` hidden dimensions."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"  # a copy forgets it
    for name, value in changed.items():
        setattr(config, name, value)
    made = type(model)(config)
    families.resize(made, structure)
    own = made.state_dict()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            own[name].copy_(_shortened(tensor, own[name].shape, kept))
    made.train(mode=False)
    return made


def _shortened(tensor: Tensor, shape: Iterable[int], kept: Tensor) -> Tensor:
    for axis, length in enumerate(shape):
        if tensor.shape[axis] != length:
            tensor = tensor.index_select(axis, kept)
    return tensor
