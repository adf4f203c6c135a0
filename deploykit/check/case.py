"""All that validation compares, each encoded, run and scored once, when it is first asked for.

N rows
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from deploykit import checkpoint, stage
from deploykit.artifact import Artifact
from deploykit.check import outputs
from deploykit.check.parity import Outputs
from deploykit.checkpoint import Checkpoint
from deploykit.data import Split
from deploykit.errors import ArtifactError
from deploykit.runtime.model import Model
from deploykit.runtime.tokenizer import Encoding
from deploykit.tasks import Score, Task, task_named
from deploykit.tasks.task import IGNORED, Targets

T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """Everything that is compared: the exported model, its own checkpoint, the original, the rows."""

    exported: Artifact
    own: Artifact
    original: Artifact
    data: Artifact
    model: Model
    source: Checkpoint
    first: Checkpoint
    """The original, loaded."""
    task: Task
    split: Split
    parity_rows: int

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """The labelled rows (N)."""
        return self.split.rows

    @cached_property
    def asked(self) -> list[Encoding]:
        """The rows as the exported model's tokenizer reads them."""
        return self.task.encode(self.model.tokenizer, self.split.rows)

    @cached_property
    def encodings(self) -> list[Encoding]:
        """The rows as the exported model can read them."""
        return outputs.in_vocabulary(self.asked, self.source.model.config.vocab_size, self.model.info.pad_id)

    @cached_property
    def own_encodings(self) -> list[Encoding]:
        """The rows as the model's own checkpoint reads them."""
        return self.task.encode(self.source.tokenizer, self.split.rows)

    @cached_property
    def first_encodings(self) -> list[Encoding]:
        """The rows as the original reads them."""
        return self.task.encode(self.first.tokenizer, self.split.rows)

    @cached_property
    def first_logits(self) -> Outputs:
        """The original's outputs on all rows."""
        return checkpoint.logits(self.first, self.first_encodings, batch_size=outputs.BATCH_SIZE)

    @cached_property
    def logits(self) -> Outputs:
        """The exported model's outputs on all rows."""
        return self.model.logits(self.encodings, outputs.BATCH_SIZE)

    @cached_property
    def picks(self) -> list[int]:
        """The rows that parity is judged on."""
        return outputs.evenly(self.own_encodings, self.parity_rows)

    def picked(self, rows: Sequence[T]) -> list[T]:
        """Take those rows out of all (N)."""
        return [rows[index] for index in self.picks]

    @cached_property
    def first_score(self) -> Score:
        """The original's score."""
        return self.task.score(self.first_logits, self.first_targets, self.first.labels)

    @cached_property
    def first_targets(self) -> list[Targets]:
        """The labels in the original's numbering."""
        return self.task.targets(self.split, self.first_encodings, self.first.labels)

    @cached_property
    def score(self) -> Score:
        """The exported model's score, by the names that it gives its answers."""
        targets = self.task.targets(self.split, self.encodings, self.model.info.labels)
        return self.task.score(self.logits, targets, self.model.info.labels)

    @cached_property
    def truth(self) -> list[Any]:
        """The labels' names, in the form of a score's predictions."""
        return [_named(target, self.first.labels) for target in self.first_targets]


def opened(sources: Sequence[Artifact], split_name: str, parity_rows: int) -> Case:
    """Open the model, the labelled data, the original and, found through its lineage, the model's own checkpoint.

    Raises:
        ArtifactError: the checkpoint has moved or changed, or the one that was given is another.
        InputError: a part cannot be used.
    """
    exported, data, original, *given = sources
    own = _require_own(exported, given[0]) if given else stage.parent(exported, "checkpoint")
    model = Model.open(exported.path)
    task = task_named(model.info.task)
    source = checkpoint.load(own, task.name)
    first = source if original.digest == own.digest else checkpoint.load(original, task.name)
    split = task.read(data.path, split_name)
    return Case(exported, own, original, data, model, source, first, task, split, parity_rows)


def _require_own(exported: Artifact, given: Artifact) -> Artifact:
    """Check that a checkpoint is the one that a model was exported from."""
    wanted = [node.digest for node in exported.node.parents if node.kind == "checkpoint"]
    if given.digest not in wanted:
        raise ArtifactError(
            given.path,
            expected=f"the checkpoint {wanted[0][:12] if wanted else 'of its lineage'} that the model came from",
            found=given.digest[:12],
            next_step="give the folder that was exported, unchanged",
        )
    return given


def _named(target: Targets, labels: Sequence[str]) -> Any:
    """Name a target () or, of a row of words, those that count."""
    if target.ndim == 0:
        return labels[int(target)]
    return [labels[int(index)] for index in target if index != IGNORED]
