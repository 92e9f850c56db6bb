"""The rows of training windows, computed a part at a time: their days may have more rows than fit into memory.

See `windows` for what is left out, and for segments and splits.
"""

import math
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.errors import ApeagentError
from apeagent_pipeline.market.features import SWAP_FEATURES_SCHEMA, in_order
from apeagent_pipeline.market.free_features import FREE_FEATURES, with_free_features
from apeagent_pipeline.market.scales import ColumnFiles
from apeagent_pipeline.market.table_parts import between_neighbours, in_batches

SPLITS = ("train", "valid", "holdout")

BATCH_ROWS = 1 << 17
"""Rows that are computed at once, or up to twice as many."""

_FLAGS = ("thin_liquidity", "price_jump", "dust")
_MEDIAN_REACH = 250
"""The median liquidity is that of a row, and of as many rows before it and after it."""


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
    valid_blocks: int = Field(
        4, description="Number of blocks of time in the valid split; there are fewer if the rows are few", ge=1
    )
    longest_pause: int = Field(7200, description="A longer pause between two swaps (s) begins a new segment", ge=1)
    thin_liquidity: float = Field(
        0.10, description="Leave out rows below this share of the median liquidity", ge=0, lt=1
    )
    price_jump: float = Field(0.05, description="Leave out rows whose log price moved by more than this", gt=0)
    fewest_train_windows: int = Field(200, description="Smallest number of train windows; fewer are an error", ge=1)

    @property
    def rows(self) -> int:
        """Rows of a window and its context."""
        return self.context + self.length


class WindowRows:
    """The rows of the training windows of some days.

    The days are read twice. The first reading finds which rows are kept (one byte a row stays in memory), because the
    splits depend on their number. The second reading computes the columns.

    Attributes:
        height: Number of the rows.
    """

    def __init__(self, days: Sequence[pl.LazyFrame], pool: PoolSpec, config: WindowsConfig) -> None:
        """Read the days for the first time.

        Raises:
            WindowsError: if columns are missing, a number is not finite, rows are out of order or too few are left.
        """
        self._days, self._pool, self._config = [_selected(day) for day in days], pool, config
        ends = [day.select(pl.col("block_timestamp").max()).collect().item() for day in self._days]
        last = max((end for end in ends if end is not None), default=None)
        self._first_day = None if last is None else last.date() - timedelta(days=config.days - 1)
        self._swaps, self._flagged, breaks = 0, dict.fromkeys(_FLAGS, 0), [np.zeros(0, dtype=bool)]
        for part in between_neighbours(self._batches(check=True), _MEDIAN_REACH + 1, _MEDIAN_REACH):
            marked = part.own(_marked(part.table, config))
            breaks.append(marked["breaks"].to_numpy())
            self._flagged = {name: count + int(marked[name].sum()) for name, count in self._flagged.items()}
            self._swaps += part.height
        self._breaks = np.concatenate(breaks)
        # Of each kept row: whether the row before it is left out, so that it is the first of its segment.
        self._begins = self._breaks[:-1][~self._breaks[1:]]
        self.height = len(self._begins)
        self._rows, self._windows = dict.fromkeys((*SPLITS, "gap"), 0), dict.fromkeys(SPLITS, 0)
        self._broken: set[str] = set()
        if self.height < config.rows:
            self._check_enough()

    def tables(self, columns: ColumnFiles) -> Iterator[pl.DataFrame]:
        """The rows in parts, with the columns of `TrainingWindows.table`, to be computed once.

        Args:
            columns: The free features of the train rows are appended here.
        """
        at = position = segments = 0
        for part in between_neighbours(self._batches(check=False), 1, 0):
            breaks = self._breaks[at - part.before : at + part.height]
            table = with_free_features(part.table.with_columns(segment=pl.Series(np.cumsum(breaks))), self._pool)
            kept = part.own(table).filter(~breaks[part.before :])
            kept = kept.with_columns(self._placed(position, kept.height, segments))
            self._count(kept)
            columns.append(kept.filter(pl.col("split") == "train"))
            yield kept
            at += part.height
            segments += int(self._begins[position : position + kept.height].sum())
            position += kept.height

    def scaler(self, columns: ColumnFiles) -> dict[str, Any]:
        """`TrainingWindows.scaler`, once all `tables` are computed.

        Raises:
            WindowsError: if there are too few windows, or a free feature is not finite.
        """
        self._check_enough()
        return {
            "context": self._config.context,
            "length": self._config.length,
            "tick_spacing": self._pool.tick_spacing,
            "rows": self._rows,
            "flagged": self._flagged,
            "features": columns.scales(),
        }

    def _batches(self, *, check: bool) -> Iterator[pl.DataFrame]:
        """The features of the days that are used."""
        return in_batches(self._tables(check), BATCH_ROWS)

    def _tables(self, check: bool) -> Iterator[pl.DataFrame]:
        before: pl.DataFrame | None = None
        for day in self._days:
            table = day.collect()
            if check:
                _check(table, table.clear() if before is None else before)
            before = table.tail(1) if table.height else before
            yield table.filter(pl.col("block_timestamp").dt.date() >= pl.lit(self._first_day))

    def _placed(self, position: int, height: int, segments: int) -> pl.DataFrame:
        """Segment, split and window start of ``height`` rows from ``position``, before which ``segments`` began."""
        reach = self._config.rows - 1
        begins = self._begins[position : position + height + reach]
        places = pl.DataFrame({"segment": segments - 1 + np.cumsum(begins)}, schema={"segment": pl.Int64})
        places = places.with_columns(split=_split(pl.int_range(pl.len()) + position, self.height, self._config))
        same = [pl.col(name) == pl.col(name).shift(-reach) for name in ("segment", "split")]
        starts = (same[0] & same[1]).fill_null(False) & (pl.col("split") != "gap")
        return places.with_columns(window_start=starts).head(height)

    def _count(self, kept: pl.DataFrame) -> None:
        for name in self._rows:
            self._rows[name] += int((kept["split"] == name).sum())
        for name in SPLITS:
            self._windows[name] += int(kept.select((pl.col("window_start") & (pl.col("split") == name)).sum()).item())
        self._broken.update(
            name for name in FREE_FEATURES if kept[name].null_count() or not kept[name].is_finite().all()
        )

    def _check_enough(self) -> None:
        config, counts = self._config, self._windows
        if counts["train"] < config.fewest_train_windows or min(counts.values()) == 0:
            needed = math.ceil((config.fewest_train_windows + 2 * config.rows) / config.train_share)
            shortest = min(config.valid_share, 1 - config.train_share - config.valid_share)
            needed = max(needed, math.ceil(2 * config.rows / shortest))
            raise WindowsError(
                f"{self._swaps} swaps ({self.height} after leaving out {self._flagged} and the first row of each "
                f"segment) give {counts} windows of {config.rows} swaps. At least {config.fewest_train_windows} train "
                f"windows and one in each other split are needed, about {needed} swaps without long pauses. Sync more "
                "days"
            )
        if self._broken:
            broken = [name for name in FREE_FEATURES if name in self._broken]
            raise WindowsError(f"the features {broken} are not finite in some rows; materialize swap_features again")


