"""Find the evidence of one side of a report: the folder itself, or evidence artifacts inside it."""

import json
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
    def steps(self) -> tuple[Mapping[str, Any], ...]:
        """What each step of compression gave, PyTorch first; empty where it was not measured."""
        found = [piece.evidence.details["steps"] for piece in self.pieces if piece.evidence.measure == "steps"]
        return tuple(found[0]) if found else ()

    @property
    def models(self) -> frozenset[str]:
        """The digests of what was measured."""
        return frozenset(piece.evidence.subject.digest for piece in self.pieces)

    @property
    def search(self) -> Piece | None:
        """What a search over recipes found, where one chose the model."""
        return next((piece for piece in self.pieces if piece.evidence.measure == "search"), None)

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

    The nearest evidence says which models the side is about. What lies deeper counts where it is about one of them
    and says something new: a run's folder holds its own evidence, and below that the original's.

    Raises:
        ArtifactError: `root` is no folder, or a piece of evidence is changed or broken.
        UsageError: two pieces of the same depth speak of the same thing, or they speak of two models.
    """
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise ArtifactError(
            root, expected=f"a folder of evidence for the {role}", found=found, next_step="check the path"
        )
    kept: list[Piece] = []
    for level in _levels(root):
        models = {piece.evidence.subject.digest for piece in kept}
        taken = {topic for piece in kept for topic in _topics(piece)}
        new = [
            piece
            for piece in level
            if not kept or (piece.evidence.subject.digest in models and not taken & set(_topics(piece)))
        ]
        kept += _distinct(new, root, role)
    _require_one_model(kept, root, role)
    return Side(role, root, tuple(kept))


def samples(piece: Piece, scenario: str, system: str) -> NDArray[np.float64] | None:
    """Read the raw samples of one system in one scenario, flat; None where none were kept."""
    file = piece.path / f"{scenario}.{system}.npy"
    if not file.is_file():
        return None
    found: NDArray[np.float64] = np.load(file, allow_pickle=False).astype(np.float64).ravel()
    return found


def predictions(piece: Piece) -> list[dict[str, Any]]:
    """Read a validation's predictions, a row each; empty where none were kept."""
    file = piece.path / "predictions.jsonl"
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def _levels(root: Path) -> Iterator[list[Piece]]:
    """Yield the evidence of each depth from the top down; hidden and sealed folders are not looked into."""
    folders = [root]
    for _ in range(DEPTH + 1):
        sealed = [artifact.read(folder) for folder in folders if artifact.is_sealed(folder)]
        yield [_load(found) for found in sealed if found.kind == "evidence"]
        open_folders = [folder for folder in folders if not artifact.is_sealed(folder)]
        folders = [child for folder in open_folders for child in sorted(folder.iterdir()) if _is_open(child)]


def _is_open(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


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


def _distinct(level: list[Piece], root: Path, role: Role) -> list[Piece]:
    """Drop copies of the same evidence, and refuse different evidence on the same thing."""
    pieces = list({piece.digest: piece for piece in reversed(level)}.values())[::-1]
    seen: dict[tuple[str, ...], Piece] = {}
    for piece in pieces:
        for topic in _topics(piece):
            if topic in seen:
                raise UsageError(
                    root,
                    expected=f"one piece of evidence on {' '.join(filter(None, topic))} for the {role}",
                    found=f"{seen[topic].path} and {piece.path}",
                    next_step="name the one folder",
                )
            seen[topic] = piece
    return pieces


def _require_one_model(pieces: list[Piece], root: Path, role: Role) -> None:
    """Refuse the accuracy of one model beside the speed of another; a served one has an identity of its own."""
    models = {piece.evidence.subject.digest: piece for piece in pieces if piece.evidence.subject.kind == "onnx"}
    if len(models) > 1:
        raise UsageError(
            root,
            expected=f"evidence on one model for the {role}",
            found=" and ".join(f"{digest[:12]} in {piece.path}" for digest, piece in models.items()),
            next_step="name the folder of one model",
        )


def _topics(piece: Piece) -> list[tuple[str, ...]]:
    if piece.evidence.measure == "latency":
        return [("latency", name) for name in piece.evidence.details.get("scenarios", {})]
    if piece.evidence.measure == "search":
        return [("search",)]
    data, split = piece.topic
    return [(piece.evidence.measure, (data or "")[:12], split)]
