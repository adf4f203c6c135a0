"""A smaller model before a checkpoint: the fewest rows are handed on, and what is exported answers as was decided."""

import json
from pathlib import Path

import numpy as np
import pytest

from deploykit import checkpoint as checkpoints
from deploykit import stage
from deploykit.artifact import Artifact, read_json
from deploykit.check.validate import Validate
from deploykit.compress import waterfall
from deploykit.compress.cascade import Cascade, fewest_within, metrics_by_rows_handed_on, threshold_of
from deploykit.compress.compress import Distil, Prune, Quantize, compress
from deploykit.data import open_dataset
from deploykit.errors import ArtifactError, CheckpointError, UsageError
from deploykit.export.export import Export
from deploykit.package import Package
from deploykit.runtime import model_info
from deploykit.runtime.model import Model
from deploykit.tasks import Score
from tests.check.known import make_known, spoiled
from tests.models import make_checkpoint

LOOSE = Validate(max_drop=0.9, invariance_rows=8)


def scored(right: list[int]) -> Score:
    stats_NK = np.array([[value, 1.0] for value in right])
    return Score((), (), (), stats_NK, lambda sums: sums[..., 0] / sums[..., 1])


def test_metrics_are_those_of_handing_on_the_least_sure_rows():
    first, last, confidences_N = [1, 0, 0, 1], [1, 1, 1, 0], np.array([0.9, 0.6, 0.8, 0.7])
    found = metrics_by_rows_handed_on(scored(first), scored(last), confidences_N)
    order = np.argsort(confidences_N)
    for count in range(5):
        handed_on = set(order[:count].tolist())
        assert found[count] == np.mean([(last if row in handed_on else first)[row] for row in range(4)])


@pytest.mark.parametrize(
    ("metrics", "least", "count"),
    [
        ([0.5, 0.7, 0.9, 0.9], 0.9, 2),
        ([0.5, 0.9, 0.7, 0.9], 0.9, 3),  # within the budget by chance, and out again with more rows
        ([0.9, 0.9, 0.9], 0.5, 0),
        ([0.5, 0.5, 0.6], 0.6, 2),
        ([0.6], 0.6, 0),
    ],
)
def test_the_fewest_rows_from_which_on_the_budget_holds(metrics: list[float], least: float, count: int):
    assert fewest_within(np.array(metrics), least) == count


@pytest.mark.parametrize("count", range(5))
def test_as_many_rows_lie_below_the_threshold_as_were_asked_for(count: int):
    confidences_N = np.array([0.7, 0.5, 0.9, 0.6])
    assert np.sum(confidences_N < threshold_of(confidences_N, count)) == count


def test_rows_of_equal_confidence_stay_together():
    confidences_N = np.array([0.5, 0.7, 0.7, 0.9])
    assert np.sum(confidences_N < threshold_of(confidences_N, 2)) == 3


def test_a_threshold_is_as_far_from_the_rows_on_both_sides_as_can_be():
    assert threshold_of(np.array([0.5, 0.7, 0.9]), 1) == pytest.approx(0.6)


@pytest.mark.parametrize(
    "settings", [{}, {"max_drop": 0.1, "share": 0.5}, {"max_drop": -0.1}, {"share": 0.0}, {"share": 1.0}]
)
def test_a_setting_that_makes_no_sense_is_refused(settings: dict[str, float]):
    with pytest.raises(ValueError, match="share"):
        Cascade(first="small", **settings)


@pytest.fixture(scope="module", params=["text-classification", "token-classification"])
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def line(task: str, tmp_path_factory: pytest.TempPathFactory):
    """An original that knows its rows, and two models compressed from it, the large and the small one, both in int8."""
    folder = tmp_path_factory.mktemp("line")
    known, rows = make_known(folder, task)
    for split in ("train", "validation"):
        (rows.path / f"{split}.jsonl").write_text((rows.path / "test.jsonl").read_text())
    original, data = checkpoints.open_checkpoint(known.path), open_dataset(rows.path)
    large = compress(original, data, [Quantize()], folder / "large")
    small = compress(original, data, [Prune(ffn=0.5, multiple=8), Quantize()], folder / "small")
    return original, data, large, small


