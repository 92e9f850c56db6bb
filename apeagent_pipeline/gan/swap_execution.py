"""Execution of generated rows: five free features become whole swaps, by the pool's own arithmetic.

Any generator of free features can be placed before this module. Nothing is smoothed or clipped to look realistic: for
each row the price moves and the liquidity changes as the row says, then the swap is executed in exact integers. The
stated amount stays exact: a size in token1 is the exact input of a buy and the exact output of a sell; for a size in
token0 it is the other way round.
"""

from decimal import Decimal
from typing import NamedTuple

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
    swap_key,
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

COLUMN_DESCRIPTIONS = {
    "window_id": "Number of the window",
    "step": "Position of the swap in its window, from 0",
}
"""What each column that this module adds means, with its unit; shown in the UI as the column schema."""

IN_TOKEN1, IN_TOKEN0, REPEATED = 0, 1, 2
"""Origins of a size: stated in token1, stated in token0, or (``REPEATED + k``) repeated from ``k + 1`` rows before."""


class Origins(NamedTuple):
    """Where the size and the liquidity of generated rows come from, int64 [n, T] each.

    Attributes:
        size: `IN_TOKEN1`, `IN_TOKEN0`, or ``REPEATED + k``: exactly the stated amount of ``k + 1`` rows before.
        liquidity: 0: the row's ``liquidity_change`` applies; ``k``: exactly the liquidity of ``k`` rows before.
    """

    size: np.ndarray
    liquidity: np.ndarray

    @classmethod
    def none(cls, n: int, length: int) -> "Origins":
        """Every size stated in token1 and every liquidity as its change says."""
        return cls(np.zeros((n, length), dtype=np.int64), np.zeros((n, length), dtype=np.int64))


_INTEGERS = np.frompyfunc(int, 1, 1)
_FACTOR_BITS = 60
_RESERVE_DIVISOR = 2
"""A swap takes at most the virtual reserve divided by this; larger swaps would leave the range of the price."""


def synthetic_windows(
    windows: TrainingWindows, ends: np.ndarray, rows: np.ndarray, pool: PoolSpec, origins: Origins | None = None
) -> pl.DataFrame:
    """Execute generated rows as swaps of the pool.

    Args:
        windows: The table of real swaps that holds the histories.
        ends: Position [n] in ``windows.table`` of the last real row of each history.
        rows: Free features of the rows that follow each history, [n, T, 5] in the order of `FREE_FEATURES`.
        pool: The pool; its fee, decimals and tick spacing are used.
        origins: Origins of sizes and liquidities; default `Origins.none`.

    Returns:
        Rows with `SYNTHETIC_WINDOWS_SCHEMA`, window after window. ``volatility`` and ``volume_ma`` include the real
        rows of the history's segment, like the features of real swaps.

    Raises:
        ValueError: if the rows have another shape or a value is not finite.
    """
    n, length, features = rows.shape
    if features != len(FREE_FEATURES) or len(ends) != n or not np.isfinite(rows).all():
        raise ValueError(f"rows {rows.shape} for {len(ends)} histories must be finite and [n, T, {len(FREE_FEATURES)}]")
    history = _History.of(windows.table, ends, windows.context, pool, origins is not None)
    prices, liquidities, amounts0, amounts1 = _execute(history, rows, origins or Origins.none(n, length), pool)
    keys = windows.table[ends].select(swap_key()).to_series()
    generated = pl.DataFrame(
        {
            "window_id": np.repeat(np.arange(n), length),
            "step": np.tile(np.arange(length), n),
            "condition_id": keys.gather(np.repeat(np.arange(n), length)),
            "seconds_since_previous": np.rint(rows[..., FREE_FEATURES.index("seconds")]).astype(np.int64).ravel(),
            "tick": ticks_at_sqrt_prices(prices.ravel()),
            "amount0_eth": amounts0.ravel().astype(np.float64) / 10.0**pool.token0.decimals,
            "amount1_usdc": amounts1.ravel().astype(np.float64) / 10.0**pool.token1.decimals,
            "liquidity": liquidities.ravel().astype(str),
            "sqrt_price_x96": prices.ravel().astype(str),
            "side": np.where(rows[..., FREE_FEATURES.index("is_buy")].ravel() > 0.5, "BUY", "SELL"),
        }
    ).with_columns(
        price=price_from_sqrt_price(pl.col("sqrt_price_x96").cast(pl.Float64), pool),
        volume_usdc=pl.col("amount1_usdc").abs(),
    )
    return _with_features(generated, _earlier_rows(windows.table, ends), pool)


