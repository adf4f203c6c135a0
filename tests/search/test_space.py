"""The space of recipes: what it holds, how a pipeline narrows it, and where its mistakes are told."""

import itertools
from pathlib import Path

import pytest

from deploykit import recipe
from deploykit.compress.compress import Distil, Prune, PrunePostTraining, Quantize
from deploykit.errors import RecipeError
from deploykit.families import Structure
from deploykit.search.narrowing import Narrowing
from deploykit.search.space import Facts, space_of


def facts_of(layers: int, provider: str = "cpu", precision: str | None = None) -> Facts:
    return Facts(Structure((12,) * layers, (1536,) * layers), provider, precision)


FACTS = facts_of(6, precision="int8")
PIPELINE = """\
task: text-classification
data: reviews
checkpoint: model
compress:
  - distil: {layers: 5, max_train_samples: 100}
  - quantize: {}
search:
  distil: {layers: [0, 2, 3], epochs: 1, augment: 0, splice: 0, freeze_embeddings: true}
  prune:
    heads: [0, 0.5]
    ffn: [0]
  quantize: {weight_bits: [7, 8]}
"""


def loaded(tmp_path: Path, text: str = PIPELINE) -> recipe.Pipeline:
    (tmp_path / "pipeline.yaml").write_text(text)
    return recipe.load_pipeline(tmp_path / "pipeline.yaml")


def recipes(space):
    return [stages for _, stages in space.recipes()]


def students(space):
    """Every student that a space may try, whatever comes after it."""
    return {made for found in space.parts[0].assignments() if (made := space.parts[0].made(found))}


def test_a_section_narrows_the_space_and_the_pipelines_own_settings_stay(tmp_path):
    pipeline = loaded(tmp_path)
    space = space_of(FACTS, pipeline.compress, pipeline.search)
    found = recipes(space)
    students = {
        Distil(layers=n, heads=h, ffn=f, epochs=1, learning_rate=r, freeze_embeddings=True, max_train_samples=100)
        for n, h, f, r in itertools.product((2, 3), (None, 6), (None, 384), (1e-4, 2e-4, 5e-4))
    }
    assert {stages[0] for stages in found if isinstance(stages[0], Distil)} == students
    assert {stages[-1] for stages in found} == {Quantize(weight_bits=7), Quantize(weight_bits=8)}
    assert {stage.heads for stages in found for stage in stages if isinstance(stage, Prune)} == {0.5}
    assert len(found) == len(set(found)) == (1 + 2 * 4 * 3) * (1 + 2 * 2 * 2 + 3) * 2 * 2


def test_stages_come_in_the_order_of_the_table_and_are_left_out_where_switched_off():
    orders = {tuple(stage.verb for stage in stages) for stages in recipes(space_of(FACTS, (), Narrowing()))}
    prunes = ((), ("prune",), ("prune-post-training",))
    some = {(*distil, *prune, "quantize") for distil in ((), ("distil",)) for prune in prunes}
    assert orders == some | {(*stages[:-1], "train-quantized", "quantize") for stages in some}


def test_the_pipelines_own_values_are_among_the_choices():
    own = (Distil(layers=1, learning_rate=3e-3), Quantize())
    space = space_of(FACTS, own, Narrowing())
    assignment = space.assignment_of(own)
    assert assignment is not None
    assert space.recipe(assignment) == own
    assert space.assignment_of((Quantize(), Distil(layers=1))) is None
    assert space.assignment_of((Distil(layers=99), Quantize())) is None


def test_every_assignment_is_found_again_from_its_recipe(tmp_path):
    pipeline = loaded(tmp_path)
    space = space_of(FACTS, pipeline.compress, pipeline.search)
    for found, stages in space.recipes():
        assert space.recipe(found) == stages
        assert space.assignment_of(stages) == found


def test_settings_of_a_stage_that_is_left_out_are_not_asked():
    space = space_of(FACTS, (), Narrowing())
    asked = space.assign(lambda _, values: values[0])
    prunes = ("prune.speedup", "prune.heads", "prune.ffn", "prune-post-training.speedup", "prune-vocabulary.min_count")
    off = ("distil.layers", *prunes, "smooth.alpha")
    assert asked == {**dict.fromkeys((*off, "train-quantized.epochs"), 0), "quantize.scheme": "dynamic-int8"}


def test_settings_of_the_pipelines_own_scheme_stay_with_it(tmp_path):
    own = (Quantize(scheme="static-int8", calibration="minmax"),)
    section = Narrowing({"quantize": {"scheme": ("dynamic-int8", "static-int8")}})
    assert {stages[-1] for stages in recipes(space_of(FACTS, own, section))} == {Quantize(), *own}


