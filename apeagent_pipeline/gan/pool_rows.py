"""From irreducible features to whole swaps, by the pool's own arithmetic.

This is the financial post-processing of generated rows: nothing is smoothed or clipped to look right. The price moves
between swaps as the row says, the liquidity changes as the row says, then the swap is executed in exact integers with
that liquidity. Sizes in token1 stay exact, so a buy is an exact input of token1 and a sell an exact output of token1.
"""

from typing import Any

import numpy as np
import polars as pl

from apeagent_pipeline.amm.pool import Pool
from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.amm.price import price_from_sqrt_price
from apeagent_pipeline.amm.swap_math import SwapStep, swap_step
from apeagent_pipeline.amm.ticks import MAX_SQRT_PRICE, MIN_SQRT_PRICE, ticks_at_sqrt_prices
from apeagent_pipeline.market.features import (
    HISTORY_SWAPS,
    SWAP_FEATURES_SCHEMA,
    SWAP_POSITION,
    liquidity_usage,
    volatility,
    volume_average,
)
from apeagent_pipeline.market.windows import FREE_FEATURES, TrainingWindows

SYNTHETIC_WINDOWS_SCHEMA: dict[str, pl.DataType] = {
    "window_id": pl.Int64(),
    "step": pl.Int64(),
    "condition_id": pl.String(),
    **{name: kind for name, kind in SWAP_FEATURES_SCHEMA.items() if name not in SWAP_POSITION},
}

_INTEGERS = np.frompyfunc(int, 1, 1)
_FACTOR_BITS = 60
_LARGEST_SHARE = 2
"""A swap takes at most one part in so many of the virtual reserve: beyond it, one range is no picture of a pool."""


def synthetic_windows(windows: TrainingWindows, ends: np.ndarray, rows: np.ndarray, pool: PoolSpec) -> pl.DataFrame:
    """Whole swaps for generated rows.

    Args:
        windows: Where the histories stand.
        ends: Position [n] in ``windows.table`` of the last real row of each history.
        rows: Irreducible features of the rows that follow, [n, T, 5] in the order of `FREE_FEATURES`.
        pool: Fee and decimals.

    Returns:
        Rows with `SYNTHETIC_WINDOWS_SCHEMA`, window after window. ``volatility`` and ``volume_ma`` see the real rows
        of the history's segment as the features of real swaps do.

    Raises:
        ValueError: if the rows do not have the shape above or hold a value that is no finite number.
    """
    n, length, features = rows.shape
    if features != len(FREE_FEATURES) or len(ends) != n or not np.isfinite(rows).all():
        raise ValueError(f"rows {rows.shape} for {len(ends)} histories must be finite and [n, T, {len(FREE_FEATURES)}]")
    table = windows.table
    last = table[ends]
    roots, liquidities, amounts0, amounts1 = _executed(
        _INTEGERS(last["sqrt_price_x96"].to_numpy()), _INTEGERS(last["liquidity"].to_numpy()), rows, pool
    )
    ids = last.select(
        pl.format(
            "{}-{}",
            pl.col("block_number").cast(pl.String).str.zfill(12),
            pl.col("log_index").cast(pl.String).str.zfill(6),
        )
    ).to_series()
    generated = pl.DataFrame(
        {
            "window_id": np.repeat(np.arange(n), length),
            "step": np.tile(np.arange(length), n),
            "condition_id": ids.gather(np.repeat(np.arange(n), length)),
            "seconds_since_previous": np.rint(rows[..., FREE_FEATURES.index("seconds")]).astype(np.int64).ravel(),
            "tick": ticks_at_sqrt_prices(roots.ravel()),
            "amount0_eth": amounts0.ravel().astype(np.float64) / 10.0**pool.token0.decimals,
            "amount1_usdc": amounts1.ravel().astype(np.float64) / 10.0**pool.token1.decimals,
            "liquidity": liquidities.ravel().astype(str),
            "sqrt_price_x96": roots.ravel().astype(str),
            "side": np.where(rows[..., FREE_FEATURES.index("is_buy")].ravel() > 0.5, "BUY", "SELL"),
        }
    ).with_columns(
        price=price_from_sqrt_price(pl.col("sqrt_price_x96").cast(pl.Float64), pool),
        volume_usdc=pl.col("amount1_usdc").abs(),
    )
    shared = ["window_id", "step", "tick", "price", "volume_usdc"]
    seen = pl.concat([_histories(table, ends).select(shared), generated.select(shared)]).sort("window_id", "step")
    seen = seen.with_columns(
        volatility=volatility().over("window_id"),
        volume_ma=volume_average().over("window_id"),
        tick_change=pl.col("tick").diff().over("window_id"),
    ).filter(pl.col("step") >= 0)
    whole = generated.with_columns(
        *(seen[name] for name in ("volatility", "volume_ma", "tick_change")), liquidity_usage=liquidity_usage(pool)
    )
    return whole.select(pl.col(name).cast(dtype) for name, dtype in SYNTHETIC_WINDOWS_SCHEMA.items())


