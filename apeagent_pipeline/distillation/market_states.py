"""A market state: what one window of swaps says, as a handful of numbers and as words.

The words (trend, volatility) are buckets of the numbers with fixed, documented edges, so that a state means the same
in training, in the evaluation and in the backtest, whatever batch it came with.
"""

import math
from collections.abc import Mapping
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, model_validator

from apeagent_pipeline.distillation.portfolios import COST_SHARE

TRENDS = ("down strong", "down weak", "flat", "up weak", "up strong")
VOLATILITIES = ("calm", "normal", "high")
CONFIRMATIONS = ("", "confirmed", "volume thin", "flow mixed")
"""What volume and order flow say of the trend; empty: the prompt does not show them."""

_THIN_BELOW = 0.8
_MIXED_BELOW = 0.5

_LOG_TICK = math.log(1.0001)
_NEEDED = {
    "window_id": pl.Int64,
    "step": pl.Int64,
    "condition_id": pl.String,
    "seconds_since_previous": pl.Int64,
    "price": pl.Float64,
    "volume_usdc": pl.Float64,
    "volume_ma": pl.Float64,
    "tick_change": pl.Int64,
    "liquidity_usage": pl.Float64,
    "side": pl.String,
}


class StateWords(BaseModel):
    """The edges between the words.

    The trend is measured against the window's own realised volatility, so it needs no tuning to a pool: a smaller move
    is noise. A random walk is flat in 68 % of windows and strong in 5 % at the defaults. A move that is worth less than
    a purchase and a sale cost is flat too. The volatility edges are in basis points a window.
    """

    model_config = ConfigDict(frozen=True)

    least_move_bps: float = Field(
        20_000 * COST_SHARE,
        description="Upper limit of a flat trend, in bps: the cost of a purchase and a sale together",
        ge=0,
    )
    strong_from: float = Field(2.0, description="Trend is strong if |change| / volatility reaches this", gt=1)
    calm_below_bps: float = Field(30.0, description="Upper limit of calm volatility of the window, in bps", ge=0)
    high_from_bps: float = Field(100.0, description="Lower limit of high volatility of the window, in bps", gt=0)

    @model_validator(mode="after")
    def _edges_in_order(self) -> "StateWords":
        if self.calm_below_bps >= self.high_from_bps:
            raise ValueError("calm_below_bps must be below high_from_bps")
        return self

    def volatility_word(self, level: pl.Expr) -> pl.Expr:
        """The word of ``VOLATILITIES`` for a volatility in basis points."""
        calm, normal, high = (pl.lit(word) for word in VOLATILITIES)
        return (
            pl.when(level < self.calm_below_bps)
            .then(calm)
            .when(level < self.high_from_bps)
            .then(normal)
            .otherwise(high)
        )


def market_states(windows: pl.DataFrame, words: StateWords) -> pl.DataFrame:
    """One market state for each window.

    Args:
        windows: Rows of swaps with the columns of ``synthetic_windows``: ``window_id``, ``step``, ``condition_id`` and
            the features; any number of steps a window.
        words: Edges between the words.

    Returns:
        One row a window, sorted by ``window_id``: window_id, condition_id, price (USDC an ETH, after the last swap),
        change_bps and change_ticks (over all swaps of the window, the first included), volatility_bps (root of the
        summed squared log returns), volume_usdc (sum), volume_ratio (mean volume / the long average at the end),
        imbalance (-1 all sells .. 1 all buys, by volume), liquidity_usage (mean), span_seconds, trend, volatility.

    Raises:
        ValueError: if columns are missing, there is no row, or a number that must be positive and finite is not.
    """
    _require_usable(windows)
    ordered = windows.select(pl.col(name).cast(kind) for name, kind in _NEEDED.items()).sort("window_id", "step")
    first_return = pl.col("tick_change").fill_null(0) * _LOG_TICK
    log_return = pl.col("price").log().diff().over("window_id").fill_null(first_return)
    signed = pl.when(pl.col("side") == "BUY").then(pl.col("volume_usdc")).otherwise(-pl.col("volume_usdc"))
    states = (
        ordered.with_columns(log_return=log_return, signed=signed)
        .group_by("window_id", maintain_order=True)
        .agg(
            pl.col("condition_id").first(),
            pl.col("price").last(),
            change_bps=(pl.col("log_return").sum().exp() - 1) * 1e4,
            change_ticks=pl.col("log_return").sum() / _LOG_TICK,
            volatility_bps=pl.col("log_return").pow(2).sum().sqrt() * 1e4,
            volume_usdc=pl.col("volume_usdc").sum(),
            mean_volume=pl.col("volume_usdc").mean(),
            long_volume=pl.col("volume_ma").last(),
            signed=pl.col("signed").sum(),
            move_bps=pl.col("log_return").sum() * 1e4,
            liquidity_usage=pl.col("liquidity_usage").mean().fill_nan(0).fill_null(0),
            span_seconds=pl.col("seconds_since_previous").fill_null(0).sum(),
        )
    )
    return states.with_columns(
        volume_ratio=_ratio("mean_volume", "long_volume", 1.0),
        imbalance=_ratio("signed", "volume_usdc", 0.0),
        trend=_trend_word(words),
        volatility=words.volatility_word(pl.col("volatility_bps")),
    ).drop("mean_volume", "long_volume", "signed", "move_bps")


