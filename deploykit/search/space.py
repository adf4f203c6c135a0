"""The recipes that a search may try: which stages, in a fixed order, with which settings. Pure.

`ENTRIES` is the whole of it: a stage and the values of its settings. A new stage is a new entry. A stage's switches are
the settings that say how much it does; a stage whose switches are all off (0, or null) is left out of the recipe, and
its other settings do not matter. Settings that are not searched are those of the pipeline's own stage, else defaults.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from deploykit import settings
from deploykit.compress.compress import (
    Distil,
    Prune,
    PrunePostTraining,
    PruneVocabulary,
    Quantize,
    Smooth,
    TrainQuantized,
)
from deploykit.errors import RecipeError, UsageError
from deploykit.families import Structure
from deploykit.search.narrowing import Narrowing
from deploykit.stage import Stage, further_sources, settings_of

Value = str | int | float | bool | None
Assignment = Mapping[str, Value]
"""Setting, as `distil.layers`, to value; of a stage that is left out only the switches."""
OFF: Value = 0
"""Of a switch."""
Choose = Callable[[str, tuple[Value, ...]], Value]
"""Pick one of the values of a setting."""


@dataclass(frozen=True)
class Facts:
    """What the choices depend on."""

    structure: Structure
    """Of the original."""
    provider: str
    precision: str | None


@dataclass(frozen=True)
class Entry:
    """A stage and what a search tries of it, unless the pipeline's section `search` says otherwise."""

    stage: type[Any]
    switches: Mapping[str, Value]
    """Each with any value that is on."""
    choices: Callable[[Facts], Mapping[str, tuple[Value, ...]]]
    """Setting to values, the switches among them; nothing where the stage cannot serve."""
    instead_of: str = ""
    """The verb of an earlier stage which this one takes the place of: a recipe has one of them at most."""
    needs: Mapping[str, tuple[str, Value]] = field(default_factory=dict)
    """Settings that are refused without another, with that one and any value of it that is on."""
    rivals: Mapping[str, str] = field(default_factory=dict)
    """Switches that are refused beside an earlier one, with that one."""


def _distil(facts: Facts) -> Mapping[str, tuple[Value, ...]]:
    depth = len(facts.structure.heads)
    fewer = sorted({round(depth * share) for share in (1 / 3, 1 / 2, 2 / 3, 5 / 6)} - {0, depth})
    others = {
        "heads": _narrower(facts.structure.heads, 2),
        "ffn": _narrower(facts.structure.ffn, 4),
        "epochs": (2, 4),
        "learning_rate": (1e-4, 2e-4, 5e-4),
        "augment": (0, 4),
        "splice": (0, 50_000),
        "generate": (0,),
        "freeze_embeddings": (True,),
        "average": (False, True),
    }
    return {"layers": (0, *fewer), **others} if fewer else {}


