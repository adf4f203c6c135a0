"""Recipes and pipelines: every mistake is told with file, line and field, before anything starts."""

from pathlib import Path
from typing import Any

import pytest

from deploykit import recipe
from deploykit.errors import RecipeError, UsageError
from deploykit.stage import further_sources, settings_of

RECIPE = """\
stages:
  - distil: {layers: 3, epochs: 4, temperature: 2.0}
  - prune:
      heads: 0.25
      ffn: 0.5
  - quantize: {scheme: dynamic-int8}
"""
PIPELINE = """\
task: text-classification
data: reviews
base: sentence-transformers/all-MiniLM-L6-v2
finetune: {epochs: 3, learning_rate: 1e-4}
compress: recipe.yaml
export: {provider: cpu, precision: int8}
validate: {max_drop: 0.01}
bench: {scenarios: [single, offline]}
package: {name: reviews}
report: {baseline: original}
"""


def written(tmp_path: Path, pipeline: str = PIPELINE, stages: str = RECIPE) -> Path:
    (tmp_path / "recipe.yaml").write_text(stages)
    (tmp_path / "reviews").mkdir(exist_ok=True)
    (tmp_path / "pipeline.yaml").write_text(pipeline)
    return tmp_path / "pipeline.yaml"


def test_the_recipe_of_the_design_is_read(tmp_path):
    written(tmp_path)
    stages: Any = recipe.load_recipe(tmp_path / "recipe.yaml")
    assert [stage.verb for stage in stages] == ["distil", "prune", "quantize"]
    assert stages[0].temperature == 2.0
    assert (stages[1].heads, stages[1].ffn) == (0.25, 0.5)


def test_rows_without_labels_lie_relative_to_the_recipe(tmp_path):
    (tmp_path / "more.txt").write_text("a text\n")
    written(tmp_path, stages="stages:\n  - distil: {layers: 3, unlabeled: more.txt}\n")
    (stage,) = recipe.load_recipe(tmp_path / "recipe.yaml")
    assert further_sources(stage) == {"student": None, "unlabeled": str(tmp_path / "more.txt"), "generator": None}
    assert "unlabeled" not in settings_of(stage)


@pytest.mark.parametrize(("given", "layers"), [("3", 3), ("[1, 3, 6]", (1, 3, 6))])
def test_layers_are_a_number_or_a_list(tmp_path, given, layers):
    written(tmp_path, stages=f"stages:\n  - distil: {{layers: {given}}}\n")
    (stage,) = recipe.load_recipe(tmp_path / "recipe.yaml")
    assert getattr(stage, "layers") == layers  # noqa: B009 - a stage is a protocol without it


def test_the_pipeline_of_the_design_is_read(tmp_path):
    pipeline: Any = recipe.load_pipeline(written(tmp_path))
    assert pipeline.data == str(tmp_path / "reviews")
    assert pipeline.base == "sentence-transformers/all-MiniLM-L6-v2"
    assert pipeline.finetune.learning_rate == 1e-4
    assert pipeline.finetune.task == pipeline.task == "text-classification"
    assert len(pipeline.compress) == 3
    assert pipeline.validate.max_drop == 0.01
    assert pipeline.bench.scenarios == ("single", "offline")
    assert pipeline.package.name == "reviews"
    assert pipeline.baseline == recipe.ORIGINAL


def test_every_shipped_recipe_is_valid():
    assert recipe.recipe_names()
    for name in recipe.recipe_names():
        assert recipe.load_recipe(name)


