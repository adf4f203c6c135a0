"""The trials on disk: none twice, none lost with its process, none from another search; and the loop over them."""

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deploykit import commands
from deploykit.artifact import Artifact
from deploykit.check.statistics import Interval
from deploykit.checkpoint import load, open_checkpoint
from deploykit.compress import worth
from deploykit.compress.compress import Distil, Prune, Quantize
from deploykit.data import open_dataset, read_split
from deploykit.errors import BUG, GateFailed, ResourceError, UsageError
from deploykit.evidence import Metric
from deploykit.export.export import Export
from deploykit.families import Structure
from deploykit.search import front, trial, worker
from deploykit.search.choose import Budget
from deploykit.search.effort import Effort
from deploykit.search.narrowing import Narrowing
from deploykit.search.space import Facts, Space, space_of
from deploykit.search.study import Given, Storage, open_storage
from deploykit.search.trial import Outcome
from deploykit.search.worker import Job, work
from deploykit.train.labelled import labelled, score

NARROWING = Narrowing(
    {
        "distil": {
            "layers": (0, 1),
            "epochs": (1,),
            "learning_rate": (1e-3,),
            "augment": (0,),
            "splice": (0,),
            "freeze_embeddings": (False,),
            "heads": (None,),
            "ffn": (None,),
        },
        "prune": {"heads": (0, 0.5), "ffn": (0,), "epochs": (0,)},
        "prune-post-training": {"speedup": (0,)},
        "train-quantized": {"epochs": (0,)},
    }
)
FACTS = Facts(Structure((2, 2), (32, 32)), "cpu", "int8")
SPACE = space_of(FACTS, (), NARROWING)
RECIPES = {("quantize",), ("distil", "quantize"), ("prune", "quantize"), ("distil", "prune", "quantize")}
BUDGET = Budget(0.01)


def opened(out: Path, space: Space = SPACE, **identity: Any) -> Storage:
    storage = open_storage(
        out, space, 0, {"checkpoint": "c", "search_space": space.described(), **identity}, lambda: 10.0
    )
    with storage.alone():
        storage.begin(space.gentlest())
    return storage


def outcome(drop: float, pace: float) -> Outcome:
    return Outcome(0.9 - drop, drop, drop - 0.01, drop + 0.01, drop, pace, pace, pace, 100)


def verbs(given) -> tuple[str, ...]:
    return tuple(stage.verb for stage in given.stages)


@pytest.fixture
def job(tmp_path: Path, onnx_model: Artifact, monkeypatch: pytest.MonkeyPatch):
    """A job whose trials give what is planted: by the verbs of a recipe, a drop and a pace, or an error."""
    planted: dict[tuple[str, ...], Any] = dict.fromkeys(RECIPES, (0.0, 0.5))

    def tried(_subject, stages, folder: Path):
        folder.mkdir(parents=True)
        found = planted[tuple(stage.verb for stage in stages)]
        if isinstance(found, Exception):
            raise found
        return outcome(*found)

    monkeypatch.setattr(worker, "try_recipe", tried)
    monkeypatch.setattr(front, "carry_out", lambda _subject, _stages, folder: folder)
    score = SimpleNamespace(metrics=(Metric("accuracy", 0.9),))
    subject: Any = SimpleNamespace(
        score=score, original=onnx_model, split=SimpleNamespace(file=Path("validation.jsonl"))
    )
    made = Job(subject, opened(tmp_path / "out"), BUDGET, trials=None, until=None, num_rows=100)
    return SimpleNamespace(job=made, planted=planted, out=tmp_path / "out")


def ignore(_: str) -> None:
    pass


def pareto(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "pareto.json").read_text())
    return found


def asked(storage: Storage) -> Given:
    given = storage.ask()
    assert given is not None
    return given


def test_every_recipe_is_tried_once_the_gentlest_first(job):
    work(job.job, ignore)
    tried = [tuple(verb for item in found.recipe for verb in item) for found in job.job.storage.tried()]
    assert tried[0] == ("quantize",)
    assert sorted(tried) == sorted(RECIPES)


def test_a_planted_recipe_beyond_the_budget_is_recorded_and_not_the_best(job):
    job.planted["distil", "quantize"] = (0.011, 0.1)
    job.planted["prune", "quantize"] = (0.009, 0.3)
    work(job.job, ignore)
    record = pareto(job.out)
    recipes = {point["trial"]: [verb for item in point["recipe"] for verb in item] for point in record["points"]}
    assert recipes[record["best"]["trial"]] == ["prune", "quantize"]
    assert record["best"]["verdict"] == "pass"
    (beyond,) = [point for point in record["points"] if not point["within"]]
    assert (recipes[beyond["trial"]], beyond["front"], beyond["ms"]) == (
        ["distil", "quantize"],
        True,
        pytest.approx(1.0),
    )
    assert not (job.out / "trials" / f"{beyond['trial']:04}").exists()
    assert (job.out / "best").resolve() == (job.out / "trials" / f"{record['best']['trial']:04}").resolve()


