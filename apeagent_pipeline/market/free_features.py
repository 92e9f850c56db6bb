"""The free features of a swap: what the pool's arithmetic leaves open.

A swap that crosses ticks ends in another range of prices, which has a liquidity of its own. The event tells only that
one. The swap is taken to run at the liquidity of the swap before it up to the last range, and at its own inside it.
This is exact unless the liquidity changes twice on the way, or a provider changed a position between the two swaps.
"""

import math

import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.market.features import Q96, virtual_reserve

FREE_FEATURES = ("seconds", "is_buy", "log_size", "move", "liquidity_change")
"""The free features of a swap, in the order in which a row is generated."""

STATED_DIGITS = 4
"""An amount with at most this many significant digits is taken for one that a person typed."""

_ROUNDING_UNITS = 10.0
"""Rounding in the contract moves the reconstructed pre-swap price by up to the impact of this many units of token1."""

_LOG_TICK = math.log1p(1e-4)
"""Log of the ratio of the prices of two ticks; ``log(1.0001)`` has lost four digits."""

_ROUNDING_BITS = 2.0**-51
"""Relative rounding error of the logarithms from which a move is computed."""


def free_feature_expressions(pool: PoolSpec, over: str) -> dict[str, pl.Expr]:
    """The free features of `FREE_FEATURES` as expressions over the columns of `SWAP_FEATURES_SCHEMA`.

    Args:
        pool: The pool of the swaps; its fee and decimals are used.
        over: Column with the id of the run of consecutive rows (segment or window). In the first row of a run, features
            that compare with the previous row are null.
    """
    # Buys and sells move sqrt(price) by amount1 / L. The fee, which a buyer pays in token1, does not move the price.
    reserve = virtual_reserve(pool)
    buys = pl.col("side") == "BUY"
    reaching = pl.when(buys).then(1.0 - pool.static_fee / 1e6).otherwise(-1.0)
    impact = reaching * pl.col("volume_usdc") / reserve
    log_root = (pl.col("sqrt_price_x96").cast(pl.Float64) / Q96).log()
    liquidity = pl.col("liquidity").cast(pl.Float64)
    # What lies before the border of the last range ran at the liquidity of the swap before. In units of the root:
    border = (pl.col("tick") // pool.tick_spacing + (~buys).cast(pl.Int64)) * pool.tick_spacing
    inside = 1.0 - (0.5 * _LOG_TICK * border - log_root).exp()
    faster = liquidity / liquidity.shift().over(over).fill_null(liquidity)
    impact = pl.when(impact.abs() > inside.abs()).then(inside + (impact - inside) * faster).otherwise(impact)
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


def with_free_features(table: pl.DataFrame, pool: PoolSpec) -> pl.DataFrame:
    """The table with the free features and ``stated_in_token0``.

    Args:
        table: The columns of `SWAP_FEATURES_SCHEMA`, and ``segment`` with the run of consecutive rows.
        pool: The pool of the swaps.
    """
    # The expressions use both columns many times, so the decimal strings are parsed once.
    numbers = table.with_columns(pl.col("sqrt_price_x96", "liquidity").cast(pl.Float64))
    stated_in_token0 = _typed("amount0_eth") & ~_typed("amount1_usdc")
    return table.with_columns(
        numbers.select(**free_feature_expressions(pool, over="segment"), stated_in_token0=stated_in_token0)
    )


def _typed(amount: str) -> pl.Expr:
    short = pl.col(amount).round_sig_figs(STATED_DIGITS)
    return (pl.col(amount) - short).abs() <= 1e-12 * short.abs()
