"""How close synthetic windows are to real ones: `synthetic_quality`.

Four kinds of windows are held against real windows of the same days: synthetic ones, real ones of other blocks of
time (``_floor``: nothing can score better), and two baselines that are executed by the pool as well: a block bootstrap
(``_block_bootstrap``: real rows, shuffled in blocks of six) and a Gaussian copula of whole windows
(``_gaussian_copula``: every feature distributed as in the train rows, rank correlations between all rows). With a
control (``_likelihood``: windows of a generator that was trained as long without a critic) there is a fifth. All go
through the same code.
"""

import json
from pathlib import Path

import numpy as np
import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.gan.copies import copied_share
from apeagent_pipeline.gan.quality.baselines import BASELINES, CONTROL, block_bootstrap, gaussian_copula
from apeagent_pipeline.gan.quality.config import QualityConfig
from apeagent_pipeline.gan.quality.figures import quality_figures
from apeagent_pipeline.gan.quality.page import example_paths, quality_page
from apeagent_pipeline.gan.quality.scores import (
    against_later_days,
    discriminated,
    distances,
    domain_checks,
    predictive_ratio,
)
from apeagent_pipeline.gan.quality.window_sets import (
    ROW_FEATURES,
    QualityError,
    WindowSet,
    checked,
    in_blocks,
    real_set,
    real_table,
    synthetic_set,
)
from apeagent_pipeline.market.windows import TrainingWindows
from apeagent_pipeline.reporting.progress import Progress, silent
from apeagent_pipeline.reporting.report import Report


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
    made = synthetic_set(checked(synthetic), windows, pool)
    real = real_set(windows, windows.starts("train", "valid"))
    holdout = real_set(windows, windows.starts("holdout"))
    n = min(2 * config.windows, len(made.at))
    tables = {
        "": synthetic,
        "_floor": real_table(windows),
        "_block_bootstrap": block_bootstrap(windows, pool, n, seed),
        "_gaussian_copula": gaussian_copula(windows, pool, n, seed),
    }
    if control is not None:
        tables[CONTROL] = checked(control)
    whole = {"": made} | {name: synthetic_set(tables[name], windows, pool) for name in rivals}
    sets = {name: in_blocks(each, config) for name, each in {"real": real, **whole}.items()}
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
    shown = {name: tuple(some(in_blocks(each, config)) for each in pair) for name, pair in compared.items()}
    known = real_set(windows, windows.starts("train")).keys
    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for suffix, (one, other) in shown.items():
        folds = [tuple(deal[each.at // config.block_rows] for each in (one, other)) for deal in deals]
        scores, interval = discriminated(one, other, folds, config, seed)
        scores |= distances(*compared[suffix], seed)
        scores["predictive_ratio"] = predictive_ratio(one, other, folds[0], seed)
        scores |= domain_checks(tables[suffix], windows, pool)
        if suffix != "_floor":
            scores["copied_runs"] = copied_share(compared[suffix][1].keys, known)
        metrics |= {name + suffix: value for name, value in scores.items()}
        intervals[f"discriminative_auc{suffix}"] = interval
        progress(len(intervals) * 2, parts)
    metrics["copied_runs_floor"] = copied_share(halves[0].keys, halves[1].keys)
    days, others = some(holdout), {"drift": shown[""][0]}
    if later is not None:
        others["holdout"] = some(synthetic_set(checked(later), windows, pool))
    for name, each in others.items():
        metrics |= {f"{k}_{name}": v for k, v in against_later_days(each, days, config, seed).items()}
    progress(parts - 1, parts)
    losses = {} if history is None else json.loads(history.read_text())
    figures = quality_figures(real.rows, made.rows, ROW_FEATURES, losses)
    figures |= example_paths(synthetic, windows, rng)
    page = quality_page(metrics, intervals, compared[""], shown[""], config, losses, list(figures))
    progress(parts, parts)
    return Report("Quality of the synthetic windows", metrics, intervals, config.model_dump(), page, figures)