def _narrower(widths: Sequence[int], divisor: int) -> tuple[Value, ...]:
    """Return the widths of a student's layers to try: the original's, and that divided."""
    return (None, *([narrower] if (narrower := min(widths) // divisor) else []))


def _prune(facts: Facts) -> Mapping[str, tuple[Value, ...]]:
    if not _has_latency_table(facts):
        return {"speedup": (0,), "heads": (0, 0.25, 0.5), "ffn": (0, 0.25, 0.5, 0.75), "epochs": (0, 1, 3)}
    return {
        "speedup": (0, 2.0, 3.0, 4.5),
        "precision": (facts.precision or "int8",),
        "heads": (0,),
        "ffn": (0,),
        "epochs": (1, 3),
        "learning_rate": (1e-4, 2e-4),
        "augment": (0, 4),
    }


def _prune_post_training(facts: Facts) -> Mapping[str, tuple[Value, ...]]:
    if not _has_latency_table(facts):
        return {}
    return {"speedup": (0, 1.25, 1.5, 1.75), "precision": (facts.precision or "int8",)}


def _has_latency_table(facts: Facts) -> bool:
    return facts.provider == "cpu" and facts.precision in (None, "fp32", "int8")


def _prune_vocabulary(_facts: Facts) -> Mapping[str, tuple[Value, ...]]:
    return {"min_count": (0,)}  # off unless the section asks: it buys bytes and no time


def _smooth(facts: Facts) -> Mapping[str, tuple[Value, ...]]:
    return {"alpha": (0,)} if facts.provider == "cpu" and facts.precision == "int8" else {}


def _train_quantized(facts: Facts) -> Mapping[str, tuple[Value, ...]]:
    return {"epochs": (0, 1)} if facts.provider == "cpu" and facts.precision == "int8" else {}


def _quantize(facts: Facts) -> Mapping[str, tuple[Value, ...]]:
    schemes: Mapping[str | None, tuple[Value, ...]] = {
        None: (None, "dynamic-int8"),
        "int8": ("dynamic-int8",),
        "int4": ("int4",),
    }
    return {"scheme": schemes[facts.precision]} if facts.provider == "cpu" and facts.precision in schemes else {}


ENTRIES: tuple[Entry, ...] = (
    Entry(
        Distil,
        {"layers": 1},
        _distil,
        needs={"generate": ("generator", "any"), "generator": ("generate", 1), "average": ("student", "any")},
    ),
    Entry(
        Prune,
        {"speedup": 2.0, "heads": 0.5, "ffn": 0.5},
        _prune,
        needs={"precision": ("speedup", 2.0), "learning_rate": ("epochs", 1), "augment": ("epochs", 1)},
        rivals={"heads": "speedup", "ffn": "speedup"},
    ),
    Entry(PrunePostTraining, {"speedup": 1.5}, _prune_post_training, instead_of=Prune.verb),
    Entry(PruneVocabulary, {"min_count": 1}, _prune_vocabulary),
    Entry(Smooth, {"alpha": 0.5}, _smooth),
    Entry(TrainQuantized, {"epochs": 1}, _train_quantized),
    Entry(Quantize, {"scheme": "dynamic-int8"}, _quantize),
)
"""In the order of a recipe."""


@dataclass(frozen=True)
class Part:
    """A stage of a space: what is searched, and what stays."""

    stage: type[Any]
    switches: Mapping[str, tuple[Value, ...]]
    others: Mapping[str, tuple[Value, ...]]
    fixed: Mapping[str, Any]
    own: Mapping[str, Any]
    """Settings of the pipeline's own stage, where the stage takes them: those of another scheme, say, it does not."""
    instead_of: str = ""
    """As of its entry."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """Settings that are refused without another."""
    rivals: Mapping[str, str] = field(default_factory=dict)
    """As of its entry."""

    def assign(self, choose: Choose) -> dict[str, Value]:
        """Have each setting chosen, the switches first, the others where they matter."""
        chosen: dict[str, Value] = {}
        for name, values in {**self.switches, **self.others}.items():
            if self._matters(name, chosen):
                chosen[name] = choose(self.named(name), values)
            elif name in self.switches:
                chosen[name] = OFF
        return {self.named(name): value for name, value in chosen.items()}

    def assignments(self) -> Iterator[dict[str, Value]]:
        """Yield every assignment of this stage's settings once."""
        found: list[dict[str, Value]] = [{}]
        for name, values in {**self.switches, **self.others}.items():
            grown: list[dict[str, Value]] = []
            for each in found:
                if self._matters(name, each):
                    grown += [{**each, name: value} for value in values]
                else:
                    grown.append({**each, name: OFF} if name in self.switches else each)
            found = grown
        for chosen in found:
            yield {self.named(name): value for name, value in chosen.items()}

    def _matters(self, name: str, chosen: Assignment) -> bool:
        """Tell whether a setting has an effect beside those chosen before it."""
        if name in self.switches:
            return not chosen.get(self.rivals.get(name, ""))
        return any(chosen[switch] for switch in self.switches) and self._has_what_it_needs(name, chosen)

    def _has_what_it_needs(self, name: str, chosen: Assignment) -> bool:
        """Tell whether the setting without which this one is refused is on, or is not among those chosen."""
        return bool(chosen.get(self.needs.get(name, ""), True))

    def made(self, assignment: Assignment) -> Stage | None:
        """Make the stage; None where its switches are off."""
        on = {name: value for name in self.switches if (value := assignment[self.named(name)])}
        if not on:
            return None
        asked = {name: assignment[self.named(name)] for name in self.others if self.named(name) in assignment}
        chosen = {**asked, **{name: assignment[self.named(name)] for name in self.switches}}
        fixed = {name: value for name, value in self.fixed.items() if self._has_what_it_needs(name, chosen)}
        return self._with({**fixed, **asked, **on})

    @cached_property
    def by_stage(self) -> Mapping[Stage | None, dict[str, Value]]:
        """The first assignment that makes each stage; None is the stage left out."""
        return {self.made(found): found for found in reversed(list(self.assignments()))}

    def off(self) -> dict[str, Value]:
        """Return the assignment that leaves the stage out; its switches must have such values."""
        switches = self.switches.items()
        return {self.named(name): next(value for value in values if not value) for name, values in switches}

    def gentlest(self) -> Stage | None:
        """Make the stage with its first values; None where it can only be left out."""
        on: dict[str, Value] = {}
        for name, values in self.switches.items():
            if self._matters(name, on) and any(values):
                on[name] = next(value for value in values if value)
        fixed = {name: value for name, value in self.fixed.items() if self._has_what_it_needs(name, on)}
        return self._with({**fixed, **on}) if on else None

    def _with(self, wanted: Mapping[str, Any]) -> Stage:
        values = {**self.own, **wanted}
        own = {name: value for name, value in self.own.items() if self._has_what_it_needs(name, values)}
        try:
            made: Stage = settings.make(self.stage, {**own, **wanted}, self.named)
        except UsageError:
            made = settings.make(self.stage, wanted, self.named)
        return made

    def named(self, setting: str) -> str:
        """Name a setting of this stage in an assignment."""
        return f"{self.stage.verb}.{setting}"


@dataclass(frozen=True)
class Space:
    """All recipes of a search."""

    parts: tuple[Part, ...]

    def assign(self, choose: Choose) -> dict[str, Value]:
        """Go through the stages and have each setting chosen that matters."""
        found: dict[str, Value] = {}
        verbs: set[str] = set()
        for part in self.parts:
            assigned = part.off() if part.instead_of in verbs else part.assign(choose)
            verbs |= {part.stage.verb} if part.made(assigned) else set()
            found |= assigned
        return found

    def recipes(self) -> Iterator[tuple[dict[str, Value], tuple[Stage, ...]]]:
        """Yield every assignment once, with its stages."""
        made = [[(found, part.made(found)) for found in part.assignments()] for part in self.parts]
        for picked in itertools.product(*made):
            stages = tuple(stage for _, stage in picked if stage is not None)
            if self._allows(stages):
                yield {name: value for found, _ in picked for name, value in found.items()}, stages

    def recipe(self, assignment: Assignment) -> tuple[Stage, ...]:
        """Make the stages of an assignment; none where everything is left out."""
        return tuple(made for part in self.parts if (made := part.made(assignment)) is not None)

    def assignment_of(self, stages: Sequence[Stage]) -> dict[str, Value] | None:
        """Find the assignment that makes just these stages, if there is one."""
        wanted = {stage.verb: stage for stage in stages}
        found: dict[str, Value] = {}
        for part in self.parts:
            found |= part.by_stage.get(wanted.get(part.stage.verb), {})
        settings_of_all = {part.named(name) for part in self.parts for name in part.switches}
        known = settings_of_all <= set(found) and self.recipe(found) == tuple(stages)
        return found if known and self._allows(stages) else None

    def _allows(self, stages: Sequence[Stage]) -> bool:
        """Tell whether no stage is beside the one that it takes the place of."""
        verbs = {stage.verb for stage in stages}
        return not any({part.stage.verb, part.instead_of} <= verbs for part in self.parts)

    def gentlest(self) -> tuple[Stage, ...]:
        """Return the recipe to try first: nothing but the quantization, where there is one."""
        found = (part.gentlest() for part in self.parts if part.stage is Quantize)
        return tuple(stage for stage in found if stage is not None)

    def described(self) -> list[Any]:
        """Describe the space for JSON: two that differ are told apart."""
        return [[part.stage.verb, part.switches, part.others, part.fixed, part.own] for part in self.parts]


def space_of(facts: Facts, own: Sequence[Stage], narrowing: Narrowing, entries: Sequence[Entry] = ENTRIES) -> Space:
    """Make the space of a pipeline.

    Args:
        facts: of the original and the export.
        own: the pipeline's stages; their settings hold where nothing is searched, their values are among the choices.
        narrowing: the pipeline's section `search`.
        entries: the table.

    Raises:
        RecipeError: the section names a stage that cannot serve here, or more layers than there are.
    """
    theirs = {stage.verb: {**settings_of(stage), **further_sources(stage)} for stage in own}
    parts = []
    for entry in entries:
        choices = entry.choices(facts)
        _require_serving(entry, choices, narrowing)
        if choices and entry.stage.verb not in narrowing.without:
            parts.append(_part(entry, choices, theirs.get(entry.stage.verb, {}), narrowing))
            _require_possible(parts[-1], narrowing)
    _require_depth(len(facts.structure.heads), narrowing)
    _require_one_of_two(parts, narrowing)
    return Space(tuple(parts))


def _part(entry: Entry, choices: Mapping[str, tuple[Value, ...]], own: Mapping[str, Any], narrowing: Narrowing) -> Part:
    """Put together the table, the pipeline's own stage and its section `search`, which has the last word."""
    wanted = narrowing.values.get(entry.stage.verb, {})
    needs = {name: needed for name, (needed, _) in entry.needs.items()}
    if any(name in wanted for name in entry.rivals):
        choices = {**choices, **dict.fromkeys(entry.rivals.values(), (OFF,))}
    values: dict[str, tuple[Value, ...]] = {
        name: (*known, *([own[name]] if own.get(name) not in (None, *known) else []))
        for name, known in choices.items()
        if name not in needs or own.get(needs[name]) or any(wanted.get(needs[name], choices.get(needs[name], ())))
    }
    values |= wanted
    others = sorted((name for name in values if name not in entry.switches), key=lambda name: name in needs)
    single = {name: values[name][0] for name in others if len(values[name]) == 1}
    searched = {name: values[name] for name in others if len(values[name]) > 1}
    rest = {name: value for name, value in own.items() if name not in values}
    switches = {name: values[name] for name in entry.switches}
    return Part(entry.stage, switches, searched, single, rest, entry.instead_of, needs, entry.rivals)


def _require_possible(part: Part, narrowing: Narrowing) -> None:
    """Make the stage in every way that may be asked for, so that none is refused in the middle of a search."""
    for assignment in part.assignments():
        try:
            part.made(assignment)
        except UsageError as error:
            raise RecipeError(
                narrowing.where.get((part.stage.verb, ""), part.stage.verb),
                expected="values that go together",
                found=error.found,
                next_step="name fewer values",
            ) from error


def _require_serving(entry: Entry, choices: Mapping[str, tuple[Value, ...]], narrowing: Narrowing) -> None:
    verb = entry.stage.verb
    if verb in narrowing.values and not choices:
        raise RecipeError(
            narrowing.where[verb, ""],
            expected="a stage that this checkpoint and export have a use for",
            found=verb,
            next_step="remove it",
        )


def _require_one_of_two(parts: Sequence[Part], narrowing: Narrowing) -> None:
    """Check that a stage can be left out where another may be in its place."""
    on = {part.stage.verb for part in parts if any(map(any, part.switches.values()))}
    for part in parts:
        if part.instead_of in on and any(map(all, part.switches.values())):
            raise RecipeError(
                narrowing.where.get((part.stage.verb, ""), part.stage.verb),
                expected=f"0 among the values, or {part.instead_of}: false, since a recipe has one of the two",
                found=f"{part.stage.verb} in every recipe",
                next_step="add one of them",
            )


def _require_depth(depth: int, narrowing: Narrowing) -> None:
    for layers in narrowing.values.get(Distil.verb, {}).get("layers", ()):
        if isinstance(layers, int) and layers > depth:
            raise RecipeError(
                narrowing.where[Distil.verb, "layers"],
                expected=f"at most {depth}, the original's layers",
                found=str(layers),
                next_step="ask for smaller students",
            )