def test_where_every_recipe_is_beyond_the_budget_the_nearest_stands_there_marked_as_failing(job):
    job.planted.update(dict.fromkeys(RECIPES, (0.2, 0.1)))
    job.planted["prune", "quantize"] = (0.05, 0.9)
    work(job.job, ignore)
    record = pareto(job.out)
    assert record["best"]["verdict"] == "fail"
    drop = "a drop of 0.0500, below 0.0500 with 95% confidence, 0.01 is allowed"
    assert f"is the nearest: accuracy 0.8500 on validation, {drop}" in record["best"]["reason"]
    assert (job.out / "best").is_dir()


def test_after_every_trial_the_best_so_far_is_there(job):
    seen = []
    for trials in (1, 2, 3, 4):
        work(Job(job.job.subject, job.job.storage, BUDGET, trials, None, 100), ignore)
        seen.append(len(pareto(job.out)["points"]))
        assert (job.out / "best").is_dir()
    assert seen == [1, 2, 3, 4]


def test_without_any_time_there_is_still_one_trial(job):
    work(Job(job.job.subject, job.job.storage, BUDGET, None, 0.0, 100), ignore)
    assert [point["trial"] for point in pareto(job.out)["points"]] == [0]


@pytest.mark.parametrize("error", [UsageError, GateFailed])
def test_a_recipe_that_cannot_be_done_or_misses_its_own_target_is_put_aside_with_its_reason(job, error):
    job.planted["prune", "quantize"] = error("prune.heads", expected="less", found="half", next_step="change it")
    work(job.job, ignore)
    record = pareto(job.out)
    assert len(record["points"]) == 3
    assert [failed["reason"] for failed in record["failed"]] == ["prune.heads: expected less, found half; change it"]


def test_where_the_first_recipe_cannot_be_done_the_search_says_so(job):
    job.planted["quantize",] = UsageError("quantize", expected="a", found="b", next_step="c")
    with pytest.raises(UsageError, match="quantize: expected a"):
        work(job.job, ignore)


def test_a_bug_that_one_recipe_meets_is_told_and_does_not_end_the_search(job):
    job.planted["prune", "quantize"] = ArithmeticError("not positive-definite")
    said: list[str] = []
    work(job.job, said.append)
    record = pareto(job.out)
    assert len(record["points"]) == 3
    assert [failed["reason"] for failed in record["failed"]] == [f"{BUG}: ArithmeticError: not positive-definite"]
    assert any(BUG in line and "Traceback" in line for line in said)


def test_a_bug_that_the_first_recipe_meets_ends_the_search(job):
    job.planted["quantize",] = ArithmeticError("not positive-definite")
    with pytest.raises(ArithmeticError):
        work(job.job, ignore)


def test_a_full_disk_stops_the_search_and_what_was_found_stays(job):
    work(Job(job.job.subject, job.job.storage, BUDGET, 2, None, 100), ignore)
    job.planted.update(dict.fromkeys(RECIPES, ResourceError("x", expected="room", found="none", next_step="free some")))
    with pytest.raises(ResourceError):
        work(job.job, ignore)
    assert len(pareto(job.out)["points"]) == 2
    job.planted.update(dict.fromkeys(RECIPES, (0.0, 0.4)))
    work(job.job, ignore)
    assert len(pareto(job.out)["points"]) == 4


def test_a_new_budget_judges_the_same_trials_anew_and_makes_its_best_model_again(job, monkeypatch):
    job.planted["distil", "quantize"] = (0.02, 0.1)
    work(job.job, ignore)
    made = []
    monkeypatch.setattr(front, "carry_out", lambda _subject, stages, folder: made.append((stages, folder)))
    front.publish(job.job.storage, job.job.subject, Budget(0.03))
    record = pareto(job.out)
    assert {point["within"] for point in record["points"]} == {True}
    ((_, folder),) = [
        (stages, folder) for stages, folder in made if stages[0] == Distil(layers=1, epochs=1, learning_rate=1e-3)
    ]
    assert folder.name == f"{record['best']['trial']:04}"


def test_no_recipe_is_begun_that_would_end_too_late_but_the_pipelines_own(job, monkeypatch):
    storage = job.job.storage
    storage.queue((Distil(layers=1, epochs=9), Quantize()))
    monkeypatch.setattr(Storage, "efforts", lambda _self, _rows: [Effort(0, 1.0), Effort(100, 1e6)])
    said: list[str] = []
    work(Job(job.job.subject, storage, BUDGET, None, time.time() + 1e5, 100), said.append)
    tried = [tuple(verb for item in found.recipe for verb in item) for found in storage.tried()]
    assert tried == [("quantize",), ("distil", "quantize"), ("prune", "quantize")]
    assert said[-1] == "no recipe is left that would end in time"
    work(Job(job.job.subject, storage, BUDGET, None, time.time() + 1e7, 100), ignore)
    assert len(storage.tried()) == len(RECIPES) + 1


