"""The windows that are compared, real and synthetic, and the rows they copy from the train rows."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.errors import ApeagentError
from apeagent_pipeline.gan.swap_execution import SYNTHETIC_WINDOWS_SCHEMA
from apeagent_pipeline.market.features import swap_key
from apeagent_pipeline.market.free_features import free_feature_expressions
from apeagent_pipeline.market.windows import TrainingWindows

ROW_FEATURES = ("log seconds", "buy", "log size", "move", "liquidity change", "return")
"""Columns of the windows that are compared, [n, T, 6]."""

_RUN_ROWS = 3
"""Single rows recur by chance; runs of three with equal side, size and seconds practically never do."""

_FACTORS = np.array([6364136223846793005, 1442695040888963407, 3935559000370003845], dtype=np.uint64)


class QualityError(ApeagentError, ValueError):
    """Windows that cannot be judged; the message names the cause and the remedy."""


@dataclass(frozen=True)
class WindowSet:
    """Windows to compare.

    Attributes:
        rows: [n, T, 6] in the columns of `ROW_FEATURES`.
        at: Position of each window's first row in the table of training windows, [n].
        keys: `row_keys` of every row, [n, T].
    """

    rows: np.ndarray
    at: np.ndarray
    keys: np.ndarray

    def pick(self, index: np.ndarray) -> "WindowSet":
        """The windows of an index or a mask [n]."""
        return WindowSet(self.rows[index], self.at[index], self.keys[index])

    def within_blocks(self, block_rows: int) -> "WindowSet":
        """The windows that lie within one block of ``block_rows`` rows."""
        last = self.at + self.rows.shape[1] - 1
        return self.pick(self.at // block_rows == last // block_rows)


def checked(synthetic: pl.DataFrame) -> pl.DataFrame:
    """Return the table unchanged if it can be judged.

    Raises:
        QualityError: if columns are missing, values are not finite, or there are no rows.
    """
    missing = [name for name in SYNTHETIC_WINDOWS_SCHEMA if name not in synthetic.columns]
    if missing:
        raise QualityError(f"the synthetic windows lack the columns {missing}; materialize synthetic_windows again")
    if synthetic.height == 0:
        raise QualityError("there are no synthetic windows; materialize synthetic_windows with n_windows > 0")
    floats = [name for name, dtype in SYNTHETIC_WINDOWS_SCHEMA.items() if dtype == pl.Float64()]
    wrong = [name for name in floats if synthetic[name].null_count() or not synthetic[name].is_finite().all()]
    if wrong:
        raise QualityError(
            f"the columns {wrong} of the synthetic windows hold values that are not finite; materialize "
            "synthetic_windows again"
        )
    return synthetic


def real_set(windows: TrainingWindows, starts: np.ndarray) -> WindowSet:
    """The real windows at ``starts`` [n] (see `TrainingWindows.starts`)."""
    returns = windows.table.select(pl.col("price").log().diff().fill_null(0.0)).to_numpy()
    rows = _log_seconds(np.concatenate([windows.free_features(), returns], axis=1))
    first = starts + windows.context
    index = first[:, None] + np.arange(windows.length)
    return WindowSet(rows[index], first, _table_keys(windows.table)[index])


def synthetic_set(synthetic: pl.DataFrame, windows: TrainingWindows, pool: PoolSpec) -> WindowSet:
    """Synthetic windows, each located directly after its history.

    Raises:
        QualityError: if a window continues a history that ``windows`` does not hold.
    """
    real = windows.table.with_row_index("at").with_columns(condition_id=swap_key())
    columns = ["side", "volume_usdc", "sqrt_price_x96", "tick", "liquidity", "seconds_since_previous", "price"]
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
    rows = _log_seconds(whole.select(free).to_numpy()).reshape(first.height, -1, len(free))
    at = last.sort("window_id")["at"].to_numpy().astype(np.int64) + 1
    return WindowSet(rows, at, _table_keys(whole).reshape(first.height, -1))


def _log_seconds(rows: np.ndarray) -> np.ndarray:
    rows = rows.copy()
    rows[:, 0] = np.log1p(rows[:, 0])
    return rows


def _table_keys(table: pl.DataFrame) -> np.ndarray:
    return row_keys(table["side"], table["volume_usdc"], table["seconds_since_previous"])


def row_keys(side: pl.Series, size: pl.Series, seconds: pl.Series) -> np.ndarray:
    """One integer per row [n], equal for rows that agree in side, size and seconds."""
    # Nine digits distinguish any two sizes, and are unaffected by the rounding of floats.
    return pl.select(pl.struct(side, size.round_sig_figs(9), seconds).hash(seed=0)).to_series().to_numpy()


def copied_share(windows: np.ndarray, known: np.ndarray) -> float:
    """Share of the 3-row runs of ``windows`` [n, T] that occur in ``known`` [m, T]; both are row keys."""
    return float(np.isin(_runs(windows), np.unique(_runs(known))).mean())


def _runs(keys: np.ndarray) -> np.ndarray:
    """One integer per run of `_RUN_ROWS` rows of windows ``keys`` [n, T], as [n * (T - 2)]."""
    windows = np.lib.stride_tricks.sliding_window_view(keys, _RUN_ROWS, axis=1)
    return (windows * _FACTORS).sum(axis=2, dtype=np.uint64).ravel()
