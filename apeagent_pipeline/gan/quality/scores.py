"""The scores of the quality report.

`SCORES` is the table of all scores: the report measures them, the page explains them, the check compares them with
their limits. To add a score, write a function of a `Comparison` and add a row to the table.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.amm.ticks import ticks_at_sqrt_prices
from apeagent_pipeline.gan.quality.config import QualityConfig
from apeagent_pipeline.gan.quality.discriminators import (
    Folds,
    boosted_trees,
    forecast_error,
    labels,
    recurrent_network,
)
from apeagent_pipeline.gan.quality.window_sets import ROW_FEATURES, WindowSet, copied_share
from apeagent_pipeline.market.distribution_distance import ks_distance
from apeagent_pipeline.market.features import virtual_reserve

_ACF_LAGS = 8
_BOOTSTRAP_DRAWS = 200
_MMD_WINDOWS = 500


@dataclass(frozen=True)
class Comparison:
    """Two sets of windows, and what the scores need to compare them.

    Attributes:
        real: All real windows; distances are computed from these.
        other: All windows that are compared with them.
        shown: The real and other windows that classifiers read; each lies within one block of time.
        deals: Assignments of blocks to folds, [blocks] each.
        table: The rows of the other windows, whose arithmetic is checked.
        copies: Row keys of windows, and row keys among which their 3-row runs are looked up.
        pool: The pool of the windows.
        config: Options of the report.
        seed: Seed of classifiers and bootstrap.
    """

    real: WindowSet
    other: WindowSet
    shown: tuple[WindowSet, WindowSet]
    deals: list[np.ndarray]
    table: pl.DataFrame
    copies: tuple[np.ndarray, np.ndarray]
    pool: PoolSpec
    config: QualityConfig
    seed: int

    @property
    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """All real and all other rows, [rows, 6]."""
        width = len(ROW_FEATURES)
        return self.real.rows.reshape(-1, width), self.other.rows.reshape(-1, width)

    @cached_property
    def labels(self) -> np.ndarray:
        """Label of every shown window: 0 for real, 1 for other."""
        return labels(*(each.at for each in self.shown))

    def folds(self, deal: int) -> Folds:
        """Fold of every shown window in one of the deals."""
        real, other = (self.deals[deal][each.at // self.config.block_rows] for each in self.shown)
        return real, other

    @cached_property
    def trees(self) -> list[np.ndarray]:
        """Out-of-fold probabilities of gradient boosting for every shown window, one array per deal."""
        real, other = self.shown
        return [boosted_trees(real.rows, other.rows, self.folds(k), self.seed + k) for k in range(len(self.deals))]

    @cached_property
    def domain(self) -> dict[str, float]:
        """The `domain_checks` of the other rows."""
        return domain_checks(self.table, self.pool)


def area_under_curve(truth: np.ndarray, scores: np.ndarray) -> float:
    """The area under the ROC curve by ranks (Mann and Whitney 1947): many times faster than sklearn's over its curve.

    Args:
        truth: Label of each row, 0 or 1; both occur.
        scores: What should be higher where the label is 1.
    """
    from scipy.stats import rankdata

    positive = truth == 1
    n, m = int(positive.sum()), int((~positive).sum())
    return float((rankdata(scores)[positive].sum() - n * (n + 1) / 2) / (n * m))


def auc_interval(compared: Comparison) -> tuple[float, float]:
    """95 % bootstrap interval of the AUC, with whole blocks resampled, as windows of a block are not independent."""
    rng = np.random.default_rng([compared.seed, 2])
    blocks = np.concatenate([each.at for each in compared.shown]) // compared.config.block_rows
    distinct = np.unique(blocks)
    members = {block: np.flatnonzero(blocks == block) for block in distinct}
    draws = []
    for trees in compared.trees:
        for _ in range(_BOOTSTRAP_DRAWS // len(compared.deals)):
            drawn = np.concatenate([members[block] for block in rng.choice(distinct, len(distinct))])
            if 0 < compared.labels[drawn].mean() < 1:
                draws.append(area_under_curve(compared.labels[drawn], trees[drawn]))
    return float(np.quantile(draws, 0.025)), float(np.quantile(draws, 0.975))


def _discriminative_gbm(compared: Comparison) -> float:
    return float(np.mean([_advantage(trees, compared.labels) for trees in compared.trees]))


def _discriminative_auc(compared: Comparison) -> float:
    return float(np.mean([area_under_curve(compared.labels, trees) for trees in compared.trees]))


def _discriminative_gru(compared: Comparison) -> float:
    real, other = (each.rows for each in compared.shown)
    out = recurrent_network(real, other, compared.folds(0), compared.seed, compared.config.gru_epochs)
    return _advantage(out, compared.labels)


def _advantage(probabilities: np.ndarray, of: np.ndarray) -> float:
    """|balanced accuracy - 0.5| of a classifier."""
    guesses = probabilities > 0.5
    return abs(float((guesses[of == 1].mean() + 1 - guesses[of == 0].mean()) / 2) - 0.5)


def _predictive_ratio(compared: Comparison) -> float:
    """Error of a forecaster trained on other windows, divided by that of one trained on real windows."""
    real, other = compared.shown
    real_folds, other_folds = compared.folds(0)
    errors = np.zeros(2)
    for fold in np.unique(real_folds):
        test = real.rows[real_folds == fold]
        train = real.rows[real_folds != fold], other.rows[other_folds != fold]
        errors += [len(test) * forecast_error(each, test, compared.seed) for each in train]
    return float(errors[1] / errors[0])


def _ks_mean(compared: Comparison) -> float:
    return float(np.mean([ks for ks, _ in feature_distances(*compared.flat).values()]))


def feature_distances(real: np.ndarray, other: np.ndarray) -> dict[str, tuple[float, float]]:
    """Kolmogorov-Smirnov and Wasserstein distance (the latter in real standard deviations) of every feature [n, 6]."""
    from scipy.stats import wasserstein_distance

    return {
        name: (
            ks_distance(real[:, k], other[:, k]),
            float(wasserstein_distance(real[:, k], other[:, k]) / (real[:, k].std() + 1e-12)),
        )
        for k, name in enumerate(ROW_FEATURES)
    }


def _acf_error(compared: Comparison) -> float:
    curves = autocorrelations(compared.real.rows, compared.other.rows)
    return float(np.mean([np.abs(real - other).mean() for real, other in curves.values()]))


def autocorrelations(*sets: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Autocorrelation at lags 1 to 8 within windows [n, T, 6] of return, |return|, log size and side, for every set."""

    def correlations(series: np.ndarray) -> np.ndarray:
        series = series - series.mean()
        scale = series.var() + 1e-30
        return np.array([(series[:, lag:] * series[:, :-lag]).mean() / scale for lag in range(1, _ACF_LAGS + 1)])

    views = {
        "return": lambda rows: rows[..., 5],
        "|return|": lambda rows: np.abs(rows[..., 5]),
        "log size": lambda rows: rows[..., 2],
        "side": lambda rows: rows[..., 1],
    }
    return {name: [correlations(view(rows)) for rows in sets] for name, view in views.items()}


