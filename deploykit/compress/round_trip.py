"""Whether two tokenizers read rows alike, and what the second one reads otherwise. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

Token = tuple[str, int, tuple[int, int]]
"""A piece, its type id, and the characters that it stands in."""


@dataclass(frozen=True)
class Fallback:
    """Pieces that are spelled otherwise."""

    pieces: tuple[str, ...]
    become: tuple[str, ...]
    """Empty where a longer spelling pushed them out of the model's length."""
    times: int


@dataclass(frozen=True)
class NewUnknown:
    """A row that holds an unknown piece more than it did."""

    row: int
    """Counted from 0."""
    pieces: tuple[str, ...]
    """What became unknown."""


@dataclass(frozen=True)
class RoundTrip:
    """One split, read by both."""

    rows: int
    same: int
    """Rows of which every piece, type id and offset is the same."""
    pieces_before: int
    pieces_after: int
    unknown_before: int
    unknown_after: int
    new_unknown: tuple[NewUnknown, ...]
    fallback: tuple[Fallback, ...]
    """Most frequent first."""


def compare(before: Sequence[Sequence[Token]], after: Sequence[Sequence[Token]], unknown: str | None) -> RoundTrip:
    """Compare rows, piece by piece as strings.

    Args:
        before: the rows as they were read.
        after: the same rows as they are read now.
        unknown: the piece that stands for what cannot be spelled.

    Raises:
        ValueError: the rows do not pair up.
    """
    changed = [
        (row, _changes(_pieces(old), _pieces(new)))
        for row, (old, new) in enumerate(zip(before, after, strict=True))
        if list(old) != list(new)
    ]
    times = Counter(change for _, changes in changed for change in changes)
    return RoundTrip(
        rows=len(before),
        same=len(before) - len(changed),
        pieces_before=sum(map(len, before)),
        pieces_after=sum(map(len, after)),
        unknown_before=_count(before, unknown),
        unknown_after=_count(after, unknown),
        new_unknown=tuple(
            NewUnknown(row, lost)
            for row, changes in changed
            if (lost := tuple(piece for old, new in changes if _gained(old, new, unknown) for piece in old))
        ),
        fallback=tuple(
            Fallback(*change, count) for change, count in sorted(times.items(), key=lambda item: (-item[1], item[0]))
        ),
    )


def _pieces(row: Sequence[Token]) -> tuple[str, ...]:
    return tuple(piece for piece, _, _ in row)


def _changes(old: tuple[str, ...], new: tuple[str, ...]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    blocks = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return [(old[i:j], new[k:n]) for kind, i, j, k, n in blocks if kind != "equal"]


def _count(rows: Sequence[Sequence[Token]], unknown: str | None) -> int:
    return sum(piece == unknown for row in rows for piece, _, _ in row)


def _gained(old: tuple[str, ...], new: tuple[str, ...], unknown: str | None) -> bool:
    return unknown is not None and new.count(unknown) > old.count(unknown)
