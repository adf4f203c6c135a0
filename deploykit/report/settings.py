"""The budgets of a report."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ReportSettings:
    """How much worse than the baseline the head may be."""

    max_slowdown: float = 0.05
    """How much longer it may take, as a share of the baseline's time."""
    max_drop: float = 0.01
    """How much of the task's metric may be lost, absolute."""
    max_growth: float = 0.01
    """How much larger the exported model may be, as a share of the baseline's bytes."""
    percentiles: tuple[int, ...] = (50, 95)
    """The latency percentiles that are judged; the others are only shown."""

    def __post_init__(self) -> None:
        for name in ("max_slowdown", "max_drop", "max_growth"):
            if not 0 <= getattr(self, name) < 10:
                raise ValueError(f"{name} must be a share from 0 up, not {getattr(self, name)}")
        if not self.percentiles or not all(0 < percentile < 100 for percentile in self.percentiles):
            raise ValueError(f"percentiles must lie between 1 and 99, not {list(self.percentiles)}")
