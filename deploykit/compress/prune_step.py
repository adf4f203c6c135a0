"""One step of pruning: of what is to be gone at the end, so much that a share of the way is done.

Heads and neurons go that the others can best make up for (`brain_surgeon`), and a least-squares fit makes them do so
(`mask_tuning`), before anything is learned again. MiniLM-L6 on NER at 2.5 times the speed of int8, with three epochs of
recovery: 0.0074 from the original, and 0.0081 where the parts of the least Fisher information went and nothing was
fitted (divergence on validation; entity F1 0.5392 and 0.5258 of 0.5411).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from deploykit import families
from deploykit.checkpoint import Checkpoint
from deploykit.compress import brain_surgeon, latency_probes
from deploykit.compress.budget import Budget, Costs, Served, latency_costs, measured, parts_within, size_costs, warnings
from deploykit.compress.finished_steps import Found
from deploykit.compress.fisher_rows import batches, fitting_inputs, row_loss
from deploykit.compress.latency_probes import Conditions
from deploykit.compress.latency_table import LatencyTable, smallest
from deploykit.compress.mask_search import Removals, least_loss
from deploykit.compress.mask_tuning import tune
from deploykit.compress.shape import most_valuable_layers, narrowed
from deploykit.compress.slicing import Parts, sliced
from deploykit.compress.student import activity, keep_layers
from deploykit.families import Structure
from deploykit.train.labelled import Labelled

Choose = Callable[[Checkpoint, Checkpoint, Structure, float], Parts]
"""Choose the parts that stay: of a model to score, the same with its new hidden size, the structure that its layers had
at first, and the share of the way."""


@dataclass(frozen=True)
class Weight:
    """What parts weigh as exported."""

    precision: Served

    def costs(self, made: Checkpoint) -> Costs:
        """Return the costs of a model's parts, in megabytes."""
        return size_costs(made.model, self.precision)


@dataclass(frozen=True)
class Latency:
    """What parts take."""

    before: Checkpoint
    """The unpruned model."""
    under: Conditions
    table_of: Callable[[int], LatencyTable]
    """The latency table of the unpruned model, or of one with narrower hidden states."""

    def costs(self, made: Checkpoint) -> Costs:
        """Return the costs of a model's parts, in milliseconds."""
        return latency_costs(self.table_of(families.hidden_size(made.model)), len(families.blocks(made.model)))


def latency(before: Checkpoint, rows: Labelled, under: Conditions, multiple: int) -> Latency:
    """Measure by latency tables, each of which is asked for once: one that fails its check would differ each time."""

    @cache
    def table_of(width: int) -> LatencyTable:
        return latency_probes.latency_table(_narrowed(before, width, rows), under, multiple)

    return Latency(before, under, table_of)


@dataclass(frozen=True)
class Goal:
    """A target, and what tells how far a model is from it."""

    budget: Budget
    measure: Weight | Latency
    multiple: int
    """Of feed-forward widths."""

    def missed(self, made: Checkpoint) -> str | None:
        """Say that the target is out of reach, and what the nearest point is, where that is so."""
        return self.budget.missed(self._least(made))

    def notes(self, made: Checkpoint) -> dict[str, Any]:
        """Time a result beside the unpruned model, where the target is one of speed: `latency`, and `warnings`.

        Two widths of hidden states are two tables, and are not timed in turn here.
        """
        measure = self.measure
        if isinstance(measure, Weight) or families.hidden_size(made.model) < families.hidden_size(measure.before.model):
            return {}
        table = measure.table_of(families.hidden_size(made.model))
        found = measured(measure.before, made, measure.under, table)
        speedup = self.budget.now / max(self.budget.limit, self._least(made))
        return {"latency": found, "warnings": warnings(table, speedup, found["speedup"])}

    def _least(self, made: Checkpoint) -> float:
        return self.measure.costs(made).of(smallest(families.structure_of(made.model), self.multiple))


@dataclass(frozen=True)
class Plan:
    """What is to be gone at the end."""

    before: Checkpoint
    """The unpruned model."""
    rows: Labelled
    """What everything is scored on."""
    layers: int
    """How many go."""
    hidden_size: int
    """What it is at the end."""
    choose: Choose | None
    """Of heads and neurons; None: all stay."""


