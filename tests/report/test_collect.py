import dataclasses
import shutil

import numpy as np
import pytest

from deploykit.errors import ArtifactError, UsageError
from deploykit.report.collect import DEPTH, collect, samples
from tests.report.evidence import latencies, latency, model, seal, validation

HEAD = model("head")


def test_evidence_is_found_at_the_folder_itself_and_below_it(tmp_path):
    deep = seal(tmp_path / "a" / "b" / "latency", *latency(HEAD, latencies(1)))
    seal(tmp_path / "validation", *validation(HEAD, 0.9))
    assert len(collect(tmp_path, "head").pieces) == 2
    assert [piece.path for piece in collect(deep, "head").latencies] == [deep]


def test_too_deep_hidden_and_repeated_evidence_is_not_read(tmp_path):
    found = seal(tmp_path / "a" / "latency", *latency(HEAD, latencies(1)))
    shutil.copytree(found, tmp_path / "copy")
    seal(tmp_path / ".hidden" / "validation", *validation(HEAD, 0.9))
    seal(tmp_path.joinpath(*["deep"] * DEPTH, "validation"), *validation(HEAD, 0.8))
    assert [piece.evidence.measure for piece in collect(tmp_path, "head").pieces] == ["latency"]


def test_a_folder_without_evidence_is_an_empty_side(tmp_path):
    side = collect(tmp_path, "baseline")
    assert (side.pieces, side.scenarios(), side.models) == ((), [], frozenset())


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(ArtifactError, match="no such folder"):
        collect(tmp_path / "nowhere", "head")


@pytest.mark.parametrize("fault", ["flip", "delete", "add"])
def test_changed_evidence_is_an_error(tmp_path, fault):
    folder = seal(tmp_path / "latency", *latency(HEAD, latencies(1)))
    file = folder / "single.head.npy"
    if fault == "flip":
        np.save(file, latencies(0.5))
    elif fault == "delete":
        file.unlink()
    else:
        np.save(folder / "more.npy", latencies(0.5))
    with pytest.raises(ArtifactError, match=r"changed|missing|not in the manifest"):
        collect(tmp_path, "head")


def test_two_pieces_on_the_same_thing_are_an_error_that_names_both(tmp_path):
    seal(tmp_path / "one", *latency(HEAD, latencies(1)))
    seal(tmp_path / "two", *latency(model("other"), latencies(2)))
    with pytest.raises(UsageError, match=r"latency single.*one and .*two"):
        collect(tmp_path, "head")


def test_evidence_of_another_schema_is_an_error(tmp_path):
    found, arrays = latency(HEAD, latencies(1))
    folder = seal(tmp_path / "latency", found, arrays)
    text = (folder / "evidence.json").read_text().replace('"gates"', '"doors"')
    shutil.rmtree(folder)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "evidence.json").write_text(text)
    from deploykit import artifact

    artifact.seal(scratch, folder, artifact.Node("evidence", "bench", {}, (), ""), {})
    with pytest.raises(ArtifactError, match="schema"):
        collect(tmp_path, "head")


def test_samples_come_back_as_they_were_written(tmp_path):
    values = latencies(3, n=10)
    folder = seal(tmp_path / "latency", *latency(HEAD, values))
    (piece,) = collect(folder, "head").latencies
    found = samples(piece, "single", "head")
    assert found is not None
    assert np.array_equal(found, values)
    assert samples(piece, "single", "against") is None


def test_a_run_folder_is_about_its_own_model_not_the_original_below_it(tmp_path):
    seal(tmp_path / "validation", *validation(HEAD, 0.9))
    seal(tmp_path / "original" / "validation", *validation(model("original"), 0.91))
    seal(tmp_path / "original" / "latency", *latency(model("original"), latencies(9)))
    seal(tmp_path / "bench" / "single", *latency(HEAD, latencies(1)))
    side = collect(tmp_path, "head")
    assert side.models == {HEAD.digest}
    assert len(side.pieces) == 2
    below = collect(tmp_path / "original", "baseline")
    assert below.models == {model("original").digest}


def test_the_nearest_evidence_on_a_thing_counts(tmp_path):
    near = seal(tmp_path / "latency", *latency(HEAD, latencies(1)))
    seal(tmp_path / "old" / "latency", *latency(HEAD, latencies(2)))
    assert [piece.path for piece in collect(tmp_path, "head").latencies] == [near]


def test_the_accuracy_of_one_model_beside_the_speed_of_another_is_refused(tmp_path):
    seal(tmp_path / "validation", *validation(HEAD, 0.9))
    seal(tmp_path / "latency", *latency(model("other"), latencies(1)))
    with pytest.raises(UsageError, match=r"one model.*validation|one model.*latency"):
        collect(tmp_path, "head")


def test_a_served_model_has_an_identity_of_its_own(tmp_path):
    served = dataclasses.replace(model("bento"), kind="bento")
    seal(tmp_path / "validation", *validation(HEAD, 0.9))
    seal(tmp_path / "latency", *latency(served, latencies(1)))
    assert len(collect(tmp_path, "head").pieces) == 2
