"""Baselines that the pool executes like the synthetic windows: a block bootstrap and a Gaussian copula."""

from collections.abc import Callable

import numpy as np
import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.gan.swap_execution import synthetic_windows
from apeagent_pipeline.market.windows import TrainingWindows

_BOOTSTRAP_ROWS = 6


def block_bootstrap(windows: TrainingWindows, pool: PoolSpec, n: int, seed: int) -> pl.DataFrame:
    """``n`` windows of real train rows, shuffled in blocks of six and executed by the pool."""
    rng = np.random.default_rng([seed, 1])
    starts = windows.starts("train")
    histories = rng.choice(windows.starts("train", "valid"), n)
    blocks = -(-windows.length // _BOOTSTRAP_ROWS)
    first = rng.choice(starts, (n, blocks)) + rng.integers(0, windows.rows - _BOOTSTRAP_ROWS + 1, (n, blocks))
    index = (first[:, :, None] + np.arange(_BOOTSTRAP_ROWS)).reshape(n, -1)[:, : windows.length]
    return synthetic_windows(windows, histories + windows.context - 1, windows.free_features()[index], pool)


def gaussian_copula(windows: TrainingWindows, pool: PoolSpec, n: int, seed: int) -> pl.DataFrame:
    """``n`` windows from a Gaussian copula fitted to whole train windows, executed by the pool."""
    from scipy.stats import norm, rankdata
    from sklearn.covariance import ledoit_wolf

    rng = np.random.default_rng([seed, 4])
    index = windows.starts("train")[:, None] + windows.context + np.arange(windows.length)
    rows = windows.free_features()[index]
    flat = rows.reshape(len(rows), -1)
    # Ties get ranks in random order, so that a frequent value is drawn as often as it occurs.
    order = rng.random(flat.shape).argsort(axis=0)
    ranks = np.empty(flat.shape)
    np.put_along_axis(ranks, order, rankdata(np.take_along_axis(flat, order, 0), method="ordinal", axis=0), 0)
    covariance, _ = ledoit_wolf(norm.ppf((ranks - 0.5) / len(flat)))
    scale = np.sqrt(np.diag(covariance))
    drawn = rng.multivariate_normal(np.zeros(len(scale)), covariance / np.outer(scale, scale), n, method="cholesky")
    at = np.floor(norm.cdf(drawn) * len(flat)).astype(np.int64)
    sampled = np.take_along_axis(np.sort(flat, axis=0), at, axis=0).reshape(n, *rows.shape[1:])
    histories = rng.choice(windows.starts("train", "valid"), n)
    return synthetic_windows(windows, histories + windows.context - 1, sampled, pool)


Baseline = Callable[[TrainingWindows, PoolSpec, int, int], pl.DataFrame]
"""Draws so many windows with a seed."""

BASELINES: dict[str, Baseline] = {"_block_bootstrap": block_bootstrap, "_gaussian_copula": gaussian_copula}
"""Suffix of a baseline's metrics -> the function that draws its windows."""
