"""The stages that a recipe may name, and `compress`, which runs them one after the other."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from filelock import FileLock

from deploykit import artifact, processes, stage
from deploykit.artifact import Artifact, Node
from deploykit.checkpoint import open_checkpoint
from deploykit.compress import waterfall, worth
from deploykit.compress.cascade import Cascade
from deploykit.compress.distil import Distil
from deploykit.compress.prune import Prune
from deploykit.compress.prune_post_training import PrunePostTraining
from deploykit.compress.prune_vocabulary import PruneVocabulary
from deploykit.compress.quantize import Quantize
from deploykit.compress.smooth import Smooth
from deploykit.compress.train_quantized import TrainQuantized
from deploykit.data import open_unlabeled
from deploykit.environment import cache_dir
from deploykit.errors import OutputExists, UsageError
from deploykit.stage import Stage

__all__ = [
    "COMPRESS_STAGES",
    "Cascade",
    "Distil",
    "Prune",
    "PrunePostTraining",
    "PruneVocabulary",
    "Quantize",
    "Smooth",
    "TrainQuantized",
    "compress",
]

OnRow = Callable[[Mapping[str, Any]], None]
Step = tuple[Stage, tuple[Artifact, ...]]
"""A stage, and the data that it reads."""

_STAGES: tuple[type[Stage], ...] = (
    PruneVocabulary,
    Distil,
    Prune,
    PrunePostTraining,
    Smooth,
    TrainQuantized,
    Quantize,
    Cascade,
)
COMPRESS_STAGES: Mapping[str, type[Stage]] = MappingProxyType({each.verb: each for each in _STAGES})
"""Verb to stage, in the order in which a recipe would name them."""


def compress(
    source: Artifact,
    data: Artifact,
    stages: Sequence[Stage],
    out: Path,
    *,
    force: bool = False,
    on_row: OnRow | None = None,
) -> Artifact:
    """Run `stages` one after the other on a checkpoint and put the last result at `out`.

    Every stage's result is kept in the cache under its origin, so a stopped run goes on where it was and recipes with
    the same beginning share it. A step that is not worth it (see `worth`) is dropped: the next one goes on from the
    checkpoint before it, and the result's fact `dropped` tells what was measured. Where all are, the result is the
    checkpoint as it was. What prepares a quantization (`smooth`, `train-quantized`) is judged by the quantization right
    after it, beside the same one without.

    Args:
        source: the checkpoint.
        data: train and validation rows.
        stages: at least one, in order; a quantization comes last. Rows that a stage reads further are opened here.
        out: a new folder, or the same finished artifact.
        force: replace what is at `out`.
        on_row: sees each row of the waterfall as it comes, the original's first. The row of a step that is dropped has
            a further field `dropped`, which says why.

    Raises:
        UsageError: the stages make no sense in this order.
        OutputExists: `out` holds something else and `force` is false.
        DeploykitError: whatever a stage raises.
    """
    _require_order(stages)
    tell = on_row or _ignore
    told = len(waterfall.read(source.path))
    reads = [(data, *_further(each)) for each in stages]
    if out.exists() and not force:
        existing = _finished(out, source, list(zip(stages, reads, strict=True)))
        _tell(waterfall.read(existing.path), told, tell)
        for one in existing.facts.get(waterfall.DROPPED, ())[len(source.facts.get(waterfall.DROPPED, ())) :]:
            tell({**one, waterfall.DROPPED: one["reason"]})
        return existing
    made, dropped = source, list(source.facts.get(waterfall.DROPPED, ()))
    judge = worth.Judge(source, data)
    preparations: list[tuple[Artifact, Artifact]] = []  # of the steps right before this one: before and after each
    for each, read in zip(stages, reads, strict=True):
        before, made = made, _made(each, made, read)
        if getattr(each, "judged_later", False):
            preparations.append((before, made))
            continue
        refused: list[Mapping[str, Any]] = []
        if isinstance(each, Quantize):
            before, made, refused = _without_pointless((each, read), preparations, (before, made), judge)
        preparations = []
        told = _tell(waterfall.read(made.path)[:-1], told, tell)
        if (pointless := worth.dropped(before, made, judge)) is not None:
            refused, made = [*refused, pointless], before
        for one in refused:
            tell({**one, waterfall.DROPPED: one["reason"]})
        dropped += refused
        told = _tell(waterfall.read(made.path), told, tell)
    _tell(waterfall.read(made.path), told, tell)
    if processes.is_first():
        artifact.copy(made, out, facts=_facts(made, dropped), replace=force)
    processes.wait()
    return artifact.read(out)


def with_unlabeled(stages: Sequence[Stage], path: str) -> list[Stage]:
    """Give every distillation, and every pruning that ends in one, the same rows without labels.

    Raises:
        UsageError: there is none, or one has its own.
    """
    learn = [each for each in stages if isinstance(each, Distil) or (isinstance(each, Prune) and each.epochs)]
    if not learn or any(each.unlabeled for each in learn):
        raise UsageError(
            "--unlabeled",
            expected="a recipe with a distillation that has no rows of its own",
            found="no distillation" if not learn else "a field unlabeled",
            next_step="change the recipe or leave the flag out",
        )
    return [replace(each, unlabeled=path) if each in learn else each for each in stages]


def _further(each: Stage) -> list[Artifact]:
    """Open what a stage's fields name beside the checkpoint and the data."""
    kinds = stage.further_kinds(each)
    opener = {"dataset": open_unlabeled, "checkpoint": open_checkpoint}
    return [opener[kinds[name]](path) for name, path in stage.further_sources(each).items() if path]


