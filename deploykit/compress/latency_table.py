"""What each part of a model costs where it will be served: heads kept, feed-forward width, a layer's presence.

Costs add up: a structure's latency is that of what always runs, plus each layer's own, its heads' and its neurons'. A
table is fitted to the latencies of a few structures. Some differ from the full model in one thing, but in all layers at
once: the difference is then large beside the noise. The others are as uneven as what pruning leaves, which may cost
more than its parts did in even ones. That costs add up is an assumption, so a table is checked on uneven structures
that it was not fitted to. Milliseconds throughout. Pure: `latency_probes` measures.

    S structures   C costs to find
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from deploykit.families import Structure

TOLERANCE = 0.10
"""The largest error of a prediction, as a share of what was measured, that goes without a warning."""
NUM_CHECKS = 3
_SHARES = (0.0, 0.5)
_NUM_UNEVEN = 6
"""DistilBERT in fp32 on AVX2, whose uneven structures took up to 7% longer than a table of even ones said: the mean
error was 3.4% with none of them fitted, 2.1% with four and 1.5% with six."""


@dataclass(frozen=True)
class Curve:
    """What a number of parts costs: straight lines from nothing at zero, never falling."""

    knots: tuple[int, ...]
    """Where one line ends, ascending; the last is the full number."""
    slopes: tuple[float, ...]
    """The cost of one more part on each line."""

    def at(self, parts: int) -> float:
        """Return the cost of a number of parts."""
        return float(np.dot(_spans(self.knots, parts), self.slopes))


@dataclass(frozen=True)
class LayerCost:
    """What a layer costs."""

    fixed_ms: float
    """What it costs to be there: norms, residual sums, calls."""
    heads: Curve
    ffn: Curve

    def at(self, heads: int, ffn: int) -> float:
        """Return the cost of a layer with so many heads and neurons."""
        return self.fixed_ms + self.heads.at(heads) + self.ffn.at(ffn)


@dataclass(frozen=True)
class Check:
    """A structure that the table was not fitted to."""

    structure: Structure
    predicted_ms: float
    measured_ms: float

    @property
    def error(self) -> float:
        """How far the prediction is off, as a share of what was measured."""
        return abs(self.predicted_ms / self.measured_ms - 1)


@dataclass(frozen=True)
class LatencyTable:
    """The costs of a model's parts; the last layer has its own, as a sentence classifier runs it on one token."""

    base_ms: float
    """What always runs: embeddings, head, the call, and the last layer's presence."""
    inner: LayerCost
    """Any layer but the last."""
    last: LayerCost
    checks: tuple[Check, ...] = ()

    @property
    def error(self) -> float:
        """The worst error among the checks; NaN without any."""
        return max((check.error for check in self.checks), default=float("nan"))

    def costs(self, depth: int) -> tuple[LayerCost, ...]:
        """Return the cost of each of `depth` layers, the first one first."""
        return (*[self.inner] * (depth - 1), self.last)

    def predict(self, structure: Structure) -> float:
        """Return a structure's latency; it may have fewer layers than the model measured."""
        layers = zip(self.costs(len(structure.heads)), structure.heads, structure.ffn, strict=True)
        return self.base_ms + sum(cost.at(heads, ffn) for cost, heads, ffn in layers)


def fitted(measured: Mapping[Structure, float], *, first_token: bool, num_checks: int = NUM_CHECKS) -> LatencyTable:
    """Fit a table to measured latencies and check it on the last `num_checks` of them.

    Least squares of the relative errors, with no cost below zero.

    Args:
        measured: structures as `plan` lists them, the full one first.
        first_token: the last layer is computed for one token only, so its parts cost less.
        num_checks: how many at the end the table is not fitted to.
    """
    structures = list(measured)
    used, held_out = structures[: len(structures) - num_checks], structures[len(structures) - num_checks :]
    design = _Design.of(structures[0], first_token=first_token)
    ms_S = np.array([measured[each] for each in used])
    rows_SC = np.array([design.row(each) for each in used]) / ms_S[:, None]
    costs_C, _ = nnls(rows_SC, np.ones(len(used)))
    table = design.table(costs_C)
    return replace(table, checks=tuple(Check(each, table.predict(each), measured[each]) for each in held_out))


