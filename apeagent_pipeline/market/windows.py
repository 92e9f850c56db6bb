"""Training windows: cleaned swaps as five free features, split by time, with scales fitted on the train split.

Splits: the last rows are the holdout, a later market. The valid rows are blocks of time among the train rows: the same
market, but unseen. At least the rows of one window and its context separate any two splits.

Free features: the pool's arithmetic leaves five properties of a swap open, namely its side, its size, its time, the
price move since the previous swap (by routers that the archive does not contain, or by arbitrage), and the change of
liquidity. All other columns follow from these.

Flagged rows describe an accident rather than the market, and are left out:

- ``thin_liquidity``: the liquidity is below ``thin_liquidity`` times the median of the 501 rows around it, as at a
  pool's launch or when the active range is almost empty.
- ``price_jump``: the log price moved by more than ``price_jump`` since the previous swap.
- ``dust``: one of the two amounts is zero, so the swap has no effective price.

A segment is a run of rows without a flagged row, a pause longer than ``longest_pause`` seconds or a missing day. The
first row of a segment has no previous row, so it only serves as the previous row of the second. A window lies within
one segment and one split.
"""

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.errors import ApeagentError
from apeagent_pipeline.market.features import Q96, SWAP_FEATURES_SCHEMA, in_order, virtual_reserve

FREE_FEATURES = ("seconds", "is_buy", "log_size", "move", "liquidity_change")
"""The free features of a swap, in the order in which a row is generated."""

COLUMN_DESCRIPTIONS = {
    "condition_id": "Last real swap of the history the window continues, block-log; sorts by time",
    "segment": "Number of the run of rows without a pause, a missing day or a row left out",
    "split": "train, valid, holdout or (of training windows) gap: between two splits, in no window",
    "window_start": "Whether the rows of a whole window follow in the same segment and split",
    "seconds": "Seconds since the previous swap, as the GAN learns them",
    "is_buy": "1 for BUY, 0 for SELL",
    "log_size": "Natural logarithm of the size in token1",
    "move": "Log return of the price between the previous swap and this one, its own impact taken out",
    "liquidity_change": "Change of the logarithm of the liquidity since the previous swap",
    "stated_in_token0": "Whether token0 is the amount that somebody typed: few digits there, many in token1",
}
"""What each column that this module adds means, with its unit; shown in the UI as the column schema."""

SPLITS = ("train", "valid", "holdout")

STATED_DIGITS = 4
"""An amount with at most this many significant digits is taken for one that a person typed."""

_MEDIAN_ROWS = 501
_ROUNDING_UNITS = 3.0
"""Rounding in the contract moves the reconstructed pre-swap price by up to the impact of this many units of token1."""

_ROUNDING_BITS = 2.0**-51
"""Relative rounding error of the logarithms from which a move is computed."""

TABLE_FILE = "training_windows.parquet"
SCALER_FILE = "scaler.json"

_log = logging.getLogger(__name__)


class WindowsError(ApeagentError, ValueError):
    """Features that do not suffice for training windows; the message says what was found and what is needed."""


class WindowsConfig(BaseModel):
    """How features become training windows."""

    model_config = ConfigDict(frozen=True)

    context: int = Field(20, description="Real swaps before a window, which the generator is given", ge=2)
    length: int = Field(24, description="Swaps in a window", ge=2)
    days: int = Field(30, description="Days of swaps to use, counted back from the last", ge=1)
    train_share: float = Field(0.75, description="Share of the rows in the train split, gaps included", gt=0, lt=1)
    valid_share: float = Field(
        0.10, description="Share of the rows in the valid split; the rest, at the end, is the holdout", gt=0, lt=1
    )
    valid_blocks: int = Field(4, description="Blocks of time of the valid split; fewer if rows are few", ge=1)
    longest_pause: int = Field(7200, description="A longer pause between two swaps (s) begins a new segment", ge=1)
    thin_liquidity: float = Field(
        0.10, description="Leave out rows below this share of the median liquidity", ge=0, lt=1
    )
    price_jump: float = Field(0.05, description="Leave out rows whose log price moved by more than this", gt=0)
    fewest_train_windows: int = Field(200, description="Fewer train windows than this are an error", ge=1)

    @property
    def rows(self) -> int:
        """Rows of a window and its context."""
        return self.context + self.length