def _made(each: Stage, source: Artifact, read: Sequence[Artifact]) -> Artifact:
    """Run a stage on a checkpoint into the cache, or find what it made there."""
    return _kept(each, (source, *read), cache_dir() / "stages" / stage.node_before(each, source, *read).origin)


def _kept(each: Stage, sources: Sequence[Artifact], out: Path) -> Artifact:
    """Run a stage into the cache; another run that needs the same result meanwhile waits for it.

    Of several processes that train together the first one holds the turn for all.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    turn = FileLock(out.parent / f".{out.name}.turn") if processes.is_first() else nullcontext()
    with turn:
        return stage.run(each, *sources, out=out, force=True)


def _without_pointless(
    quantize: Step,
    preparations: Sequence[tuple[Artifact, Artifact]],
    step: tuple[Artifact, Artifact],
    judge: worth.Judge,
) -> tuple[Artifact, Artifact, list[Mapping[str, Any]]]:
    """Take away the preparations that gave a quantization nothing, the last one first.

    Args:
        quantize: the quantization, and what it reads beside the checkpoint.
        preparations: before and after each.
        step: before and after the quantization, with all of them.
        judge: what they are judged by.

    Returns:
        before and after the quantization with what is left, and a record of each that is not, in their order.
    """
    refused: list[Mapping[str, Any]] = []
    for unprepared, prepared in reversed(preparations):
        without = _made(quantize[0], unprepared, quantize[1])
        pointless = worth.preparation_dropped(prepared, without, step[1], judge)
        if pointless is None:
            break
        refused, step = [pointless, *refused], (unprepared, without)
    return *step, refused


def _tell(rows: Sequence[Mapping[str, Any]], told: int, tell: OnRow) -> int:
    """Hand on the rows that are new; return how many are told now."""
    for row in rows[told:]:
        tell(row)
    return max(told, len(rows))


def _facts(made: Artifact, dropped: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Add the dropped steps to a result's facts, which no digest covers."""
    if not dropped:
        return made.facts
    said = [*made.facts.get("warnings", ()), *(refused["reason"] for refused in dropped)]
    return {**made.facts, waterfall.DROPPED: list(dropped), "warnings": list(dict.fromkeys(said))}


def _ignore(_row: Mapping[str, Any]) -> None:
    pass


def _require_order(stages: Sequence[Stage]) -> None:
    if not stages:
        raise UsageError("compress", expected="at least one stage", found="none", next_step="name one in the recipe")
    verbs = [each.verb for each in stages]
    if Cascade.verb in verbs[:-1]:
        raise _another_order("cascade as the last stage", verbs, "move cascade to the end")
    if Quantize.verb in (verbs[:-2] if verbs[-1] == Cascade.verb else verbs[:-1]):
        expected = "quantize as the last stage, or right before cascade"
        raise _another_order(expected, verbs, "move quantize to the end: what changes weights comes before it")


def _another_order(expected: str, verbs: Sequence[str], next_step: str) -> UsageError:
    return UsageError("compress", expected=expected, found=", ".join(verbs), next_step=next_step)


def _finished(out: Path, source: Artifact, steps: Sequence[Step]) -> Artifact:
    """Return what is at `out` if it is the finished result of the same work, byte for byte."""
    if artifact.is_sealed(out):
        existing = artifact.read(out)
        if _came_from(existing, source, steps) and not artifact.verify(existing):
            return existing
    raise OutputExists(
        out, expected="a new folder", found="an existing one", next_step="choose another --out or pass --force"
    )


def _came_from(existing: Artifact, source: Artifact, steps: Sequence[Step]) -> bool:
    """Follow the steps from the source: each made a checkpoint on the way to `existing`, or was dropped."""
    made = {node.origin: node for node in existing.node.ancestors()}
    dropped = {refused["origin"] for refused in existing.facts.get(waterfall.DROPPED, ())}
    node = source.node
    for each, read in steps:
        parents = (node, *(data.node for data in read))
        origin = Node(each.makes, each.verb, stage.settings_of(each), parents, "").origin
        if origin not in dropped:
            if origin not in made:
                return False
            node = made[origin]
    return node.digest == existing.digest
