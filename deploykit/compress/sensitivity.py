"""What int8 costs, matrix by matrix, on the task's own metric; and the fewest matrices to keep in float for a budget.

One linear module is quantized at a time. Its cost is the drop of the task metric, which a few hundred rows show only
coarsely, and the divergence of the predictions, which ranks. Layers before the module give what they give in float,
so their outputs are computed once and handed on: half of the work is saved.

    N rows   C labels   L tokens of a row
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from deploykit import checkpoint as checkpoints
from deploykit import families
from deploykit.checkpoint import Checkpoint, Quantization
from deploykit.compress.divergence import divergence
from deploykit.compress.fake_quant import imitation, quantized_names
from deploykit.compress.first_token import reduced
from deploykit.errors import UsageError
from deploykit.tasks import task_named
from deploykit.tasks.task import Logits
from deploykit.train.labelled import Labelled


@dataclass(frozen=True)
class Sensitivity:
    """What quantizing one linear module alone does."""

    name: str
    drop: float
    """Of the task's primary metric, absolute."""
    divergence: float
    """From the float model's predictions, in nats a prediction."""


def sensitivities(source: Checkpoint, rows: Labelled, quantization: Quantization) -> list[Sensitivity]:
    """Quantize each module of a decision alone and see what the rows' predictions lose; the worst first.

    Args:
        source: in float; left as it is.
        rows: at least one.
        quantization: which modules, and how.
    """
    probe = reduced(source)
    logits = _run(probe, rows)
    before = _metric(source, rows, logits)
    found = []
    for names in _with_the_past_at_hand(probe, rows, quantized_names(source.model, quantization)):
        for name in names:
            with _quantized(probe.model, name, quantization):
                answers = _run(probe, rows)
            drop = before - _metric(source, rows, answers)
            found.append(Sensitivity(name, drop, divergence(logits, answers, rows.targets)))
    return sorted(found, key=lambda one: one.divergence, reverse=True)


def fewest_kept(worst_first: Sequence[str], drop_of: Callable[[Sequence[str]], float], max_drop: float) -> list[str]:
    """Return the shortest head of `worst_first` which, kept in float, holds the drop within the budget.

    The drop is taken to fall as more is kept, so halving finds the place in a few trials; what is returned was tried
    and is within the budget.

    Args:
        worst_first: names of modules.
        drop_of: the drop of the metric with these modules in float and the others quantized.
        max_drop: the budget.

    Raises:
        UsageError: even one quantized module costs more.
    """
    low, high = 0, len(worst_first)
    while low < high:
        middle = (low + high) // 2
        if drop_of(worst_first[:middle]) <= max_drop:
            high = middle
        else:
            low = middle + 1
    if low == len(worst_first):
        raise UsageError(
            "quantize.max_drop",
            expected=f"a quantized matrix that costs at most {max_drop}",
            found="none: each costs more",
            next_step="raise max_drop, or leave quantize out",
        )
    return list(worst_first[:low])


def _run(probe: Checkpoint, rows: Labelled) -> Sequence[Logits]:
    return checkpoints.logits(probe, rows.encodings)


def _metric(source: Checkpoint, rows: Labelled, logits: Sequence[Logits]) -> float:
    return task_named(source.spec.task).score(logits, rows.targets, source.labels).metrics[0].value


@contextmanager
def _quantized(model: PreTrainedModel, name: str, quantization: Quantization) -> Iterator[None]:
    linear = cast("nn.Linear", model.get_submodule(name))
    model.set_submodule(name, imitation(linear, name, quantization))
    try:
        yield
    finally:
        model.set_submodule(name, linear)


def _with_the_past_at_hand(probe: Checkpoint, rows: Labelled, names: Sequence[str]) -> Iterator[list[str]]:
    """Yield the modules of each layer, then those after the layers, with all that comes before computed already."""
    family = families.FAMILIES[probe.model.config.model_type]
    layers = families.layer_list(probe.model)
    left = list(names)
    for index in range(len(layers)):
        prefix = f"{family.backbone}.{family.layers}.{index}."
        inside = [name for name in left if name.startswith(prefix)]
        left = [name for name in left if name not in inside]
        yield inside
        _remember(probe, rows, layers, index)
    yield left


def _remember(probe: Checkpoint, rows: Labelled, layers: nn.ModuleList, index: int) -> None:
    """Put what the layers up to `index` give for every batch in their place."""
    outputs: list[Tensor] = []
    handle = layers[index].register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    _run(probe, rows)
    handle.remove()
    layers[0] = _Recall(outputs)
    for passed in range(1, index + 1):
        layers[passed] = _Pass()


class _Recall(nn.Module):
    """Stands for layers: gives their outputs of each batch, in the order of the batches, again and again."""

    def __init__(self, outputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.outputs = itertools.cycle(outputs)

    def forward(self, *_: object, **__: object) -> Tensor:
        return next(self.outputs)


class _Pass(nn.Module):
    def forward(self, x_NLH: Tensor, *_: object, **__: object) -> Tensor:
        return x_NLH
