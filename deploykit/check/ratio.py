"""How many times longer the head takes than the baseline, at any percentile, with a bootstrap interval. Pure.

Percentiles are nearest-rank order statistics, as in `check.statistics`. Samples may be infinite (never answered).

    N, M samples   R bootstrap repetitions
"""

import math

import numpy as np

from deploykit.check.statistics import CONFIDENCE, REPETITIONS, Floats, Interval, checked, nearest_rank

_SEED = 0
_CHUNK = 4_000_000
"""Resampled values held at once: 32 MB."""


def percentile(samples_N: Floats, share: float) -> float:
    """Return the nearest-rank percentile of a non-empty sample; `share` in (0, 1)."""
    return float(np.sort(samples_N)[nearest_rank(len(samples_N), share)])


def samples_needed(share: float) -> int:
    """Return how many samples bound a percentile on both sides at 95%.

    Below that, the percentile lies beyond all samples with more than 2.5% probability, and a bootstrap, which never
    looks beyond its samples, is blind to it.
    """
    return math.ceil(math.log((1 - CONFIDENCE) / 2) / math.log(max(share, 1 - share)))


def ratio_of_independent(head_N: Floats, base_M: Floats, share: float) -> Interval:
    """Compare a percentile of two samples that were taken apart: each is resampled by itself.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 8.3. The order statistic of a resample is
    drawn exactly, as the sample at a Beta-distributed rank, without making the resample.
    """
    generator = np.random.default_rng(_SEED)
    heads_R, bases_R = (_resampled_percentiles(samples, share, generator) for samples in (head_N, base_M))
    estimate = percentile(head_N, share) / percentile(base_M, share)
    return _bounded(estimate, heads_R, bases_R, min(len(head_N), len(base_M)), share)


def ratio_of_interleaved(head_N: Floats, base_N: Floats, share: float) -> Interval:
    """Compare a percentile of two samples taken in turn: sample i of both is resampled together.

    What slowed the machine down for a moment slowed both, and stays in or out of a resample for both (Efron and
    Tibshirani 1993, chapter 13).

    Raises:
        ValueError: the samples do not pair up, there is none, or one is NaN.
    """
    if len(checked(head_N)) != len(checked(base_N)):
        raise ValueError(f"{len(head_N)} samples cannot be paired with {len(base_N)}")
    generator = np.random.default_rng(_SEED)
    size, rank = len(head_N), nearest_rank(len(head_N), share)
    resampled = []
    for repetitions in _chunks(size):
        picks_RN = generator.integers(0, size, (repetitions, size))
        resampled.append([np.partition(samples[picks_RN], rank)[:, rank] for samples in (head_N, base_N)])
    heads_R, bases_R = np.concatenate(resampled, axis=1)
    return _bounded(percentile(head_N, share) / percentile(base_N, share), heads_R, bases_R, size, share)


def ratio_of_sums(head_N: Floats, base_N: Floats) -> Interval:
    """Compare the sums of two samples that pair up, and are resampled in pairs.

    Raises:
        ValueError: the samples do not pair up, there is none, or one is NaN.
    """
    if len(checked(head_N)) != len(checked(base_N)):
        raise ValueError(f"{len(head_N)} samples cannot be paired with {len(base_N)}")
    generator = np.random.default_rng(_SEED)
    sums = []
    for repetitions in _chunks(len(head_N)):
        picks_RN = generator.integers(0, len(head_N), (repetitions, len(head_N)))
        sums.append([samples[picks_RN].sum(axis=1) for samples in (head_N, base_N)])
    heads_R, bases_R = np.concatenate(sums, axis=1)
    return _bounded(float(head_N.sum() / base_N.sum()), heads_R, bases_R, len(head_N), 0.5)


def _resampled_percentiles(samples_N: Floats, share: float, generator: np.random.Generator) -> Floats:
    size, rank = len(samples_N), nearest_rank(len(samples_N), share)
    uniform_R = generator.beta(rank + 1, size - rank, REPETITIONS)
    drawn_R: Floats = np.sort(samples_N)[np.minimum((uniform_R * size).astype(np.int64), size - 1)]
    return drawn_R


def _chunks(size: int) -> list[int]:
    most = max(1, _CHUNK // size)
    full, rest = divmod(REPETITIONS, most)
    return [most] * full + ([rest] if rest else [])


def _bounded(estimate: float, heads_R: Floats, bases_R: Floats, size: int, share: float) -> Interval:
    # Infinite on both sides has no ratio: an interval that holds such a resample cannot be told either.
    if size < samples_needed(share) or (np.isinf(heads_R) & np.isinf(bases_R)).any():
        return Interval(estimate, None, None)
    low, high = np.quantile(heads_R / bases_R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], method="inverted_cdf")
    return Interval(estimate, float(low), float(high))