def _with_features(generated: pl.DataFrame, earlier: pl.DataFrame, pool: PoolSpec) -> pl.DataFrame:
    """Add the features that depend on the rows before, and put the columns in the order of the schema."""
    columns = ["window_id", "step", "tick", "price", "volume_usdc"]
    both = pl.concat([earlier.select(columns), generated.select(columns)]).sort("window_id", "step")
    both = both.with_columns(
        volatility=volatility().over("window_id"),
        volume_ma=volume_average().over("window_id"),
        tick_change=pl.col("tick").diff().over("window_id"),
    ).filter(pl.col("step") >= 0)
    complete = generated.with_columns(
        *(both[name] for name in ("volatility", "volume_ma", "tick_change")), liquidity_usage=liquidity_usage(pool)
    )
    return complete.select(pl.col(name).cast(dtype) for name, dtype in SYNTHETIC_WINDOWS_SCHEMA.items())


class _History(NamedTuple):
    """What generated rows start from and may repeat; integers of real rows in object arrays.

    Attributes:
        price: Square-root price (Q64.96) after the last row, [n].
        liquidity: Liquidity of the last rows, oldest first, [n, rows].
        stated: Their stated amounts in smallest units, of token0 where ``in_token0`` says so, [n, rows].
        in_token0: [n, rows].
        typed: Amounts of token0 that people typed in the train rows, sorted, in whole tokens.
    """

    price: np.ndarray
    liquidity: np.ndarray
    stated: np.ndarray
    in_token0: np.ndarray
    typed: np.ndarray

    @classmethod
    def of(cls, table: pl.DataFrame, ends: np.ndarray, context: int, pool: PoolSpec, origins: bool) -> "_History":
        """The histories that end at ``ends`` [n]; without ``origins`` only their last rows are read."""
        price = _INTEGERS(table[ends]["sqrt_price_x96"].to_numpy())
        if not origins:
            empty = np.zeros((len(ends), 0))
            return cls(price, _INTEGERS(table[ends]["liquidity"].to_numpy())[:, None], empty, empty, np.zeros(0))
        index = ends[:, None] + np.arange(1 - context, 1)
        rows, inverse = np.unique(index, return_inverse=True)
        inverse = inverse.reshape(index.shape)
        part = table[rows]
        in_token0 = part["stated_in_token0"].to_numpy()
        stated = _smallest_units(part["volume_usdc"].to_numpy(), pool.token1.decimals)
        stated[in_token0] = _smallest_units(part["amount0_eth"].abs().to_numpy()[in_token0], pool.token0.decimals)
        train = table.filter((pl.col("split") == "train") & pl.col("stated_in_token0"))
        typed = np.sort(train["amount0_eth"].abs().to_numpy())
        return cls(price, _INTEGERS(part["liquidity"].to_numpy())[inverse], stated[inverse], in_token0[inverse], typed)