def share_after(step: int, steps: int) -> float:
    """Return the share of the way that is done after a step: much at first, while there is much that nobody needs.

    The cubic schedule of Zhu and Gupta 2017, section 3.
    """
    return 1 - (1 - step / steps) ** 3


def cut(plan: Plan, found: Found, share: float) -> Found:
    """Cut a model down to where it is to be after a share of the way; the facts gain a step.

    Args:
        plan: the whole way.
        found: the model so far, which is left as it is, and the facts.
        share: above 0, up to 1.
    """
    made, facts = found
    depth, width = len(families.blocks(plan.before.model)), families.hidden_size(plan.before.model)
    layers = facts["steps"][-1]["layers"] if facts["steps"] else list(range(1, depth + 1))
    kept = most_valuable_layers(made, plan.rows, depth - round(share * plan.layers))
    layers = [layers[index] for index in kept]
    made = keep_layers(made, kept)
    shaped = _narrowed(made, _between(width, plan.hidden_size, share, families.head_size(made.model)), plan.rows)
    if plan.choose is not None:
        all_parts = shaped
        shaped = sliced(all_parts, plan.choose(made, all_parts, _part_of(plan.before, layers), share))
        tune(shaped.model, all_parts.model, fitting_inputs(all_parts, plan.rows), "weights")
    return shaped, {**facts, "steps": [*facts["steps"], described(shaped, layers)]}


def described(made: Checkpoint, layers: Sequence[int]) -> dict[str, Any]:
    """Describe a model's sizes for JSON, with the layers of the unpruned one that it has, counted from 1."""
    structure = families.structure_of(made.model)
    sizes = {"heads": list(structure.heads), "ffn": list(structure.ffn)}
    return {"layers": list(layers), **sizes, "hidden_size": families.hidden_size(made.model)}


def by_shares(heads: float, ffn: float, rows: Labelled, multiple: int) -> Choose:
    """Choose so that shares of the heads and of the neurons are gone in the end, in the layers that stay."""

    def choose(made: Checkpoint, _shaped: Checkpoint, full: Structure, share: float) -> Parts:
        now = families.structure_of(made.model)
        lost_heads, lost_neurons = _removals(made, rows, multiple)
        return (
            least_loss(lost_heads, still_to_go(heads * share, full.heads, now.heads), 1),
            least_loss(lost_neurons, still_to_go(ffn * share, full.ffn, now.ffn), multiple),
        )

    return choose


def by_goal(goal: Goal, rows: Labelled) -> Choose:
    """Choose so that the target is met in the end, at the least loss."""

    def choose(made: Checkpoint, shaped: Checkpoint, _full: Structure, share: float) -> Parts:
        removals = _removals(made, rows, goal.multiple)
        return parts_within(goal.budget.after(share), goal.measure.costs(shaped), removals)

    return choose


def _removals(made: Checkpoint, rows: Labelled, multiple: int) -> Removals:
    return brain_surgeon.removals(made.model, batches(made, rows), row_loss(made), multiple)


def still_to_go(share: float, full: Sequence[int], now: Sequence[int]) -> float:
    """Return the share of the parts there are now that must go, for a share of all there were to be gone."""
    gone = sum(full) - sum(now)
    return max(share * sum(full) - gone, 0.0) / sum(now)


def _part_of(before: Checkpoint, layers: Sequence[int]) -> Structure:
    """Return the structure of some layers, counted from 1."""
    full = families.structure_of(before.model)
    return Structure(tuple(full.heads[layer - 1] for layer in layers), tuple(full.ffn[layer - 1] for layer in layers))


def _narrowed(made: Checkpoint, width: int, rows: Labelled) -> Checkpoint:
    if width == families.hidden_size(made.model):
        return made
    return narrowed(made, width, activity(made, rows.encodings))


def _between(now: int, end: int, share: float, multiple: int) -> int:
    """Return the width after a share of the way, a multiple away from where it was."""
    return now - round(share * (now - end) / multiple) * multiple
