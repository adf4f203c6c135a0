"""Where latencies lie, as curves to be drawn. Pure.

N samples   G grid points
"""

import numpy as np

from deploykit.check.ratio import percentile
from deploykit.check.statistics import Floats

_GRID = 160
_SHOWN = 0.995
"""The share of samples that a curve shows: the slowest few would squeeze the rest into a corner."""


def distribution(head_N: Floats, base_N: Floats) -> dict[str, list[float]] | None:
    """Put both densities on one grid of milliseconds; a request that was never answered (infinite) is left out.

    Returns:
        `ms` (G), `head` and `baseline` (G, from 0 to 1); None where a side has no answer.
    """
    head_N, base_N = (samples_N[np.isfinite(samples_N) & (samples_N > 0)] for samples_N in (head_N, base_N))
    if not len(head_N) or not len(base_N):
        return None
    low = min(head_N.min(), base_N.min()) / 1.05
    high = max(percentile(head_N, _SHOWN), percentile(base_N, _SHOWN)) * 1.05
    grid_G = np.geomspace(low, high, _GRID)
    curves = {"ms": grid_G, "head": density(head_N, grid_G), "baseline": density(base_N, grid_G)}
    return {name: [float(f"{value:.4g}") for value in values] for name, values in curves.items()}


def density(samples_N: Floats, grid_G: Floats) -> Floats:
    """Estimate the density of positive samples over log time at each grid point, as a share of its peak.

    A Gaussian kernel; the width is Silverman's (Density Estimation, 1986, equation 3.31), at least one grid step.
    """
    logs_N, at_G = np.log(samples_N), np.log(grid_G)
    quarter, three_quarters = np.quantile(logs_N, [0.25, 0.75])
    spread = min(logs_N.std(), (three_quarters - quarter) / 1.34) or logs_N.std()
    step = float(at_G[1] - at_G[0])
    width = max(0.9 * spread * len(logs_N) ** -0.2, step)
    # Counted on the grid first: the cost does not grow with the number of samples.
    edges = np.concatenate([at_G - step / 2, [at_G[-1] + step / 2]])
    counts_G = np.histogram(logs_N, edges)[0]
    smooth_G: Floats = np.exp(-0.5 * ((at_G[:, None] - at_G[None, :]) / width) ** 2) @ counts_G
    return smooth_G / max(float(smooth_G.max()), 1e-300)
