"""The scores of the quality report."""

import numpy as np
import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.amm.ticks import ticks_at_sqrt_prices
from apeagent_pipeline.gan.quality.config import QualityConfig
from apeagent_pipeline.gan.quality.discriminators import boosted_trees, forecast_error, recurrent_network
from apeagent_pipeline.gan.quality.window_sets import ROW_FEATURES, WindowSet
from apeagent_pipeline.market.features import virtual_reserve
from apeagent_pipeline.market.windows import TrainingWindows

_ACF_LAGS = 8
_BOOTSTRAP_DRAWS = 200


def domain_checks(table: pl.DataFrame, windows: TrainingWindows, pool: PoolSpec) -> dict[str, float]:
    """Share of rows that obey the pool.

    ``price_matches_tick``: the tick is floor(log_1.0001(price)). ``opposite_signs``: one amount is paid, the other
    received. ``effective_price``: what was paid for what was received is within 1 % of the geometric mean of the prices
    before and after the swap, after the fee.
    """
    import math

    roots = np.frompyfunc(int, 1, 1)(table["sqrt_price_x96"].to_numpy())
    reserve = table.select(virtual_reserve(pool)).to_series().to_numpy()
    amount0, amount1 = table["amount0_eth"].to_numpy(), table["amount1_usdc"].to_numpy()
    buys = amount1 < 0
    kept = 1 - pool.static_fee / 1e6
    impact = np.where(buys, kept * np.abs(amount1), -np.abs(amount1)) / reserve
    expected = table["price"].to_numpy() * (1 - impact)
    with np.errstate(divide="ignore", invalid="ignore"):
        paid = np.abs(amount1 / amount0) * np.where(buys, kept, 1 / kept)
    # A price that stands for the tick says the same in floats, but for rows a rounding error from a tick's border.
    price_raw = table["price"].to_numpy() / 10.0 ** (pool.token0.decimals - pool.token1.decimals)
    close = np.abs(np.log(price_raw) / math.log(1.0001) - table["tick"].to_numpy() - 0.5) <= 0.5 + 1e-6
    ticks = ticks_at_sqrt_prices(roots) == table["tick"].to_numpy()
    return {
        "price_matches_tick": float((ticks & close).mean()),
        "opposite_signs": float((np.sign(amount0) * np.sign(amount1) == -1).mean()),
        "effective_price": float((np.abs(paid / expected - 1) < 0.01).mean()),
    }


# Scores


