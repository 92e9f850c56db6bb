"""What arithmetic can deny: each swap against the V4 contract, the pool and the chain's clock.

Each test is a flag of a row; `verdict` says which flags refuse an archive.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.amm.swap_math import FEE_UNIT
from apeagent_pipeline.amm.ticks import MAX_SQRT_PRICE, MIN_SQRT_PRICE, Q96, sqrt_price_at_tick
from apeagent_pipeline.chain.archive import arithmetic
from apeagent_pipeline.chain.archive.clock import ChainClock
from apeagent_pipeline.chain.archive.normalise import FILE
from apeagent_pipeline.chain.archive.streams import LINE
from apeagent_pipeline.chain.completeness import exactly_follows
from apeagent_pipeline.chain.events import RAW_SWAPS_SCHEMA, contradicting_ticks
from apeagent_pipeline.chain.liquidity import empty_liquidity
from apeagent_pipeline.chain.replay import replay

LARGEST_PROTOCOL_FEE = 1_000
"""Pips that the protocol may take on top of the pool's own fee (``ProtocolFeeLibrary.sol``)."""

ROUNDED_COLUMNS = ("amount0", "amount1", "liquidity")
"""Columns whose values are looked at for digits that a double cannot hold."""

_JUDGED = ("sqrt_price_x96", "block_number", "block_timestamp", "tick", "fee", *arithmetic.EXACT.values())
_TICK_LOG = np.log(1.0001) / 2
_NEAR_A_TICK = 1e-6
_DECADES = 0.5
_SILENCE_SPACINGS = 20
_SHORTEST_SILENCE = 1_800
_EXACT_PAIRS_A_DAY = 200
_DOUBLES_A_DAY = 2_000
_FEW_BITS = 2
_SPARE_BITS = 22
_SPARE_DIGITS = 6
_DOUBLE_DIGITS = 17


class Judged(NamedTuple):
    """The evidence of some rows.

    Attributes:
        rows: Where they stand: `FILE`, `LINE` and ``day``.
        flags: One test each: bool, [n].
        exact: Of the compared pairs, those in which the second price follows from the first to the last unit.
        compared: Pairs of consecutive swaps, a sample of the day, that were recomputed in integers.
    """

    rows: pl.DataFrame
    flags: dict[str, np.ndarray]
    exact: int
    compared: int

    def count(self, flag: str) -> int:
        """How many rows have a flag."""
        return int(np.count_nonzero(self.flags[flag]))


