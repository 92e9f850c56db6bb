"""Execution of generated rows: five free features become whole swaps, by the pool's own arithmetic.

Any generator of free features can be placed before this module. Nothing is smoothed or clipped to look realistic: for
each row the price moves and the liquidity changes as the row says, and the swap is executed in exact integers. A swap
that ends in another range of prices runs at the liquidity of the row before up to that range, and at the new one inside
it; any other runs at the new one. The stated amount stays exact: a size in token1 is the exact input of a buy and the
exact output of a sell; for a size in token0 it is the other way round.
"""

from decimal import Decimal
from typing import NamedTuple

import numpy as np
import polars as pl

from apeagent_pipeline.amm.pool import Pool
from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.amm.price import price_from_sqrt_price
from apeagent_pipeline.amm.swap_math import SwapStep, swap_step
from apeagent_pipeline.amm.ticks import (
    MAX_SQRT_PRICE,
    MAX_TICK,
    MIN_SQRT_PRICE,
    MIN_TICK,
    ticks_at_sqrt_prices,
)
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

REPEATS = 4
"""A size can repeat the size of one of this many rows before."""

IN_TOKEN1, IN_TOKEN0, REPEATED = 0, 1, 2
"""Origins of a size: stated in token1, stated in token0, or (``REPEATED + k``) repeated from ``k + 1`` rows before."""


class Origins(NamedTuple):
    """Where the size and the liquidity of generated rows come from, int64 [n, T] each.

    Attributes:
        size: `IN_TOKEN1`, `IN_TOKEN0`, or ``REPEATED + k``: exactly the stated amount of ``k + 1`` rows before.
        liquidity: 0: the row's ``liquidity_change`` applies; ``k``: exactly the liquidity of ``k`` rows before, and
            what providers have added since: the changes of rows that stayed in their range. Most positions are far
            wider than a range, so they raise every range that is known.
    """

    size: np.ndarray
    liquidity: np.ndarray

    @classmethod
    def none(cls, n: int, length: int) -> "Origins":
        """Every size stated in token1 and every liquidity as its change says."""
        return cls(np.zeros((n, length), dtype=np.int64), np.zeros((n, length), dtype=np.int64))


