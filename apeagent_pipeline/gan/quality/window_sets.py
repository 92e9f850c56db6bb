"""The windows that are compared: real, synthetic, and what a classifier may see of them."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.errors import ApeagentError
from apeagent_pipeline.gan.copies import row_keys
from apeagent_pipeline.gan.quality.config import QualityConfig
from apeagent_pipeline.gan.swap_execution import SYNTHETIC_WINDOWS_SCHEMA
from apeagent_pipeline.market.windows import TrainingWindows, free_feature_expressions

ROW_FEATURES = ("log seconds", "buy", "log size", "move", "liquidity change", "return")
"""Columns of the windows that are compared, [n, T, 6]."""


class QualityError(ApeagentError, ValueError):
    """Windows that cannot be judged; the message says what is wrong with them."""


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


# Windows to compare


def checked(synthetic: pl.DataFrame) -> pl.DataFrame:
    """The table itself, if it can be judged.

    Raises:
        QualityError: Columns are missing, values are not finite, or there are no rows.
    """
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


def real_set(windows: TrainingWindows, starts: np.ndarray) -> WindowSet:
    """The real windows that begin at ``starts`` [n]."""
    returns = windows.table.select(pl.col("price").log().diff().fill_null(0.0)).to_numpy()
    rows = _comparable(np.concatenate([windows.free_features(), returns], axis=1))
    first = starts + windows.context
    index = first[:, None] + np.arange(windows.length)
    return WindowSet(rows[index], first, _row_keys(windows.table)[index])


def synthetic_set(synthetic: pl.DataFrame, windows: TrainingWindows, pool: PoolSpec) -> WindowSet:
    """Synthetic windows, each placed where its history ends."""
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


def in_blocks(windows: WindowSet, config: QualityConfig) -> WindowSet:
    """The windows that lie within one block of time."""
    last = windows.at + windows.rows.shape[1] - 1
    return windows.pick(windows.at // config.block_rows == last // config.block_rows)


def real_table(windows: TrainingWindows) -> pl.DataFrame:
    """The rows of the train and valid splits."""
    return windows.table.filter(pl.col("split").is_in(["train", "valid"]))
