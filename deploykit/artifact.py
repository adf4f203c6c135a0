"""Sealed folders: payload files and a `manifest.json` that is written last.

The only module that knows the disk layout. An artifact's identity is the digest of its
lineage node: kind, stage, settings, parents' digests, and the SHA-256 of every payload file.
Nodes form a Merkle tree, so a manifest proves its whole history; facts (seconds, host, where
the parents lay) are recorded beside it and never enter a digest.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from deploykit.errors import ArtifactError, InputError, OutputExists, resources_mapped

MANIFEST = "manifest.json"
FORMAT = 1
IMPORT = "import"
"""The stage of an artifact that is a user's own folder."""

_ADOPTED = {
    "checkpoint": (".json", ".safetensors", ".txt", ".model"),
    "dataset": (".jsonl", ".csv", ".parquet", "labels.json"),
}

Kind = Literal["checkpoint", "dataset", "onnx", "evidence", "bento"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True)
class Node:
    """One artifact's place in the lineage. `content` is the digest of its files' digests."""

    kind: str
    stage: str
    settings: Mapping[str, Any]
    parents: tuple["Node", ...]
    content: str

    @property
    def origin(self) -> str:
        """The digest of what was asked for: known before the work starts."""
        return digest_of([FORMAT, self.kind, self.stage, self.settings, [parent.digest for parent in self.parents]])

    @property
    def digest(self) -> str:
        """The artifact's identity: what was asked for and what came out."""
        return digest_of([self.origin, self.content])

    def ancestors(self) -> Iterable["Node"]:
        """Yield this node and everything it came from, nearest first."""
        yield self
        for parent in self.parents:
            yield from parent.ancestors()


@dataclass(frozen=True)
class Artifact:
    """A sealed folder at `path`, or a user's own folder adopted where it lies."""

    path: Path
    node: Node
    files: Mapping[str, str]
    """Payload file, relative with forward slashes, to SHA-256."""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return self.node.kind

    @property
    def digest(self) -> str:
        """The identity, 64 hexadecimal digits."""
        return self.node.digest

    @property
    def num_bytes(self) -> int:
        """The payload's size on disk."""
        return sum((self.path / name).stat().st_size for name in self.files)


def canonical_json(value: object) -> str:
    """Render `value` the one way in which it is hashed.

    Raises:
        ValueError: a float is not finite; JSON has no word for it.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest_of(value: object) -> str:
    """Return the SHA-256 of `value`'s canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def finite(value: Any) -> Any:
    """Copy a JSON-like value with every non-finite float replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def write_json(path: Path, value: object, indent: int | None = 1) -> None:
    """Write `value` as readable, valid JSON with a closing newline; without `indent` on one line, which is faster."""
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, error: type[InputError] = ArtifactError) -> Any:
    """Read a JSON file, telling a missing or broken one as `error`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(path, expected="a JSON file", found="no such file", next_step="check the path") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as cause:
        raise error(path, expected="valid JSON in UTF-8", found=str(cause), next_step="restore the file") from cause


def is_sealed(path: Path) -> bool:
    """Tell whether `path` is a sealed folder."""
    return (path / MANIFEST).is_file()


def read(path: Path) -> Artifact:
    """Read a sealed folder's manifest; the payload is not hashed (see `verify`).

    Raises:
        ArtifactError: there is no manifest, or its lineage does not add up.
    """
    if not is_sealed(path):
        found = "no such folder" if not path.exists() else "a folder without manifest.json"
        raise ArtifactError(path, expected="a deploykit artifact", found=found, next_step="check the path")
    manifest = read_json(path / MANIFEST)
    try:
        node = _node_from_json(manifest["lineage"])
        files, facts, digest = dict(manifest["files"]), dict(manifest["facts"]), manifest["digest"]
    except (KeyError, TypeError, ValueError) as cause:
        raise ArtifactError(
            path / MANIFEST,
            expected=f"a manifest of format {FORMAT}",
            found=f"a broken field ({cause})",
            next_step="make the artifact anew",
        ) from cause
    if node.content != digest_of(files) or node.digest != digest:
        raise ArtifactError(
            path / MANIFEST,
            expected=f"digest {digest[:12]}",
            found=f"{node.digest[:12]} from its own lineage",
            next_step="the manifest was edited: make the artifact anew",
        )
    return Artifact(path, node, files, facts)


def verify(artifact: Artifact) -> list[str]:
    """Re-hash the payload and name every file that is changed, missing or not in the manifest."""
    problems = []
    for name, expected in sorted(artifact.files.items()):
        file = artifact.path / name
        if not file.is_file():
            problems.append(f"{name}: missing")
        elif file_digest(file) != expected:
            problems.append(f"{name}: changed")
    strangers = {name for name in payload_files(artifact.path) if name not in artifact.files}
    return problems + [f"{name}: not in the manifest" for name in sorted(strangers)]


