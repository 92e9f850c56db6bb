"""From irreducible features to whole swaps, by the pool's own arithmetic.

This is the financial post-processing of generated rows: nothing is smoothed or clipped to look right. The price moves
between swaps as the row says, the liquidity changes as the row says, then the swap is executed in exact integers with
that liquidity. The amount that somebody stated stays exact: a size in token1 is an exact input of a buy and an exact
output of a sell, a size in token0 the other way round.
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

IN_TOKEN1, IN_TOKEN0, REPEATED = 0, 1, 2
"""Origins of a size: an amount of token1; one of token0; that of one row before (of two rows before: one more ...)."""


class Origins(NamedTuple):
    """Where the size and the liquidity of generated rows come from, int64 [n, T] each.

    Attributes:
        size: `IN_TOKEN1`, `IN_TOKEN0`, or ``REPEATED + k``: exactly the stated amount of ``k + 1`` rows before.
        liquidity: 0: as the row's change says; ``k``: exactly the liquidity of ``k`` rows before.
    """

    size: np.ndarray
    liquidity: np.ndarray

    @classmethod
    def none(cls, n: int, length: int) -> "Origins":
        """All sizes stated in token1, no liquidity one of before."""
        return cls(np.zeros((n, length), dtype=np.int64), np.zeros((n, length), dtype=np.int64))


_INTEGERS = np.frompyfunc(int, 1, 1)
_FACTOR_BITS = 60
_LARGEST_SHARE = 2
"""A swap takes at most one part in so many of the virtual reserve: beyond it, one range is no picture of a pool."""


def synthetic_windows(
    windows: TrainingWindows, ends: np.ndarray, rows: np.ndarray, pool: PoolSpec, origins: Origins | None = None
) -> pl.DataFrame:
    """Whole swaps for generated rows.

    Args:
        windows: Where the histories stand.
        ends: Position [n] in ``windows.table`` of the last real row of each history.
        rows: Irreducible features of the rows that follow, [n, T, 5] in the order of `FREE_FEATURES`.
        pool: Fee and decimals.
        origins: Where sizes and liquidities come from; none: see `Origins.none`.

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
    past = _Past.of(table, ends, windows.context, pool, origins is not None)
    roots, liquidities, amounts0, amounts1 = _executed(past, rows, origins or Origins.none(n, length), pool)
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


class _Past(NamedTuple):
    """What generated rows start from and repeat, the integers of real rows in object arrays.

    Attributes:
        root: Square-root price after the last row, [n].
        liquidity: Of the last rows, oldest first, [n, rows].
        stated: Their stated amounts, in the token that ``in_token0`` says, [n, rows].
        in_token0: [n, rows].
        typed: Amounts of token0 that somebody typed in the train rows, sorted, in whole tokens.
    """

    root: np.ndarray
    liquidity: np.ndarray
    stated: np.ndarray
    in_token0: np.ndarray
    typed: np.ndarray

    @classmethod
    def of(cls, table: pl.DataFrame, ends: np.ndarray, context: int, pool: PoolSpec, origins: bool) -> "_Past":
        """Of histories that end at ``ends`` [n]; without ``origins`` only the last row is looked at."""
        root = _INTEGERS(table[ends]["sqrt_price_x96"].to_numpy())
        if not origins:
            empty = np.zeros((len(ends), 0))
            return cls(root, _INTEGERS(table[ends]["liquidity"].to_numpy())[:, None], empty, empty, np.zeros(0))
        index = ends[:, None] + np.arange(1 - context, 1)
        rows, place = np.unique(index, return_inverse=True)
        place = place.reshape(index.shape)
        part = table[rows]
        in_token0 = part["stated_in_token0"].to_numpy()
        stated = _smallest_units(part["volume_usdc"].to_numpy(), pool.token1.decimals)
        stated[in_token0] = _smallest_units(part["amount0_eth"].abs().to_numpy()[in_token0], pool.token0.decimals)
        train = table.filter((pl.col("split") == "train") & pl.col("stated_in_token0"))
        typed = np.sort(train["amount0_eth"].abs().to_numpy())
        return cls(root, _INTEGERS(part["liquidity"].to_numpy())[place], stated[place], in_token0[place], typed)


