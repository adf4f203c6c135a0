from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploykit import artifact, settings
from deploykit.checkpoint import load, open_checkpoint
from deploykit.compress import compress, waterfall
from deploykit.compress.compress import COMPRESS_STAGES, Distil, Prune, Quantize
from deploykit.data import open_dataset
from deploykit.errors import OutputExists, RecipeError, UsageError

STAGES = (Distil(layers=1, epochs=1), Prune(heads=0.25, ffn=0.5), Quantize())


@pytest.fixture
def line(bert: Path, reviews: Path):
    return open_checkpoint(bert), open_dataset(reviews)


def compressed(line, stages, out: Path, **settings):
    source, data = line
    return compress.compress(source, data, stages, out, **settings)


def test_each_stage_adds_its_row_and_rows_are_told_as_they_come(line, tmp_path: Path):
    told: list[dict[str, Any]] = []
    made = compressed(line, STAGES, tmp_path / "out", on_row=told.append)
    assert [row["stage"] for row in told] == ["original", "distil", "prune", "quantize"]
    assert told == waterfall.read(made.path)
    parameters = [row["parameters"] for row in told]
    assert parameters[0] > parameters[1] > parameters[2] == parameters[3]
    assert told[2]["num_bytes"] > told[3]["num_bytes"]
    assert load(made).spec.quantization is not None


def test_the_same_again_is_found_and_runs_nothing(line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = compressed(line, STAGES, tmp_path / "out")
    monkeypatch.setattr("deploykit.stage._work", None)
    told: list[Any] = []
    again = compressed(line, STAGES, tmp_path / "out", on_row=told.append)
    elsewhere = compressed(line, STAGES, tmp_path / "elsewhere")
    assert first.digest == again.digest == elsewhere.digest
    assert len(told) == 4


def test_recipes_share_their_beginning(line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    compressed(line, STAGES, tmp_path / "long")
    monkeypatch.setattr("deploykit.stage._work", None)
    short = compressed(line, STAGES[:2], tmp_path / "short")
    assert len(waterfall.read(short.path)) == 3


def test_compressing_a_compressed_checkpoint_goes_on_with_its_waterfall(line, tmp_path: Path):
    first = compressed(line, STAGES[:1], tmp_path / "first")
    told: list[Any] = []
    second = compress.compress(first, line[1], STAGES[1:], tmp_path / "second", on_row=told.append)
    assert [row["stage"] for row in told] == ["prune", "quantize"]
    assert len(waterfall.read(second.path)) == 4


def test_a_folder_with_something_else_is_refused_before_any_work(line, tmp_path: Path, monkeypatch):
    out = tmp_path / "out"
    made = compressed(line, STAGES[:2], out)
    monkeypatch.setattr("deploykit.stage._work", None)
    for stages in (STAGES, STAGES[:1], (Prune(heads=0.5, ffn=0.5),)):
        with pytest.raises(OutputExists):
            compressed(line, stages, out)
    assert artifact.read(out).digest == made.digest


def test_a_result_with_a_flipped_byte_is_no_result(line, tmp_path: Path):
    made = compressed(line, STAGES[2:], tmp_path / "out")
    (made.path / "config.json").write_text("{}")
    with pytest.raises(OutputExists):
        compressed(line, STAGES[2:], tmp_path / "out")
    again = compressed(line, STAGES[2:], tmp_path / "out", force=True)
    assert artifact.verify(again) == []


def test_rows_without_labels_are_a_source_of_their_stage_wherever_they_lie(line, tmp_path: Path, monkeypatch):
    (tmp_path / "more.txt").write_text("the film was fine\n")
    stages = (Distil(layers=1, epochs=1, unlabeled=str(tmp_path / "more.txt")), Quantize())
    made = compressed(line, stages, tmp_path / "out")
    monkeypatch.setattr("deploykit.stage._work", None)
    assert compressed(line, stages, tmp_path / "out").digest == made.digest
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "more.txt").rename(tmp_path / "elsewhere" / "more.txt")
    again = compressed(line, (replace(stages[0], unlabeled=str(moved)), stages[1]), tmp_path / "again")
    assert again.digest == made.digest
    with pytest.raises(OutputExists):
        compressed(line, (Distil(layers=1, epochs=1), Quantize()), tmp_path / "out")


def test_the_flag_gives_its_rows_to_every_distillation_that_has_none():
    learn_or_not: list[Any] = [Distil(layers=2), Prune(ffn=0.5), Prune(ffn=0.5, epochs=1), Distil(layers=1)]
    given = compress.with_unlabeled(learn_or_not, "more.txt")
    assert [getattr(each, "unlabeled", None) for each in given] == ["more.txt", None, "more.txt", "more.txt"]
    for stages in ([Quantize()], [Distil(layers=1, unlabeled="own.txt")]):
        with pytest.raises(UsageError, match="--unlabeled"):
            compress.with_unlabeled(stages, "more.txt")


@pytest.mark.parametrize("stages", [(), (Quantize(), Prune(ffn=0.5)), (Quantize(), Quantize())])
def test_stages_in_an_order_without_sense_are_refused(line, stages, tmp_path: Path):
    with pytest.raises(UsageError):
        compressed(line, stages, tmp_path / "out")


@pytest.mark.parametrize(
    ("stage", "values", "said"),
    [
        ("distil", {}, "layers"),
        ("distil", {"layers": 0}, "layers must be at least 1"),
        ("distil", {"layers": 3, "temperature": -1.0}, "temperature must be above 0"),
        ("distil", {"layers": 3, "temprature": 1.0}, "did you mean temperature"),
        ("prune", {"heads": 1.0}, "heads must be a share between 0 and 1"),
        ("prune", {"ffn": 0}, "ffn must be a share between 0 and 1"),
        ("quantize", {"weight_bits": 4}, "weight_bits"),
        ("quantize", {"scheme": "static"}, "scheme"),
    ],
)
def test_bad_settings_of_a_recipe_are_one_clear_line(stage: str, values: dict[str, Any], said: str):
    with pytest.raises(RecipeError, match=said) as caught:
        settings.make(COMPRESS_STAGES[stage], values, lambda name: f"recipe.yaml:2: {name}", RecipeError)
    assert "\n" not in str(caught.value)
