"""The trials on disk: an optuna study in SQLite that processes share, and that any of them may leave at any moment.

SQLite, not optuna's journal file: a process killed in the middle of a write leaves a torn line in a journal, which
makes the whole file unreadable with the next write; SQLite rolls back. `optuna-dashboard sqlite:///OUT/search.db`
opens it. The study is read and written under a lock; a trial belongs to the process that holds the trial's own lock,
which the system lets go when the process dies.
"""

import json
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from deploykit import artifact
from deploykit.errors import UsageError
from deploykit.recipe import recipe_of, stages_of
from deploykit.search.choose import Budget, Point
from deploykit.search.effort import Effort, rows_trained
from deploykit.search.space import Space
from deploykit.search.trial import Outcome
from deploykit.stage import Stage

FILE = "search.db"
_NAME = "deploykit"
_FINAL, _CONFIRMED, _IDENTITY, _ORIGINAL_MS = "final", "confirmed", "identity", "original_ms"
"""What is kept of the study as a whole."""
_METRICS = ("metric", "ms", "bytes")
_DIRECTIONS: tuple[Literal["maximize", "minimize"], ...] = ("maximize", "minimize", "minimize")
_STARTUP = 8
"""Trials at random before the sampler learns from them."""
_ASKS = 4
"""Recipes that the sampler may repeat before an untried one is drawn at random."""
_RECIPE, _OUTCOME = "recipe", "outcome"
PACE = ("pace", "pace_low", "pace_high")
"""Of an outcome: the speed."""
Fits = Callable[[Sequence[Stage]], bool]
_REASON = "reason"
"""Set where a recipe cannot be done; a failed trial without it died with its process."""
_LIVES = 3
"""A recipe whose process died so often is left alone."""


@dataclass(frozen=True)
class Tried:
    """A finished trial."""

    point: Point
    outcome: Outcome
    recipe: Sequence[Mapping[str, Any]]
    """What the model was made by: that which was tried, without the steps that were dropped."""


@dataclass(frozen=True)
class Given:
    """A trial to work on; it is ours while the lock is held."""

    trial: optuna.Trial
    stages: tuple[Stage, ...]
    lock: FileLock

    @property
    def number(self) -> int:
        """The trial's number."""
        return self.trial.number


