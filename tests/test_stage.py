"""`run`: reuse, refusal, atomicity."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from filelock import FileLock

from deploykit import artifact
from deploykit.artifact import Artifact, Kind, Node
from deploykit.errors import ArtifactError, DataError, OutputExists, TrainingStopped, UsageError
from deploykit.stage import parent, run


@dataclass(frozen=True)
class Write:
    """Writes its text, or fails on purpose."""

    verb: ClassVar[str] = "write"
    reads: ClassVar[tuple[Kind, ...]] = ("dataset",)
    makes: ClassVar[Kind] = "checkpoint"
    resumes: ClassVar[bool] = False
    text: str = "hello"
    error: str = ""

    def __call__(self, *sources: Artifact, scratch: Path) -> dict[str, object]:
        assert sources
        (scratch / "text").write_text(self.text)
        if self.error == "data":
            raise DataError("row 1", expected="x", found="y", next_step="z")
        if self.error == "stopped":
            raise TrainingStopped("step 3", expected="a finite loss", found="nan", next_step="lower it")
        if self.error == "interrupt":
            raise KeyboardInterrupt
        return {"calls": 1}


@dataclass(frozen=True)
class WriteResumably(Write):
    resumes: ClassVar[bool] = True


@pytest.fixture
def source(tmp_path: Path) -> Artifact:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("{}\n")
    return artifact.adopt(tmp_path / "data", "dataset")


def test_a_finished_artifact_of_the_same_origin_is_reused(tmp_path, source):
    first = run(Write(), source, out=tmp_path / "out")
    inode = (first.path / "text").stat().st_ino
    again = run(Write(), source, out=tmp_path / "out")
    assert again.digest == first.digest
    assert (again.path / "text").stat().st_ino == inode


def test_other_settings_never_overwrite_without_force(tmp_path, source):
    run(Write(), source, out=tmp_path / "out")
    with pytest.raises(OutputExists):
        run(Write("other"), source, out=tmp_path / "out")
    assert (run(Write("other"), source, out=tmp_path / "out", force=True).path / "text").read_text() == "other"


def test_a_damaged_artifact_is_not_reused(tmp_path, source):
    made = run(Write(), source, out=tmp_path / "out")
    (made.path / "text").write_text("damaged")
    with pytest.raises(OutputExists):
        run(Write(), source, out=tmp_path / "out")


@pytest.mark.parametrize(("error", "raised"), [("data", DataError), ("interrupt", KeyboardInterrupt)])
def test_a_stage_that_stops_leaves_nothing(tmp_path, source, error, raised):
    with pytest.raises(raised):
        run(Write(error=error), source, out=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_stage_that_resumes_keeps_its_scratch_on_an_interrupt_only(tmp_path, source):
    with pytest.raises(KeyboardInterrupt):
        run(WriteResumably(error="interrupt"), source, out=tmp_path / "out")
    assert list(tmp_path.glob(".out.*.partial"))
    with pytest.raises(DataError):
        run(WriteResumably(error="data"), source, out=tmp_path / "other")
    assert not list(tmp_path.glob(".other.*"))


def test_a_training_that_must_stop_leaves_its_last_good_weights_under_a_name_that_the_error_tells(tmp_path, source):
    for _ in range(2):
        with pytest.raises(
            TrainingStopped, match=r"lower it; the last good weights are kept in .*/out-stopped-"
        ) as told:
            run(WriteResumably(error="stopped"), source, out=tmp_path / "out")
    kept = artifact.verified(Path(str(told.value).rsplit(" ", 1)[1]))
    assert (kept.kind, kept.node.stage, kept.node.parents) == ("checkpoint", "write-stopped", (source.node,))
    assert (kept.path / "text").read_text() == "hello"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", kept.path.name]


def test_sources_of_another_kind_or_number_are_refused(tmp_path, source):
    made = run(Write(), source, out=tmp_path / "out")
    with pytest.raises(ArtifactError, match="kind dataset"):
        run(Write(), made, out=tmp_path / "wrong")
    with pytest.raises(UsageError, match="sources dataset"):
        run(Write(), out=tmp_path / "wrong")


def test_a_parent_is_found_where_it_lay_and_only_if_unchanged(tmp_path, source):
    made = run(Write(), source, out=tmp_path / "out")
    assert parent(made, "dataset") == source
    (source.path / "train.jsonl").write_text("changed\n")
    with pytest.raises(ArtifactError, match="give its path"):
        parent(made, "dataset")


def test_the_lineage_knows_every_ancestor(tmp_path, source):
    made = run(Write(), source, out=tmp_path / "out")
    child = Node("onnx", "export", {}, (made.node,), "")
    assert [node.stage for node in child.ancestors()] == ["export", "write", "import"]


def test_what_killed_runs_of_other_work_left_is_removed_but_not_what_is_at_work(tmp_path, source):
    left, busy = tmp_path / ".out.0123456789ab.partial", tmp_path / ".out.ba9876543210.partial"
    other = tmp_path / ".another.0123456789ab.partial"
    for folder in (left, busy, other):
        folder.mkdir()
    with FileLock(busy.with_suffix(".lock")):
        run(Write(), source, out=tmp_path / "out")
        assert (left.exists(), busy.exists(), other.exists()) == (False, True, True)
    assert not left.with_suffix(".lock").exists()
