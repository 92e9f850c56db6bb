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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.atomic_files import replacing
from apeagent_pipeline.market.free_features import FREE_FEATURES
from apeagent_pipeline.market.scales import ColumnFiles
from apeagent_pipeline.market.table_parts import read_parquet, write_parquet
from apeagent_pipeline.market.window_rows import SPLITS, WindowRows, WindowsConfig, WindowsError

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

TABLE_FILE = "training_windows.parquet"
SCALER_FILE = "scaler.json"

_log = logging.getLogger(__name__)


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
        write_parquet([self.table], self.table.height, self.rows - 1, folder / TABLE_FILE)
        _write_scaler(self.scaler, folder)

    @classmethod
    def load(cls, folder: Path) -> "TrainingWindows":
        """Read what `save` wrote.

        Raises:
            WindowsError: if a file is missing.
        """
        missing = [name for name in (TABLE_FILE, SCALER_FILE) if not (folder / name).is_file()]
        if missing:
            raise WindowsError(f"{folder} has no {missing}; materialize training_windows first")
        return cls(read_parquet(folder / TABLE_FILE), json.loads((folder / SCALER_FILE).read_text()))


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
    _warn_of_hooks(pool)
    rows = WindowRows([features.lazy()], pool, config)
    with ColumnFiles(FREE_FEATURES) as columns:
        table = pl.concat(rows.tables(columns))
        return TrainingWindows(table, rows.scaler(columns))


def write_training_windows(days: Sequence[pl.LazyFrame], pool: PoolSpec, config: WindowsConfig, folder: Path) -> None:
    """Write what `make_training_windows` makes of all days and `TrainingWindows.save` writes, in bounded memory.

    Args:
        days: Rows of `market.features.swap_features` of each day, in order. Each day is collected twice, by itself.
        pool: See `make_training_windows`.
        config: See `WindowsConfig`.
        folder: Gets ``training_windows.parquet`` and ``scaler.json``. Temporary files lie there too.

    Raises:
        WindowsError: see `make_training_windows`; the folder then has no new file.
        DynamicFeeError: see `make_training_windows`.
    """
    _warn_of_hooks(pool)
    folder.mkdir(parents=True, exist_ok=True)
    rows = WindowRows(days, pool, config)
    with ColumnFiles(FREE_FEATURES, folder) as columns, replacing(folder / TABLE_FILE) as table:
        write_parquet(rows.tables(columns), rows.height, config.rows - 1, table)
        scaler = rows.scaler(columns)
    _write_scaler(scaler, folder)


def _write_scaler(scaler: dict[str, Any], folder: Path) -> None:
    (folder / SCALER_FILE).write_text(json.dumps(scaler, indent=2, sort_keys=True) + "\n")


def _warn_of_hooks(pool: PoolSpec) -> None:
    if pool.has_hooks:
        _log.warning(
            "the pool %s has hooks (%s): synthetic swaps and the backtest follow the pool's own arithmetic and ignore "
            "what the hooks add or take",
            pool.pool_id,
            pool.hooks,
        )