def _executed(past: _Past, rows: np.ndarray, origins: Origins, pool: PoolSpec) -> tuple[np.ndarray, ...]:
    """Prices, liquidities and both amounts after every row, object arrays [n, T] of Python integers."""
    free = {name: rows[..., k] for k, name in enumerate(FREE_FEATURES)}
    sizes = np.exp(free["log_size"])
    root_factors, liquidity_factors = _factors(free["move"] / 2), _factors(free["liquidity_change"])
    root = past.root
    liquidities, stated, in_token0 = (list(part.T) for part in (past.liquidity, past.stated, past.in_token0))
    prices, amounts = [], []
    for step in range(rows.shape[1]):
        origin, back = origins.size[:, step], origins.liquidity[:, step]
        liquidity = np.maximum(liquidities[-1] * liquidity_factors[:, step] >> _FACTOR_BITS, 1)
        liquidity = _repeated(liquidity, liquidities, back)
        root = root * root_factors[:, step] >> _FACTOR_BITS
        root = np.clip(root, MIN_SQRT_PRICE + 1, MAX_SQRT_PRICE - 1)
        of_token0 = (origin == IN_TOKEN0) & (len(past.typed) > 0)
        size = _smallest_units(sizes[:, step], pool.token1.decimals)
        if of_token0.any():
            price = price_from_sqrt_price(root[of_token0].astype(np.float64), pool)
            typed = _nearest(past.typed, sizes[of_token0, step] / price)
            size[of_token0] = _smallest_units(typed, pool.token0.decimals)
        age = np.maximum(origin - REPEATED + 1, 0)
        size, of_token0 = _repeated(size, stated, age), _repeated(of_token0, in_token0, age).astype(bool)
        reserve0, reserve1 = (liquidity << 96) // root, liquidity * root >> 96
        largest = np.where(of_token0, reserve0, reserve1) // _LARGEST_SHARE
        smallest = np.where(of_token0, (4 << 192) // (root * root), 0) + 1  # the other token moves as well
        size = np.maximum(np.minimum(size, largest), smallest)
        sells = free["is_buy"][:, step] <= 0.5
        # An exact input is negative, an exact output positive.
        swap = _swapped(root, liquidity, np.where(sells == of_token0, -size, size), sells, pool)
        root = swap.sqrt_price_x96
        prices.append(root)
        amounts.append((swap.amount0, swap.amount1))
        for column, now in ((liquidities, liquidity), (stated, size), (in_token0, of_token0)):
            column.append(now)
    length = rows.shape[1]
    amounts0, amounts1 = (np.stack(part, axis=1) for part in zip(*amounts, strict=True))
    return np.stack(prices, axis=1), np.stack(liquidities[-length:], axis=1), amounts0, amounts1


def _repeated(new: np.ndarray, columns: list[np.ndarray], back: np.ndarray) -> np.ndarray:
    """``new`` [n] where ``back`` is 0, else the value of so many columns before."""
    for age in np.unique(back[back > 0]):
        new = np.where(back == age, columns[-age], new)
    return new


def _smallest_units(amounts: np.ndarray, decimals: int) -> np.ndarray:
    """Whole tokens as integers of the smallest unit, as their shortest decimal notation says."""
    exact = np.frompyfunc(lambda amount: int(Decimal(repr(float(amount))).scaleb(decimals).to_integral_value()), 1, 1)
    return exact(amounts)


def _nearest(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The nearest of the sorted ``known`` [m], by ratio, to each of ``wanted`` [n]."""
    above = np.clip(np.searchsorted(known, wanted), 1, max(len(known) - 1, 1))
    low, high = known[above - 1], known[np.minimum(above, len(known) - 1)]
    return np.where(wanted * wanted < low * high, low, high)


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
