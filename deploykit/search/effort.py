"""How long a recipe will take, as far as those that were carried out tell. Pure.

Most of a trial that trains is training: rows, times epochs. What is left over is what trials without training take. A
stage that is in the cache already takes less than is said here, a deeper student more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deploykit.stage import Stage, settings_of


@dataclass(frozen=True)
class Effort:
    """A trial that was carried out."""

    rows: int
    """As `rows_trained`."""
    seconds: float


def rows_trained(stages: Sequence[Stage], num_rows: int) -> int:
    """Count the rows that a recipe trains on, each as often as it is seen; rows without labels are not counted.

    Args:
        stages: the recipe.
        num_rows: of the training split.
    """
    return sum(_rows_trained(settings_of(stage), num_rows) for stage in stages)


def seconds_of(rows: int, done: Sequence[Effort]) -> float | None:
    """Estimate how long a trial takes that trains on `rows` rows; None where no such trial was carried out.

    By the slowest of them, because the others may have found a stage in the cache.
    """
    around = min((each.seconds for each in done if not each.rows), default=0.0)
    if not rows:
        return around or None
    rates = [max(0.0, each.seconds - around) / each.rows for each in done if each.rows]
    return around + rows * max(rates) if rates else None


def _rows_trained(found: dict[str, Any], num_rows: int) -> int:
    labelled = min(num_rows, found.get("max_train_samples") or num_rows)
    made = found.get("augment", 0) * labelled + found.get("splice", 0) + found.get("generate", 0)
    return int(found.get("epochs", 0) * found.get("steps", 1) * (labelled + made))