def test_values_that_do_not_go_together_are_located(tmp_path):
    text = PIPELINE.replace(
        "{weight_bits: [7, 8]}", "{scheme: [static-int8, dynamic-int8], calibration: [mse, minmax]}"
    )
    with pytest.raises(RecipeError, match="calibration has no effect with scheme dynamic-int8") as caught:
        space_of(FACTS, (), loaded(tmp_path, text).search)
    assert ":12: search.quantize" in caught.value.where


def test_the_first_recipe_is_int8_alone_even_where_the_section_wants_more(tmp_path):
    pipeline = loaded(tmp_path, PIPELINE.replace("[0, 2, 3]", "[2, 3]"))
    assert space_of(FACTS, pipeline.compress, pipeline.search).gentlest() == (Quantize(),)
    assert space_of(facts_of(6, "cuda", "fp16"), (), Narrowing()).gentlest() == ()


def test_a_gpu_and_fp32_have_no_int8_and_one_layer_nothing_to_drop():
    assert ("quantize",) not in {
        tuple(s.verb for s in r) for r in recipes(space_of(facts_of(6, "cuda", None), (), Narrowing()))
    }
    assert not any(
        "distil" in [s.verb for s in r] for r in recipes(space_of(facts_of(1, "cpu", None), (), Narrowing()))
    )
    assert () in recipes(space_of(facts_of(6, "cpu", None), (), Narrowing()))


def test_a_stage_that_is_false_is_never_tried(tmp_path):
    pipeline = loaded(tmp_path, PIPELINE[: PIPELINE.index("  prune:")] + "  prune: false\n")
    assert all("prune" not in [s.verb for s in r] for r in recipes(space_of(FACTS, (), pipeline.search)))


@pytest.mark.parametrize(
    ("old", "new", "line", "found"),
    [
        ("  prune:\n", "  prone:\n", 9, r"did you mean prune\?"),
        ("epochs: 1", "epoch: 1", 8, r"did you mean epochs\?"),
        ("[0, 2, 3]", "[0, 2, 2.5]", 8, "found 2.5"),
        ("[0, 2, 3]", "[0, two]", 8, "found 'two'"),
        ("[0, 2, 3]", "[]", 8, "at least one value"),
        ("[0, 2, 3]", "[2, 2]", 8, "each value once"),
        ("[0, 2, 3]", "[-1]", 8, "layers must be at least 1"),
        ("heads: [0, 0.5]", "heads: [0, 1.5]", 10, "heads must be a share"),
        ("ffn: [0]", "ffn: [0, [0.5]]", 11, "numbers or words"),
        ("weight_bits: [7, 8]", "weight_bits: [7, 9]", 12, "Literal"),
        ("{weight_bits: [7, 8]}", "yes", 12, "settings as key: value"),
    ],
)
def test_a_mistake_is_located(tmp_path, old, new, line, found):
    assert old in PIPELINE
    with pytest.raises(RecipeError, match=found) as caught:
        loaded(tmp_path, PIPELINE.replace(old, new, 1))
    assert caught.value.where.startswith(f"{tmp_path / 'pipeline.yaml'}:{line}: search.")


def test_what_only_the_checkpoint_shows_is_located_too(tmp_path):
    pipeline = loaded(tmp_path, PIPELINE.replace("[0, 2, 3]", "[0, 2, 7]"))
    with pytest.raises(RecipeError, match="at most 6") as caught:
        space_of(FACTS, pipeline.compress, pipeline.search)
    assert ":8: search.distil.layers" in caught.value.where
    with pytest.raises(RecipeError, match="have a use for") as caught:
        space_of(facts_of(7, "cuda", None), pipeline.compress, pipeline.search)
    assert ":12: search.quantize" in caught.value.where


def test_where_there_is_a_clock_pruning_is_asked_for_speed_unless_the_section_names_shares():
    for facts, section, targets in (
        (FACTS, {}, {(2.0, None, None), (3.0, None, None), (4.5, None, None)}),
        (FACTS, {"heads": (0, 0.5)}, {(None, 0.5, None)}),
        (FACTS, {"speedup": (0, 8.0), "ffn": (0, 0.25)}, {(8.0, None, None), (None, None, 0.25)}),
        (facts_of(6, "cuda", "fp16"), {"ffn": (0,)}, {(None, 0.25, None), (None, 0.5, None)}),
    ):
        space = space_of(facts, (), Narrowing({"prune": section, "distil": {"layers": (0,)}}))
        found = {stage for stages in recipes(space) for stage in stages if isinstance(stage, Prune)}
        assert {(each.speedup, each.heads, each.ffn) for each in found} == targets
        assert all(each.precision == (None if each.speedup is None else "int8") for each in found)


