"""The stage protocol and `run`, the one verb.

A stage is a frozen dataclass: its fields are its settings, calling it reads artifacts and
writes one payload into a scratch folder. `run` checks what it reads, reuses a finished artifact
of the same origin, does the work and seals it.
"""

import contextlib
import dataclasses
import glob
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from filelock import FileLock, Timeout

from deploykit import artifact, processes
from deploykit.artifact import Artifact, Kind, Node
from deploykit.environment import host_name
from deploykit.errors import ArtifactError, OutputExists, TrainingStopped, UsageError, resources_mapped

_FURTHER = "further source"
FURTHER_ROWS: Mapping[str, Kind] = MappingProxyType({_FURTHER: "dataset"})
"""The metadata of a field that names rows without labels to read beside the other sources. It is no setting: what lies
there becomes one more source, so its content enters the digest, and its path does not."""
FURTHER_CHECKPOINT: Mapping[str, Kind] = MappingProxyType({_FURTHER: "checkpoint"})
"""Likewise, of a field that names a checkpoint."""


class Stage(Protocol):
    """What `run` can run."""

    verb: ClassVar[str]
    """A verb phrase, part of every digest."""
    reads: ClassVar[tuple[Kind, ...]]
    """The kinds of the sources, in order; sources beyond these are of the last kind, or further ones."""
    makes: ClassVar[Kind]
    resumes: ClassVar[bool]
    """Whether it trains: a killed run's scratch folder is of use to the next, and several processes work together."""

    def __call__(self, *sources: Artifact, scratch: Path) -> Mapping[str, Any]:
        """Write the payload into `scratch` and return the facts."""
        ...


def settings_of(stage: Stage) -> dict[str, Any]:
    """Return a stage's settings as JSON gives them back (lists, not tuples), without its further sources."""
    values = dataclasses.asdict(stage)  # type: ignore[call-overload]
    for name in further_sources(stage):
        del values[name]
    return json.loads(artifact.canonical_json(values))  # type: ignore[no-any-return]


def further_sources(stage: Stage) -> dict[str, str | None]:
    """Return the fields that name further sources, with their paths."""
    return {name: getattr(stage, name) for name in further_kinds(stage)}


def further_kinds(stage: Stage | type[Any]) -> dict[str, Kind]:
    """Return the fields of a stage, or of a kind of stage, that name further sources, with the kinds of these."""
    fields = dataclasses.fields(stage)  # type: ignore[arg-type]
    return {item.name: item.metadata[_FURTHER] for item in fields if _FURTHER in item.metadata}


def node_before(stage: Stage, *sources: Artifact) -> Node:
    """Return the lineage node of a run that has not happened: its `origin` is what identifies it."""
    return Node(stage.makes, stage.verb, settings_of(stage), tuple(source.node for source in sources), "")


def require(stage: Stage, *sources: Artifact) -> None:
    """Check the kinds of a stage's sources.

    Raises:
        ArtifactError: one is of another kind.
        UsageError: one is missing.
    """
    if len(sources) < len(stage.reads):
        raise UsageError(
            stage.verb,
            expected=f"sources {', '.join(stage.reads)}",
            found=f"{len(sources)} of them",
            next_step="give them all",
        )
    for index, source in enumerate(sources):
        kind = stage.reads[min(index, len(stage.reads) - 1)]
        further = further_kinds(stage).values() if index >= len(stage.reads) else ()
        if source.kind not in (kind, *further):
            raise ArtifactError(
                source.path,
                expected=f"an artifact of kind {kind} for {stage.verb}",
                found=f"one of kind {source.kind}",
                next_step="check the order of the paths",
            )