LEAST_LEFT = 10
"""A range whose liquidity providers have lowered by more than this factor since it was seen counts as unknown."""

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
    prices, ticks, liquidities, amounts0, amounts1 = _execute(history, rows, origins or Origins.none(n, length), pool)
    keys = windows.table[ends].select(swap_key()).to_series()
    generated = pl.DataFrame(
        {
            "window_id": np.repeat(np.arange(n), length),
            "step": np.tile(np.arange(length), n),
            "condition_id": keys.gather(np.repeat(np.arange(n), length)),
            "seconds_since_previous": np.rint(rows[..., FREE_FEATURES.index("seconds")]).astype(np.int64).ravel(),
            "tick": ticks.ravel(),
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
        tick: Its tick, [n].
        liquidity: Liquidity of the last rows, oldest first, [n, rows].
        added: Liquidity that providers added from the first of these rows until after each of them, [n, rows].
        stated: Their stated amounts in smallest units, of token0 where ``in_token0`` says so, [n, rows].
        in_token0: [n, rows].
        typed: Amounts of token0 that people typed in the train rows, each once, sorted; ``typed_tokens`` the same in
            whole tokens.
    """

    price: np.ndarray
    tick: np.ndarray
    liquidity: np.ndarray
    added: np.ndarray
    stated: np.ndarray
    in_token0: np.ndarray
    typed: np.ndarray
    typed_tokens: np.ndarray

    @classmethod
    def of(cls, table: pl.DataFrame, ends: np.ndarray, context: int, pool: PoolSpec, origins: bool) -> "_History":
        """The histories that end at ``ends`` [n]; without ``origins`` only their last rows are read."""
        price, tick = _INTEGERS(table[ends]["sqrt_price_x96"].to_numpy()), table[ends]["tick"].to_numpy()
        if not origins:
            liquidity, empty = _INTEGERS(table[ends]["liquidity"].to_numpy())[:, None], np.zeros((len(ends), 0))
            return cls(price, tick, liquidity, 0 * liquidity, empty, empty, np.zeros(0), np.zeros(0))
        index = ends[:, None] + np.arange(1 - context, 1)
        rows, inverse = np.unique(index, return_inverse=True)
        inverse = inverse.reshape(index.shape)
        part = table[rows]
        in_token0 = part["stated_in_token0"].to_numpy()
        stated = _smallest_units(part["volume_usdc"].to_numpy(), pool.token1.decimals)
        stated[in_token0] = _smallest_units(part["amount0_eth"].abs().to_numpy()[in_token0], pool.token0.decimals)
        train = table.filter((pl.col("split") == "train") & pl.col("stated_in_token0"))
        typed = np.unique(train["amount0_eth"].abs().to_numpy())
        liquidity = _INTEGERS(part["liquidity"].to_numpy())[inverse]
        ranges = part["tick"].to_numpy()[inverse] // pool.tick_spacing
        stays = np.diff(ranges, axis=1, prepend=ranges[:, :1]) == 0
        added = np.cumsum(np.where(stays, np.diff(liquidity, axis=1, prepend=liquidity[:, :1]), 0), axis=1)
        units = _smallest_units(typed, pool.token0.decimals)
        return cls(price, tick, liquidity, added, stated[inverse], in_token0[inverse], units, typed)


def _execute(history: _History, rows: np.ndarray, origins: Origins, pool: PoolSpec) -> tuple[np.ndarray, ...]:
    """Prices, ticks, liquidities and both amounts after every row, [n, T]; object arrays but for the ticks."""
    free = {name: rows[..., k] for k, name in enumerate(FREE_FEATURES)}
    sizes = np.exp(free["log_size"])
    price_factors, liquidity_factors = _factors(free["move"] / 2), _factors(free["liquidity_change"])
    price, tick = history.price, history.tick
    liquidities, stated, in_token0 = (list(each.T) for each in (history.liquidity, history.stated, history.in_token0))
    added = list(history.added.T)
    prices, ticks, amounts = [], [], []
    for step in range(rows.shape[1]):
        origin, back = origins.size[:, step], origins.liquidity[:, step]
        before, range_before = liquidities[-1], tick // pool.tick_spacing
        liquidity = before * liquidity_factors[:, step] >> _FACTOR_BITS
        liquidity = _repeat(liquidity, liquidities, back)
        left = liquidity + added[-1] - _repeat(added[-1], added, back)
        liquidity = np.maximum(np.maximum(left, liquidity // LEAST_LEFT), 1)
        price = price * price_factors[:, step] >> _FACTOR_BITS
        price = np.clip(price, MIN_SQRT_PRICE + 1, MAX_SQRT_PRICE - 1)
        of_token0 = (origin == IN_TOKEN0) & (len(history.typed) > 0)
        size = _smallest_units(sizes[:, step], pool.token1.decimals)
        if of_token0.any():
            token0_price = price_from_sqrt_price(price[of_token0].astype(np.float64), pool)
            newest = zip(stated[-REPEATS:], in_token0[-REPEATS:], strict=True)
            last = [np.where(in0, each, 0)[of_token0] for each, in0 in newest]
            size[of_token0] = _typed_sizes(history, sizes[of_token0, step] / token0_price, last)
        age = np.maximum(origin - REPEATED + 1, 0)
        size, of_token0 = _repeat(size, stated, age), _repeat(of_token0, in_token0, age).astype(bool)
        lowest = np.minimum(before, liquidity)
        reserve0, reserve1 = (lowest << 96) // price, lowest * price >> 96
        largest = np.where(of_token0, reserve0, reserve1) // _RESERVE_DIVISOR
        # Large enough that at least one unit of the other token moves.
        smallest = np.where(of_token0, (4 << 192) // (price * price), 0) + 1
        size = np.maximum(np.minimum(size, largest), smallest)
        sells = free["is_buy"][:, step] <= 0.5
        # An exact input is negative, an exact output positive.
        swap = execute_swaps(price, before, liquidity, np.where(sells == of_token0, -size, size), sells, pool=pool)
        price, tick = swap.sqrt_price_x96, ticks_at_sqrt_prices(swap.sqrt_price_x96)
        prices.append(price)
        ticks.append(tick)
        amounts.append((swap.amount0, swap.amount1))
        stays = tick // pool.tick_spacing == range_before
        added_now = added[-1] + np.where(stays, liquidity - before, 0)
        for column, now in (
            (liquidities, liquidity), (added, added_now), (stated, size), (in_token0, of_token0)
        ):  # fmt: skip
            column.append(now)
    length = rows.shape[1]
    amounts0, amounts1 = (np.stack(each, axis=1) for each in zip(*amounts, strict=True))
    return (
        np.stack(prices, axis=1), np.stack(ticks, axis=1), np.stack(liquidities[-length:], axis=1), amounts0, amounts1
    )  # fmt: skip


def _repeat(new: np.ndarray, columns: list[np.ndarray], back: np.ndarray) -> np.ndarray:
    """``new`` [n] where ``back`` is 0, else the value ``back`` columns before."""
    for age in np.unique(back[back > 0]):
        new = np.where(back == age, columns[-age], new)
    return new


def _smallest_units(amounts: np.ndarray, decimals: int) -> np.ndarray:
    """Whole tokens as integers of the smallest unit, exact for the shortest decimal notation of the float."""
    exact = np.frompyfunc(lambda amount: int(Decimal(repr(float(amount))).scaleb(decimals).to_integral_value()), 1, 1)
    return exact(amounts)


def _typed_sizes(history: _History, wanted: np.ndarray, last: list[np.ndarray]) -> np.ndarray:
    """Of the typed amounts the nearest by ratio to each of ``wanted`` [n], but none of ``last`` [n each]."""
    known = history.typed_tokens
    above = np.clip(np.searchsorted(known, wanted), 1, max(len(known) - 1, 1))
    below, above = above - 1, np.minimum(above, len(known) - 1)
    lower = wanted * wanted < known[below] * known[above]
    nearest, other = (history.typed[np.where(each, below, above)] for each in (lower, ~lower))
    taken = np.any([nearest == amount for amount in last], axis=0)
    return np.where(taken, other, nearest)


def execute_swaps(
    sqrt_price: np.ndarray,
    liquidity_before: np.ndarray,
    liquidity_after: np.ndarray,
    amount_specified: np.ndarray,
    sells: np.ndarray,
    *,
    pool: PoolSpec,
) -> SwapStep:
    """Execute a swap in each of many pools.

    A swap that leaves its range of prices at ``liquidity_before`` has it up to the range in which it then ends, and
    ``liquidity_after`` from there on. Any other has ``liquidity_after`` at every price. Arguments and results are [n].
    """
    swap = swap_step(sqrt_price, liquidity_before, amount_specified, sells, pool.static_fee)
    start, end = ticks_at_sqrt_prices(sqrt_price), ticks_at_sqrt_prices(swap.sqrt_price_x96)
    first, last = start // pool.tick_spacing, end // pool.tick_spacing
    lowest, highest = MIN_TICK // pool.tick_spacing + 1, MAX_TICK // pool.tick_spacing
    borders = last + sells
    leaves = (first != last) & (lowest < borders) & (borders < highest)
    changes = liquidity_before != liquidity_after
    stays = changes & ~leaves
    if stays.any():
        alone = sqrt_price[stays], liquidity_after[stays], amount_specified[stays], sells[stays]
        moved = swap_step(*alone, pool.static_fee)
        swap.sqrt_price_x96[stays], swap.amount0[stays], swap.amount1[stays] = moved
        end[stays] = ticks_at_sqrt_prices(moved.sqrt_price_x96)
    # Where the price crosses into another word of the tick bitmap the contract rounds once more, so these swaps run on
    # a whole pool. On the way up the contract stops one spacing below the border.
    shift = np.where(sells, 0, pool.tick_spacing)
    words = [(ticks + shift) // (256 * pool.tick_spacing) for ticks in (start, end)]
    lowest, highest, borders = lowest * pool.tick_spacing, highest * pool.tick_spacing, borders * pool.tick_spacing
    for i in np.flatnonzero((leaves & changes) | (words[0] != words[1])):
        one = Pool(sqrt_price[i], pool.static_fee, pool.tick_spacing)
        one.liquidity = liquidity_after[i]
        if leaves[i] and changes[i]:
            first_liquidity, last_liquidity = liquidity_before[i], liquidity_after[i]
            below, above = (last_liquidity, first_liquidity) if sells[i] else (first_liquidity, last_liquidity)
            one.liquidity = 0
            one.modify_liquidity(lowest, int(borders[i]), below)
            one.modify_liquidity(int(borders[i]), highest, above)
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