def plan(full: Structure, multiple: int, *, num_checks: int = NUM_CHECKS, seed: int = 0) -> list[Structure]:
    """Choose the structures to measure: the full one first, those that check the table last.

    Args:
        full: the model's.
        multiple: what feed-forward widths are multiples of.
        num_checks: uneven structures, drawn at random.
        seed: of the draw.
    """
    least = smallest(full, multiple)
    inner = [_mixed(full, least, share, 1.0) for share in _SHARES] + [_mixed(full, least, 1.0, s) for s in _SHARES]
    found = [full, *(_with_last(each, full) for each in inner)]
    found.append(_mixed(full, least, 0.5, 0.25))
    kept = (len(full.heads) + 1) // 2
    found.append(Structure(full.heads[-kept:], full.ffn[-kept:]))
    rng = np.random.default_rng(seed)
    found += [_drawn(full, multiple, rng) for _ in range(_NUM_UNEVEN)]
    checks = dict.fromkeys(_drawn(full, multiple, rng) for _ in range(num_checks))
    return [*dict.fromkeys(each for each in found if each not in checks), *checks]


def smallest(full: Structure, multiple: int) -> Structure:
    """Return the least structure: one head and the least width in each layer."""
    return Structure((1,) * len(full.heads), tuple(min(multiple, width) for width in full.ffn))


def _mixed(full: Structure, least: Structure, heads: float, ffn: float) -> Structure:
    """Return the structure at some shares of the way from the least to the full one, all layers alike."""
    return Structure(
        tuple(round(low + heads * (high - low)) for low, high in zip(least.heads, full.heads, strict=True)),
        tuple(low + round(ffn * (high - low) / low) * low for low, high in zip(least.ffn, full.ffn, strict=True)),
    )


def _with_last(structure: Structure, other: Structure) -> Structure:
    """Take the last layer from another structure."""
    return Structure((*structure.heads[:-1], other.heads[-1]), (*structure.ffn[:-1], other.ffn[-1]))


def _drawn(full: Structure, multiple: int, rng: np.random.Generator) -> Structure:
    return Structure(
        tuple(int(rng.integers(1, count + 1)) for count in full.heads),
        tuple(int(rng.integers(1, max(width // multiple, 1) + 1)) * min(multiple, width) for width in full.ffn),
    )


def _spans(knots: Sequence[int], parts: int) -> NDArray[np.float64]:
    """Return how many of `parts` lie on each line; the last line goes on."""
    starts = np.array([0, *knots[:-1]])
    ends = np.array([*knots[:-1], max(parts, knots[-1])])
    on_each: NDArray[np.float64] = np.clip(parts - starts, 0, ends - starts).astype(np.float64)
    return on_each


@dataclass(frozen=True)
class _Design:
    """Which costs are looked for, and how much of each a structure has."""

    heads: tuple[int, ...]
    ffn: tuple[int, ...]
    """Knots of the two curves."""
    first_token: bool

    @classmethod
    def of(cls, full: Structure, *, first_token: bool) -> "_Design":
        most, widest = max(full.heads), max(full.ffn)
        heads, ffn = (tuple(sorted({max(number // 2, 1), number})) for number in (most, widest))
        return cls(heads, ffn, first_token)

    def row(self, structure: Structure) -> NDArray[np.float64]:
        """Return a structure's row of the design matrix, (C,)."""
        layers = [
            np.concatenate([[1.0], _spans(self.heads, heads), _spans(self.ffn, ffn)])
            for heads, ffn in zip(structure.heads, structure.ffn, strict=True)
        ]
        if not self.first_token:
            return np.concatenate([[1.0], np.sum(layers, axis=0)])
        inner = np.sum(layers[:-1], axis=0) if layers[:-1] else np.zeros_like(layers[0])
        return np.concatenate([[1.0], inner, [structure.heads[-1], structure.ffn[-1]]])

    def table(self, costs_C: NDArray[np.float64]) -> LatencyTable:
        """Name the costs."""
        base, fixed, *slopes = costs_C.tolist()
        heads, ffn = slopes[: len(self.heads)], slopes[len(self.heads) : len(self.heads) + len(self.ffn)]
        inner = LayerCost(fixed, Curve(self.heads, tuple(heads)), Curve(self.ffn, tuple(ffn)))
        if not self.first_token:
            return LatencyTable(base, inner, inner)
        last = LayerCost(0.0, Curve(self.heads[-1:], (slopes[-2],)), Curve(self.ffn[-1:], (slopes[-1],)))
        return LatencyTable(base, inner, last)