def _execute(history: _History, rows: np.ndarray, origins: Origins, pool: PoolSpec) -> tuple[np.ndarray, ...]:
    """Prices, liquidities and both amounts after every row, object arrays [n, T] of Python integers."""
    free = {name: rows[..., k] for k, name in enumerate(FREE_FEATURES)}
    sizes = np.exp(free["log_size"])
    price_factors, liquidity_factors = _factors(free["move"] / 2), _factors(free["liquidity_change"])
    price = history.price
    liquidities, stated, in_token0 = (list(each.T) for each in (history.liquidity, history.stated, history.in_token0))
    prices, amounts = [], []
    for step in range(rows.shape[1]):
        origin, back = origins.size[:, step], origins.liquidity[:, step]
        liquidity = np.maximum(liquidities[-1] * liquidity_factors[:, step] >> _FACTOR_BITS, 1)
        liquidity = _repeat(liquidity, liquidities, back)
        price = price * price_factors[:, step] >> _FACTOR_BITS
        price = np.clip(price, MIN_SQRT_PRICE + 1, MAX_SQRT_PRICE - 1)
        of_token0 = (origin == IN_TOKEN0) & (len(history.typed) > 0)
        size = _smallest_units(sizes[:, step], pool.token1.decimals)
        if of_token0.any():
            token0_price = price_from_sqrt_price(price[of_token0].astype(np.float64), pool)
            typed = _nearest(history.typed, sizes[of_token0, step] / token0_price)
            size[of_token0] = _smallest_units(typed, pool.token0.decimals)
        age = np.maximum(origin - REPEATED + 1, 0)
        size, of_token0 = _repeat(size, stated, age), _repeat(of_token0, in_token0, age).astype(bool)
        reserve0, reserve1 = (liquidity << 96) // price, liquidity * price >> 96
        largest = np.where(of_token0, reserve0, reserve1) // _RESERVE_DIVISOR
        # Large enough that at least one unit of the other token moves.
        smallest = np.where(of_token0, (4 << 192) // (price * price), 0) + 1
        size = np.maximum(np.minimum(size, largest), smallest)
        sells = free["is_buy"][:, step] <= 0.5
        # An exact input is negative, an exact output positive.
        swap = execute_swaps(price, liquidity, np.where(sells == of_token0, -size, size), sells, pool)
        price = swap.sqrt_price_x96
        prices.append(price)
        amounts.append((swap.amount0, swap.amount1))
        for column, now in ((liquidities, liquidity), (stated, size), (in_token0, of_token0)):
            column.append(now)
    length = rows.shape[1]
    amounts0, amounts1 = (np.stack(each, axis=1) for each in zip(*amounts, strict=True))
    return np.stack(prices, axis=1), np.stack(liquidities[-length:], axis=1), amounts0, amounts1


def _repeat(new: np.ndarray, columns: list[np.ndarray], back: np.ndarray) -> np.ndarray:
    """``new`` [n] where ``back`` is 0, else the value ``back`` columns before."""
    for age in np.unique(back[back > 0]):
        new = np.where(back == age, columns[-age], new)
    return new


def _smallest_units(amounts: np.ndarray, decimals: int) -> np.ndarray:
    """Whole tokens as integers of the smallest unit, exact for the shortest decimal notation of the float."""
    exact = np.frompyfunc(lambda amount: int(Decimal(repr(float(amount))).scaleb(decimals).to_integral_value()), 1, 1)
    return exact(amounts)


def _nearest(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of the sorted ``known`` [m] nearest by ratio to each of ``wanted`` [n]."""
    above = np.clip(np.searchsorted(known, wanted), 1, max(len(known) - 1, 1))
    low, high = known[above - 1], known[np.minimum(above, len(known) - 1)]
    return np.where(wanted * wanted < low * high, low, high)


def execute_swaps(
    sqrt_price: np.ndarray, liquidity: np.ndarray, amount_specified: np.ndarray, sells: np.ndarray, pool: PoolSpec
) -> SwapStep:
    """`swap_step` for many pools, each with the same liquidity at every price; arguments and results [n]."""
    swap = swap_step(sqrt_price, liquidity, amount_specified, sells, pool.static_fee)
    # Where the price crosses into another word of the tick bitmap the contract rounds once more, so these swaps run on
    # a whole pool. On the way up the contract stops one spacing below the border.
    shift = np.where(sells, 0, pool.tick_spacing)
    ends = (sqrt_price, swap.sqrt_price_x96)
    words = [(ticks_at_sqrt_prices(each) + shift) // (256 * pool.tick_spacing) for each in ends]
    for i in np.flatnonzero(words[0] != words[1]):
        one = Pool(sqrt_price[i], pool.static_fee, pool.tick_spacing)
        one.liquidity = liquidity[i]
        swap.amount0[i], swap.amount1[i] = one.swap(bool(sells[i]), amount_specified[i])
        swap.sqrt_price_x96[i] = one.sqrt_price_x96
    return swap


def _factors(logs: np.ndarray) -> np.ndarray:
    """``exp(logs)`` as fixed-point integers; a log of exactly 0 gives exactly one."""
    return _INTEGERS(np.rint(np.exp(logs) * 2.0**_FACTOR_BITS))


def _earlier_rows(table: pl.DataFrame, ends: np.ndarray) -> pl.DataFrame:
    """The real rows that the features of the first generated rows depend on, at steps -1, -2, ..."""
    steps = np.arange(-HISTORY_SWAPS, 0)
    index = ends[:, None] + 1 + steps
    segments = table["segment"].to_numpy()
    inside = (index >= 0) & (segments[np.maximum(index, 0)] == segments[ends][:, None])
    window, step = np.nonzero(inside)
    return table[index[inside]].with_columns(window_id=window, step=steps[step])