def run(stage: Stage, *sources: Artifact, out: Path, force: bool = False) -> Artifact:
    """Run `stage` on `sources` and seal the result at `out`.

    A finished artifact of the same origin is returned as it is. On an error nothing is left behind, but for a training
    that must stop: its last good weights are sealed beside `out`, and the error tells where. After a kill, a stage that
    resumes finds its scratch folder again. Of several processes the first one seals; the others take part in what
    trains.

    Raises:
        OutputExists: `out` holds something else and `force` is false.
        DeploykitError: whatever the stage raises.
    """
    require(stage, *sources)
    asked = node_before(stage, *sources)
    finished = _finished(out, asked, force=force)
    processes.wait()  # each has looked before anyone writes, so all go the same way
    if finished is not None:
        return finished
    with resources_mapped(out):
        if processes.is_first():
            out.parent.mkdir(parents=True, exist_ok=True)
            scratch = artifact.scratch_path(out, asked.origin)
            with _lock(scratch, out):
                _work(stage, sources, asked, scratch, out, replace=force)
            _sweep(out)
        elif stage.resumes:
            with tempfile.TemporaryDirectory() as folder:
                stage(*sources, scratch=Path(folder))
        processes.wait()
    return artifact.read(out)


def _finished(out: Path, asked: Node, *, force: bool) -> Artifact | None:
    if not out.exists():
        return None
    if artifact.is_sealed(out):
        existing = artifact.read(out)
        if existing.node.origin == asked.origin and not artifact.verify(existing):
            return existing
    if force:
        return None
    raise OutputExists(
        out, expected="a new folder", found="an existing one", next_step="choose another --out or pass --force"
    )


def _lock(scratch: Path, out: Path) -> FileLock:
    lock = FileLock(scratch.with_suffix(".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(
            out, expected="no other run writing here", found="one at work", next_step="wait for it to end"
        ) from None
    return lock


def _sweep(out: Path) -> None:
    """Remove the scratch folders that killed runs of other work left for `out`; one that is at work keeps its own."""
    for scratch in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
        lock = FileLock(scratch.with_suffix(".lock"), timeout=0)
        with contextlib.suppress(Timeout), lock:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.with_suffix(".lock").unlink(missing_ok=True)


def _kept(error: TrainingStopped, asked: Node, scratch: Path, out: Path) -> TrainingStopped:
    """Seal the weights that a stopped training left in its scratch folder; return the error that tells where."""
    kept = out.with_name(f"{out.name}-stopped-{asked.origin[:8]}")
    stopped = dataclasses.replace(asked, stage=f"{asked.stage}-stopped")
    try:
        artifact.seal(scratch, kept, stopped, {"warnings": [str(error)]}, replace=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    next_step = f"{error.next_step}; the last good weights are kept in {kept}"
    return TrainingStopped(error.where, expected=error.expected, found=error.found, next_step=next_step)


def _work(
    stage: Stage, sources: tuple[Artifact, ...], asked: Node, scratch: Path, out: Path, *, replace: bool
) -> Artifact:
    if scratch.exists() and not stage.resumes:
        shutil.rmtree(scratch)
    scratch.mkdir(exist_ok=True)
    started = time.monotonic()
    try:
        facts = dict(stage(*sources, scratch=scratch))
        facts |= {
            "seconds": round(time.monotonic() - started, 3),
            "host": host_name(),
            "parent_paths": {source.digest: str(source.path.resolve()) for source in sources},
        }
        return artifact.seal(scratch, out, asked, facts, replace=replace)
    except TrainingStopped as error:
        raise _kept(error, asked, scratch, out) from error
    except BaseException as error:
        if isinstance(error, Exception) or not stage.resumes:
            shutil.rmtree(scratch, ignore_errors=True)
        raise
    finally:
        scratch.with_suffix(".lock").unlink(missing_ok=True)


def parent(child: Artifact, kind: Kind) -> Artifact:
    """Find a child's parent of one kind where it lay when the child was made.

    Raises:
        ArtifactError: it has moved or changed.
    """
    node = next((node for node in child.node.parents if node.kind == kind), None)
    if node is None:
        raise ArtifactError(child.path, expected=f"a parent of kind {kind}", found="none", next_step="give its path")
    path = Path(child.facts.get("parent_paths", {}).get(node.digest, ""))
    found = artifact.reopen(path, node) if path.is_dir() else None
    if found is None:
        raise ArtifactError(
            child.path,
            expected=f"its {kind} {node.digest[:12]} at {path}",
            found="none or another",
            next_step="give its path",
        )
    return found
