"""Prune: what is worth least goes - heads, feed-forward neurons, whole layers, hidden dimensions - and is really gone.

Heads and neurons go that the others can best make up for on calibration rows, wherever they are, so layers may end with
different widths (`prune_step`); a target of speed or size instead of shares is met by the search of `budget`. Layers
are scored by the loss without them, hidden dimensions by their activity (`shape`). With `epochs`, the pruned model is
distilled from the unpruned one, on its rows and as many more as are asked for (`train_sets`). With `steps`, this is
done again and again, a part of the way each time: what the recovered model still has is scored anew (Molchanov et al.
2017, section 2).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel

from deploykit import families, stage
from deploykit.artifact import Artifact, Kind
from deploykit.checkpoint import Checkpoint
from deploykit.compress import latency_probes, waterfall
from deploykit.compress.budget import Served, budget, require_targets
from deploykit.compress.distillation import Objective, distil_from, matching_layers
from deploykit.compress.embeddings import word_embeddings
from deploykit.compress.finished_steps import Found, forget, once
from deploykit.compress.prune_step import Goal, Latency, Plan, Weight, by_goal, by_shares, cut, latency, share_after
from deploykit.compress.slicing import require_reachable
from deploykit.compress.source import load_float
from deploykit.compress.train_sets import train_sets
from deploykit.errors import TrainingStopped, UsageError
from deploykit.train.labelled import Labelled, read_labelled, unlabeled
from deploykit.train.loop import Training, training_of

_TARGETS = ("speedup", "target_ms", "size_mb")
_STEPS = ".steps"


@dataclass(frozen=True)
class Prune:
    """Remove shares of all attention heads and feed-forward neurons, or as many as a target of speed or size asks for.

    Whole layers and hidden dimensions go besides, where that is asked for.
    """

    heads: float | None = None
    """The share of heads to remove, between 0 and 1; every layer keeps at least one."""
    ffn: float | None = None
    """The share of feed-forward neurons to remove, between 0 and 1."""
    multiple: int = 32
    """Feed-forward widths stay multiples of this, which is what the matrix kernels like."""
    calibration_rows: int = 512
    """Training rows that what parts are worth is measured on, and that the others are fitted on."""
    epochs: int = 0
    """Epochs of distillation from the unpruned model, in each step; 0 leaves it at the fit."""
    learning_rate: float = 5e-5
    temperature: float = 2.0
    alpha: float = 0.3
    hidden_weight: float = 1.0
    batch_size: int = 32
    seed: int = 0
    max_train_samples: int | None = None
    unlabeled: str | None = field(default=None, metadata=stage.FURTHER_ROWS)
    """A file or folder of rows without labels, which learn from the unpruned model alone, as `distil` has it."""
    augment: int = 0
    """Copies of each training row with some words replaced by near ones, for the unpruned model to judge."""
    splice: int = 0
    """How many rows are made of pieces of two of all the others, for it to judge."""
    freeze_embeddings: bool = False
    """Leave the word embeddings as they are: a step takes less, and words that the rows do not have stay where the
    others are."""
    layers: int | None = None
    """How many whole layers to remove; shares are then of those that stay."""
    hidden_size: int | None = None
    """How wide hidden states are to be: a multiple of the head size, which stays."""
    speedup: float | None = None
    """In the place of shares: how many times faster than the checkpoint at the same precision, one row at a time."""
    target_ms: float | None = None
    """In the place of shares: the mean latency of one row over the lengths of the training rows, in milliseconds."""
    size_mb: float | None = None
    """In the place of shares: what the weights take as exported, in megabytes (10^6)."""
    precision: Served | None = None
    """In which the model will be served, and so is timed or weighed; None: int8 where there is a target."""
    threads: int | None = None
    """With which it will be served, where the target is one of speed; None: all cores."""
    steps: int = 1
    """In how many steps it is pruned; in each the parts are scored anew, and the model is distilled."""

    verb: ClassVar[str] = "prune"
    reads: ClassVar[tuple[Kind, ...]] = ("checkpoint", "dataset")
    makes: ClassVar[Kind] = "checkpoint"
    resumes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: one is out of range, or has no effect beside the others.
        """
        self._require_something()
        for name in ("heads", "ffn"):
            share = getattr(self, name)
            if share is not None and not 0 < share < 1:
                raise ValueError(f"{name} must be a share between 0 and 1, not {share}")
        for name in ("multiple", "calibration_rows", "max_train_samples", "layers", "hidden_size", "threads", "steps"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, not {number}")
        require_targets({name: getattr(self, name) for name in _TARGETS})
        for name in ("epochs", "augment", "splice"):
            if (number := getattr(self, name)) < 0:
                raise ValueError(f"{name} must not be negative, not {number}")
        for name in ("unlabeled", "augment", "splice"):
            if getattr(self, name) and not (self.epochs and self._objective(((1, 1),)).asks_the_teacher()):
                raise ValueError(f"{name} has no effect without epochs, or where alpha is 1 and hidden_weight is 0")
        if self.freeze_embeddings and not self.epochs:
            raise ValueError("freeze_embeddings has no effect without epochs")
        self._objective(()), self._training(0)

    def __call__(self, *sources: Artifact, scratch: Path) -> Mapping[str, Any]:
        """Write the pruned checkpoint; where even the smallest structure misses the target, that one.

        Its row of the waterfall then says so, and names the nearest point.

        Args:
            sources: the checkpoint, the labelled rows, and those that `unlabeled` names.
            scratch: the payload.

        Raises:
            UsageError: a share cannot be reached, a target is met already, or the checkpoint is quantized.
            TrainingStopped: a loss is not finite.
        """
        source, data, *further = sources
        before = load_float(source, self.verb)
        self._require_reachable(before.model)
        rows = read_labelled(before, data, "train").trainable()
        validation = read_labelled(before, data, "validation")
        sample = rows.sample(self.calibration_rows, self.seed)
        goal = self._goal(before, sample)
        plan = self._plan(before, sample, goal)
        learned = rows.sample(self.max_train_samples, self.seed)
        more = [unlabeled(before, each) for each in further]
        learn = train_sets(before, learned, more, augment=self.augment, splice=self.splice, seed=self.seed)
        recover = partial(self._recovered, (source, before), (*learn, validation), scratch)
        made, facts = self._stepwise(plan, recover, scratch)
        row = waterfall.measure(made, validation, self.verb, stage.settings_of(self))
        row = replace(row, missed=goal.missed(made) if goal else None)
        written = waterfall.add(made, waterfall.begun((source, before), validation), row, scratch)
        notes = goal.notes(made) if goal else {}
        return {**written, **facts, **notes, "warnings": [*written["warnings"], *notes.get("warnings", ())]}

    def _goal(self, before: Checkpoint, rows: Labelled) -> Goal | None:
        target = next(((name, value) for name in _TARGETS if (value := getattr(self, name)) is not None), None)
        if target is None:
            return None
        measure: Weight | Latency = Weight(self.precision or "int8")
        if self.size_mb is None:
            under = latency_probes.conditions(rows.encodings, self.precision or "int8", self.threads)
            measure = latency(before, rows, under, self.multiple)
        now = measure.costs(before).of(families.structure_of(before.model))
        return Goal(budget(self.verb, target, now), measure, self.multiple)

    def _plan(self, before: Checkpoint, rows: Labelled, goal: Goal | None) -> Plan:
        choose = by_goal(goal, rows) if goal else None
        if self.heads or self.ffn:
            choose = by_shares(self.heads or 0.0, self.ffn or 0.0, rows, self.multiple)
        width = self.hidden_size or families.hidden_size(before.model)
        return Plan(before, rows, self.layers or 0, width, choose)

    def _stepwise(self, plan: Plan, recover: Callable[[Found, int], Found], scratch: Path) -> Found:
        """Prune in steps; those that a killed run had finished are not done again."""
        found: Found = (plan.before, {"steps": [], "history": []})
        folder, path = scratch / _STEPS, plan.before.path
        try:
            for step in range(1, self.steps + 1):
                cutting = partial(cut, plan, found, share_after(step, self.steps))
                if not self.epochs:
                    found = cutting()
                    continue
                found = once(folder / f"{step}-pruned", cutting, path)
                found = once(folder / f"{step}-recovered", partial(recover, found, step), path)
        except TrainingStopped:
            forget(folder)
            raise
        forget(folder)
        return found

    def _recovered(
        self,
        teacher: tuple[Artifact, Checkpoint],
        learn: tuple[Labelled, ...],
        scratch: Path,
        found: Found,
        step: int,
    ) -> Found:
        """Distil a step's model from the unpruned one; the facts gain its epochs."""
        made, facts = found
        if self.freeze_embeddings:
            word_embeddings(made.model).weight.requires_grad = False
        depths = [len(families.blocks(each.model)) for each in (made, teacher[1])]
        training = (self._training(made.spec.pad_id), scratch / ".train")
        history = distil_from(teacher, made, learn, self._objective(matching_layers(*depths)), training)
        epochs = [{"step": step, **asdict(epoch)} for epoch in history.epochs]
        return made, {**facts, "history": [*facts["history"], *epochs]}

    def _require_something(self) -> None:
        shares = [name for name in ("heads", "ffn") if getattr(self, name) is not None]
        targets = [name for name in _TARGETS if getattr(self, name) is not None]
        if not shares and not targets and self.layers is None and self.hidden_size is None:
            raise ValueError(f"heads or ffn, layers, hidden_size or one of {', '.join(_TARGETS)} must be given")
        if len(targets) > 1 or (targets and shares):
            raise ValueError(f"{' and '.join([*shares, *targets])} are more than one kind of target: give one")
        if self.precision is not None and not targets:
            raise ValueError("precision has no effect without a target of speed or size")
        if self.threads is not None and (not targets or self.size_mb is not None):
            raise ValueError("threads has no effect without a target of speed")

    def _require_reachable(self, model: PreTrainedModel) -> None:
        structure, size, width = families.structure_of(model), families.head_size(model), families.hidden_size(model)
        if self.heads is not None:
            require_reachable("prune.heads", self.heads, structure.heads, 1)
        if self.ffn is not None:
            require_reachable("prune.ffn", self.ffn, structure.ffn, self.multiple)
        most = len(structure.heads) - 1
        if self.layers is not None and self.layers > most:
            _refuse("layers", f"at most {most}, so that one stays", self.layers)
        if self.hidden_size is not None and (self.hidden_size >= width or self.hidden_size % size):
            _refuse("hidden_size", f"a multiple of {size}, the size of a head, below {width}", self.hidden_size)

    def _objective(self, layers: tuple[tuple[int, int], ...]) -> Objective:
        return Objective(self.temperature, self.alpha, self.hidden_weight, layers)

    def _training(self, pad_id: int) -> Training:
        return training_of(self if self.epochs else replace(self, epochs=1), pad_id)


def _refuse(setting: str, expected: str, found: int) -> None:
    raise UsageError(f"prune.{setting}", expected=expected, found=str(found), next_step="change the number")
