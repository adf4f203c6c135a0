"""Evidence: what was measured, on which digests, in which environment, and what a gate says of it.

The one schema that the checks write and the report reads. An evidence artifact holds
`evidence.json` (an `Evidence`) and the raw samples beside it as `.npy` or `.jsonl`.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deploykit import artifact
from deploykit.artifact import Artifact
from deploykit.errors import ArtifactError

FILE = "evidence.json"

Verdict = Literal["pass", "fail", "inconclusive"]
Measure = Literal["validation", "latency", "steps", "search"]
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Metric:
    """One number with its interval. `name` is the field's: accuracy, f1, entity_f1, p50_ms, size_bytes."""

    name: str
    value: float
    unit: str = ""
    better: Better = "higher"
    low: float | None = None
    high: float | None = None
    """The 95% interval, where one was computed."""
    n: int | None = None
    """How many samples."""


@dataclass(frozen=True)
class Gate:
    """A budget on one quantity and what came of it."""

    name: str
    value: float
    budget: float
    better: Better
    """`lower`: passes where value <= budget; `higher`: where value >= budget."""
    verdict: Verdict
    reason: str
    """One sentence with the numbers in it."""


@dataclass(frozen=True)
class Subject:
    """What was measured."""

    digest: str
    kind: str
    name: str
    """For people: the folder's name."""


@dataclass(frozen=True)
class Evidence:
    """The content of `evidence.json`; `details` holds the tables of the measure."""

    measure: Measure
    subject: Subject
    verdict: Verdict
    gates: tuple[Gate, ...]
    metrics: tuple[Metric, ...]
    environment: Mapping[str, Any]
    environment_key: str
    reference: Subject | None = None
    """The original, for accuracy; the other model, for an interleaved latency."""
    data: Subject | None = None
    split: str = ""
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


def subject_of(source: Artifact) -> Subject:
    """Name an artifact as a subject."""
    return Subject(source.digest, source.kind, source.path.resolve().name)


def overall(gates: Iterable[Gate]) -> Verdict:
    """Combine gates: any failure fails, else any doubt is inconclusive; no gate at all is inconclusive."""
    verdicts = [gate.verdict for gate in gates]
    if "fail" in verdicts:
        return "fail"
    return "pass" if verdicts and all(verdict == "pass" for verdict in verdicts) else "inconclusive"


def write(evidence: Evidence, folder: Path) -> None:
    """Write `evidence.json`; a number that is not finite becomes null."""
    artifact.write_json(folder / FILE, artifact.finite(dataclasses.asdict(evidence)))


def load(folder: Path) -> Evidence:
    """Read the evidence of a sealed folder after checking every byte.

    Raises:
        ArtifactError: the folder is no evidence artifact, or is changed.
    """
    sealed = artifact.verified(folder)
    if sealed.kind != "evidence":
        raise ArtifactError(
            folder,
            expected="an artifact of kind evidence",
            found=f"one of kind {sealed.kind}",
            next_step="give the folder that `validate` or `bench` wrote",
        )
    return from_json(artifact.read_json(folder / FILE))


def from_json(value: Mapping[str, Any]) -> Evidence:
    """Rebuild an `Evidence` from its JSON."""
    fields = dict(value)
    for name in ("subject", "reference", "data"):
        fields[name] = Subject(**value[name]) if value.get(name) else None
    fields["gates"] = tuple(Gate(**gate) for gate in value["gates"])
    fields["metrics"] = tuple(Metric(**metric) for metric in value["metrics"])
    fields["warnings"] = tuple(value["warnings"])
    return Evidence(**fields)
