"""Sealed folders: identity, tampering, atomicity."""

import errno
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit import artifact
from deploykit.artifact import Node
from deploykit.errors import ArtifactError, OutputExists, ResourceError

ASKED = Node("checkpoint", "test", {"epochs": 1}, (), "")


def seal(folder: Path, name: str = "out", content: str = "payload", *, asked: Node = ASKED) -> artifact.Artifact:
    scratch = folder / f".{name}.partial"
    (scratch / "sub").mkdir(parents=True)
    (scratch / "sub" / "weights.bin").write_text(content)
    return artifact.seal(scratch, folder / name, asked, {"seconds": 1.0})


def test_a_sealed_folder_reads_back_as_it_was_made(tmp_path):
    made = seal(tmp_path)
    assert artifact.read(tmp_path / "out") == made
    assert artifact.verify(made) == []


def test_moving_a_folder_changes_nothing(tmp_path):
    made = seal(tmp_path)
    moved = made.path.rename(tmp_path / "elsewhere")
    assert artifact.verified(moved).digest == made.digest


def test_facts_never_enter_the_digest(tmp_path):
    first = seal(tmp_path)
    scratch = tmp_path / "again"
    (scratch / "sub").mkdir(parents=True)
    (scratch / "sub" / "weights.bin").write_text("payload")
    second = artifact.seal(scratch, tmp_path / "second", ASKED, {"seconds": 99.0, "loss": float("nan")})
    assert first.digest == second.digest
    assert artifact.read(second.path).facts["loss"] is None


@pytest.mark.parametrize(
    "changed", [{"content": "other"}, {"asked": Node("checkpoint", "test", {"epochs": 2}, (), "")}]
)
def test_content_and_origin_both_enter_the_digest(tmp_path, changed):
    assert seal(tmp_path).digest != seal(tmp_path, "other", **changed).digest


def test_every_flipped_byte_is_named(tmp_path):
    made = seal(tmp_path)
    file = made.path / "sub" / "weights.bin"
    original = file.read_bytes()
    for position in range(len(original)):
        flipped = bytearray(original)
        flipped[position] ^= 1
        file.write_bytes(flipped)
        assert artifact.verify(made) == ["sub/weights.bin: changed"]


def test_missing_and_added_files_are_named(tmp_path):
    made = seal(tmp_path)
    (made.path / "sub" / "weights.bin").unlink()
    (made.path / "stranger").touch()
    assert artifact.verify(made) == ["sub/weights.bin: missing", "stranger: not in the manifest"]
    with pytest.raises(ArtifactError, match="missing"):
        artifact.verified(made.path)


@pytest.mark.parametrize("field", ["settings", "stage", "content", "kind"])
def test_an_edited_lineage_is_refused(tmp_path, field):
    parent = seal(tmp_path).node
    made = seal(tmp_path, "child", asked=Node("onnx", "export", {}, (parent,), ""))
    manifest = json.loads((made.path / artifact.MANIFEST).read_text())
    manifest["lineage"]["parents"][0][field] = {"epochs": 9} if field == "settings" else "forged"
    (made.path / artifact.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        artifact.read(made.path)


def test_an_existing_output_stays_unless_replaced(tmp_path):
    first = seal(tmp_path)
    with pytest.raises(OutputExists):
        seal(tmp_path, content="newer")
    assert artifact.verify(first) == []
    replaced = artifact.seal(tmp_path / ".out.partial", tmp_path / "out", ASKED, {}, replace=True)
    assert (replaced.path / "sub" / "weights.bin").read_text() == "newer"
    assert not list(tmp_path.glob(".out*"))


def test_a_full_disk_leaves_what_stood_there(tmp_path, monkeypatch):
    first = seal(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ResourceError, match="free some space"):
        seal(tmp_path, "other")
    assert not (tmp_path / "other").exists()
    assert artifact.verify(first) == []


def test_a_user_folder_is_adopted_where_it_lies(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_text("pickle")
    found = artifact.adopt(tmp_path, "checkpoint")
    assert list(found.files) == ["config.json"]
    assert not artifact.is_sealed(tmp_path)
    assert artifact.reopen(tmp_path, found.node) == found
    (tmp_path / "config.json").write_text("{ }")
    assert artifact.reopen(tmp_path, found.node) is None


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False)))
def test_canonical_json_does_not_depend_on_order(value):
    backwards = dict(reversed(value.items()))
    assert artifact.canonical_json(value) == artifact.canonical_json(backwards)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_json_cannot_say_is_refused_in_a_digest(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifact.digest_of({"x": value})


def test_finite_replaces_what_json_cannot_say():
    assert artifact.finite({"a": [1.5, float("nan")], "b": (float("inf"),)}) == {"a": [1.5, None], "b": [None]}


def test_a_copy_has_the_same_digest_whatever_its_facts_and_an_adopted_folder_is_sealed_by_it(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    (tmp_path / "mine" / "notes.pdf").write_text("no part of a checkpoint")
    adopted = artifact.adopt(tmp_path / "mine", "checkpoint")
    artifact.copy(adopted, tmp_path / "copy", facts={"dropped": ["distil"]})
    found = artifact.verified(tmp_path / "copy")
    assert (found.digest, found.facts) == (adopted.digest, {"dropped": ["distil"]})
    artifact.copy(found, tmp_path / "again")
    assert artifact.verified(tmp_path / "again").facts == found.facts
    assert sorted(file.name for file in (tmp_path / "again").iterdir()) == ["config.json", "manifest.json"]
