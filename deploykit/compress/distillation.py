"""Train a student on a teacher's logits and hidden states, through the one training loop.

What `distil` and the recovery of `prune` share.

    N rows   L padded length   C labels   H hidden size   M scored positions
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.artifact import Artifact
from deploykit.checkpoint import Checkpoint, input_names
from deploykit.compress.losses import hidden_loss, soft_label_loss
from deploykit.compress.teacher import TeacherOutputs, teacher_outputs
from deploykit.tasks.task import IGNORED
from deploykit.train.batch import LABELS, Batch, Example, examples_of
from deploykit.train.labelled import Labelled, score
from deploykit.train.loop import History, Training, train

_TEACHER_LOGITS = "teacher_logits"
_MOST_PAIRS = 4
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Objective:
    """What the student is to match, and how much each part counts."""

    temperature: float
    """Above 0; higher shows more of what the teacher thinks of the wrong labels."""
    alpha: float
    """The share of the labels' cross-entropy; the teacher's soft labels have the rest."""
    hidden_weight: float
    """The weight of the hidden states' distance."""
    layers: tuple[tuple[int, int], ...] = ()
    """Pairs of a student's layer and the teacher's that it is to match, counted from 1 (`matching_layers`)."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: one is out of range.
        """
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be from 0 to 1, not {self.alpha}")
        if not 0 <= self.hidden_weight < math.inf:
            raise ValueError(f"hidden_weight must not be negative, not {self.hidden_weight}")

    def matched(self) -> tuple[tuple[int, int], ...]:
        """Return the pairs that count."""
        return self.layers if self.hidden_weight > 0 else ()


def matching_layers(student: int, teacher: int) -> tuple[tuple[int, int], ...]:
    """Pair layers at the same relative depth, the last with the last; at most four pairs, which bounds the cache."""
    count = min(student, _MOST_PAIRS)
    matched = [round((index + 1) * student / count) for index in range(count)]
    return tuple((layer, round(layer * teacher / student)) for layer in matched)


def distil_from(
    teacher: tuple[Artifact, Checkpoint],
    student: Checkpoint,
    rows: tuple[Labelled, Labelled],
    objective: Objective,
    training: tuple[Training, Path],
) -> History:
    """Train the student in place; its best weights on the validation rows are left in it.

    Args:
        teacher: in evaluation mode; its outputs are taken from the cache where they are there.
        student: the model that learns.
        rows: training and validation rows.
        objective: the loss.
        training: the loop's settings, and the folder in which it resumes.
    """
    source, model = teacher
    train_rows, validation = rows
    settings, workdir = training
    outputs = teacher_outputs(source.digest, model, train_rows.encodings, [layer for _, layer in objective.matched()])
    names = input_names(student.model)
    examples = with_teacher(examples_of(train_rows.encodings, train_rows.targets, names), outputs)
    return train(
        student.model,
        examples,
        distillation_loss(objective),
        lambda: score(student, validation).metrics[0].value,
        settings,
        workdir,
    )


def with_teacher(examples: Sequence[Example], outputs: TeacherOutputs) -> list[Example]:
    """Put the teacher's outputs beside each example's inputs and labels."""
    extended = [{**example, _TEACHER_LOGITS: row} for example, row in zip(examples, outputs.logits, strict=True)]
    for layer, rows in outputs.hidden.items():
        extended = [{**example, _hidden_key(layer): row} for example, row in zip(extended, rows, strict=True)]
    return list(extended)


def distillation_loss(objective: Objective) -> Callable[[nn.Module, Batch], Tensor]:
    """Return the loss of a batch: labels, soft labels, and the mean distance over the matched hidden states."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        inputs = {name: batch[name] for name in _INPUTS if name in batch}
        output = model(**inputs, output_hidden_states=bool(objective.matched()))
        scored = batch[LABELS] != IGNORED
        logits_MC, teacher_MC = output.logits[scored].float(), batch[_TEACHER_LOGITS][scored]
        soft = soft_label_loss(logits_MC, teacher_MC, objective.temperature)
        total = (1 - objective.alpha) * soft
        if objective.alpha > 0:
            total = total + objective.alpha * F.cross_entropy(logits_MC, batch[LABELS][scored])
        for own, layer in objective.matched():
            teacher_NLH = batch[_hidden_key(layer)].float()
            distance = hidden_loss(output.hidden_states[own].float(), teacher_NLH, batch["attention_mask"])
            total = total + objective.hidden_weight / len(objective.layers) * distance
        return total

    return loss


def _hidden_key(layer: int) -> str:
    return f"teacher_hidden_{layer}"