def test_the_pipelines_own_shares_are_tried_beside_targets_and_never_with_them():
    own = (Prune(ffn=0.7, epochs=2), Quantize())
    space = space_of(FACTS, own, Narrowing())
    assert space.assignment_of(own) is not None
    found = {stage for stages in recipes(space) for stage in stages if isinstance(stage, Prune)}
    assert {(each.speedup, each.ffn) for each in found} == {(2.0, None), (3.0, None), (4.5, None), (None, 0.7)}


def test_a_recipe_prunes_in_one_way_whoever_chooses():
    space = space_of(FACTS, (), Narrowing())
    on = space.assign(lambda _, values: values[-1])
    assert on["prune.speedup"]
    assert on["prune.heads"] == on["prune.ffn"] == 0
    assert on["prune-post-training.speedup"] == 0
    both = (Prune(heads=0.5), PrunePostTraining(speedup=1.5), Quantize())
    assert space.assignment_of(both) is None
    assert space.assignment_of(both[1:]) is not None
    precisions = {s.precision for r in recipes(space) for s in r if isinstance(s, PrunePostTraining)}
    assert precisions == {"int8"}
    for facts in (facts_of(6, "cuda", "fp16"), facts_of(6, "cpu", "int4")):
        assert not any("prune-post-training" in [s.verb for s in r] for r in recipes(space_of(facts, (), Narrowing())))


def test_what_a_student_learns_from_beside_the_rows_stays_in_every_recipe():
    own = (Distil(layers=2, student="other", unlabeled="text.jsonl", epochs=4), Quantize())
    distilled = students(space_of(FACTS, own, Narrowing()))
    assert {(stage.student, stage.unlabeled) for stage in distilled} == {("other", "text.jsonl")}
    assert {stage.average for stage in distilled} == {False, True}


def test_written_rows_are_searched_where_the_pipeline_has_someone_who_writes_them():
    own = (Distil(layers=2, generator="writer", generate=100), Quantize())
    space = space_of(FACTS, own, Narrowing())
    distilled = students(space)
    assert {(stage.generator, stage.generate) for stage in distilled} == {(None, 0), ("writer", 100)}
    assert not any(stage.average for stage in distilled)
    assert space.assignment_of(own) is not None


def test_the_section_may_name_who_writes_rows_and_average_beside_a_student_that_is_searched(tmp_path):
    more = "generator: writer, generate: [0, 9], student: [null, small], average: true, augment: 0"
    pipeline = loaded(tmp_path, PIPELINE.replace("augment: 0", more))
    distilled = students(space_of(FACTS, pipeline.compress, pipeline.search))
    assert {(stage.generator, stage.generate) for stage in distilled} == {(None, 0), ("writer", 9)}
    assert {(stage.student, stage.average) for stage in distilled} == {(None, False), ("small", True)}


def test_a_setting_that_another_one_lacks_is_not_asked(tmp_path):
    (tmp_path / "small").mkdir()
    more = "student: [null, small], average: [false, true], augment: 0"
    pipeline = loaded(tmp_path, PIPELINE.replace("[0, 2, 3]", "2").replace("augment: 0", more))
    space = space_of(FACTS, pipeline.compress, pipeline.search)
    found = [assignment for assignment in space.parts[0].assignments() if assignment["distil.learning_rate"] == 1e-4]
    asked = {(each["distil.student"], each.get("distil.average")) for each in found}
    small = str(tmp_path / "small")
    assert asked == {(None, None), (small, False), (small, True)}
    for assignment, stages in space.recipes():
        assert space.assignment_of(stages) == assignment


def test_a_setting_whose_other_one_is_nowhere_is_located(tmp_path):
    pipeline = loaded(tmp_path, PIPELINE.replace("augment: 0", "average: true"))
    with pytest.raises(RecipeError, match="average needs a student") as caught:
        space_of(FACTS, pipeline.compress, pipeline.search)
    assert ":8: search.distil" in caught.value.where


def test_a_stage_in_every_recipe_beside_the_one_that_it_replaces_is_located(tmp_path):
    text = PIPELINE + "  prune-post-training: {speedup: [1.5, 2.0]}\n"
    pipeline = loaded(tmp_path, text)
    with pytest.raises(RecipeError, match="0 among the values") as caught:
        space_of(FACTS, (), pipeline.search)
    assert ":13: search.prune-post-training" in caught.value.where
    alone = loaded(tmp_path, text.replace("    heads: [0, 0.5]\n    ffn: [0]", "    heads: 0\n    ffn: 0"))
    assert all("prune-post-training" in [s.verb for s in r] for r in recipes(space_of(FACTS, (), alone.search)))