def _xcorr_error(compared: Comparison) -> float:
    """Mean difference of the rank correlations between the features, |return| and signed size."""
    from scipy.stats import rankdata

    def correlations(rows: np.ndarray) -> np.ndarray:
        flow = (2 * rows[:, 1] - 1) * np.exp(rows[:, 2])
        extended = np.column_stack([rows, np.abs(rows[:, 5]), flow])
        # A constant column has correlation 0 with every other.
        with np.errstate(divide="ignore", invalid="ignore"):
            matrix = np.nan_to_num(np.corrcoef(rankdata(extended, axis=0), rowvar=False))
        return matrix[np.triu_indices_from(matrix, 1)]

    real, other = compared.flat
    return float(np.abs(correlations(real) - correlations(other)).mean())


def _mmd(compared: Comparison) -> float:
    """Unbiased squared MMD of whole windows, Gaussian kernel at the median distance; may be slightly negative."""
    from sklearn.metrics.pairwise import euclidean_distances

    rng = np.random.default_rng([compared.seed, 3])
    real = compared.real.rows
    centre, scale = real.mean(axis=(0, 1)), real.std(axis=(0, 1)) + 1e-12
    x, y = (
        np.clip((rows[rng.permutation(len(rows))[:_MMD_WINDOWS]] - centre) / scale, -5, 5).reshape(
            min(_MMD_WINDOWS, len(rows)), -1
        )
        for rows in (real, compared.other.rows)
    )
    squares = euclidean_distances(np.concatenate([x, y]), squared=True)
    kernel = np.exp(-squares / np.median(squares[squares > 0]))
    n, m = len(x), len(y)
    within_x = (kernel[:n, :n].sum() - n) / (n * (n - 1))
    within_y = (kernel[n:, n:].sum() - m) / (m * (m - 1))
    return float(within_x + within_y - 2 * kernel[:n, n:].mean())