@dataclass(frozen=True)
class Storage:
    """The study of one output folder."""

    out: Path
    space: Space
    seed: int
    original_ms: float
    """The original's median latency, measured once: a trial's ratio times this is its milliseconds."""
    study: optuna.Study = field(repr=False)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the other processes off the study, the front and the best."""
        with FileLock(self.out / ".study.lock"):
            yield

    def tried(self) -> list[Tried]:
        """List the finished trials, in order; of finalists the speed that was measured last."""
        paces = {row["trial"]: {name: row[name] for name in PACE} for row in (self.final() or {}).get("measured", ())}
        return [
            self._tried(
                trial.number,
                Outcome(**{**trial.user_attrs[_OUTCOME], **paces.get(trial.number, {})}),
                trial.user_attrs[_RECIPE],
            )
            for trial in self._trials(TrialState.COMPLETE)
        ]

    def failed(self) -> dict[int, str]:
        """List the trials that came to nothing, and why; not those that died and whose recipe is tried again."""
        trials = [trial for trial in self._trials(TrialState.FAIL) if not _again(trial)]
        return {trial.number: trial.user_attrs.get(_REASON, "its process died") for trial in trials}

    def count(self) -> int:
        """Count the trials that are finished or at work."""
        return len(self._trials(TrialState.COMPLETE, TrialState.RUNNING))

    def efforts(self, num_rows: int) -> list[Effort]:
        """List what the finished trials took, from when they were asked for; `num_rows` as `rows_trained`."""
        trials = self._trials(TrialState.COMPLETE)
        rows = [rows_trained(stages_of(trial.user_attrs[_RECIPE]), num_rows) for trial in trials]
        times = [trial.duration.total_seconds() if trial.duration else 0.0 for trial in trials]
        return [Effort(*found) for found in zip(rows, times, strict=True)]

    def ask(self, fits: Fits = lambda _: True) -> Given | None:
        """Take the next recipe that was not tried; None where none is left. To be called alone.

        Args:
            fits: whether a recipe of the space may be tried now; one from outside, which was queued, is.
        """
        for _ in range(_ASKS):
            given = self._asked(fits)
            if given is not None:
                return given
        if (untried := self._untried(fits)) is None:
            return None
        self.study.enqueue_trial(dict(untried))
        return self._asked(fits)

    def tell(self, given: Given, outcome: Outcome, budget: Budget) -> Tried:
        """Record what a trial gave. To be called alone."""
        found = self._tried(given.number, outcome, given.trial.user_attrs[_RECIPE])
        lost, slow = budget.excess(found.point)
        given.trial.set_user_attr(_OUTCOME, asdict(outcome))
        given.trial.set_constraint("drop", lost)
        given.trial.set_constraint("ms", slow)
        self.study.tell(given.trial, (outcome.metric, found.point.ms, outcome.num_bytes))
        return found

    def fail(self, given: Given, reason: str) -> None:
        """Record that a recipe cannot be done. To be called alone."""
        given.trial.set_user_attr(_REASON, reason)
        self.study.tell(given.trial, state=TrialState.FAIL)

    def reap(self) -> list[int]:
        """Mark the trials whose process died, and queue their recipes again. To be called alone."""
        dead = [trial for trial in self._trials(TrialState.RUNNING) if self._is_dead(trial.number)]
        for trial in dead:
            lives = trial.user_attrs.get("lives", _LIVES) - 1
            if lives and _RECIPE in trial.user_attrs:
                self.queue(stages_of(trial.user_attrs[_RECIPE]), lives)
            self.study.tell(trial.number, state=TrialState.FAIL)
        return [trial.number for trial in dead]

    def queue(self, stages: Sequence[Stage], lives: int = _LIVES) -> None:
        """Have a recipe tried next, be it outside of the space. To be called alone."""
        assignment = self.space.assignment_of(stages)
        self.study.enqueue_trial(dict(assignment or {}), {_RECIPE: recipe_of(stages), "lives": lives})

    def begin(self, *recipes: Sequence[Stage]) -> None:
        """Queue the recipes that are tried first, where nothing was tried yet. To be called alone."""
        if not self.study.get_trials(deepcopy=False):
            for stages in recipes:
                self.queue(stages)

    def confirmed(self, digest: str) -> int:
        """Note that a model was validated on unseen rows; return how many were. To be called alone."""
        known = self.study.user_attrs.get(_CONFIRMED, [])
        if digest not in known:
            self.study.set_user_attr(_CONFIRMED, [*known, digest])
        return len({*known, digest})

    def final(self) -> Mapping[str, Any] | None:
        """Return what the last comparison of the finalists found."""
        return self.study.user_attrs.get(_FINAL)

    def set_final(self, found: Mapping[str, Any]) -> None:
        """Keep what the comparison of the finalists found."""
        self.study.set_user_attr(_FINAL, found)

    def _tried(self, number: int, outcome: Outcome, recipe: Sequence[Mapping[str, Any]]) -> Tried:
        ms = outcome.pace * self.original_ms
        point = Point(number, outcome.metric, outcome.drop, outcome.drop_upper, ms, outcome.num_bytes)
        return Tried(point, outcome, _made_by(recipe, outcome.dropped))

    def _asked(self, fits: Fits) -> Given | None:
        """Ask once; a recipe that was tried, or is being tried, or does not fit, is put aside."""
        self.study.sampler = _sampler(self.seed, len(self.study.get_trials(deepcopy=False)))
        trial = self.study.ask()
        recipe = trial.user_attrs.get(_RECIPE)
        too_long = False
        if recipe is None or self._is_inside(recipe):
            chosen = self.space.assign(trial.suggest_categorical)
            recipe = recipe_of(self.space.recipe(chosen))
            too_long = not fits(stages_of(recipe))
        if too_long or recipe in self._recipes(but=trial.number):
            self.study.tell(trial, state=TrialState.PRUNED)
            return None
        trial.set_user_attr(_RECIPE, recipe)
        lock = self._lock(trial.number)
        lock.acquire()
        return Given(trial, stages_of(recipe), lock)

    def _is_inside(self, recipe: Sequence[Mapping[str, Any]]) -> bool:
        return self.space.assignment_of(stages_of(recipe)) is not None

    def _recipes(self, but: int = -1) -> list[Any]:
        """List the recipes that are done, at work or given up, of all trials but one, and what was made by others."""
        trials = self._trials(TrialState.COMPLETE, TrialState.RUNNING, TrialState.FAIL)
        kept = [trial for trial in trials if trial.number != but and not _again(trial)]
        asked = [trial.user_attrs[_RECIPE] for trial in kept if _RECIPE in trial.user_attrs]
        return [*asked, *(found.recipe for found in self.tried())]

    def _untried(self, fits: Fits) -> Mapping[str, Any] | None:
        tried = self._recipes()
        left = [found for found, stages in self.space.recipes() if recipe_of(stages) not in tried and fits(stages)]
        return random.Random(self.seed + len(tried)).choice(left) if left else None  # noqa: S311 - no secret

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states)

    def _is_dead(self, number: int) -> bool:
        try:
            with self._lock(number):
                return True
        except Timeout:
            return False

    def _lock(self, number: int) -> FileLock:
        return FileLock(self.out / ".trials" / f"{number:04}.lock", timeout=0)


def open_storage(
    out: Path, space: Space, seed: int, identity: Mapping[str, Any], measure: Callable[[], float]
) -> Storage:
    """Open the study of a folder, or begin one.

    Args:
        out: the folder.
        space: what is tried.
        seed: of the sampler.
        identity: JSON; what makes trials comparable.
        measure: the original's milliseconds, asked for once in a study's life.

    Raises:
        UsageError: the folder holds another search.
    """
    (out / ".trials").mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with FileLock(out / ".study.lock"):
        study = optuna.create_study(
            storage=f"sqlite:///{(out / FILE).resolve()}", study_name=_NAME, directions=_DIRECTIONS, load_if_exists=True
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(list(_METRICS))
        _require_same(out, study.user_attrs.get(_IDENTITY, identity), identity)
        if _ORIGINAL_MS not in study.user_attrs:
            study.set_user_attr(_IDENTITY, identity)
            study.set_user_attr(_ORIGINAL_MS, measure())
        return Storage(out, space, seed, study.user_attrs[_ORIGINAL_MS], study)


def _made_by(recipe: Sequence[Mapping[str, Any]], dropped: Sequence[int]) -> list[Mapping[str, Any]]:
    return [each for index, each in enumerate(recipe) if index not in dropped]


def _again(trial: FrozenTrial) -> bool:
    """Tell whether a trial died, and its recipe may be tried again."""
    return (
        trial.state == TrialState.FAIL and _REASON not in trial.user_attrs and trial.user_attrs.get("lives", _LIVES) > 1
    )


def _sampler(seed: int, trials: int) -> TPESampler:
    """Make a sampler that draws anew for each trial, whichever process asks."""
    return TPESampler(n_startup_trials=_STARTUP, seed=seed * 100_003 + trials)


def _require_same(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    wanted = json.loads(artifact.canonical_json(now))
    other = [name.replace("_", " ") for name in wanted if before.get(name) != wanted[name]]
    if json.loads(artifact.canonical_json(before)) != wanted:
        raise UsageError(
            out,
            expected="the search that was begun here",
            found=f"another {', '.join(other)}",
            next_step="choose another --out: trials under other conditions do not compare",
        )
