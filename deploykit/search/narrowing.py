"""The section `search` of a pipeline: which values of which settings a search may try.

search:
  distil: {layers: [0, 2, 3, 4], epochs: 2}     # a list is searched, a single value holds; 0 leaves the stage out
  prune: {heads: [0, 0.5], ffn: [0, 0.5, 0.75]}
  quantize: false                               # never
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deploykit import settings
from deploykit.errors import RecipeError
from deploykit.stage import further_kinds

if TYPE_CHECKING:
    from deploykit.search.space import Entry

Where = Callable[[tuple[str | int, ...]], str]
"""Names file, line and field."""
SECTION = "search"


@dataclass(frozen=True)
class Narrowing:
    """What the section says; every value is of its setting's type and range."""

    values: Mapping[str, Mapping[str, tuple[Any, ...]]] = field(default_factory=dict)
    """Stage to setting to values."""
    without: frozenset[str] = frozenset()
    """Stages that are never tried."""
    where: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """Stage and setting ("" for the stage) to file, line and field."""


def read_narrowing(
    section: Any, entries: Mapping[str, "Entry"], where: Where, located: Callable[[str], str]
) -> Narrowing:
    """Check the section and read it.

    Args:
        section: as YAML gives it.
        entries: the table, by verb.
        where: names a place in the file.
        located: resolves a path of the file.

    Raises:
        RecipeError: naming file, line and field.
    """
    _require_mapping(section, (SECTION,), where)
    values: dict[str, dict[str, tuple[Any, ...]]] = {}
    places: dict[tuple[str, str], str] = {}
    for verb, wanted in section.items():
        path = (SECTION, verb)
        if verb not in entries:
            raise settings.unknown(str(verb), entries, where(path), RecipeError)
        places[verb, ""] = where(path)
        if wanted is False:
            continue
        _require_mapping(wanted, path, where)
        places |= {(verb, name): where((*path, name)) for name in wanted}
        values[verb] = {name: _values(found, (*path, name), where) for name, found in wanted.items()}
        _require_usable(values[verb], entries[verb], path, where)
        for name in further_kinds(entries[verb].stage) & values[verb].keys():
            values[verb][name] = tuple(value and located(value) for value in values[verb][name])
    without = frozenset(verb for verb, wanted in section.items() if wanted is False)
    return Narrowing(values, without, places)


def _values(found: Any, path: tuple[str, ...], where: Where) -> tuple[Any, ...]:
    values = tuple(found) if isinstance(found, list) else (found,)
    if not values:
        raise RecipeError(
            where(path), expected="at least one value", found="an empty list", next_step="name the values"
        )
    repeated = [value for index, value in enumerate(values) if value in values[:index]]
    if repeated:
        raise RecipeError(
            where(path), expected="each value once", found=f"{repeated[0]!r} again", next_step="remove one"
        )
    if len(values) > 1 and any(isinstance(value, list | dict) for value in values):
        raise RecipeError(
            where(path), expected="numbers or words to search", found=repr(found), next_step="name single values"
        )
    return values


def _require_usable(values: Mapping[str, tuple[Any, ...]], entry: "Entry", path: tuple[str, ...], where: Where) -> None:
    """Make the stage with each value once, so that its own checks speak."""
    some = {name: next(filter(None, values.get(name, ())), value) for name, value in entry.switches.items()}
    for name, found in values.items():
        off = entry.rivals if name in entry.rivals.values() else entry.rivals.values()
        on = {switch: value for switch, value in some.items() if switch not in off}
        needed = dict([entry.needs[name]]) if name in entry.needs else {}
        for index, value in enumerate(found):
            if value or name not in entry.switches:
                place = where((*path, name, index) if len(found) > 1 else (*path, name))
                beside = {**on, **needed} if value else on
                settings.make(entry.stage, {**beside, name: value}, lambda _, place=place: place, RecipeError)  # type: ignore[misc]


def _require_mapping(section: Any, path: tuple[str, ...], where: Where) -> None:
    if not isinstance(section, dict):
        raise RecipeError(
            where(path), expected="settings as key: value", found=repr(section), next_step="write a mapping"
        )