class TrainingWindows:
    """Windows of swaps, stored as one table with one row per swap; overlapping windows share rows.

    Attributes:
        table: The columns of `SWAP_FEATURES_SCHEMA`, and ``segment`` Int64; ``split`` ("train", "valid", "holdout",
            or "gap" between them); ``window_start`` (whether the ``context + length`` rows from here lie in one
            segment and split); the free features ``seconds`` Float64, ``is_buy`` Float64 (1 for BUY), ``log_size``
            (log USDC), ``move`` (change of the log price between the previous swap and this one; exactly 0 if within
            rounding) and ``liquidity_change`` (log); and ``stated_in_token0`` Boolean: whether a person typed the
            amount of token0 (0.25 ETH), so that the amount of token1 follows from it.
        scaler: JSON values: ``context``, ``length``, ``tick_spacing``, ``rows`` by split, ``flagged`` rows by rule, and
            for every free feature the mean, standard deviation and quantiles of the train split.
    """

    def __init__(self, table: pl.DataFrame, scaler: dict[str, Any]) -> None:
        self.table = table
        self.scaler = scaler
        self.context = int(scaler["context"])
        self.length = int(scaler["length"])

    @property
    def rows(self) -> int:
        """Rows of a window and its context."""
        return self.context + self.length

    def starts(self, *splits: str) -> np.ndarray:
        """Positions [n] in the table of the first context row of every window of the given splits, in time order.

        Raises:
            WindowsError: if there is no split of that name.
        """
        unknown = set(splits) - set(SPLITS)
        if unknown:
            raise WindowsError(f"unknown splits {sorted(unknown)}; expected some of {list(SPLITS)}")
        return np.flatnonzero((self.table["window_start"] & self.table["split"].is_in(list(splits))).to_numpy())

    def free_features(self) -> np.ndarray:
        """The free features of every row, float64 [rows, 5] in the order of `FREE_FEATURES`."""
        return self.table.select(FREE_FEATURES).to_numpy()

    def save(self, folder: Path) -> None:
        """Write ``training_windows.parquet`` and ``scaler.json`` into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        self.table.write_parquet(folder / TABLE_FILE)
        (folder / SCALER_FILE).write_text(json.dumps(self.scaler, indent=2, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "TrainingWindows":
        """Read what `save` wrote.

        Raises:
            WindowsError: if a file is missing.
        """
        missing = [name for name in (TABLE_FILE, SCALER_FILE) if not (folder / name).is_file()]
        if missing:
            raise WindowsError(f"{folder} has no {missing}; materialize training_windows first")
        return cls(pl.read_parquet(folder / TABLE_FILE), json.loads((folder / SCALER_FILE).read_text()))


def make_training_windows(features: pl.DataFrame, pool: PoolSpec, config: WindowsConfig) -> TrainingWindows:
    """Clean swaps, compute their free features, split them by time and fit the scales.

    Args:
        features: Rows of `market.features.swap_features` of one or more days, in (block_number, log_index) order.
        pool: The pool of the swaps; its fee and decimals are needed to subtract a swap's own price impact.
        config: See `WindowsConfig`.

    Raises:
        WindowsError: if columns are missing, a number is not finite, rows are out of order or too few windows are left.
        DynamicFeeError: if the pool has a dynamic fee.
    """
    if pool.has_hooks:
        _log.warning(
            "the pool %s has hooks (%s): synthetic swaps and the backtest follow the pool's own arithmetic and ignore "
            "what the hooks add or take",
            pool.pool_id,
            pool.hooks,
        )
    features = _checked(features)
    if features.height:
        last_day = features["block_timestamp"].dt.date().max()
        features = features.filter(
            pl.col("block_timestamp").dt.date() > pl.lit(last_day).dt.offset_by(f"-{config.days}d")
        )
    table = _measured(_flagged(features, config), pool)
    flagged = {name: int(table[name].sum()) for name in ("thin_liquidity", "price_jump", "dust")}
    kept = table.filter(~(pl.col("thin_liquidity") | pl.col("price_jump") | pl.col("dust")))
    kept = kept.filter(pl.int_range(pl.len()).over("segment") > 0)
    kept = _split(kept, config).drop("thin_liquidity", "price_jump", "dust")
    _check_enough(features, kept, flagged, config)
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


def free_feature_expressions(pool: PoolSpec, over: str) -> dict[str, pl.Expr]:
    """The free features of `FREE_FEATURES` as expressions over the columns of `SWAP_FEATURES_SCHEMA`.

    Args:
        pool: The pool of the swaps; its fee and decimals are used.
        over: Column with the id of the run of consecutive rows (segment or window). In the first row of a run, features
            that compare with the previous row are null.
    """
    # Buys and sells move sqrt(price) by amount1 / L. The fee, which a buyer pays in token1, does not move the price.
    reserve = virtual_reserve(pool)
    reaching = pl.when(pl.col("side") == "BUY").then(1.0 - pool.static_fee / 1e6).otherwise(-1.0)
    impact = reaching * pl.col("volume_usdc") / reserve
    log_root = (pl.col("sqrt_price_x96").cast(pl.Float64) / Q96).log()
    # log1p(-x) is the log of the pre-swap over the post-swap root.
    move = 2.0 * (log_root + (-impact).log1p() - log_root.shift().over(over))
    # In pools with many decimals the rounding of both logarithms dominates.
    of_floats = _ROUNDING_BITS * (2.0 + log_root.abs())
    rounding = 2.0 * (_ROUNDING_UNITS / 10.0**pool.token1.decimals / reserve + of_floats)
    log_liquidity = pl.col("liquidity").cast(pl.Float64).log()
    return {
        "seconds": pl.col("seconds_since_previous").cast(pl.Float64),
        "is_buy": (pl.col("side") == "BUY").cast(pl.Float64),
        "log_size": pl.col("volume_usdc").log(),
        "move": pl.when(move.abs() <= rounding).then(0.0).otherwise(move),
        "liquidity_change": pl.when(pl.col("liquidity") == pl.col("liquidity").shift().over(over))
        .then(0.0)
        .otherwise(log_liquidity - log_liquidity.shift().over(over)),
    }


def _checked(features: pl.DataFrame) -> pl.DataFrame:
    missing = [name for name in SWAP_FEATURES_SCHEMA if name not in features.columns]
    if missing:
        raise WindowsError(f"the features lack the columns {missing}; materialize swap_features again")
    features = features.select(pl.col(name).cast(dtype) for name, dtype in SWAP_FEATURES_SCHEMA.items())
    for name in ("price", "amount0_eth", "amount1_usdc"):
        wrong = features.filter(pl.col(name).is_null() | ~pl.col(name).is_finite())
        if wrong.height:
            raise WindowsError(
                f"{name}={wrong[name][0]} in block {wrong['block_number'][0]} is not a number "
                f"({wrong.height} such rows); materialize swap_features of that day again"
            )
    if not features.select(in_order().all()).item():
        raise WindowsError("the features are not in (block_number, log_index) order; pass the days in order")
    return features


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
    short = pl.col(amount).round_sig_figs(STATED_DIGITS)
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


def _check_enough(features: pl.DataFrame, kept: pl.DataFrame, flagged: dict[str, int], config: WindowsConfig) -> None:
    counts = {
        split: int(kept.select((pl.col("window_start") & (pl.col("split") == split)).sum()).item()) for split in SPLITS
    }
    if counts["train"] < config.fewest_train_windows or min(counts.values()) == 0:
        needed = math.ceil((config.fewest_train_windows + 2 * config.rows) / config.train_share)
        shortest = min(config.valid_share, 1 - config.train_share - config.valid_share)
        needed = max(needed, math.ceil(2 * config.rows / shortest))
        raise WindowsError(
            f"{features.height} swaps ({kept.height} after leaving out {flagged} and the first row of each segment) "
            f"give {counts} windows of {config.rows} swaps. At least {config.fewest_train_windows} train windows and "
            f"one in each other split are needed, about {needed} swaps without long pauses. Sync more days"
        )
    broken = [name for name in FREE_FEATURES if kept[name].null_count() or not kept[name].is_finite().all()]
    if broken:
        raise WindowsError(f"the features {broken} are not finite in some rows; materialize swap_features again")


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