def words_for(move_bps: float, volatility_bps: float, words: StateWords) -> tuple[str, str]:
    """The trend word and the volatility word of a price change and a volatility, both in basis points."""
    state = pl.DataFrame({"move_bps": [float(move_bps)], "volatility_bps": [float(volatility_bps)]})
    level = words.volatility_word(pl.col("volatility_bps"))
    trend, volatility = state.select(_trend_word(words), volatility=level).row(0)
    return trend, volatility


def confirmation_word(state: Mapping[str, Any]) -> str:
    """The word of ``CONFIRMATIONS`` for volume and order flow, as prompts print them.

    Args:
        state: ``volume_ratio`` (printed with one decimal), ``imbalance`` (two decimals) and ``trend``.

    Returns:
        ``volume thin`` below .8 of the average; else ``flow mixed`` where less than .5 of the flow goes with the trend;
        else ``confirmed``.
    """
    if float(f"{state['volume_ratio']:.1f}") < _THIN_BELOW:
        return "volume thin"
    with_trend = float(f"{state['imbalance']:.2f}") * (-1 if state["trend"].startswith("down") else 1)
    return "flow mixed" if with_trend < _MIXED_BELOW else "confirmed"


def _require_usable(windows: pl.DataFrame) -> None:
    missing = [name for name in _NEEDED if name not in windows.columns]
    if missing:
        raise ValueError(f"windows lack the columns {missing}; pass the table of synthetic_windows")
    if windows.is_empty():
        raise ValueError("there are no windows; materialize synthetic_windows with n_windows above 0")
    bad = windows.filter(
        ~(pl.col("price").is_finite() & (pl.col("price") > 0)).fill_null(False)
        | ~(pl.col("volume_usdc").is_finite() & (pl.col("volume_usdc") >= 0)).fill_null(False)
    )
    if not bad.is_empty():
        first = bad.row(0, named=True)
        raise ValueError(
            f"{bad.height} of {windows.height} rows have no usable price or volume, first window {first['window_id']} "
            f"step {first['step']}: price {first['price']}, volume {first['volume_usdc']}; expected finite numbers, "
            f"price above 0. Sample the windows again"
        )


def _ratio(above: str, below: str, otherwise: float) -> pl.Expr:
    return pl.when(pl.col(below) > 0).then(pl.col(above) / pl.col(below)).otherwise(otherwise)


def _trend_word(words: StateWords) -> pl.Expr:
    # In a window where nothing moved both are 0, which is flat.
    move = _ratio("move_bps", "volatility_bps", 0.0).round(9)
    down_strong, down_weak, flat, up_weak, up_strong = (pl.lit(word) for word in TRENDS)
    return (
        pl.when((move.abs() < 1) | (pl.col("move_bps").abs() < words.least_move_bps))
        .then(flat)
        .when(move >= words.strong_from)
        .then(up_strong)
        .when(move > 0)
        .then(up_weak)
        .when(move <= -words.strong_from)
        .then(down_strong)
        .otherwise(down_weak)
    )
