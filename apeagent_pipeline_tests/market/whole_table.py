"""Training windows made of one table of all days in memory: what `market.windows` must equal, bit for bit.

The package made them so until its windows of ten million swaps took 7.7 GiB.
"""

import math
from typing import Any

import numpy as np
import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.market.features import SWAP_FEATURES_SCHEMA
from apeagent_pipeline.market.free_features import free_feature_expressions
from apeagent_pipeline.market.windows import (
    FREE_FEATURES,
    SPLITS,
    TrainingWindows,
    WindowsConfig,
)

_MEDIAN_ROWS = 501
_STATED_DIGITS = 4


def whole_table_windows(features: pl.DataFrame, pool: PoolSpec, config: WindowsConfig) -> TrainingWindows:
    """As `make_training_windows`, without its checks."""
    features = features.select(pl.col(name).cast(dtype) for name, dtype in SWAP_FEATURES_SCHEMA.items())
    last_day = features["block_timestamp"].dt.date().max()
    features = features.filter(pl.col("block_timestamp").dt.date() > pl.lit(last_day).dt.offset_by(f"-{config.days}d"))
    table = _measured(_flagged(features, config), pool)
    flagged = {name: int(table[name].sum()) for name in ("thin_liquidity", "price_jump", "dust")}
    kept = table.filter(~(pl.col("thin_liquidity") | pl.col("price_jump") | pl.col("dust")))
    kept = kept.filter(pl.int_range(pl.len()).over("segment") > 0)
    kept = _split(kept, config).drop("thin_liquidity", "price_jump", "dust")
    kept = kept.with_columns(pl.col("segment").rank("dense").cast(pl.Int64) - 1)
    scaler = {
        "context": config.context,
        "length": config.length,
        "tick_spacing": pool.tick_spacing,
        "rows": {split: int((kept["split"] == split).sum()) for split in (*SPLITS, "gap")},
        "flagged": flagged,
        "features": _fitted(kept.filter(pl.col("split") == "train")),
    }
    return TrainingWindows(kept, scaler)


def _flagged(features: pl.DataFrame, config: WindowsConfig) -> pl.DataFrame:
    liquidity = pl.col("liquidity").cast(pl.Float64)
    median = liquidity.rolling_median(_MEDIAN_ROWS, center=True, min_samples=1)
    days = pl.col("block_timestamp").dt.date()
    flagged = features.with_columns(
        thin_liquidity=(liquidity < config.thin_liquidity * median) | (liquidity <= 0),
        dust=(pl.col("amount0_eth") == 0) | (pl.col("amount1_usdc") == 0),
        price_jump=(pl.col("price").log().diff().abs() > config.price_jump).fill_null(False),
        pause=(pl.col("block_timestamp").diff().dt.total_seconds() > config.longest_pause).fill_null(True)
        | (days.diff().dt.total_days() > 1).fill_null(True),
    )
    bad = pl.col("thin_liquidity") | pl.col("dust") | pl.col("price_jump")
    # A flagged row ends its segment, and the next row begins a new one; the flagged row itself is dropped later.
    breaks = pl.col("pause") | bad | bad.shift().fill_null(True)
    return flagged.with_columns(segment=breaks.cast(pl.Int64).cum_sum()).drop("pause")


def _measured(table: pl.DataFrame, pool: PoolSpec) -> pl.DataFrame:
    # The expressions use both columns many times, so the decimal strings are parsed once.
    numbers = table.with_columns(pl.col("sqrt_price_x96", "liquidity").cast(pl.Float64))
    stated_in_token0 = _typed("amount0_eth") & ~_typed("amount1_usdc")
    return table.with_columns(
        numbers.select(**free_feature_expressions(pool, over="segment"), stated_in_token0=stated_in_token0)
    )


def _typed(amount: str) -> pl.Expr:
    short = pl.col(amount).round_sig_figs(_STATED_DIGITS)
    return (pl.col(amount) - short).abs() <= 1e-12 * short.abs()


def _split(kept: pl.DataFrame, config: WindowsConfig) -> pl.DataFrame:
    """Assign splits: the last rows are the holdout; blocks of valid rows lie among the train rows before it."""
    position, gap = pl.int_range(pl.len()), config.rows
    holdout_from = math.floor((config.train_share + config.valid_share) * kept.height)
    # Every valid block has room for at least two windows.
    most = math.floor(config.valid_share * kept.height / (2 * config.rows))
    # Rounded down to whole rows; fractions would make some gaps one row too short.
    stretch = holdout_from // max(1, min(config.valid_blocks, most))
    into = position % max(1, stretch)
    valid_from = math.ceil(stretch * config.train_share / (config.train_share + config.valid_share))
    kept = kept.with_columns(
        split=pl.when(position >= holdout_from)
        .then(pl.when(position < holdout_from + gap).then(pl.lit("gap")).otherwise(pl.lit("holdout")))
        .when(into >= valid_from)
        .then(pl.lit("valid"))
        .when((into >= valid_from - gap) | ((into < gap) & (position >= gap)))
        .then(pl.lit("gap"))
        .otherwise(pl.lit("train"))
    )
    same = [pl.col(name) == pl.col(name).shift(-(config.rows - 1)) for name in ("segment", "split")]
    return kept.with_columns(window_start=(same[0] & same[1]).fill_null(False) & (pl.col("split") != "gap"))


def _fitted(train: pl.DataFrame) -> dict[str, dict[str, Any]]:
    grid = np.linspace(0.0, 1.0, 101)
    values = {name: train[name].to_numpy() for name in FREE_FEATURES}
    return {
        name: {
            "mean": float(column.mean()),
            "std": float(column.std()),
            "quantiles": [float(q) for q in np.quantile(column, grid)],
        }
        for name, column in values.items()
    }
