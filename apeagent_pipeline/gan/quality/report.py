"""The quality report ``synthetic_quality``: how close synthetic windows are to real ones.

Windows are compared with real windows of the same days. Beside the synthetic windows, the same scores are computed for
(suffix of the metrics):

- ``_floor``: real windows of other blocks of time; nothing can score better.
- ``_block_bootstrap``: real rows shuffled in blocks of six and executed by the pool.
- ``_gaussian_copula``: a Gaussian copula of whole windows, executed by the pool.
- ``_likelihood``, if a control is given: windows of a generator trained as long by likelihood alone.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.gan.quality.baselines import BASELINES, Baseline
from apeagent_pipeline.gan.quality.config import QualityConfig
from apeagent_pipeline.gan.quality.figures import paths_figure, quality_figures
from apeagent_pipeline.gan.quality.page import CONTROL, FLOOR, Findings, quality_page
from apeagent_pipeline.gan.quality.scores import SCORES, Comparison, against_later_days, auc_interval
from apeagent_pipeline.gan.quality.telltales import telltales, telltales_figure
from apeagent_pipeline.gan.quality.window_sets import QualityError, WindowSet, checked, real_set, synthetic_set
from apeagent_pipeline.market.features import swap_key
from apeagent_pipeline.market.windows import TrainingWindows
from apeagent_pipeline.reporting.progress import Progress, silent
from apeagent_pipeline.reporting.report import Report

_EXAMPLES = 6


HEADLINE = (
    "discriminative_auc",
    "discriminative_auc_floor",
    "discriminative_gru",
    "ks_mean",
    "acf_error",
    "xcorr_error",
    "copied_runs",
    "predictive_ratio",
)


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
        pool: The pool of the windows.
        config: Options and limits.
        seed: Seed of folds, classifiers and the bootstrap.
        progress: Called after every comparison.
        history: ``history.json`` of the trained GAN, for the training curves and the held-out scores.
        later: Synthetic windows that continue histories of the holdout days, compared with those days.
        control: Windows of the generator that was trained by likelihood alone.

    Returns:
        A report with the metrics of `SCORES`, each with the suffixes above. Two scores, ``discriminative_auc`` and
        ``_gbm``, also compare windows with the later holdout days: with the suffix ``_holdout`` the windows in
        ``later``, with ``_drift`` real windows of the days before, which shows the effect of drift alone.

    Raises:
        QualityError: if columns are missing, values are not finite, or there are too few windows to judge.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    rng = np.random.default_rng([seed, 0])
    # On data this small the threads of a pool spend most of their time waiting for each other.
    with threadpool_limits(1):
        tables = {"": checked(synthetic)} | ({} if control is None else {CONTROL: checked(control)})
        parts = len(tables) + len(BASELINES) + 2
        progress(0, parts)
        compared = comparisons(tables, windows, pool, config, seed=seed, rng=rng)
        metrics: dict[str, float] = {}
        intervals: dict[str, tuple[float, float]] = {}
        for suffix, each in compared.items():
            metrics |= {score.name + suffix: score.measure(each) for score in SCORES}
            intervals[f"discriminative_auc{suffix}"] = auc_interval(each)
            progress(len(intervals), parts)
        ours = compared[""]
        found = telltales(ours)
        metrics |= later_scores(ours, later, windows, config, rng)
    losses = {} if history is None else json.loads(history.read_text())
    figures = quality_figures(ours.real.rows, ours.other.rows, losses)
    figures["telltales.png"] = telltales_figure(found)
    figures["paths.png"] = paths_figure(_example_paths(synthetic, windows, rng))
    page = quality_page(Findings(metrics, intervals, compared, found, losses, list(figures)))
    progress(parts, parts)
    return Report("Quality of the synthetic windows", metrics, intervals, config.model_dump(), page, figures, HEADLINE)


def later_scores(
    ours: Comparison,
    later: pl.DataFrame | None,
    windows: TrainingWindows,
    config: QualityConfig,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Scores against the holdout days: of real windows of the days before, and of synthetic ones if there are any."""
    holdout = _some(real_set(windows, windows.starts("holdout")), config, rng)
    kinds = {"drift": ours.shown[0]}
    if later is not None:
        kinds["holdout"] = _some(synthetic_set(checked(later), windows, ours.pool), config, rng)
    return {
        f"{name}_{kind}": value
        for kind, each in kinds.items()
        for name, value in against_later_days(each, holdout, config, ours.seed).items()
    }


