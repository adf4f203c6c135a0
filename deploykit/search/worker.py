"""The loop of a search: take a recipe, try it, record it, bring the best up to date. Any number of processes run it."""

import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from deploykit.errors import BUG, DeploykitError, GateFailed, UsageError, as_bug, resources_mapped
from deploykit.recipe import in_words, recipe_of
from deploykit.search.choose import Budget, Point
from deploykit.search.effort import rows_trained, seconds_of
from deploykit.search.front import folder_of, publish
from deploykit.search.study import Fits, Given, Storage
from deploykit.search.trial import Subject, try_recipe

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """What a worker works on."""

    subject: Subject
    storage: Storage
    budget: Budget
    trials: int | None
    """No more than this, those of earlier runs among them."""
    until: float | None
    """Seconds since the epoch; no trial starts that would end later, but for the first and the pipeline's own."""
    num_rows: int
    """Of the training split."""


def work(job: Job, say: Say, may_go_on: Callable[[], bool] = lambda: True) -> None:
    """Try recipes until the time or the recipes are spent.

    Raises:
        DeploykitError: what is not the fault of one recipe: bad data, a full disk. What was found so far stays.
    """
    while may_go_on() and (given := _next(job, say)) is not None:
        try:
            _work_on(job, given, say)
        finally:
            given.lock.release()


def _work_on(job: Job, given: Given, say: Say) -> None:
    say(f"trial {given.number}: {in_words(recipe_of(given.stages))}")
    folder = folder_of(job.storage.out, given.number)
    try:
        with resources_mapped(folder):
            outcome = try_recipe(job.subject, given.stages, folder)
    except (UsageError, GateFailed) as error:  # it makes no sense here, or misses a target of its own
        _give_up(job, given, error, str(error))
        say(f"  cannot be done: {error}")
        return
    except DeploykitError:
        raise
    except Exception as error:  # noqa: BLE001 - a bug that one recipe meets must not end the search of a night
        _give_up(job, given, error, as_bug(error))
        say(f"  {BUG}, the search goes on:\n{traceback.format_exc()}")
        return
    with job.storage.alone():
        point = job.storage.tell(given, outcome, job.budget).point
        best = publish(job.storage, job.subject, job.budget)
    say(f"  {_told(point, job.budget)}; the best so far: trial {best.trial}, {_told(best, job.budget)}")


def _next(job: Job, say: Say) -> Given | None:
    with job.storage.alone():
        for number in job.storage.reap():
            shutil.rmtree(folder_of(job.storage.out, number), ignore_errors=True)
            say(f"trial {number}: its process died; its recipe is tried again")
        if _is_over(job):
            return None
        given = job.storage.ask(_in_time(job))
    if given is None and job.until is not None:
        say("no recipe is left that would end in time")
    return given


def _in_time(job: Job) -> Fits:
    """Make what tells whether a recipe would end in time, as far as the trials so far tell."""
    if (until := job.until) is None or not job.storage.count():
        return lambda _: True
    done, now = job.storage.efforts(job.num_rows), time.time()
    return lambda stages: now + (seconds_of(rows_trained(stages, job.num_rows), done) or 0.0) <= until


def _is_over(job: Job) -> bool:
    count = job.storage.count()
    if count == 0:
        return False
    return (job.trials is not None and count >= job.trials) or (job.until is not None and time.time() >= job.until)


def _give_up(job: Job, given: Given, error: Exception, reason: str) -> None:
    """Record a recipe that cannot be done; where even the first cannot, nothing can."""
    with job.storage.alone():
        job.storage.fail(given, reason)
        shutil.rmtree(folder_of(job.storage.out, given.number), ignore_errors=True)
        if not job.storage.tried() and given.number == 0:
            raise error


def _told(point: Point, budget: Budget) -> str:
    beyond = "" if budget.met(point) else ", beyond the budget"
    return f"{point.metric:.4f} ({-point.drop:+.4f}), {point.ms:.3g} ms, {point.num_bytes / 1e6:.1f} MB{beyond}"
