"""What the amounts, price, liquidity and fee of one Swap event say about each other, all rows at once.

Inside one range of liquidity the event determines the price before the swap (``SqrtPriceMath.sol``): the output is
``L * (sqrt(before) - sqrt(after))`` of token1, or ``L * (1 / sqrt(after) - 1 / sqrt(before))`` of token0. The input
between the two prices must then be the amount paid less the fee. No neighbouring swap is needed, so this holds for an
archive with gaps as well.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from apeagent_pipeline.amm.swap_math import FEE_UNIT
from apeagent_pipeline.amm.ticks import Q96

_ROUNDINGS = 3
_DOUBLE_ERROR = 1e-11
_LINK_ERROR = 1e-14
_SHARPNESS = 1e-3


def doubles(text: pl.Series, exact: pl.Series) -> np.ndarray:
    """Decimal integers as the nearest doubles: from integers of 128 bits, the faster way, where they fit.

    Args:
        text: Decimal integers.
        exact: The same as Int128, null where that is too small.
    """
    return (exact if exact.null_count() == 0 else text).cast(pl.Float64()).to_numpy()


INTEGERS = ("sqrt_price_x96", "liquidity", "amount0", "amount1")
"""Columns of decimal text."""
EXACT = {name: f"_{name}" for name in INTEGERS}
"""Column of decimal text -> column of the same numbers as Int128, null where that is too small."""


def exact_columns() -> list[pl.Expr]:
    """The columns of `EXACT`, from the text."""
    return [pl.col(name).cast(pl.Int128(), strict=False).alias(exact) for name, exact in EXACT.items()]


def integers(rows: pl.DataFrame) -> dict[str, pl.Series]:
    """`INTEGERS` of RAW_SWAPS_SCHEMA as Int128, null where that is too small."""
    return {name: rows[name].cast(pl.Int128(), strict=False) for name in INTEGERS}


class Swaps(NamedTuple):
    """Columns of swaps as doubles, each [n].

    Attributes:
        price: Square root of raw token1 per raw token0, after the swap.
        liquidity: In range after the swap.
        amount0: Raw units, negative: paid in.
        amount1: Raw units.
        fee: As a fraction.
    """

    price: np.ndarray
    liquidity: np.ndarray
    amount0: np.ndarray
    amount1: np.ndarray
    fee: np.ndarray

    @classmethod
    def of(cls, rows: pl.DataFrame, exact: Mapping[str, pl.Series] | None = None) -> "Swaps":
        """From RAW_SWAPS_SCHEMA.

        Args:
            rows: The swaps.
            exact: The `INTEGERS` of them, where they are known already.
        """
        known = integers(rows) if exact is None else exact
        price, liquidity, amount0, amount1 = (doubles(rows[name], known[name]) for name in INTEGERS)
        return cls(price / Q96, liquidity, amount0, amount1, rows["fee"].to_numpy() / FEE_UNIT)


class Reading(NamedTuple):
    """How one way to read the rows fits the arithmetic, each [n].

    Attributes:
        before: Square-root price before the swap.
        tolerance: Relative, of the test of the fee.
        informative: bool: the amounts are large enough for the test to tell a fee from none.
        fits: bool: informative, and the fee comes out as given.
        unit: Relative uncertainty of `before`.
    """

    before: np.ndarray
    tolerance: np.ndarray
    informative: np.ndarray
    fits: np.ndarray
    unit: np.ndarray


def read(swaps: Swaps) -> Reading:
    """Test each row by itself."""
    price, liquidity, amount0, amount1, fee = swaps
    with np.errstate(all="ignore"):
        falls = amount0 < 0
        received = np.where(falls, amount1, amount0)
        paid = -np.where(falls, amount0, amount1)
        before = np.where(falls, price + received / liquidity, 1 / (1 / price + received / liquidity))
        net = np.where(falls, received / (price * before), received * price * before)
        # The contract rounds amounts to units, and the price to 2**-96: with much liquidity that is many units.
        step = liquidity / Q96 * np.where(falls, 1.0, 1 / price**2)
        tolerance = (_ROUNDINGS + step) / received + _ROUNDINGS / paid + _DOUBLE_ERROR
        informative = (received > 0) & (paid > 0) & (before > 0) & (tolerance < np.maximum(fee / 4, 1e-6))
        fits = informative & (np.abs(net / paid - (1 - fee)) <= tolerance)
        unit = (_ROUNDINGS + step) / liquidity * np.where(falls, 1 / price, price) + _LINK_ERROR
    return Reading(before, tolerance, informative, fits, unit)


def follows(reading: Reading, earlier_price: np.ndarray, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
    """Whether the price before each of some rows is the given one; bool."""
    with np.errstate(all="ignore"):
        difference = np.abs(reading.before[rows] - earlier_price) / earlier_price
        return np.nan_to_num(difference, nan=np.inf) <= reading.unit[rows]


def crossing_fails(swaps: Swaps, prior: np.ndarray, edge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether no liquidity before a tick explains what was paid and what was received by a swap across it; bool, [n].

    The tick lies between the price before and the price after. The event tells the liquidity after it; the liquidity
    before it follows from the amount paid, and once more from the amount received.

    Args:
        swaps: That crossed one tick.
        prior: Square-root price before each.
        edge: Square-root price of the tick.

    Returns:
        Whether none explains it, and whether the test can tell: the two liquidities are known to a thousandth of the
        liquidity after the tick. Close to the tick they are not.
    """
    price, liquidity, amount0, amount1, fee = swaps
    falls = amount0 < 0
    net = np.where(falls, -amount0, -amount1) * (1 - fee)
    received = np.where(falls, amount1, amount0)
    with np.errstate(all="ignore"):
        found, slack = [], np.zeros(len(price))
        for amount, is_token0 in ((net, falls), (received, ~falls)):
            before = np.where(is_token0, np.abs(1 / edge - 1 / prior), np.abs(edge - prior))
            after = np.where(is_token0, np.abs(1 / price - 1 / edge), np.abs(price - edge))
            step = liquidity / Q96 * np.where(is_token0, 1 / price**2, 1.0)
            rounding = liquidity * _LINK_ERROR * np.where(is_token0, 1 / price, price)
            found.append((amount - liquidity * after) / before)
            slack = slack + (2 * _ROUNDINGS + step + rounding + _DOUBLE_ERROR * amount) / before
        return (np.abs(found[0] - found[1]) > slack) | (found[0] < -slack), slack < _SHARPNESS * liquidity