@pytest.fixture(scope="module")
def made(line, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    _, data, large, small = line
    folder = tmp_path_factory.mktemp("made")
    return stage.run(Cascade(first=str(small.path), share=0.5), large, data, small, out=folder / "cascade")


@pytest.fixture(scope="module")
def model(made: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return stage.run(Export(), made, out=tmp_path_factory.mktemp("exported") / "model")


def test_half_of_the_rows_are_handed_on_and_both_models_stay_as_they_were(line, made: Artifact):
    _, _, large, small = line
    assert made.facts["handed_on"] == pytest.approx(0.5, abs=0.03)
    for given, found in ((large, made.path), (small, made.path / "first")):
        weights = (given.path / "model.safetensors").read_bytes()
        assert (found / "model.safetensors").read_bytes() == weights


def test_a_loaded_cascade_has_both_models_and_counts_both(line, made: Artifact):
    loaded = checkpoints.load(made)
    assert loaded.spec.threshold == made.facts["threshold"]
    assert [each.first for each in loaded.parts] == [None, None]
    rows = [waterfall.read(each.path)[-1] for each in (made, line[2], line[3])]
    assert rows[0]["parameters"] == rows[1]["parameters"] + rows[2]["parameters"]
    assert rows[0]["num_bytes"] == rows[1]["num_bytes"] + rows[2]["num_bytes"]


def test_the_small_models_content_enters_the_digest(line, made: Artifact, tmp_path: Path):
    _, data, large, _ = line
    again = stage.run(Cascade(first=str(large.path), share=0.5), large, data, large, out=tmp_path / "other")
    assert again.node.origin != made.node.origin


def test_the_exported_model_answers_as_its_checkpoint_does(line, made: Artifact, model: Artifact):
    source, opened = waterfall.as_exported(checkpoints.load(made)), Model.open(model.path)
    rows = open_rows(line[1])
    encodings = opened.encode(rows)
    expected = checkpoints.logits(source, encodings)
    found = opened.logits(encodings)
    differences = [float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True)]
    assert np.median(differences) < 1e-5  # where float noise moves an activation to the next integer, more


def test_each_row_alone_is_answered_by_one_of_the_two_models(line, model: Artifact):
    opened = Model.open(model.path)
    assert opened.first is not None
    assert opened.info.threshold is not None
    asked = {"first": 0, "last": 0}
    for row in opened.encode(open_rows(line[1])):
        (first,), (last,), (answer,) = opened.first.run([row]), opened.last.run([row]), opened.run([row])
        is_sure = opened.task.confidence(first, row) >= opened.info.threshold
        asked["first" if is_sure else "last"] += 1
        assert np.array_equal(answer, first if is_sure else last)
    assert min(asked.values()) > 0


def test_a_sound_cascade_is_proven_part_by_part_and_packaged(line, made: Artifact, model: Artifact, tmp_path: Path):
    proof = stage.run(LOOSE, model, line[1], line[0], out=tmp_path / "proof")
    found = read_json(proof.path / "evidence.json")
    assert [gate["name"] for gate in found["gates"] if gate["verdict"] == "fail"] == []
    named = [gate["name"] for gate in found["gates"]]
    assert "parity: cascade" in named
    assert sum(name.startswith("parity: first, ") for name in named) == 3
    assert found["details"]["parameters"] == waterfall.read(made.path)[-1]["parameters"]
    bento = stage.run(Package("cascade"), model, proof, out=tmp_path / "bento")
    packed = bento.path / "src" / "model"
    rows = open_rows(line[1])
    assert Model.open(packed).predict(rows) == Model.open(model.path).predict(rows)


def test_another_threshold_than_was_decided_fails_parity(line, model: Artifact, tmp_path: Path):
    def change(folder: Path) -> None:
        said = read_json(folder / "deploykit.json")
        (folder / "deploykit.json").write_text(json.dumps({**said, "threshold": 0.0}))

    faulty = spoiled(model, tmp_path / "faulty", change)
    assert failed(stage.run(LOOSE, faulty, line[1], line[0], out=tmp_path / "proof")) == {"parity: cascade"}


def test_another_small_model_than_was_decided_fails_parity(line, model: Artifact, tmp_path: Path):
    other = stage.run(Export(), line[2], out=tmp_path / "other")

    def change(folder: Path) -> None:
        (folder / "first" / "model.onnx").write_bytes((other.path / "model.onnx").read_bytes())

    faulty = spoiled(model, tmp_path / "faulty", change)
    found = failed(stage.run(LOOSE, faulty, line[1], line[0], out=tmp_path / "proof"))
    assert "parity: first, outputs with float activations" in found


def test_a_small_model_that_answers_other_labels_does_not_open(model: Artifact, tmp_path: Path):
    def change(folder: Path) -> None:
        said = read_json(folder / "first" / "deploykit.json")
        (folder / "first" / "deploykit.json").write_text(json.dumps({**said, "labels": said["labels"][::-1]}))

    faulty = spoiled(model, tmp_path / "faulty", change)
    with pytest.raises(ArtifactError, match="same task, labels"):
        Model.open(faulty.path)


def test_a_checkpoint_without_its_small_model_does_not_load(made: Artifact, tmp_path: Path):
    def change(folder: Path) -> None:
        (folder / "first" / "model.safetensors").unlink()

    with pytest.raises(CheckpointError):
        checkpoints.load(spoiled(made, tmp_path / "faulty", change))


@pytest.mark.parametrize("field", ["labels", "tokenizer"])
def test_a_small_model_of_another_kind_is_refused(line, task: str, tmp_path: Path, field: str):
    other = make_checkpoint(tmp_path / "other", task=task, layers=1)
    file = other / ("config.json" if field == "labels" else "tokenizer.json")
    text = file.read_text()
    label = "negative" if task == "text-classification" else "B-person"
    file.write_text(
        text.replace(label, "else")
        if field == "labels"
        else text.replace('"lowercase":true', '"lowercase":false').replace('"lowercase": true', '"lowercase": false')
    )
    assert file.read_text() != text
    _, data, large, _ = line
    with pytest.raises(UsageError, match=f"same {field}"):
        stage.run(
            Cascade(first=str(other), share=0.5), large, data, checkpoints.open_checkpoint(other), out=tmp_path / "x"
        )


def test_a_small_model_that_is_named_and_not_given_is_missed(line, tmp_path: Path):
    _, data, large, small = line
    with pytest.raises(UsageError, match="its checkpoint among the sources"):
        stage.run(Cascade(first=str(small.path), share=0.5), large, data, out=tmp_path / "x")


def test_nothing_comes_after_a_cascade(line, made: Artifact, tmp_path: Path):
    _, data, _, small = line
    for after in (Quantize(), Distil(layers=1), Prune(ffn=0.5)):
        with pytest.raises(UsageError, match="cascade last"):
            stage.run(after, made, data, out=tmp_path / "x")
    again = Cascade(first=str(small.path), share=0.5)
    with pytest.raises(UsageError, match="the cascade as `first`"):
        stage.run(again, made, data, small, out=tmp_path / "x")


def test_a_cascade_may_stand_before_a_model_and_a_quantization_before_a_cascade(line, made: Artifact, tmp_path: Path):
    original, data, large, _ = line
    three = stage.run(Cascade(first=str(made.path), share=0.5), large, data, made, out=tmp_path / "three")
    assert len(checkpoints.load(three).parts) == 3
    exported = stage.run(Export(), three, out=tmp_path / "model")
    assert model_info.folders(exported.path) == [exported.path / name for name in ("", "first", "first/first")]
    files = [exported.path / name for name in exported.files if name.endswith("model.onnx")]
    assert model_info.num_bytes(exported.path) == sum(file.stat().st_size for file in files)
    proof = stage.run(LOOSE, exported, data, original, out=tmp_path / "proof")
    assert failed(proof) == set()


def test_a_recipe_ends_with_the_cascade(line, tmp_path: Path):
    original, data, _, small = line
    last = Cascade(first=str(small.path), max_drop=0.5)
    for stages in ((last, Quantize()), (Quantize(), Prune(ffn=0.5), last)):
        with pytest.raises(UsageError, match="the last stage"):
            compress(original, data, stages, tmp_path / "out")
    rows: list[str] = []
    compress(original, data, (Quantize(), last), tmp_path / "out", on_row=lambda row: rows.append(row["stage"]))
    assert rows == ["original", "quantize", "cascade"]


def open_rows(data: Artifact) -> list[dict[str, object]]:
    lines = (data.path / "test.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def failed(proof: Artifact) -> set[str]:
    return {gate["name"] for gate in read_json(proof.path / "evidence.json")["gates"] if gate["verdict"] == "fail"}
