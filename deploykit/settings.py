"""Settings from the outside, a flag or a YAML section, into a stage: strict types, no unknown keys."""

import dataclasses
import difflib
import functools
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from deploykit.artifact import canonical_json
from deploykit.errors import UsageError

T = TypeVar("T")


def make(
    cls: type[T], values: Mapping[str, Any], where: Callable[[str], str], error: type[UsageError] = UsageError
) -> T:
    """Make a settings dataclass from JSON-like values; its own defaults fill the rest.

    Args:
        cls: a dataclass; its `__post_init__` may raise ValueError for a value of the right type.
        values: field to value.
        where: names the place of a field for messages; of the whole section when given "".
        error: what to raise.

    Raises:
        UsageError: a key is unknown or missing, or a value has the wrong type or is refused.
    """
    fields = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise unknown(name, fields, where(name), error)
    missing = [name for name, item in fields.items() if _is_required(item) and name not in values]
    if missing:
        raise error(where(""), expected=", ".join(missing), found="nothing", next_step=f"add {missing[0]}")
    hints = typing.get_type_hints(cls)
    typed = {name: _typed(hints[name], value, where(name), error) for name, value in values.items()}
    try:
        return cls(**typed)
    except (ValueError, TypeError, UsageError) as cause:
        raise error(where(""), expected="usable settings", found=str(cause), next_step="change the value") from cause


def _is_required(item: "dataclasses.Field[Any]") -> bool:
    return item.init and item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def unknown(name: str, known: Iterable[str], where: str, error: type[UsageError]) -> UsageError:
    """Build the error of an unknown key, naming the closest known one."""
    close = difflib.get_close_matches(name, list(known), 1)
    hint = f"did you mean {close[0]}?" if close else "remove it"
    return error(where, expected=f"one of {', '.join(sorted(known))}", found=f"unknown key {name!r}", next_step=hint)


@functools.cache
def _reader(hint: Any) -> TypeAdapter[Any]:
    """Return what reads values of a type; a search makes thousands of stages, and building one takes the longest."""
    return TypeAdapter(hint)


def _typed(hint: Any, value: Any, where: str, error: type[UsageError]) -> Any:
    try:
        return _reader(hint).validate_json(canonical_json(value), strict=True)
    except (ValidationError, ValueError) as cause:
        problem = cause.errors()[0]["msg"] if isinstance(cause, ValidationError) else str(cause)
        raise error(
            where, expected=_name_of(hint), found=f"{value!r} ({problem})", next_step="change the value"
        ) from cause


def _name_of(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
