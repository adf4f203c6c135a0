"""Find the evidence of one side of a report: the folder itself, or evidence artifacts inside it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deploykit import artifact, evidence
from deploykit.artifact import Artifact
from deploykit.errors import ArtifactError, UsageError
from deploykit.evidence import Evidence

Role = Literal["head", "baseline"]
DEPTH = 3
"""How many folders deep evidence is looked for."""


@dataclass(frozen=True)
class Piece:
    """One evidence artifact, every byte of it checked."""

    path: Path
    digest: str
    settings: Mapping[str, Any]
    """Of the stage that measured."""
    evidence: Evidence

    @property
    def topic(self) -> tuple[str | None, str]:
        """The data, by digest, and the split."""
        return (self.evidence.data.digest if self.evidence.data else None, self.evidence.split)


@dataclass(frozen=True)
class Side:
    """All evidence about the head or the baseline."""

    role: Role
    root: Path
    pieces: tuple[Piece, ...]

    @property
    def validations(self) -> tuple[Piece, ...]:
        """Parity and accuracy, one piece for each data set and split."""
        return tuple(piece for piece in self.pieces if piece.evidence.measure == "validation")

    @property
    def latencies(self) -> tuple[Piece, ...]:
        """Latency; no two pieces hold the same scenario."""
        return tuple(piece for piece in self.pieces if piece.evidence.measure == "latency")

    @property
    def models(self) -> frozenset[str]:
        """The digests of what was measured."""
        return frozenset(piece.evidence.subject.digest for piece in self.pieces)

    def scenarios(self) -> list[str]:
        """List the measured latency scenarios."""
        return sorted(name for piece in self.latencies for name in piece.evidence.details.get("scenarios", {}))

    def with_scenario(self, name: str) -> Piece | None:
        """Find the latency evidence that holds a scenario."""
        return next((piece for piece in self.latencies if name in piece.evidence.details.get("scenarios", {})), None)

    def validated_on(self, topic: tuple[str | None, str]) -> Piece | None:
        """Find the validation on exactly this data and split."""
        return next((piece for piece in self.validations if piece.topic == topic), None)


def collect(root: Path, role: Role) -> Side:
    """Read the evidence at or below `root`.

    Raises:
        ArtifactError: `root` is no folder, or a piece of evidence is changed or broken.
        UsageError: two pieces speak of the same thing.
    """
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise ArtifactError(
            root, expected=f"a folder of evidence for the {role}", found=found, next_step="check the path"
        )
    pieces: dict[str, Piece] = {}
    for path in _sealed(root, DEPTH):
        sealed = artifact.read(path)
        if sealed.kind == "evidence":
            pieces.setdefault(sealed.digest, _load(sealed))
    side = Side(role, root, tuple(pieces.values()))
    _require_unambiguous(side)
    return side


def samples(piece: Piece, scenario: str, system: str) -> NDArray[np.float64] | None:
    """Read the raw samples of one system in one scenario, flat; None where none were kept."""
    file = piece.path / f"{scenario}.{system}.npy"
    if not file.is_file():
        return None
    found: NDArray[np.float64] = np.load(file, allow_pickle=False).astype(np.float64).ravel()
    return found


def _sealed(folder: Path, depth: int) -> Iterator[Path]:
    """Yield sealed folders from the top down; a sealed folder is not looked into."""
    if artifact.is_sealed(folder):
        yield folder
    elif depth > 0:
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.name.startswith("."):
                yield from _sealed(child, depth - 1)


def _load(sealed: Artifact) -> Piece:
    try:
        return Piece(sealed.path, sealed.digest, sealed.node.settings, evidence.load(sealed.path))
    except (KeyError, TypeError, AttributeError) as cause:
        raise ArtifactError(
            sealed.path / evidence.FILE,
            expected="evidence of this version's schema",
            found=f"a field missing or unknown ({cause})",
            next_step="measure again",
        ) from cause


def _require_unambiguous(side: Side) -> None:
    seen: dict[tuple[str, ...], Piece] = {}
    for piece in side.pieces:
        for topic in _topics(piece):
            if topic in seen:
                raise UsageError(
                    side.root,
                    expected=f"one piece of evidence on {' '.join(filter(None, topic))} for the {side.role}",
                    found=f"{seen[topic].path} and {piece.path}",
                    next_step="name the one folder",
                )
            seen[topic] = piece


def _topics(piece: Piece) -> list[tuple[str, ...]]:
    if piece.evidence.measure == "latency":
        return [("latency", name) for name in piece.evidence.details.get("scenarios", {})]
    data, split = piece.topic
    return [("validation", (data or "")[:12], split)]