def comparisons(
    tables: dict[str, pl.DataFrame],
    windows: TrainingWindows,
    pool: PoolSpec,
    config: QualityConfig,
    *,
    seed: int,
    rng: np.random.Generator,
    baselines: Mapping[str, Baseline] = MappingProxyType(BASELINES),
) -> dict[str, Comparison]:
    """Comparisons of all kinds of windows, by suffix; ``tables`` lacks only the floor and the baselines.

    Raises:
        QualityError: if there are too few windows.
    """
    real = real_set(windows, windows.starts("train", "valid"))
    n = min(2 * config.windows, tables[""]["window_id"].n_unique())
    drawn = {suffix: draw(windows, pool, n, seed) for suffix, draw in baselines.items()}
    tables = {"": tables[""], **drawn, **tables}
    sets = {suffix: synthetic_set(table, windows, pool) for suffix, table in tables.items()}
    within = {suffix: each.within_blocks(config.block_rows) for suffix, each in {"real": real, **sets}.items()}
    fewest = min(len(each.at) for each in within.values())
    if fewest < 10 * config.folds:
        raise QualityError(
            f"only {fewest} windows lie within a block of {config.block_rows} rows; at least {10 * config.folds} are "
            "needed. Sync more days or sample more windows"
        )
    blocks = int(max(each.at.max() for each in within.values())) // config.block_rows + 1
    deals = [rng.permutation(blocks) % config.folds for _ in range(config.deals)]
    odd = within["real"].at // config.block_rows % 2 == 1
    halves = within["real"].pick(odd), within["real"].pick(~odd)
    known = real_set(windows, windows.starts("train")).keys

    def compare(one: WindowSet, other: WindowSet, table: pl.DataFrame, keys: tuple[np.ndarray, ...]) -> Comparison:
        first, second = (_some(each.within_blocks(config.block_rows), config, rng) for each in (one, other))
        return Comparison(one, other, (first, second), deals, table, (keys[0], keys[1]), pool, config, seed)

    rows = windows.table.filter(pl.col("split").is_in(["train", "valid"]))
    found = {}
    for suffix, table in tables.items():
        found[suffix] = compare(real, sets[suffix], table, (sets[suffix].keys, known))
        if not suffix:
            found[FLOOR] = compare(*halves, rows, (halves[0].keys, halves[1].keys))
    return found


def _some(windows: WindowSet, config: QualityConfig, rng: np.random.Generator) -> WindowSet:
    """As many of the windows as a classifier reads, in random order."""
    return windows.pick(rng.permutation(len(windows.at))[: config.windows])


def _example_paths(
    synthetic: pl.DataFrame, windows: TrainingWindows, rng: np.random.Generator
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Prices around some histories and of the synthetic windows that continue them, for `paths_figure`."""
    ids = synthetic["window_id"].unique().sort().to_numpy()
    keys, prices = windows.table.select(swap_key()).to_series(), windows.table["price"].to_numpy()
    examples = []
    for window in np.sort(rng.choice(ids, min(_EXAMPLES, len(ids)), replace=False)):
        rows = synthetic.filter(pl.col("window_id") == int(window)).sort("step")
        end = int(keys.index_of(rows["condition_id"][0]) or 0)
        around = prices[end - windows.context + 1 : end + 1 + windows.length]
        examples.append((windows.context, around, rows["price"].to_numpy()))
    return examples
