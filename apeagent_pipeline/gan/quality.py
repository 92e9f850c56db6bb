"""How close synthetic windows are to real ones: `synthetic_quality`.

Four kinds of windows are held against real windows of the same days: synthetic ones, real ones of other blocks of
time (``_floor``: nothing can score better), and two baselines that are executed by the pool as well: a block bootstrap
(``_block_bootstrap``: real rows, shuffled in blocks of six) and a Gaussian copula of whole windows
(``_gaussian_copula``: every feature distributed as in the train rows, rank correlations between all rows). With a
control (``_likelihood``: windows of a generator that was trained as long without a critic) there is a fifth. All go
through the same code.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.amm.ticks import ticks_at_sqrt_prices
from apeagent_pipeline.gan.copies import copied_share, row_keys
from apeagent_pipeline.gan.discriminators import boosted_trees, forecast_error, recurrent_network
from apeagent_pipeline.gan.pool_rows import SYNTHETIC_WINDOWS_SCHEMA, synthetic_windows
from apeagent_pipeline.gan.quality_figures import quality_figures
from apeagent_pipeline.market.features import virtual_reserve
from apeagent_pipeline.market.windows import TrainingWindows, free_feature_expressions
from apeagent_pipeline.reporting.progress import Progress, silent
from apeagent_pipeline.reporting.report import Report, markdown_table

ROW_FEATURES = ("log seconds", "buy", "log size", "move", "liquidity change", "return")
"""Columns of the windows that are compared, [n, T, 6]."""

BASELINES = ("_block_bootstrap", "_gaussian_copula")
CONTROL = "_likelihood"

_BOOTSTRAP_ROWS = 6
_ACF_LAGS = 8
_BOOTSTRAP_DRAWS = 200
_LIKELIHOOD_ALONE = (
    "Likelihood alone went on from the same warm start without a critic, about as long: what it falls short of the "
    "synthetic windows is what the WGAN-GP stage adds."
)


class QualityError(ValueError):
    """Windows that cannot be judged; the message says what is wrong with them."""


class QualityConfig(BaseModel):
    """How windows are judged, and what the check that guards the teacher's budget demands."""

    model_config = ConfigDict(frozen=True)

    windows: int = Field(1_500, description="At most so many windows of each kind are shown to a classifier", ge=20)
    deals: int = Field(3, description="How often blocks are dealt to folds; scores of the trees are averaged", ge=1)
    block_rows: int = Field(96, description="Rows of a block of time that is dealt to a fold as a whole", ge=24)
    folds: int = Field(4, description="Folds of the discriminators", ge=2)
    gru_epochs: int = Field(8, description="Epochs of the GRU discriminator", ge=1)
    largest_auc: float = Field(0.75, description="Check: AUC of gradient boosting at most", gt=0.5, le=1)
    largest_copied_runs: float = Field(0.01, description="Check: share of copied 3-row runs at most", ge=0, le=1)
    largest_ks: float = Field(0.05, description="Check: mean Kolmogorov-Smirnov distance at most", gt=0, le=1)

    @classmethod
    def preset(cls, profile: str) -> Self:
        """The values of a profile: "demo" or "full"."""
        return cls(windows=4_000, folds=5, gru_epochs=15) if profile == "full" else cls()


@dataclass(frozen=True)
class WindowSet:
    """Windows to compare.

    Attributes:
        rows: [n, T, 6], see `ROW_FEATURES`.
        at: Position of each window's first row in the table of training windows, [n].
        keys: Side, size and seconds of every row as one integer, [n, T], for finding copies.
    """

    rows: np.ndarray
    at: np.ndarray
    keys: np.ndarray

    def pick(self, index: np.ndarray) -> "WindowSet":
        """The windows of an index or a mask [n]."""
        return WindowSet(self.rows[index], self.at[index], self.keys[index])


def quality_failures(metrics: Mapping[str, float], config: QualityConfig) -> list[str]:
    """What the metrics of a quality report fall short of, in words; empty if the windows may be used."""
    at_most = {
        "discriminative_auc": config.largest_auc,
        "copied_runs": config.largest_copied_runs,
        "ks_mean": config.largest_ks,
    }
    failures = [
        f"{name} is {metrics[name]:.4f}, allowed {limit}" for name, limit in at_most.items() if metrics[name] > limit
    ]
    exact = ("price_matches_tick", "opposite_signs", "effective_price")
    return failures + [f"{name} is {metrics[name]:.4%}, must be 100 %" for name in exact if metrics[name] < 1]