@pytest.mark.parametrize(
    ("old", "new", "line", "found"),
    [
        ("epochs: 4", "epoch: 4", 2, r"unknown key 'epoch'; did you mean epochs\?"),
        ("epochs: 4", "epochs: four", 2, "expected int, found 'four'"),
        ("epochs: 4", "epochs: 3.5", 2, "expected int"),
        ("epochs: 4", "epochs: true", 2, "expected int"),
        ("heads: 0.25", "heads: 1.0", 3, "usable settings"),
        ("layers: 3, ", "", 2, "expected layers, found nothing; add layers"),
        ("ffn: 0.5", "ffn: [0.5]", 5, "expected float"),
        ("quantize:", "quantise:", 6, r"did you mean quantize\?"),
        ("dynamic-int8", "magic", 6, "dynamic-int8"),
        ("ffn: 0.5", "heads: 0.5", 5, "each key once"),
        ("stages:", "steps:", 1, r"unknown key 'steps'; did you mean stages\?"),
        ("temperature: 2.0}", "temperature: 2.0", 3, "valid YAML"),
    ],
)
def test_a_mistake_in_a_recipe_is_located(tmp_path, old, new, line, found):
    assert old in RECIPE
    written(tmp_path, stages=RECIPE.replace(old, new, 1))
    with pytest.raises(RecipeError, match=found) as caught:
        recipe.load_recipe(tmp_path / "recipe.yaml")
    assert caught.value.where.startswith(f"{tmp_path / 'recipe.yaml'}:{line}")


@pytest.mark.parametrize(
    ("old", "new", "line", "found"),
    [
        ("task: text-classification", "task: haiku", 1, "one of text-classification"),
        ("data: reviews\n", "", 1, "a section 'data'"),
        ("finetune: {epochs: 3", "finetune: {epochs: none", 4, "expected int"),
        ("export: {provider: cpu", "export: {provider: abacus", 6, "cpu"),
        ("bench:", "banch:", 8, r"did you mean bench\?"),
        ("[single, offline]", "[singel]", 8, "single"),
        ("{max_drop: 0.01}", "0.01", 7, "settings as key: value"),
        ("base: sentence", "checkpoint: x\nbase: sentence", 1, "found both"),
        ("base: sentence-transformers/all-MiniLM-L6-v2\n", "checkpoint: x\n", 4, "base, to be fine-tuned"),
    ],
)
def test_a_mistake_in_a_pipeline_is_located(tmp_path, old, new, line, found):
    assert old in PIPELINE
    file = written(tmp_path, PIPELINE.replace(old, new, 1))
    with pytest.raises(RecipeError, match=found) as caught:
        recipe.load_pipeline(file)
    assert caught.value.where.startswith(f"{file}:{line}")


def test_inline_stages_are_read_and_located(tmp_path):
    inline = PIPELINE.replace("compress: recipe.yaml", "compress:\n  - quantize: {}\n  - prune: {hads: 0.1}")
    with pytest.raises(RecipeError, match="did you mean heads") as caught:
        recipe.load_pipeline(written(tmp_path, inline))
    assert ":7: compress.1.prune.hads" in caught.value.where


def test_set_overrides_a_field_and_is_checked_alike(tmp_path):
    file = written(tmp_path)
    changed: Any = recipe.load_pipeline(file, ["finetune.epochs=7"])
    assert changed.finetune.epochs == 7
    assert recipe.load_pipeline(file, ["validate.max_drop=2e-2"]).validate.max_drop == 0.02
    with pytest.raises(RecipeError, match="unknown key 'epoch'"):
        recipe.load_pipeline(file, ["finetune.epoch=7"])
    with pytest.raises(UsageError, match=r"a\.b=c"):
        recipe.load_pipeline(file, ["finetune"])


def test_set_reaches_into_lists():
    document = recipe.parse("a: [{b: 1}, {b: 2}]", "x.yaml")
    assert recipe.override(document, ["a.1.b=5"]).value == {"a": [{"b": 1}, {"b": 5}]}
    assert document.value == {"a": [{"b": 1}, {"b": 2}]}


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("1.0e-4", 1e-4), ("3", 3), ("-.5", -0.5), ("v1", "v1")])
def test_numbers_are_read_as_one_writes_them(text, value):
    read = recipe.parse(f"x: {text}", "x.yaml").value["x"]
    assert (read, type(read)) == (value, type(value))


def test_an_unknown_recipe_names_the_shipped_ones():
    with pytest.raises(RecipeError, match=recipe.recipe_names()[0]):
        recipe.load_recipe("no-such-recipe")
