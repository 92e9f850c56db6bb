"""How far a day's market lies from the days that an adapter was trained on.

Two distances for each feature: the Kolmogorov-Smirnov statistic, which is the largest distance of two distribution
functions, and the population stability index over the deciles of the training days, which also sees the tails. With
thousands of swaps a day every p-value is tiny, so a day is not held against chance but against the training days
themselves. Each of them is compared with all others. A day has left the training market if its Kolmogorov-Smirnov
distance exceeds ``1 + 5 / n`` times that of the farthest of ``n`` training days, and its index reaches `LARGEST_PSI`.
Few training days show little of a market's usual range, so they allow more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from apeagent_pipeline.market.distribution_distance import ks_distance

DRIFT_FEATURES = {
    "seconds_since_previous": pl.col("seconds_since_previous"),
    "volume_usdc": pl.col("volume_usdc"),
    "tick_change": pl.col("tick_change"),
    "volatility": pl.col("volatility"),
    "liquidity_usage": pl.col("liquidity_usage"),
    "buys": (pl.col("side") == "BUY").cast(pl.Float64),
}
"""What is compared, as expressions over ``swap_features``."""

LARGEST_PSI = 0.25
"""From here an index is usually called a significant shift (Siddiqi, Credit Risk Scorecards, 2006)."""
_MARGIN_OF_FEW_DAYS = 5.0
"""Chosen on embedded days of two seeds: with 4, one calm day of 43 left five training days; with 8, half of the
days with trades five times larger did not leave four."""
FEWEST_SWAPS = 50
"""A day with fewer swaps is not compared: its distribution is mostly noise."""
_FEWEST_DAYS = 2
_MOST_ROWS_A_DAY = 500
_BINS = 10


@dataclass(frozen=True)
class Drift:
    """The distance of one feature.

    Attributes:
        ks: Kolmogorov-Smirnov statistic, 0 to 1.
        limit: The largest ``ks`` that the training days make plausible.
        psi: Population stability index, from 0.
    """

    ks: float
    limit: float
    psi: float

    @property
    def has_left(self) -> bool:
        """Whether the day lies outside the training market."""
        return self.psi >= LARGEST_PSI and self.ks > self.limit


def drift_of(day: pl.DataFrame, training: Sequence[pl.DataFrame]) -> dict[str, Drift]:
    """The distance of every feature of a day from the training days.

    Args:
        day: Rows of ``swap_features``.
        training: The same of every training day.

    Returns:
        Feature -> distance; empty if the day or the training days are too few to compare.
    """
    days = [_evenly(each) for each in training if each.height >= FEWEST_SWAPS]
    if day.height < FEWEST_SWAPS or len(days) < _FEWEST_DAYS:
        return {}
    found = {}
    for name, values in DRIFT_FEATURES.items():
        samples = [_values(each, values) for each in days]
        here = _values(day, values)
        if min(map(len, (here, *samples))) >= FEWEST_SWAPS:
            found[name] = _distance(here, samples)
    return found


def _distance(day: np.ndarray, training: list[np.ndarray]) -> Drift:
    everything = np.concatenate(training)
    swaps = len(everything)
    # The distance of a day from all days grows by this factor when the day itself is taken out of them.
    usual = max(ks_distance(each, everything) * swaps / (swaps - len(each)) for each in training)
    limit = usual * (1 + _MARGIN_OF_FEW_DAYS / len(training))
    return Drift(ks_distance(day, everything), float(limit), population_stability(day, everything))


def population_stability(day: np.ndarray, training: np.ndarray) -> float:
    """The population stability index of ``day`` over the deciles of ``training``; equal deciles are one bin."""
    edges = np.unique(np.quantile(training, np.linspace(0, 1, _BINS + 1)[1:-1]))
    counts = [np.bincount(np.searchsorted(edges, each, side="right"), minlength=len(edges) + 1)
              for each in (day, training)]  # fmt: skip
    # Half a swap more in every bin: an empty one would make the index infinite.
    shares = [(each + 0.5) / (each + 0.5).sum() for each in counts]
    return float(((shares[0] - shares[1]) * np.log(shares[0] / shares[1])).sum())


def drift_metrics(drift: Mapping[str, Drift]) -> dict[str, float]:
    """The distances as metrics of the report."""
    if not drift:
        return {}
    return {
        **{f"ks_{name}": each.ks for name, each in drift.items()},
        **{f"limit_ks_{name}": each.limit for name, each in drift.items()},
        **{f"psi_{name}": each.psi for name, each in drift.items()},
        "largest_psi": max(each.psi for each in drift.values()),
        "largest_ks_of_limit": max((each.ks / each.limit for each in drift.values() if each.limit > 0), default=0.0),
        "features_left": float(sum(each.has_left for each in drift.values())),
    }


def drift_from(metrics: Mapping[str, float]) -> dict[str, Drift]:
    """The distances that `drift_metrics` wrote; empty if the day was not compared."""
    return {
        name: Drift(metrics[f"ks_{name}"], metrics[f"limit_ks_{name}"], metrics[f"psi_{name}"])
        for name in DRIFT_FEATURES
        if f"ks_{name}" in metrics
    }


def _evenly(day: pl.DataFrame) -> pl.DataFrame:
    return day.gather_every(max(1, day.height // _MOST_ROWS_A_DAY))


def _values(day: pl.DataFrame, values: pl.Expr) -> np.ndarray:
    return day.select(value=values.cast(pl.Float64)).drop_nulls()["value"].to_numpy()