def judge(rows: pl.DataFrame, earlier: pl.DataFrame, pool: PoolSpec, clock: ChainClock | None) -> Judged:
    """Test swaps.

    Args:
        rows: NORMAL_SCHEMA, sorted.
        earlier: The last row before them, or none.
        pool: Whose swaps these are.
        clock: Of the pool's chain, where it is exact.
    """
    every_column = pl.concat([earlier, rows])
    both = every_column.select(_JUDGED).rechunk()
    exact_values = {name: both[exact] for name, exact in arithmetic.EXACT.items()}
    swaps = arithmetic.Swaps.of(every_column, exact_values)
    reading = arithmetic.read(swaps)
    seconds = epoch_seconds(both)
    prior = np.roll(swaps.price, 1)
    has_prior = np.arange(both.height) > 0
    silent = _after_silence(seconds)
    linked = arithmetic.follows(reading, prior) & has_prior
    same_liquidity = np.r_[False, swaps.liquidity[1:] == swaps.liquidity[:-1]]
    signs = np.sign(swaps.amount0) * np.sign(swaps.amount1)
    paid_nothing = (np.maximum(swaps.amount0, swaps.amount1) > 0) & (np.minimum(swaps.amount0, swaps.amount1) == 0)
    worse, better, units = _off_price(swaps, reading, np.where(has_prior, prior, swaps.price))
    direction = np.sign(swaps.price - prior) * np.where(swaps.amount0 < 0, -1, 1)
    # A swap that crosses an initialised tick starts elsewhere than the liquidity after it tells, but not farther away
    # than it moved the price.
    elsewhere = np.abs(reading.before - prior) > np.abs(swaps.price - reading.before)
    between = _between_ticks(both, pool)
    linkable = reading.fits & has_prior & (between | same_liquidity | elsewhere)
    crossed_gap, crossed = _gaps_at_ticks(every_column, swaps, has_prior & ~linkable, pool)
    impossible = reading.informative & ~reading.fits & (better | (direction < 0) | between)
    columns: dict[str, np.ndarray] = {
        "informative": reading.informative,
        "fits": reading.fits,
        "linked": linked & linkable,
        "linkable": linkable,
        "unlinked": linkable & ~linked & ~silent,
        **_alternatives(swaps, reading, pool),
        "one_sign": (signs > 0) | (paid_nothing & (not pool.has_hooks)),
        "units": units,
        "worse": worse & (signs < 0),
        "tick": _wrong_ticks(both, swaps.price),
        "fee": _foreign_fees(both, pool),
        "rounded": _rounded_prices(both, exact_values["sqrt_price_x96"], swaps.price * Q96),
        **_doubles(both, exact_values),
        "unlikely": _unlikely_prices(swaps.price, pool),
        "broken": has_prior & ~silent & impossible,
        "clock": np.zeros(both.height, bool) if clock is None else _off_clock(both, seconds, clock),
    }
    # Too small for the test of the fee, but not for the price before it, where the liquidity cannot have changed.
    small = has_prior & ~reading.informative & between & (swaps.liquidity > 0) & (not pool.has_hooks)
    against = (direction < 0) & ((swaps.amount0 != 0) | (swaps.amount1 != 0)) & (not pool.has_hooks)
    gap = (linkable | small) & ~linked | crossed_gap | has_prior & (impossible | against)
    columns["gap"] = gap
    columns["undecided"] = has_prior & ~gap & ~linkable & ~small & ~crossed & (not pool.has_hooks)
    compared, exact = _compared_exactly(every_column, np.flatnonzero(linked & linkable & same_liquidity))
    columns["inexact"] = np.isin(np.arange(both.height), compared[~exact])
    table = rows.select(FILE, LINE, pl.col("block_timestamp").dt.date().alias("day"))
    flags = {name: values[earlier.height :] for name, values in columns.items()}
    return Judged(table, flags, int(exact.sum()), len(compared))