def test_a_recipe_whose_model_another_one_made_by_a_step_that_was_dropped_is_not_tried(job, monkeypatch):
    planted = vars(worker)["try_recipe"]

    def tried(subject, stages, folder):
        dropped = [index for index, each in enumerate(stages) if each.verb == "prune"]
        return replace(planted(subject, stages, folder), dropped=dropped)

    monkeypatch.setattr(worker, "try_recipe", tried)
    distil = Distil(layers=1, epochs=1, learning_rate=1e-3)
    job.job.storage.queue((distil, Prune(heads=0.5), Quantize()))
    asked: list[str] = []
    work(job.job, asked.append)
    assert [line for line in asked if "distil" in line] == [asked[2]]
    record = pareto(job.out)
    assert record["points"][1]["words"] == "distil layers=1 epochs=1 learning_rate=0.001, quantize"


def test_what_trials_took_is_on_record(job):
    work(job.job, ignore)
    found = job.job.storage.efforts(100)
    assert sorted(each.rows for each in found) == [0, 0, 100, 100]
    assert all(0 < each.seconds < 60 for each in found)


def test_a_trial_whose_process_died_is_tried_again_a_few_times_and_then_left_alone(tmp_path):
    storage = opened(tmp_path)
    numbers = []
    while (given := storage.ask()) is not None and verbs(given) == ("quantize",):
        numbers.append(given.number)
        given.lock.release()  # as the system does when a process dies
        assert storage.reap() == [given.number]
    assert numbers == [0, 1, 2]
    assert storage.failed() == {2: "its process died"}, "those before it were tried again"
    assert given is not None
    given.lock.release()


def test_a_trial_at_work_elsewhere_is_left_alone(tmp_path):
    storage = opened(tmp_path)
    given = asked(storage)
    assert opened(tmp_path).reap() == []
    other = asked(opened(tmp_path))
    assert other.stages != given.stages
    done = storage.tell(given, outcome(0.0, 0.5), BUDGET)
    assert done.point.ms == 5.0
    assert opened(tmp_path).reap() == []
    other.lock.release()


def test_two_processes_ask_for_different_recipes_until_none_is_left(tmp_path):
    one, two = opened(tmp_path), opened(tmp_path)
    given = [asked(storage) for storage in (one, two, one, two)]
    assert {verbs(each) for each in given} == RECIPES
    assert one.ask() is two.ask() is None
    for each in given:
        each.lock.release()


def test_a_recipe_outside_of_the_space_can_be_queued(tmp_path):
    storage = opened(tmp_path)
    storage.queue((Prune(ffn=0.25), Quantize(weight_bits=8)))
    given = [asked(storage), asked(storage)]
    assert given[1].stages == (Prune(ffn=0.25), Quantize(weight_bits=8))
    for each in given:
        each.lock.release()


def test_another_search_in_the_same_folder_is_refused_with_what_differs(tmp_path):
    opened(tmp_path)
    with pytest.raises(UsageError, match="found another checkpoint"):
        opened(tmp_path, checkpoint="d")
    wider = space_of(FACTS, (Distil(layers=1),), Narrowing())
    with pytest.raises(UsageError, match="found another search space"):
        opened(tmp_path, wider)


@pytest.fixture
def subject(bert: Path, reviews: Path, tmp_path: Path) -> trial.Subject:
    source, data = open_checkpoint(bert), open_dataset(reviews)
    checkpoint, split = load(source), read_split(data.path, "validation")
    known = score(checkpoint, labelled(checkpoint, split))
    exported = commands.export(bert, Export(), out=tmp_path / "exported")
    return trial.Subject(source, exported, data, split, Export(), None, known)


def test_a_trial_tells_which_steps_were_dropped(subject: trial.Subject, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))  # where nothing is decided yet
    same_N = np.linspace(1, 2, 50)
    monkeypatch.setattr(worth, "timed", lambda *_: [same_N, same_N[::-1]])
    monkeypatch.setattr(worth, "nearness", lambda *_: Interval(1.0, 0.95, 1.05))
    pointless = Distil(layers=2, epochs=1, learning_rate=1e-7)  # into as many layers as there are, learning nothing
    pruned = Prune(ffn=0.5, multiple=8, calibration_rows=8)
    assert trial.try_recipe(subject, (pointless, pruned), tmp_path / "one").dropped == (0,)
    assert trial.try_recipe(subject, (pruned,), tmp_path / "two").dropped == ()
    assert trial.try_recipe(subject, (), tmp_path / "three").dropped == ()


def test_a_recipe_that_misses_its_target_is_no_recipe(subject: trial.Subject, tmp_path: Path):
    with pytest.raises(GateFailed, match=r"every target to be met, found .*size_mb"):
        trial.carry_out(subject, [Prune(size_mb=1e-6, multiple=8, calibration_rows=8)], tmp_path / "trial")
    assert not (tmp_path / "trial" / trial.MODEL).exists()
