"""What a lossy model lost against the original, on labelled rows. Pure.

The budget is judged by the drop that was measured; its interval and the smallest drop that so many rows can show stand
in the reason. Where `require_significance` asks for proof, a drop within the budget whose 95% bound is beyond it is
inconclusive: the test set is too small to tell.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.check.statistics import Agreement, Drop, agreement, metric_drop
from deploykit.evidence import Gate, Metric, Verdict
from deploykit.tasks.task import Score

MAX_FLIPS = 50
"""How many changed predictions are written down; all are counted."""
_REPORT_MARGIN = 0.05
"""How far a metric at chance may fall short of the task report's: two splits of the same labels differ."""
MAX_VALUES = 20
"""A text field with more distinct values than this is no slice."""
_ROUNDING = 1e-12
"""A drop of exactly the budget passes, whatever the last bit of a float says."""

Truth = Sequence[Any]
"""Per row the label, or the list of its words' labels, as `Score.predictions`."""


@dataclass(frozen=True)
class Accuracy:
    """The comparison on one split."""

    metric: str
    reference: float
    candidate: float
    drop: Drop
    n: int
    flips: tuple[Mapping[str, Any], ...]
    flips_total: int
    flips_lost: int
    """Right before, wrong after."""
    flips_won: int
    classes: tuple[Mapping[str, Any], ...]
    slices: tuple[Mapping[str, Any], ...]


def compare(
    reference: Score, candidate: Score, truth: Truth, rows: Sequence[Mapping[str, Any]], task_fields: Sequence[str]
) -> Accuracy:
    """Compare two models' scores on the same rows.

    Args:
        reference: the original's.
        candidate: the lossy model's.
        truth: the labels, in the form of the predictions.
        rows: the data, for texts and slices.
        task_fields: fields that are no slices.
    """
    flips = list(_flips(reference.predictions, candidate.predictions, truth, rows))
    right = Counter((flip["reference"] == flip["label"], flip["candidate"] == flip["label"]) for flip in flips)
    metric = reference.metrics[0]
    return Accuracy(
        metric=metric.name,
        reference=metric.value,
        candidate=candidate.metrics[0].value,
        drop=metric_drop(reference.row_stats, candidate.row_stats, reference.statistic),
        n=len(rows),
        flips=tuple(flips[:MAX_FLIPS]),
        flips_total=len(flips),
        flips_lost=right[True, False],
        flips_won=right[False, True],
        classes=tuple(_classes(reference, candidate)),
        slices=tuple(_slices(reference, candidate, rows, task_fields)),
    )


def judge(found: Accuracy, max_drop: float, *, require_significance: bool) -> Gate:
    """Judge the drop by its budget; see the module's docstring."""
    drop, verdict = found.drop, _verdict(found.drop, max_drop, require_significance=require_significance)
    doubt = "" if drop.upper <= max_drop else f"; the drop may be as large as {drop.upper:.4f}"
    reason = (
        f"{found.metric} {found.candidate:.4f} against {found.reference:.4f}: a drop of {drop.value:.4f} "
        f"(95% interval {drop.low:.4f} to {drop.high:.4f}), {max_drop:g} is allowed{doubt}; "
        f"{found.n} rows can show a drop of {drop.detectable:.4f}"
    )
    return Gate("accuracy", drop.value, max_drop, "lower", verdict, reason)


def judge_labels(found: Agreement, now: Metric, reported: float | None) -> Gate:
    """Judge whether these are the labels that the original was made for.

    Two models lose nothing against each other on shuffled labels: without this gate such data would prove anything.
    An original that never did better by its own task report is no reason to doubt the labels.

    Args:
        found: the original's agreement with the labels.
        now: its metric on them.
        reported: that metric by its own task report, where it has one.
    """
    verdict: Verdict = "fail"
    if found.kappa > found.chance:
        verdict, why = "pass", f"unrelated ones reach {found.chance:.3f} by chance"
    elif reported is not None and now.value >= reported - _REPORT_MARGIN:
        verdict, why = "pass", f"no better than chance, as its task report says ({now.name} {reported:.4f})"
    elif found.chance >= 1:
        verdict, why = "inconclusive", "so few cannot show that they are related; use a larger test set"
    else:
        why = f"unrelated ones reach {found.chance:.3f} by chance; are these the labels that it was made for?"
    reason = f"the original's answers agree with {found.n} labels with kappa {found.kappa:.3f}: {why}"
    return Gate("labels", found.kappa, min(found.chance, 1.0), "higher", verdict, reason)


def relation(reference: Score, truth: Truth) -> Agreement:
    """Measure the original's agreement with the labels beyond chance, label by label."""
    return agreement(_flat(reference.predictions), _flat(truth))


def _verdict(drop: Drop, max_drop: float, *, require_significance: bool) -> Verdict:
    if drop.value > max_drop + _ROUNDING:
        return "fail"
    return "inconclusive" if require_significance and drop.upper > max_drop + _ROUNDING else "pass"


def _flat(predictions: Sequence[Any]) -> list[str]:
    if predictions and isinstance(predictions[0], str):
        return list(predictions)
    return list(chain.from_iterable(predictions))


def _flips(
    reference: Sequence[Any], candidate: Sequence[Any], truth: Truth, rows: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield every prediction that changed, in order; of a row of words, every word's."""
    for index, (before, after, label, row) in enumerate(zip(reference, candidate, truth, rows, strict=True)):
        if isinstance(label, str):
            if before != after:
                yield _flip(index, row.get("text", ""), label, before, after)
        else:
            tokens = row.get("tokens", [""] * len(label))
            for word, words in enumerate(zip(label, before, after, strict=False)):
                if words[1] != words[2]:
                    yield _flip(index, tokens[word], *words)


def _flip(row: int, text: str, label: str, reference: str, candidate: str) -> dict[str, Any]:
    return {"row": row, "text": text, "label": label, "reference": reference, "candidate": candidate}


def _classes(reference: Score, candidate: Score) -> Iterator[dict[str, Any]]:
    after = {row["label"]: row["f1"] for row in candidate.table}
    for row in reference.table:
        yield {
            "label": row["label"],
            "f1_reference": row["f1"],
            "f1_candidate": after.get(row["label"], 0.0),
            "support": row["support"],
        }


def _slices(
    reference: Score, candidate: Score, rows: Sequence[Mapping[str, Any]], task_fields: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield both models' metric for every value of every text field of few values."""
    for field in sorted({name for row in rows for name in row} - set(task_fields)):
        values = [row.get(field) for row in rows]
        distinct = {value for value in values if isinstance(value, str)}
        if 1 < len(distinct) <= MAX_VALUES:
            for value in sorted(distinct):
                inside_N = np.array([found == value for found in values])
                yield {
                    "field": field,
                    "value": value,
                    "n": int(inside_N.sum()),
                    "reference": _metric_of(reference, inside_N),
                    "candidate": _metric_of(candidate, inside_N),
                }


def _metric_of(score: Score, inside_N: NDArray[np.bool_]) -> float:
    return float(score.statistic(score.row_stats[inside_N].sum(axis=0)))