def discriminated(
    real: WindowSet, other: WindowSet, deals: list[tuple[np.ndarray, ...]], config: QualityConfig, seed: int
) -> tuple[dict[str, float], tuple[float, float]]:
    """Scores of the classifiers, and the 95 % interval of the AUC (whole blocks resampled)."""
    from sklearn.metrics import roc_auc_score

    labels = np.concatenate([np.zeros(len(real.at)), np.ones(len(other.at))])
    rng = np.random.default_rng([seed, 2])
    # Whole blocks are drawn: windows of one block are not independent.
    blocks = np.concatenate([real.at, other.at]) // config.block_rows
    distinct = np.unique(blocks)
    members = {block: np.flatnonzero(blocks == block) for block in distinct}
    advantages, aucs, draws = [], [], []
    for number, (one, two) in enumerate(deals):
        trees = boosted_trees(real.rows, other.rows, (one, two), seed + number)
        advantages.append(_advantage(trees, labels))
        aucs.append(roc_auc_score(labels, trees))
        for _ in range(_BOOTSTRAP_DRAWS // len(deals)):
            drawn = np.concatenate([members[block] for block in rng.choice(distinct, len(distinct))])
            if 0 < labels[drawn].mean() < 1:
                draws.append(roc_auc_score(labels[drawn], trees[drawn]))
    recurrent = recurrent_network(real.rows, other.rows, (deals[0][0], deals[0][1]), seed, config.gru_epochs)
    scores = {
        "discriminative_gbm": float(np.mean(advantages)),
        "discriminative_auc": float(np.mean(aucs)),
        "discriminative_gru": _advantage(recurrent, labels),
    }
    return scores, (float(np.quantile(draws, 0.025)), float(np.quantile(draws, 0.975)))


def _advantage(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """|accuracy - 0.5|, both classes weighing the same."""
    guesses = probabilities > 0.5
    return abs(float((guesses[labels == 1].mean() + 1 - guesses[labels == 0].mean()) / 2) - 0.5)


def distances(real: WindowSet, other: WindowSet, seed: int) -> dict[str, float]:
    """Distances between two sets of windows."""
    flat = [each.rows.reshape(-1, len(ROW_FEATURES)) for each in (real, other)]
    return {
        "ks_mean": float(np.mean([ks for ks, _ in feature_distances(*flat).values()])),
        "acf_error": float(
            np.mean([np.abs(a - b).mean() for a, b in autocorrelations(real.rows, other.rows).values()])
        ),
        "xcorr_error": _cross_correlation_error(*flat),
        "mmd": _mmd(real.rows, other.rows, seed),
    }


def feature_distances(real: np.ndarray, other: np.ndarray) -> dict[str, tuple[float, float]]:
    """Kolmogorov-Smirnov and Wasserstein distance (the latter in real standard deviations) of every feature [n, 6]."""
    from scipy.stats import ks_2samp, wasserstein_distance

    return {
        name: (
            float(ks_2samp(real[:, k], other[:, k]).statistic),
            float(wasserstein_distance(real[:, k], other[:, k]) / (real[:, k].std() + 1e-12)),
        )
        for k, name in enumerate(ROW_FEATURES)
    }


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


def _cross_correlation_error(real: np.ndarray, other: np.ndarray) -> float:
    """Mean difference of the rank correlations between row features, |return| and signed size (volume and flow)."""
    from scipy.stats import rankdata

    def correlations(rows: np.ndarray) -> np.ndarray:
        flow = (2 * rows[:, 1] - 1) * np.exp(rows[:, 2])
        extended = np.column_stack([rows, np.abs(rows[:, 5]), flow])
        # A column without variation goes with nothing.
        with np.errstate(divide="ignore", invalid="ignore"):
            matrix = np.nan_to_num(np.corrcoef(rankdata(extended, axis=0), rowvar=False))
        return matrix[np.triu_indices_from(matrix, 1)]

    return float(np.abs(correlations(real) - correlations(other)).mean())


def _mmd(real: np.ndarray, other: np.ndarray, seed: int, most: int = 500) -> float:
    """Unbiased squared maximum mean discrepancy of whole windows; Gaussian kernel at the median distance.

    It can come out a little below zero where the two are alike.
    """
    from sklearn.metrics.pairwise import euclidean_distances

    rng = np.random.default_rng([seed, 3])
    scale = real.std(axis=(0, 1)) + 1e-12
    x, y = (
        np.clip((each[rng.permutation(len(each))[:most]] - real.mean(axis=(0, 1))) / scale, -5, 5).reshape(
            min(most, len(each)), -1
        )
        for each in (real, other)
    )
    squares = euclidean_distances(np.concatenate([x, y]), squared=True)
    kernel = np.exp(-squares / np.median(squares[squares > 0]))
    n, m = len(x), len(y)
    within_x = (kernel[:n, :n].sum() - n) / (n * (n - 1))
    within_y = (kernel[n:, n:].sum() - m) / (m * (m - 1))
    return float(within_x + within_y - 2 * kernel[:n, n:].mean())


def predictive_ratio(real: WindowSet, other: WindowSet, folds: tuple[np.ndarray, ...], seed: int) -> float:
    """Error of a forecaster trained on ``other`` over one trained on real windows."""
    errors = np.zeros(2)
    for fold in np.unique(folds[0]):
        test = real.rows[folds[0] == fold]
        teachers = real.rows[folds[0] != fold], other.rows[folds[1] != fold]
        errors += [len(test) * forecast_error(teacher, test, seed) for teacher in teachers]
    return float(errors[1] / errors[0])


def against_later_days(each: WindowSet, holdout: WindowSet, config: QualityConfig, seed: int) -> dict[str, float]:
    """Scores of a classifier that tells windows from those of the holdout days."""
    from sklearn.metrics import roc_auc_score

    # Blocks of the two kinds are dealt alike, so that no window is judged by a model that saw its neighbours.
    folds = [s.at // config.block_rows % config.folds for s in (holdout, each)]
    out = boosted_trees(holdout.rows, each.rows, (folds[0], folds[1]), seed)
    labels = np.concatenate([np.zeros(len(holdout.at)), np.ones(len(each.at))])
    return {
        "discriminative_gbm": _advantage(out, labels),
        "discriminative_auc": float(roc_auc_score(labels, out)),
    }