def _executed(root: np.ndarray, liquidity: np.ndarray, rows: np.ndarray, pool: PoolSpec) -> tuple[np.ndarray, ...]:
    """Prices, liquidities and both amounts after every row, object arrays [n, T] of Python integers."""
    free = {name: rows[..., k] for k, name in enumerate(FREE_FEATURES)}
    sizes = np.rint(np.exp(free["log_size"]) * 10.0**pool.token1.decimals)
    sizes = _INTEGERS(sizes)
    root_factors, liquidity_factors = _factors(free["move"] / 2), _factors(free["liquidity_change"])
    columns: list[tuple[Any, ...]] = []
    for step in range(rows.shape[1]):
        liquidity = np.maximum(liquidity * liquidity_factors[:, step] >> _FACTOR_BITS, 1)
        root = root * root_factors[:, step] >> _FACTOR_BITS
        root = np.clip(root, MIN_SQRT_PRICE + 1, MAX_SQRT_PRICE - 1)
        reserve = liquidity * root >> 96
        size = np.maximum(np.minimum(sizes[:, step], reserve // _LARGEST_SHARE), 1)
        sells = free["is_buy"][:, step] <= 0.5
        swap = _swapped(root, liquidity, np.where(sells, size, -size), sells, pool)
        root = swap.sqrt_price_x96
        columns.append((root, liquidity, swap.amount0, swap.amount1))
    return tuple(np.stack(parts, axis=1) for parts in zip(*columns, strict=True))


def _swapped(
    root: np.ndarray, liquidity: np.ndarray, amount_specified: np.ndarray, sells: np.ndarray, pool: PoolSpec
) -> SwapStep:
    """`swap_step` of many pools whose liquidity is the same at every price; arguments and results [n]."""
    swap = swap_step(root, liquidity, amount_specified, sells, pool.static_fee)
    # At a border of the tick bitmap the contract rounds once more. On the way up it stops a spacing below the border.
    shift = np.where(sells, 0, pool.tick_spacing)
    words = [(ticks_at_sqrt_prices(each) + shift) // (256 * pool.tick_spacing) for each in (root, swap.sqrt_price_x96)]
    for i in np.flatnonzero(words[0] != words[1]):
        one = Pool(root[i], pool.static_fee, pool.tick_spacing)
        one.liquidity = liquidity[i]
        swap.amount0[i], swap.amount1[i] = one.swap(bool(sells[i]), amount_specified[i])
        swap.sqrt_price_x96[i] = one.sqrt_price_x96
    return swap


def _factors(logs: np.ndarray) -> np.ndarray:
    """``exp(logs)`` as fixed-point integers; a log of exactly 0 is exactly one."""
    return _INTEGERS(np.rint(np.exp(logs) * 2.0**_FACTOR_BITS))


def _histories(table: pl.DataFrame, ends: np.ndarray) -> pl.DataFrame:
    """The rows of each history's segment that the first generated row can see, at steps -1, -2 ..."""
    steps = np.arange(-HISTORY_SWAPS, 0)
    index = ends[:, None] + 1 + steps
    segments = table["segment"].to_numpy()
    inside = (index >= 0) & (segments[np.maximum(index, 0)] == segments[ends][:, None])
    window, step = np.nonzero(inside)
    return table[index[inside]].with_columns(window_id=window, step=steps[step])