def _selected(day: pl.LazyFrame) -> pl.LazyFrame:
    """The columns of `SWAP_FEATURES_SCHEMA`, each of its type."""
    names = day.collect_schema().names()
    missing = [name for name in SWAP_FEATURES_SCHEMA if name not in names]
    if missing:
        raise WindowsError(f"the features lack the columns {missing}; materialize swap_features again")
    return day.select(pl.col(name).cast(dtype) for name, dtype in SWAP_FEATURES_SCHEMA.items())


def _check(day: pl.DataFrame, before: pl.DataFrame) -> None:
    """Raise if a number of a day is not finite, or its rows do not come after the row ``before``."""
    for name in ("price", "amount0_eth", "amount1_usdc"):
        wrong = day.filter(pl.col(name).is_null() | ~pl.col(name).is_finite())
        if wrong.height:
            raise WindowsError(
                f"{name}={wrong[name][0]} in block {wrong['block_number'][0]} is not a number "
                f"({wrong.height} such rows); materialize swap_features of that day again"
            )
    if not pl.concat([before, day]).select(in_order().all()).item():
        raise WindowsError("the features are not in (block_number, log_index) order; pass the days in order")


def _marked(features: pl.DataFrame, config: WindowsConfig) -> pl.DataFrame:
    """Each row with its flags, and ``breaks``: the row is left out, or is the first of its segment.

    Nobody needs the first row of a segment but the second one, so it is left out as well.
    """
    liquidity = pl.col("liquidity").cast(pl.Float64)
    median = liquidity.rolling_median(2 * _MEDIAN_REACH + 1, center=True, min_samples=1)
    days = pl.col("block_timestamp").dt.date()
    marked = features.select(
        thin_liquidity=(liquidity < config.thin_liquidity * median) | (liquidity <= 0),
        dust=(pl.col("amount0_eth") == 0) | (pl.col("amount1_usdc") == 0),
        price_jump=(pl.col("price").log().diff().abs() > config.price_jump).fill_null(False),
        pause=(pl.col("block_timestamp").diff().dt.total_seconds() > config.longest_pause).fill_null(True)
        | (days.diff().dt.total_days() > 1).fill_null(True),
    )
    bad = pl.col("thin_liquidity") | pl.col("dust") | pl.col("price_jump")
    # A flagged row ends its segment, and the next row begins a new one.
    return marked.with_columns(breaks=pl.col("pause") | bad | bad.shift().fill_null(True))


def _split(position: pl.Expr, height: int, config: WindowsConfig) -> pl.Expr:
    """Split of the row at a position of ``height``: the last rows are the holdout, blocks among the others valid."""
    gap = config.rows
    holdout_from = math.floor((config.train_share + config.valid_share) * height)
    # Every valid block has room for at least two windows.
    most = math.floor(config.valid_share * height / (2 * config.rows))
    # Rounded down to whole rows; fractions would make some gaps one row too short.
    stretch = holdout_from // max(1, min(config.valid_blocks, most))
    into = position % max(1, stretch)
    valid_from = math.ceil(stretch * config.train_share / (config.train_share + config.valid_share))
    return (
        pl.when(position >= holdout_from)
        .then(pl.when(position < holdout_from + gap).then(pl.lit("gap")).otherwise(pl.lit("holdout")))
        .when(into >= valid_from)
        .then(pl.lit("valid"))
        .when((into >= valid_from - gap) | ((into < gap) & (position >= gap)))
        .then(pl.lit("gap"))
        .otherwise(pl.lit("train"))
    )
