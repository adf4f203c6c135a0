"""The statistics behind the verdicts: percentiles, paired differences, shares, agreement. Pure.

N samples or rows   K additive statistics of a row   R bootstrap repetitions
G kinds of rows   J = 2K statistics of a pair
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
CONFIDENCE = 0.95
REPETITIONS = 2000
_SEED = 0
_POWER = 0.8


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval; None is an end that this few samples cannot bound."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Drop:
    """How much of a metric the candidate lost, and how sure that is."""

    value: float
    low: float
    """With `high`, the two-sided 95% interval."""
    high: float
    upper: float
    """The one-sided 95% bound: the true drop is below this."""
    detectable: float
    """The smallest true drop that a test on this many rows finds with 80% power (minimum detectable difference)."""


@dataclass(frozen=True)
class Agreement:
    """How far predictions and labels agree beyond chance (Cohen's kappa)."""

    kappa: float
    """1: always; 0: as two unrelated lists would."""
    chance: float
    """The largest kappa that unrelated lists reach in 95 of 100 cases."""
    n: int


def percentile(samples_N: Floats, share: float) -> Interval:
    """Return a nearest-rank percentile with a distribution-free interval of order statistics.

    The number of samples below the true percentile is binomial, whatever they are distributed like (David and
    Nagaraja, Order Statistics (2003), section 7.1). Samples may be infinite (never answered).

    Args:
        samples_N: at least one, none of them NaN.
        share: in (0, 1), 0.99 for the 99th percentile.

    Raises:
        ValueError: there is no sample, or a NaN.
    """
    ordered_N = np.sort(checked(samples_N))
    size = len(ordered_N)
    value = ordered_N[nearest_rank(size, share)]
    tail = (1 - CONFIDENCE) / 2
    at_most_N = special.bdtr(np.arange(size + 1), size, share)  # how likely at most that many lie below the percentile
    low, high = (int(np.searchsorted(at_most_N, tail)), int(np.searchsorted(at_most_N, 1 - tail)) + 1)
    return Interval(
        float(value),
        float(ordered_N[low - 1]) if low >= 1 else None,
        float(ordered_N[high - 1]) if high <= size else None,
    )


def metric_drop(reference_NK: Floats, candidate_NK: Floats, statistic: Callable[[Floats], Floats]) -> Drop:
    """Bound how much of a metric in [0, 1] was lost, by resampling rows in pairs.

    A plain bootstrap of two models that agree on every row would call their difference zero for sure, be it on three
    rows. So two imaginary rows are resampled along, one lost and one won, each worth 1 / N (Bonett and Price,
    Adjusted Wald confidence interval for a difference of binomial proportions based on paired data (2012)).

    Args:
        reference_NK: per row, what the metric is a function of the sums of.
        candidate_NK: the same rows.
        statistic: the metric of sums (..., K).

    Raises:
        ValueError: the rows do not pair up, there is none, or a value is not finite.
    """
    if reference_NK.shape != candidate_NK.shape or not len(reference_NK):
        raise ValueError(f"rows {reference_NK.shape} and {candidate_NK.shape} do not pair up")
    if not (np.isfinite(reference_NK).all() and np.isfinite(candidate_NK).all()):
        raise ValueError("a row's statistics are not finite")
    size = len(reference_NK)
    value = float(statistic(reference_NK.sum(axis=0)) - statistic(candidate_NK.sum(axis=0)))
    generator = np.random.default_rng(_SEED)
    drops_R = _resampled_drops(reference_NK, candidate_NK, statistic, generator)
    lost_R, won_R = generator.poisson(1.0, (2, REPETITIONS))
    drops_R = np.clip(drops_R + (lost_R - won_R) / size, -1.0, 1.0)
    low, high, upper = np.quantile(drops_R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2, CONFIDENCE])
    reach = special.ndtri(CONFIDENCE) + special.ndtri(_POWER)
    return Drop(value, float(low), float(high), float(upper), float(reach * drops_R.std()))


def wilson(successes: int, size: int) -> Interval:
    """Return a share with its score interval (Wilson 1927); without a trial it may be anything.

    Raises:
        ValueError: there are more successes than trials.
    """
    if not 0 <= successes <= size:
        raise ValueError(f"{successes} successes of {size}")
    if size == 0:
        return Interval(math.nan, 0.0, 1.0)
    z, share = float(special.ndtri((1 + CONFIDENCE) / 2)), successes / size
    middle = (share + z * z / (2 * size)) / (1 + z * z / size)
    reach = z / (1 + z * z / size) * math.sqrt(share * (1 - share) / size + z * z / (4 * size * size))
    return Interval(share, max(0.0, middle - reach), min(1.0, middle + reach))


def agreement(predictions: Sequence[Hashable], labels: Sequence[Hashable]) -> Agreement:
    """Measure how far predictions are related to labels at all.

    Cohen, A coefficient of agreement for nominal scales (1960); its standard error without any relation after
    Fleiss, Cohen and Everitt (1969), in Cohen's simple form.

    Raises:
        ValueError: the lists do not pair up or are empty.
    """
    if len(predictions) != len(labels) or not labels:
        raise ValueError(f"{len(predictions)} predictions cannot be paired with {len(labels)} labels")
    size = len(labels)
    observed = sum(left == right for left, right in zip(predictions, labels, strict=True)) / size
    predicted, given = Counter(predictions), Counter(labels)
    expected = sum(predicted[value] * given[value] for value in given) / size**2
    if expected == 1.0:  # one class only: nothing to be related to
        return Agreement(0.0, math.inf, size)
    error = math.sqrt(expected / (size * (1 - expected)))
    return Agreement((observed - expected) / (1 - expected), float(special.ndtri(CONFIDENCE)) * error, size)


def checked(samples_N: Floats) -> Floats:
    """Return the samples as they are.

    Raises:
        ValueError: there is none, or one is NaN.
    """
    if not len(samples_N) or np.isnan(samples_N).any():
        raise ValueError("no sample" if not len(samples_N) else "a sample is NaN")
    return samples_N


def nearest_rank(size: int, share: float) -> int:
    """Return the index of the smallest ordered sample with at least `share` at or below it."""
    return min(size - 1, max(0, math.ceil(share * size - 1e-9) - 1))


def _resampled_drops(
    reference_NK: Floats,
    candidate_NK: Floats,
    statistic: Callable[[Floats], Floats],
    generator: np.random.Generator,
) -> Floats:
    """Resample pairs of rows (R). Equal pairs are drawn as one multinomial count: the same distribution, far fewer."""
    width = reference_NK.shape[1]
    pairs_NJ = np.concatenate([reference_NK, candidate_NK], axis=1)
    kinds_GJ, counts_G = np.unique(pairs_NJ, axis=0, return_counts=True)
    drawn_RG = generator.multinomial(len(pairs_NJ), counts_G / counts_G.sum(), size=REPETITIONS)
    sums_RJ = drawn_RG.astype(np.float64) @ kinds_GJ
    drops_R: Floats = statistic(sums_RJ[:, :width]) - statistic(sums_RJ[:, width:])
    return drops_R