def verified(path: Path) -> Artifact:
    """Read a sealed folder and check every byte of it.

    Raises:
        ArtifactError: a file is changed, missing or added.
    """
    artifact = read(path)
    if problems := verify(artifact):
        raise ArtifactError(
            path,
            expected="the bytes that were sealed",
            found="; ".join(problems[:3]),
            next_step="make the artifact anew",
        )
    return artifact


def adopt(path: Path, kind: Kind) -> Artifact:
    """Treat the files of a user's own folder as an artifact, where they lie; nothing is written."""
    files = {name: file_digest(path / name) for name in payload_files(path) if is_payload(name, kind)}
    return Artifact(path, Node(kind, IMPORT, {}, (), digest_of(files)), files)


def reopen(path: Path, node: Node) -> Artifact | None:
    """Open the folder that should hold `node`, sealed or adopted; None where it holds something else."""
    if is_sealed(path):
        found = read(path)
        return found if found.digest == node.digest and not verify(found) else None
    if node.stage != IMPORT:
        return None
    names = [name for name in payload_files(path) if is_payload(name, node.kind)]
    files = {name: file_digest(path / name) for name in names}
    return Artifact(path, node, files) if digest_of(files) == node.content else None


def is_payload(name: str, kind: str) -> bool:
    """Tell whether a file of a user's folder belongs to an adopted artifact of `kind`."""
    if name.startswith(".") or "/" in name:
        return False
    return name.endswith(_ADOPTED.get(kind, ()))


def payload_files(path: Path) -> list[str]:
    """List a folder's files, relative with forward slashes, without the manifest."""
    found = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return sorted(name for name in found if name != MANIFEST)


def seal(scratch: Path, out: Path, asked: Node, facts: Mapping[str, Any], *, replace: bool = False) -> Artifact:
    """Hash and fsync everything in `scratch`, write the manifest last, and rename it to `out`.

    `asked` is the node before the work: its `content` is ignored.

    Raises:
        OutputExists: `out` is there and `replace` is false.
        ResourceError: the disk is full; nothing stands under `out` and what stood there before stays.
    """
    with resources_mapped(out):
        files = {name: file_digest(scratch / name) for name in payload_files(scratch)}
        node = Node(asked.kind, asked.stage, asked.settings, asked.parents, digest_of(files))
        manifest = {
            "format": FORMAT,
            "digest": node.digest,
            "lineage": _node_to_json(node),
            "files": files,
            "facts": finite(facts),
        }
        for name in files:
            _fsync(scratch / name)
        write_json(scratch / MANIFEST, manifest)
        _fsync(scratch / MANIFEST)
        for folder in {scratch, *((scratch / name).parent for name in files)}:
            _fsync(folder)
        publish(scratch, out, replace=replace)
    return Artifact(out, node, files, finite(facts))


def copy(artifact: Artifact, out: Path, *, facts: Mapping[str, Any] | None = None, replace: bool = False) -> Artifact:
    """Seal a copy of an artifact, or of an adopted folder, at `out`: the same digest, and `facts` where given."""
    scratch = scratch_path(out, artifact.digest)
    with resources_mapped(out):
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            for name in artifact.files:
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(artifact.path / name, scratch / name)
            return seal(scratch, out, artifact.node, artifact.facts if facts is None else facts, replace=replace)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise


def scratch_path(out: Path, origin: str) -> Path:
    """Return where work for `out` is done: hidden, beside it, one per origin."""
    return out.parent / f".{out.name}.{origin[:12]}.partial"


def publish(scratch: Path, out: Path, *, replace: bool) -> None:
    """Rename `scratch` to `out`; with `replace` an old folder is moved aside first, and put back if that fails.

    Raises:
        OutputExists: `out` is there and `replace` is false.
    """
    if not out.exists():
        scratch.rename(out)
    elif not replace:
        raise OutputExists(
            out, expected="a new folder", found="an existing one", next_step="choose another --out or pass --force"
        )
    else:
        aside = out.parent / f".{out.name}.replaced"
        shutil.rmtree(aside, ignore_errors=True)
        out.rename(aside)
        try:
            scratch.rename(out)
        except BaseException:
            aside.rename(out)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    _fsync(out.parent)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _node_to_json(node: Node) -> dict[str, Any]:
    return {
        "digest": node.digest,
        "kind": node.kind,
        "stage": node.stage,
        "settings": dict(node.settings),
        "content": node.content,
        "parents": [_node_to_json(parent) for parent in node.parents],
    }


def _node_from_json(value: Mapping[str, Any]) -> Node:
    node = Node(
        value["kind"],
        value["stage"],
        value["settings"],
        tuple(map(_node_from_json, value["parents"])),
        value["content"],
    )
    if node.digest != value["digest"]:
        raise ValueError(f"the {node.stage} step does not match its digest")
    return node