def _compared_exactly(rows: pl.DataFrame, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A sample of the second rows of linked pairs, and whether each follows from the row before to the last unit."""
    if len(pairs) > _EXACT_PAIRS_A_DAY:
        pairs = pairs[:: len(pairs) // _EXACT_PAIRS_A_DAY + 1]
    return pairs, exactly_follows(rows, pairs)


def epoch_seconds(rows: pl.DataFrame) -> np.ndarray:
    """Times of rows, int64."""
    return rows["block_timestamp"].cast(pl.Int64()).to_numpy() // 1_000_000


def _off_price(
    swaps: arithmetic.Swaps, reading: arithmetic.Reading, prior: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows whose amounts are worse, or better, than any price of the swap allows, or far from it; bool, each [n]."""
    # A row that fits the price and the liquidity is none of them.
    at = np.flatnonzero(~reading.fits)
    few, tolerance = arithmetic.Swaps(*(column[at] for column in swaps)), reading.tolerance[at]
    worse, better, units = (np.zeros(len(swaps.price), bool) for _ in range(3))
    worse[at] = arithmetic.worse_than_worst(few, tolerance)
    better[at] = arithmetic.better_than(few, tolerance, prior[at])
    units[at] = np.abs(np.nan_to_num(arithmetic.decades_off(few))) > _DECADES
    return worse, better, units & (worse | better)


def _alternatives(swaps: arithmetic.Swaps, reading: arithmetic.Reading, pool: PoolSpec) -> dict[str, np.ndarray]:
    # Only rows that do not fit as they stand can be something else.
    rows = np.flatnonzero(~reading.fits)
    price, liquidity, amount0, amount1, fee = (column[rows] for column in swaps)
    following = np.r_[swaps.price[1:], np.nan][rows]
    later = np.r_[swaps.liquidity[1:], np.nan][rows]
    other = {
        "flipped": (price, liquidity, -amount0, -amount1),
        "exchanged": (price, liquidity, amount1, amount0),
        "exchanged_flipped": (price, liquidity, -amount1, -amount0),
        "inverse": (1 / price, liquidity, amount0, amount1),
        "price_before": (following, liquidity, amount0, amount1),
        "liquidity_before": (price, later, amount0, amount1),
    }
    found = {name: np.zeros(len(swaps.price), bool) for name in other}
    for name, columns in other.items():
        found[name][rows] = arithmetic.read(arithmetic.Swaps(*columns, fee)).fits
    found["other_fee"] = np.zeros(len(swaps.price), bool)
    if not pool.has_dynamic_fee:
        static = np.full(len(rows), pool.fee / FEE_UNIT)
        found["other_fee"][rows] = arithmetic.read(arithmetic.Swaps(price, liquidity, amount0, amount1, static)).fits
    changing = np.flatnonzero(reading.fits & (swaps.liquidity != np.r_[swaps.liquidity[1:], swaps.liquidity[-1:]]))
    later = swaps.liquidity[changing + 1]
    shifted = arithmetic.Swaps(
        swaps.price[changing], later, swaps.amount0[changing], swaps.amount1[changing], swaps.fee[changing]
    )
    found["liquidity_given"] = np.zeros(len(swaps.price), bool)
    found["liquidity_given"][changing] = ~arithmetic.read(shifted).fits
    return found


def _after_silence(seconds: np.ndarray) -> np.ndarray:
    """Rows after a time in which swaps are likely to be missing, and the first."""
    since = np.diff(seconds, prepend=seconds[:1])
    spacing = np.mean(since) if len(since) else 0.0
    silent = since > max(_SHORTEST_SILENCE, _SILENCE_SPACINGS * spacing)
    silent[:1] = True
    return silent


def _between_ticks(rows: pl.DataFrame, pool: PoolSpec) -> np.ndarray:
    """Rows between whose price and that of the row before no tick can be initialised, so that liquidity is constant."""
    ranges = rows["tick"].to_numpy() // pool.tick_spacing
    return np.r_[False, ranges[1:] == ranges[:-1]]


def _gaps_at_ticks(
    rows: pl.DataFrame, swaps: arithmetic.Swaps, among: np.ndarray, pool: PoolSpec
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that crossed one tick and do not follow from the row before, whatever liquidity there was before the tick.

    Doubles find the suspects, exact arithmetic decides. Hooks may change amounts, so that their pools are exempt.

    Returns:
        The gaps, and the rows of which the test can tell; both bool, [n].
    """
    found, tested = np.zeros(rows.height, bool), np.zeros(rows.height, bool)
    if pool.has_hooks:
        return found, tested
    ranges = rows["tick"].to_numpy() // pool.tick_spacing
    step = np.diff(ranges, prepend=ranges[:1])
    at = np.flatnonzero(among & (step == np.where(swaps.amount0 < 0, -1, 1)))
    edge = np.exp(np.maximum(ranges[at], ranges[at - 1]) * pool.tick_spacing * _TICK_LOG)
    crossing = arithmetic.Swaps(*(column[at] for column in swaps))
    fails, tells = arithmetic.crossing_fails(crossing, swaps.price[at - 1], edge)
    suspects = at[fails][:_EXACT_PAIRS_A_DAY]
    for row in suspects.tolist():
        pair = replay(rows.slice(row - 1, 2).select(RAW_SWAPS_SCHEMA.names()), empty_liquidity(), pool.tick_spacing)
        found[row] = any(gap.certain for gap in pair.gaps)
    tested[at[~fails & tells]] = tested[suspects] = True
    return found, tested


def _wrong_ticks(rows: pl.DataFrame, price: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        position = np.log(price) / _TICK_LOG
    floor = np.floor(position)
    clear = (
        np.isfinite(position)
        & (position - floor > _NEAR_A_TICK)
        & (floor + 1 - position > _NEAR_A_TICK)
        & (np.abs(position) < 887_000)
    )
    wrong = clear & (floor != rows["tick"].to_numpy())
    unclear = np.flatnonzero(~clear)
    if len(unclear):
        wrong[unclear] = contradicting_ticks(rows.select("sqrt_price_x96", "tick")[unclear])
    return wrong


def _foreign_fees(rows: pl.DataFrame, pool: PoolSpec) -> np.ndarray:
    if pool.has_dynamic_fee:
        return np.zeros(rows.height, bool)
    fee = rows["fee"].to_numpy()
    return (fee < pool.fee) | (fee > pool.fee + LARGEST_PROTOCOL_FEE)


def _off_clock(rows: pl.DataFrame, seconds: np.ndarray, clock: ChainClock) -> np.ndarray:
    return seconds != clock.seconds(rows["block_number"]).to_numpy()


def _rounded_prices(rows: pl.DataFrame, exact: pl.Series, double: np.ndarray) -> np.ndarray:
    """Whether a price was rounded: it needs more than a double or 17 decimal digits, and yet fits into them exactly."""
    text = rows["sqrt_price_x96"]
    large = double > 2.0 ** (53 + _SPARE_BITS)
    binary = large & _without_nulls(pl.Series(double).cast(pl.Int128(), strict=False) == exact)
    for at in exact.is_null().arg_true().to_list() if exact.null_count() else []:
        binary[at] = int(double[at]) == int(text[at])
    # Few prices end in zeros, and only those are looked at digit by digit.
    decimal = text.str.ends_with("0" * _SPARE_DIGITS)
    if decimal.any():
        zeros = text.filter(decimal).str.extract("(0*)$", 1).str.len_bytes()
        decimal = decimal.scatter(decimal.arg_true(), text.filter(decimal).str.len_bytes() - zeros <= _DOUBLE_DIGITS)
    suspects = _without_nulls(decimal) | binary
    for at in np.flatnonzero(suspects):
        price, tick = int(text[int(at)]), int(rows["tick"][int(at)])
        limits = {MIN_SQRT_PRICE + 1, MAX_SQRT_PRICE - 1}
        ticks = {sqrt_price_at_tick(t) for t in (tick, tick + 1) if abs(t) <= 887_272}
        suspects[at] = price not in limits | ticks
    return suspects


def _unlikely_prices(price: np.ndarray, pool: PoolSpec) -> np.ndarray:
    """Prices that, in human units, are farther from 1 than their inverse would be."""
    decades = pool.token0.decimals - pool.token1.decimals
    return price > 1 if decades > 0 else (price < 1) & (decades < 0)


def _doubles(rows: pl.DataFrame, exact: Mapping[str, pl.Series]) -> dict[str, np.ndarray]:
    """Large values of some rows of each column, and which of them are doubles without a rest.

    Amounts that were paid are left out: people type round ones.
    """
    found: dict[str, np.ndarray] = {}
    for name in ROUNDED_COLUMNS:
        flags = {f"{kind}_{name}": np.zeros(rows.height, bool) for kind in ("long", "double")}
        found |= flags
        column = exact[name].head(_DOUBLES_A_DAY)
        places = np.flatnonzero(_without_nulls(column > 1 << (53 + _FEW_BITS)))
        if not len(places):
            continue
        values = column[places]
        if name == "liquidity":
            first = values.is_first_distinct()
            places, values = places[first.to_numpy()], values.filter(first)
        flags[f"long_{name}"][places] = True
        double = _without_nulls(values.cast(pl.Float64()).cast(pl.Int128(), strict=False) == values)
        flags[f"double_{name}"][places[double]] = True
    return found


def _without_nulls(flags: pl.Series) -> np.ndarray:
    return (flags.fill_null(False) if flags.null_count() else flags).to_numpy()
