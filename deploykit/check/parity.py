"""Whether two ways to compute the same outputs agree. Pure.

A deviation is the largest difference of a row's outputs, as a share of the reference's root mean square: a scale
that neither a shift of the logits nor one odd row moves.

    N rows   C labels   L tokens of a row
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.check.statistics import wilson
from deploykit.evidence import Gate, Verdict

Outputs = Sequence[NDArray[np.float32]]
"""Per row (C,) or (L,C)."""

TOLERANCES: Mapping[str, float] = {"fp32": 5e-5, "fp16": 3e-2}
"""The largest deviation of any row, by the precision of the graph.

fp32: measured 4e-6 on MiniLM-L6, where fused kernels sum in another order; one weight of MiniLM-L6 with its sign
flipped moves some row by 6e-4 to 5e-3. int8 is held to the same, in parts that do not amplify rounding: see
`check.int8`. fp16: measured 7e-3 on MiniLM-L6 in PyTorch; eleven bits of mantissa cannot show one small weight.
"""
ROUNDING = 3.0
"""How far the typical row of an int8 graph may be from its reference, in units of the error that int8 activations make.

Where float noise of 1e-7 meets the border between two integers, one of them flips, and every layer passes more flips
on. Two runs that differ by nothing else are then as far apart as two independent roundings, sqrt(2) units; measured on
MiniLM-L6: 0.6 against the reference, 1.2 to 1.4 for a row in another batch; up to 1.6 on tiny models. A wrong mask
or scale is far beyond.
"""
MAX_CHANGED = 0.2
"""The share of predictions that may depend on a row's batch-mates where activations share one scale per batch.

Measured on MiniLM-L6 under a linear probe, whose logits are full of near ties: 0.11 of the rows. It is shown in every
piece of evidence; what it costs in accuracy is judged by the accuracy gate.
"""


@dataclass(frozen=True)
class Parity:
    """How far a candidate's outputs are from the reference's."""

    worst: float
    """The largest deviation; infinite where a shape differs or a value is not a number."""
    typical: float
    """The median over rows."""
    worst_row: int
    max_abs: float
    """The worst row's largest difference, as it stands."""
    scale: float
    """The root mean square of the reference's outputs."""
    rows: int
    reference: tuple[float, ...]
    """With `candidate`: the two outputs at the worst row's worst place."""
    candidate: tuple[float, ...]


def compare(reference: Outputs, candidate: Outputs, numbers: Sequence[int] | None = None) -> Parity:
    """Compare row by row.

    Args:
        reference: what the outputs should be.
        candidate: what they are.
        numbers: how the rows are numbered where they come from; from 0 if not given.

    Raises:
        ValueError: the rows do not pair up, or there is none.
    """
    if len(reference) != len(candidate) or not len(reference):
        raise ValueError(f"{len(candidate)} rows cannot be compared with {len(reference)}")
    scale = _root_mean_square(reference)
    differences_N = np.array([_difference(*pair) for pair in zip(reference, candidate, strict=True)])
    row = int(differences_N.argmax())
    return Parity(
        worst=float(differences_N[row] / scale),
        typical=float(np.median(differences_N) / scale),
        worst_row=row if numbers is None else numbers[row],
        max_abs=float(differences_N[row]),
        scale=scale,
        rows=len(reference),
        **_at_worst(reference[row], candidate[row]),
    )


def judge(name: str, found: Parity, budget: float) -> Gate:
    """Judge every row by a budget."""
    verdict: Verdict = "pass" if found.worst <= budget else "fail"
    reason = (
        f"the outputs of {found.rows} rows differ by at most {found.worst:.2g} of their root mean square "
        f"(row {found.worst_row}: {found.max_abs:.2g}); {budget:.2g} is allowed"
    )
    return Gate(name, found.worst, budget, "lower", verdict, reason)


def judge_rounding(name: str, found: Parity, unit: float) -> Gate:
    """Judge a lossy graph's typical row, in units of the error (a share of the root mean square) that is its due."""
    value = found.typical / unit if unit else math.inf if found.typical else 0.0
    verdict: Verdict = "pass" if value <= ROUNDING and math.isfinite(found.worst) else "fail"
    reason = (
        f"half of {found.rows} rows differ by {found.typical:.2g} of the outputs' root mean square or more, "
        f"{value:.2g} times the error of int8 activations ({unit:.2g}); {ROUNDING:g} times is allowed"
    )
    return Gate(name, value, ROUNDING, "lower", verdict, reason)


@dataclass(frozen=True)
class Invariance:
    """Whether a row's outputs depend on what it is padded to and batched with; alone is the reference."""

    padded: Parity
    """In a batch of two with the longest row."""
    mixed: Parity
    """In a batch of rows of all lengths."""
    changed: int
    """Predictions that either made another one."""
    predictions: int


def invariance(alone: Outputs, padded: Outputs, mixed: Outputs) -> Invariance:
    """Compare the same rows in three surroundings."""
    labels = [
        np.concatenate([np.atleast_1d(row.argmax(axis=-1)) for row in outputs]) for outputs in (alone, padded, mixed)
    ]
    changed = (labels[0] != labels[1]) | (labels[0] != labels[2])
    return Invariance(compare(alone, padded), compare(alone, mixed), int(changed.sum()), len(changed))


def judge_changed(found: Invariance) -> Gate:
    """Judge how many predictions depend on a row's surroundings; fails where it is surely too many."""
    share = wilson(found.changed, found.predictions)
    verdict: Verdict = "fail" if (share.low or 0.0) > MAX_CHANGED else "pass"
    reason = (
        f"{found.changed} of {found.predictions} predictions change with a row's padding or batch "
        f"(95% interval {share.low:.1%} to {share.high:.1%}); fails where it is surely more than {MAX_CHANGED:.0%}"
    )
    return Gate("invariance of predictions", share.value, MAX_CHANGED, "lower", verdict, reason)


def judge_invariance(found: Invariance, budget: float) -> list[Gate]:
    """Judge a graph in float: nothing may depend on a row's surroundings."""
    return [judge(f"invariance {name}", part, budget) for name, part in _parts(found)]


def judge_rounded_invariance(found: Invariance, unit: float) -> list[Gate]:
    """Judge a graph with one activation scale per batch: another batch is another rounding, and no more."""
    gates = [judge_rounding(f"invariance {name}", part, unit) for name, part in _parts(found)]
    return [*gates, judge_changed(found)]


def _parts(found: Invariance) -> list[tuple[str, Parity]]:
    return [("padded", found.padded), ("mixed", found.mixed)]


def _root_mean_square(outputs: Outputs) -> float:
    flat = np.concatenate([np.asarray(row, np.float64).ravel() for row in outputs])
    scale = float(np.sqrt(np.mean(flat**2))) if len(flat) else 0.0
    return scale if math.isfinite(scale) and scale > 0 else 1.0


def _difference(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> float:
    if reference.shape != candidate.shape:
        return math.inf
    largest = float(np.abs(reference.astype(np.float64) - candidate).max(initial=0.0))
    return math.inf if math.isnan(largest) else largest


def _at_worst(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> dict[str, Any]:
    """Return the outputs of the place (a row of labels) at which two rows differ most."""
    if reference.shape != candidate.shape:
        return {"reference": (), "candidate": ()}
    left, right = (row.reshape(-1, row.shape[-1]) for row in (reference, candidate))
    place = int(np.nan_to_num(np.abs(left - right), nan=np.inf).max(axis=-1, initial=0.0).argmax())
    return {"reference": tuple(map(float, left[place])), "candidate": tuple(map(float, right[place]))}