def quality_report(
    synthetic: pl.DataFrame,
    windows: TrainingWindows,
    pool: PoolSpec,
    config: QualityConfig,
    seed: int,
    *,
    progress: Progress = silent,
    history: Path | None = None,
    later: pl.DataFrame | None = None,
    control: pl.DataFrame | None = None,
) -> Report:
    """Judge synthetic windows.

    Args:
        synthetic: Table with `SYNTHETIC_WINDOWS_SCHEMA`.
        windows: The real windows that the synthetic ones continue.
        pool: Fee and decimals.
        config: How.
        seed: Of folds, classifiers and the bootstrap.
        progress: Called after every part.
        history: ``history.json`` of the trained GAN, for the training curves and the scores on held-out blocks.
        later: Synthetic windows that continue histories of the holdout days, to be judged against those days.
        control: Windows of the generator that likelihood alone made of the same warm start.

    Returns:
        A report with the metrics of the design (``discriminative_gbm`` and ``_gru``: |accuracy - 0.5|; ``_auc``: of
        gradient boosting; ``predictive_ratio``: error of a forecaster trained on synthetic over one trained on real
        rows; ``ks_mean``, ``acf_error``, ``xcorr_error``, ``mmd``, ``copied_runs``; shares of rows that obey the pool)
        and, beyond it, what a classifier makes of the later holdout days: ``discriminative_auc_holdout`` and
        ``discriminative_gbm_holdout`` of the windows in ``later``, beside ``_drift`` of real windows of the days
        before (what drift alone gives away).

    Raises:
        QualityError: if columns are missing, values are not finite, or there are too few windows to judge.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    # On data this small the threads of a pool spend most of their time waiting for each other.
    with threadpool_limits(1):
        return _judged(synthetic, windows, pool, config, seed, progress, history, later, control)


def _judged(  # noqa: PLR0917 - the arguments of `quality_report`
    synthetic: pl.DataFrame,
    windows: TrainingWindows,
    pool: PoolSpec,
    config: QualityConfig,
    seed: int,
    progress: Progress,
    history: Path | None,
    later: pl.DataFrame | None,
    control: pl.DataFrame | None,
) -> Report:
    rivals = (*BASELINES, CONTROL) if control is not None else BASELINES
    parts = 7 + 2 * len(rivals)
    progress(0, parts)
    made = _synthetic_set(_checked(synthetic), windows, pool)
    real = _real_set(windows, windows.starts("train", "valid"))
    holdout = _real_set(windows, windows.starts("holdout"))
    n = min(2 * config.windows, len(made.at))
    tables = {
        "": synthetic,
        "_floor": _real_table(windows),
        "_block_bootstrap": _block_bootstrap(windows, pool, n, seed),
        "_gaussian_copula": _gaussian_copula(windows, pool, n, seed),
    }
    if control is not None:
        tables[CONTROL] = _checked(control)
    whole = {"": made} | {name: _synthetic_set(tables[name], windows, pool) for name in rivals}
    sets = {name: _in_blocks(each, config) for name, each in {"real": real, **whole}.items()}
    fewest = min(len(each.at) for each in sets.values())
    if fewest < 10 * config.folds:
        raise QualityError(
            f"only {fewest} windows lie within a block of {config.block_rows} rows; needed are {10 * config.folds}. "
            "Sync more days or sample more windows"
        )
    rng = np.random.default_rng([seed, 0])
    blocks = int(max(each.at.max() for each in sets.values())) // config.block_rows + 1
    deals = [rng.permutation(blocks) % config.folds for _ in range(config.deals)]

    def some(each: WindowSet, n: int = config.windows) -> WindowSet:
        return each.pick(rng.permutation(len(each.at))[:n])

    within = sets["real"]  # a window over two blocks would stand in both halves
    odd = within.at // config.block_rows % 2 == 1
    # What a classifier sees lies within blocks; distances need no folds and are taken of all windows.
    halves = within.pick(odd), within.pick(~odd)
    compared = {"": (real, made), "_floor": halves} | {name: (real, whole[name]) for name in rivals}
    shown = {name: tuple(some(_in_blocks(each, config)) for each in pair) for name, pair in compared.items()}
    known = _real_set(windows, windows.starts("train")).keys
    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for suffix, (one, other) in shown.items():
        folds = [tuple(deal[each.at // config.block_rows] for each in (one, other)) for deal in deals]
        scores, interval = _discriminated(one, other, folds, config, seed)
        scores |= _distances(*compared[suffix], seed)
        scores["predictive_ratio"] = _predictive_ratio(one, other, folds[0], seed)
        scores |= domain_checks(tables[suffix], windows, pool)
        if suffix != "_floor":
            scores["copied_runs"] = copied_share(compared[suffix][1].keys, known)
        metrics |= {name + suffix: value for name, value in scores.items()}
        intervals[f"discriminative_auc{suffix}"] = interval
        progress(len(intervals) * 2, parts)
    metrics["copied_runs_floor"] = copied_share(halves[0].keys, halves[1].keys)
    days, others = some(holdout), {"drift": shown[""][0]}
    if later is not None:
        others["holdout"] = some(_synthetic_set(_checked(later), windows, pool))
    for name, each in others.items():
        metrics |= {f"{k}_{name}": v for k, v in _against_later_days(each, days, config, seed).items()}
    progress(parts - 1, parts)
    losses = {} if history is None else json.loads(history.read_text())
    figures = quality_figures(real.rows, made.rows, ROW_FEATURES, losses)
    figures |= _paths_figure(synthetic, windows, rng)
    page = _page(metrics, intervals, compared[""], shown[""], config, losses, list(figures))
    progress(parts, parts)
    return Report("Quality of the synthetic windows", metrics, intervals, config.model_dump(), page, figures)


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


# Windows to compare


def _checked(synthetic: pl.DataFrame) -> pl.DataFrame:
    missing = [name for name in SYNTHETIC_WINDOWS_SCHEMA if name not in synthetic.columns]
    if missing:
        raise QualityError(f"the synthetic windows lack the columns {missing}; materialize synthetic_windows again")
    if synthetic.height == 0:
        raise QualityError("there are no synthetic windows; materialize synthetic_windows with n_windows > 0")
    floats = [name for name, dtype in SYNTHETIC_WINDOWS_SCHEMA.items() if dtype == pl.Float64()]
    wrong = [name for name in floats if synthetic[name].null_count() or not synthetic[name].is_finite().all()]
    if wrong:
        raise QualityError(f"the columns {wrong} of the synthetic windows hold values that are no finite numbers")
    return synthetic


def _real_set(windows: TrainingWindows, starts: np.ndarray) -> WindowSet:
    returns = windows.table.select(pl.col("price").log().diff().fill_null(0.0)).to_numpy()
    rows = _comparable(np.concatenate([windows.free_features(), returns], axis=1))
    first = starts + windows.context
    index = first[:, None] + np.arange(windows.length)
    return WindowSet(rows[index], first, _row_keys(windows.table)[index])


def _synthetic_set(synthetic: pl.DataFrame, windows: TrainingWindows, pool: PoolSpec) -> WindowSet:
    key = pl.format(
        "{}-{}", pl.col("block_number").cast(pl.String).str.zfill(12), pl.col("log_index").cast(pl.String).str.zfill(6)
    )
    real = windows.table.with_row_index("at").with_columns(condition_id=key)
    columns = ["side", "volume_usdc", "sqrt_price_x96", "liquidity", "seconds_since_previous", "price"]
    first = synthetic.filter(pl.col("step") == 0).select("window_id", "condition_id")
    last = first.join(real, on="condition_id", how="inner").with_columns(step=pl.lit(-1, dtype=pl.Int64))
    if last.height != first.height:
        raise QualityError(
            f"{first.height - last.height} synthetic windows continue histories that training_windows does not hold; "
            "materialize synthetic_windows again"
        )
    whole = pl.concat([last.select("window_id", "step", *columns), synthetic.select("window_id", "step", *columns)])
    whole = whole.sort("window_id", "step").with_columns(
        **free_feature_expressions(pool, over="window_id"), change=pl.col("price").log().diff().over("window_id")
    )
    whole = whole.filter(pl.col("step") >= 0)
    free = [*free_feature_expressions(pool, over="window_id"), "change"]
    shape = (first.height, -1)
    at = last.sort("window_id")["at"].to_numpy().astype(np.int64) + 1
    return WindowSet(
        _comparable(whole.select(free).to_numpy()).reshape(*shape, len(free)), at, _row_keys(whole).reshape(shape)
    )


def _comparable(rows: np.ndarray) -> np.ndarray:
    rows = rows.copy()
    rows[:, 0] = np.log1p(rows[:, 0])
    return rows


def _row_keys(table: pl.DataFrame) -> np.ndarray:
    return row_keys(table["side"], table["volume_usdc"], table["seconds_since_previous"])


def _in_blocks(windows: WindowSet, config: QualityConfig) -> WindowSet:
    last = windows.at + windows.rows.shape[1] - 1
    return windows.pick(windows.at // config.block_rows == last // config.block_rows)


def _real_table(windows: TrainingWindows) -> pl.DataFrame:
    return windows.table.filter(pl.col("split").is_in(["train", "valid"]))


def _block_bootstrap(windows: TrainingWindows, pool: PoolSpec, n: int, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng([seed, 1])
    starts = windows.starts("train")
    histories = rng.choice(windows.starts("train", "valid"), n)
    blocks = -(-windows.length // _BOOTSTRAP_ROWS)
    first = rng.choice(starts, (n, blocks)) + rng.integers(0, windows.rows - _BOOTSTRAP_ROWS + 1, (n, blocks))
    index = (first[:, :, None] + np.arange(_BOOTSTRAP_ROWS)).reshape(n, -1)[:, : windows.length]
    return synthetic_windows(windows, histories + windows.context - 1, windows.free_features()[index], pool)


def _gaussian_copula(windows: TrainingWindows, pool: PoolSpec, n: int, seed: int) -> pl.DataFrame:
    from scipy.stats import norm, rankdata
    from sklearn.covariance import ledoit_wolf

    rng = np.random.default_rng([seed, 4])
    index = windows.starts("train")[:, None] + windows.context + np.arange(windows.length)
    rows = windows.free_features()[index]
    flat = rows.reshape(len(rows), -1)
    # Equal values get their ranks by chance, so that those that occur often come back as often.
    order = rng.random(flat.shape).argsort(axis=0)
    ranks = np.empty(flat.shape)
    np.put_along_axis(ranks, order, rankdata(np.take_along_axis(flat, order, 0), method="ordinal", axis=0), 0)
    covariance, _ = ledoit_wolf(norm.ppf((ranks - 0.5) / len(flat)))
    scale = np.sqrt(np.diag(covariance))
    drawn = rng.multivariate_normal(np.zeros(len(scale)), covariance / np.outer(scale, scale), n, method="cholesky")
    at = np.floor(norm.cdf(drawn) * len(flat)).astype(np.int64)
    made = np.take_along_axis(np.sort(flat, axis=0), at, axis=0).reshape(n, *rows.shape[1:])
    histories = rng.choice(windows.starts("train", "valid"), n)
    return synthetic_windows(windows, histories + windows.context - 1, made, pool)


# Scores


def _discriminated(
    real: WindowSet, other: WindowSet, deals: list[tuple[np.ndarray, ...]], config: QualityConfig, seed: int
) -> tuple[dict[str, float], tuple[float, float]]:
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


def _distances(real: WindowSet, other: WindowSet, seed: int) -> dict[str, float]:
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


def _predictive_ratio(real: WindowSet, other: WindowSet, folds: tuple[np.ndarray, ...], seed: int) -> float:
    errors = np.zeros(2)
    for fold in np.unique(folds[0]):
        test = real.rows[folds[0] == fold]
        teachers = real.rows[folds[0] != fold], other.rows[folds[1] != fold]
        errors += [len(test) * forecast_error(teacher, test, seed) for teacher in teachers]
    return float(errors[1] / errors[0])


def _against_later_days(each: WindowSet, holdout: WindowSet, config: QualityConfig, seed: int) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score

    # Blocks of the two kinds are dealt alike, so that no window is judged by a model that saw its neighbours.
    folds = [s.at // config.block_rows % config.folds for s in (holdout, each)]
    out = boosted_trees(holdout.rows, each.rows, (folds[0], folds[1]), seed)
    labels = np.concatenate([np.zeros(len(holdout.at)), np.ones(len(each.at))])
    return {
        "discriminative_gbm": _advantage(out, labels),
        "discriminative_auc": float(roc_auc_score(labels, out)),
    }


# The page


def _paths_figure(synthetic: pl.DataFrame, windows: TrainingWindows, rng: np.random.Generator) -> dict[str, bytes]:
    from apeagent_pipeline.gan.quality_figures import paths_figure

    ids = synthetic["window_id"].unique().sort().to_numpy()
    chosen = np.sort(rng.choice(ids, min(6, len(ids)), replace=False))
    key = pl.format(
        "{}-{}", pl.col("block_number").cast(pl.String).str.zfill(12), pl.col("log_index").cast(pl.String).str.zfill(6)
    )
    conditions = windows.table.select(key.alias("condition_id"))["condition_id"]
    prices = windows.table["price"].to_numpy()
    examples = []
    for window in chosen:
        rows = synthetic.filter(pl.col("window_id") == int(window)).sort("step")
        end = int(conditions.index_of(rows["condition_id"][0]) or 0)
        around = prices[end - windows.context + 1 : end + 1 + windows.length]
        examples.append((windows.context, around, rows["price"].to_numpy()))
    return {"paths.png": paths_figure(examples)}


def _page(  # noqa: PLR0917 - everything the page tells about
    metrics: dict[str, float],
    intervals: dict[str, tuple[float, float]],
    compared: tuple[WindowSet, WindowSet],
    shown: tuple[WindowSet, ...],
    config: QualityConfig,
    history: dict[str, dict[str, list[float]]],
    figures: list[str],
) -> str:
    meanings = {
        "discriminative_gbm": "how far gradient boosting beats a coin",
        "discriminative_auc": "its area under the curve; 0.5 is a coin",
        "discriminative_gru": "how far a GRU beats a coin",
        "predictive_ratio": "forecast error after synthetic over after real rows",
        "ks_mean": "Kolmogorov-Smirnov distance, mean of the features",
        "acf_error": "autocorrelations, mean difference",
        "xcorr_error": "rank correlations between features, mean difference",
        "mmd": "maximum mean discrepancy of whole windows",
        "copied_runs": "3-row runs that stand in the training rows",
        "price_matches_tick": "rows whose tick is that of the price",
        "opposite_signs": "rows with one amount paid and one received",
        "effective_price": "rows whose amounts match price, fee and impact",
    }
    kinds = ["", "_floor", *(name for name in (*BASELINES, CONTROL) if f"ks_mean{name}" in metrics)]
    scores = [
        [f"`{name}`", meaning, *(f"{metrics[name + kind]:.4f}" for kind in kinds)] for name, meaning in meanings.items()
    ]
    flat = [each.rows.reshape(-1, len(ROW_FEATURES)) for each in compared]
    tails = [np.quantile(np.abs(rows), [0.99, 0.999], axis=0) for rows in flat]
    features = [
        [name, f"{ks:.4f}", f"{w:.4f}", *(f"{tails[0][q, k]:.4g} / {tails[1][q, k]:.4g}" for q in (0, 1))]
        for k, (name, (ks, w)) in enumerate(feature_distances(*flat).items())
    ]
    low, high = intervals["discriminative_auc"]
    failures = quality_failures(metrics, config)
    verdict = (
        "The windows pass the check." if not failures else "The windows fail the check: " + "; ".join(failures) + "."
    )
    pictures = "\n\n".join(f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in figures)
    days = (
        f"Distances are taken of all {len(compared[0].at)} real and {len(compared[1].at)} synthetic windows of the "
        f"train and valid days. A classifier is shown {len(shown[0].at)} and {len(shown[1].at)} of them that lie "
        f"within blocks of {config.block_rows} rows, dealt to folds {config.deals} times. 95 % interval of the AUC "
        f"(blocks resampled): {low:.3f} to {high:.3f}."
    )
    later = [
        [what, *(f"{metrics[f'{score}_{name}']:.3f}" for score in ("discriminative_gbm", "discriminative_auc"))]
        for name, what in (("holdout", "synthetic, continuing later histories"), ("drift", "real, of the days before"))
        if f"discriminative_auc_{name}" in metrics
    ]
    held_out = history.get("held_out", {})
    kept = [
        [f"{step:.0f}", f"{auc:.3f}", f"{copied:.2%}"]
        for step, auc, copied in zip(*(held_out.get(name, []) for name in ("step", "auc", "copied")), strict=True)
    ]
    control = history.get("control_held_out", {})
    if control:
        kept.append(["control", f"{control['auc'][-1]:.3f}", f"{control['copied'][-1]:.2%}"])
    named = {"": "synthetic", "_floor": "real against real", CONTROL: "likelihood alone"}
    columns = [named.get(kind, kind.strip("_").replace("_", " ")) for kind in kinds]
    tail_names = [f"{q} % of the absolute value, real / synthetic" for q in (99, 99.9)]
    return f"""{verdict}

{markdown_table(["score", "what it says", *columns], scores)}

{_LIKELIHOOD_ALONE if CONTROL in kinds else ""}

{days}

## Features

{markdown_table(["feature", "Kolmogorov-Smirnov", "Wasserstein / std", *tail_names], features)}

## Against the later holdout days

{markdown_table(["windows", "gradient boosting beats a coin by", "AUC"], later)}

## While training, on blocks held out

The first row is the likelihood warm start alone, the numbered ones after it follow the adversarial stage. Of these the
weights nearest to a coin that copy no more than allowed were kept. The control went on by likelihood alone.

{markdown_table(["step", "AUC on held-out blocks", "3-row runs copied"], kept)}

## Figures

{pictures}
"""
