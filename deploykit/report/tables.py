"""Any nested part of evidence as tables, for the parts whose fields the report does not judge. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploykit.report import wording

MAX_ROWS = 20
MAX_TEXT = 160
MAX_ITEMS = 6


@dataclass(frozen=True)
class Column:
    """A column's title and its style: `num` (right-aligned), `text` (wraps) or nothing."""

    name: str
    style: str = ""


@dataclass(frozen=True)
class Table:
    """A table of text."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]


def tables_of(title: str, value: Mapping[str, Any]) -> list[Table]:
    """Lay out a mapping: its plain values as one table, parts of the same fields as rows of one, the rest one each."""
    plain = {name: item for name, item in value.items() if not _is_nested(item)}
    parts = {name: item for name, item in value.items() if _is_nested(item) and item}
    tables = [_pairs(title, plain)] if plain else []
    if len(parts) > 1 and _are_alike(list(parts.values())):
        return [*tables, _records(title, [{"": name, **item} for name, item in parts.items()])]
    for name, item in parts.items():
        tables += _nested(f"{title}: {_words(name)}", item)
    return tables


def provider_tables(value: Mapping[str, Any]) -> list[Table]:
    """Lay out provider truth: which provider ran how many nodes in which share of the time, then the rest."""
    nodes, shares = value.get("nodes") or {}, value.get("time_share") or {}
    ran = [
        {"ran by": name, "nodes": nodes.get(name, 0), "share of time": wording.share(shares.get(name))}
        for name in dict.fromkeys([*nodes, *shares])
    ]
    rest = {name: item for name, item in value.items() if name not in ("nodes", "time_share")}
    return [*([_records("provider truth", ran)] if ran else []), *tables_of("provider", rest)]


def cell(value: Any) -> str:
    """Write one value of unknown kind."""
    if value is None:
        return wording.UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(name)} {cell(item)}" for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        more = f", … ({len(value)} in all)" if len(value) > MAX_ITEMS else ""
        return ", ".join(map(cell, value[:MAX_ITEMS])) + more
    text = str(value)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _is_nested(value: Any) -> bool:
    if isinstance(value, Mapping):
        return True
    return isinstance(value, list | tuple) and (not value or any(isinstance(item, Mapping) for item in value))


def _are_alike(parts: Sequence[Any]) -> bool:
    return all(isinstance(part, Mapping) for part in parts) and len({tuple(part) for part in parts}) == 1


def _nested(title: str, value: Any) -> list[Table]:
    if not isinstance(value, Mapping):
        return [_records(title, value)]
    if value and all(isinstance(item, Mapping) for item in value.values()):
        return [_records(title, [{"": name, **item} for name, item in value.items()])]
    return tables_of(title, value)


def _pairs(title: str, value: Mapping[str, Any]) -> Table:
    rows = tuple((_words(name), cell(item)) for name, item in value.items())
    return Table(title, (Column(""), Column("", "text")), rows)


def _records(title: str, items: Sequence[Mapping[str, Any]]) -> Table:
    names = list(dict.fromkeys(name for item in items for name in item))
    columns = tuple(Column(_words(name), _style([item.get(name) for item in items])) for name in names)
    rows = tuple(tuple(cell(item.get(name)) for name in names) for item in items[:MAX_ROWS])
    shown = f" ({MAX_ROWS} of {len(items)})" if len(items) > MAX_ROWS else ""
    return Table(title + shown, columns, rows)


def _style(values: Sequence[Any]) -> str:
    present = [value for value in values if value is not None]
    if present and all(isinstance(value, int | float) and not isinstance(value, bool) for value in present):
        return "num"
    return "text" if any(len(cell(value)) > 30 for value in present) else ""


def _words(name: str) -> str:
    return str(name).replace("_", " ")