def worse_than_worst(swaps: Swaps, tolerance: np.ndarray) -> np.ndarray:
    """Rows in which the swapper receives less than at the price after the swap; bool.

    That is the worst price of a swap, whatever ticks it crossed.
    """
    with np.errstate(all="ignore"):
        falls = swaps.amount0 < 0
        rate = np.where(falls, -swaps.amount1 / swaps.amount0, -swaps.amount0 / swaps.amount1)
        worst = np.where(falls, swaps.price**2, swaps.price**-2) * (1 - swaps.fee)
        return np.nan_to_num(rate, nan=np.inf) < worst * (1 - tolerance)


def better_than(swaps: Swaps, tolerance: np.ndarray, earlier_price: np.ndarray) -> np.ndarray:
    """Rows in which the swapper receives more than at both an earlier price and the price after the swap; bool."""
    with np.errstate(all="ignore"):
        falls = swaps.amount0 < 0
        rate = np.where(falls, -swaps.amount1 / swaps.amount0, -swaps.amount0 / swaps.amount1)
        best = np.where(
            falls,
            np.maximum(swaps.price, earlier_price) ** 2,
            np.minimum(swaps.price, earlier_price) ** -2.0,
        ) * (1 - swaps.fee)
        return np.nan_to_num(rate, nan=0.0) > best * (1 + tolerance)


def decades_off(swaps: Swaps) -> np.ndarray:
    """log10 of the ratio of the amounts over the price: near 0 where the units are right; NaN where an amount is 0."""
    with np.errstate(all="ignore"):
        off = np.log10(np.abs(swaps.amount1 / swaps.amount0)) - 2 * np.log10(swaps.price)
        return np.where(np.isfinite(off), off, np.nan)