def domain_checks(table: pl.DataFrame, pool: PoolSpec) -> dict[str, float]:
    """Share of rows that obey the pool's arithmetic.

    ``price_matches_tick``: the tick is floor(log_1.0001(price)). ``opposite_signs``: one amount is paid, the other
    received. ``effective_price``: the price paid is within 1 % of the geometric mean of the prices before and after the
    swap, after the fee; of a swap that moves the price by more, within that much, as it may have begun in a range of
    another liquidity.
    """
    roots = np.frompyfunc(int, 1, 1)(table["sqrt_price_x96"].to_numpy())
    reserve = table.select(virtual_reserve(pool)).to_series().to_numpy()
    amount0, amount1 = table["amount0_eth"].to_numpy(), table["amount1_usdc"].to_numpy()
    buys = amount1 < 0
    kept = 1 - pool.static_fee / 1e6
    impact = np.where(buys, kept * np.abs(amount1), -np.abs(amount1)) / reserve
    expected = table["price"].to_numpy() * (1 - impact)
    with np.errstate(divide="ignore", invalid="ignore"):
        paid = np.abs(amount1 / amount0) * np.where(buys, kept, 1 / kept)
    # The float price agrees with the tick too, up to a rounding error at the border of a tick.
    price_raw = table["price"].to_numpy() / 10.0 ** (pool.token0.decimals - pool.token1.decimals)
    close = np.abs(np.log(price_raw) / math.log(1.0001) - table["tick"].to_numpy() - 0.5) <= 0.5 + 1e-6
    ticks = ticks_at_sqrt_prices(roots) == table["tick"].to_numpy()
    return {
        "price_matches_tick": float((ticks & close).mean()),
        "opposite_signs": float((np.sign(amount0) * np.sign(amount1) == -1).mean()),
        "effective_price": float((np.abs(paid / expected - 1) < np.maximum(0.01, 2 * np.abs(impact))).mean()),
    }


def _copied_runs(compared: Comparison) -> float:
    return copied_share(*compared.copies)


def _domain(name: str) -> Callable[[Comparison], float]:
    return lambda compared: compared.domain[name]


class Score(NamedTuple):
    """A row of `SCORES`.

    Attributes:
        name: Name of the metric; the kind of windows is appended as a suffix.
        meaning: Explanation on the page.
        measure: Computes the score.
        better: Whether lower or higher values are better.
        limit: Option of `QualityConfig` with the limit of the check, or the limit itself; None: the check ignores it.
    """

    name: str
    meaning: str
    measure: Callable[[Comparison], float]
    better: Literal["lower", "higher"]
    limit: str | float | None = None

    def failure(self, value: float, config: QualityConfig) -> str | None:
        """The failure of the check in words; None if ``value`` is within the limit."""
        if self.limit is None:
            return None
        limit = self._limit(config)
        if value <= limit if self.better == "lower" else value >= limit:
            return None
        return f"{self.name} is {value:.4f}, the limit is {self.expected(config)}"

    def expected(self, config: QualityConfig) -> str:
        """The limit in words, of a score that has one."""
        return f"at {'most' if self.better == 'lower' else 'least'} {self._limit(config)}"

    def _limit(self, config: QualityConfig) -> float:
        assert self.limit is not None
        return getattr(config, self.limit) if isinstance(self.limit, str) else self.limit


SCORES = (
    Score("discriminative_gbm", "advantage of gradient boosting over chance", _discriminative_gbm, "lower"),
    Score("discriminative_auc", "AUC of gradient boosting; 0.5 is chance", _discriminative_auc, "lower", "largest_auc"),
    Score("discriminative_gru", "advantage of a GRU over chance", _discriminative_gru, "lower"),
    Score("predictive_ratio", "forecast error after synthetic / after real rows", _predictive_ratio, "lower"),
    Score("ks_mean", "Kolmogorov-Smirnov distance, mean of the features", _ks_mean, "lower", "largest_ks"),
    Score("acf_error", "mean difference of autocorrelations", _acf_error, "lower"),
    Score("xcorr_error", "mean difference of rank correlations between features", _xcorr_error, "lower"),
    Score("mmd", "maximum mean discrepancy of whole windows", _mmd, "lower"),
    Score("copied_runs", "share of 3-row runs found in the train rows", _copied_runs, "lower", "largest_copied_runs"),
    Score("price_matches_tick", "rows whose tick matches the price", _domain("price_matches_tick"), "higher", 1.0),
    Score("opposite_signs", "rows with one amount paid, one received", _domain("opposite_signs"), "higher", 1.0),
    Score("effective_price", "rows that match price, fee and impact", _domain("effective_price"), "higher", 1.0),
)


def quality_in_words(metrics: Mapping[str, float], config: QualityConfig) -> dict[str, str]:
    """Every score that the check looks at, as what it means -> its value and its limit."""
    judged = [score for score in SCORES if score.limit is not None]
    return {each.meaning: f"{metrics[each.name]:.4f}, expected {each.expected(config)}" for each in judged}


def quality_failures(metrics: Mapping[str, float], config: QualityConfig) -> list[str]:
    """The limits that the metrics of a quality report violate, in words; empty if the windows pass the check."""
    failures = (score.failure(metrics[score.name], config) for score in SCORES if score.limit is not None)
    return [failure for failure in failures if failure]


def against_later_days(each: WindowSet, holdout: WindowSet, config: QualityConfig, seed: int) -> dict[str, float]:
    """Scores of a classifier that tells windows from those of the later holdout days."""
    # Both sets are assigned to folds by blocks, so that no classifier is trained on neighbours of its test windows.
    real, other = (s.at // config.block_rows % config.folds for s in (holdout, each))
    out = boosted_trees(holdout.rows, each.rows, (real, other), seed)
    of = labels(holdout.at, each.at)
    return {"discriminative_gbm": _advantage(out, of), "discriminative_auc": area_under_curve(of, out)}
