"""What a search is asked for."""

from dataclasses import dataclass

DEFAULT_TRIALS = 40


@dataclass(frozen=True)
class SearchSettings:
    """The budget of the model, and of the search."""

    max_drop: float | None = None
    """How much of the task's primary metric may be lost, absolute; the pipeline's `validate.max_drop` if not given."""
    target_ms: float | None = None
    """How long one row may take, in the median. With it the most accurate model that is so fast is chosen."""
    minutes: float | None = None
    """No trial starts that would end later, as far as the earlier ones tell; then the choice is confirmed."""
    trials: int | None = None
    """Trials in all, those of earlier runs among them; 40 if neither this nor `minutes` is given."""
    workers: int = 1
    """Processes that try recipes at the same time."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be searched."""
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise ValueError(f"max_drop must be a share from 0 to 1, not {self.max_drop}")
        for name in ("target_ms", "minutes", "trials", "workers"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive, not {value}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")

    @property
    def most(self) -> int | None:
        """How many trials there may be; None where only time counts."""
        return self.trials or (None if self.minutes else DEFAULT_TRIALS)
