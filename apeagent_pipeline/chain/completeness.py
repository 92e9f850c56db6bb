"""How complete a table of swaps is, told by the pool's own arithmetic."""

from typing import NamedTuple

import numpy as np
import polars as pl

from apeagent_pipeline.amm.swap_math import SwapMathError, swap_step

SMALLEST_RATE = 0.95
"""Below it swaps are missing. Complete days lie above .97."""

_FEWEST_PAIRS = 50
_SLICE_ROWS = 1 << 16


class ChainRate(NamedTuple):
    """Of how many neighbouring swaps the second follows exactly from the first.

    Attributes:
        followed: Swaps whose amounts follow to the wei from the price before and after.
        judged: Swaps that could be judged: the liquidity is that of the swap before.
    """

    followed: int
    judged: int

    @property
    def rate(self) -> float | None:
        """Share that follows, or None where nothing could be judged. A complete day is at or near 1."""
        return self.followed / self.judged if self.judged else None

    @property
    def too_low(self) -> bool:
        """Whether swaps are missing for certain; a handful of pairs tells nothing."""
        return self.judged >= _FEWEST_PAIRS and self.followed < SMALLEST_RATE * self.judged


def chain_rate(swaps: pl.DataFrame) -> ChainRate:
    """Check each swap against the one before it.

    A missing swap leaves a gap between two prices that the next swap's amounts do not explain. So does a change of
    liquidity; such pairs are not judged. A few pairs of a complete day may still fail: a swap that stopped at a price
    limit, and one that crossed an end of a position opened since the swap before.

    Args:
        swaps: RAW_SWAPS_SCHEMA of one pool, sorted; one day or several neighbouring ones. Each swap is judged by the
            fee of its own event, so a dynamic fee does not matter.
    """
    # Python integers are large: a slice at a time, each with the last swap of the one before.
    starts = range(0, max(swaps.height - 1, 0), _SLICE_ROWS)
    slices = [_rate_of_slice(swaps.slice(start, _SLICE_ROWS + 1)) for start in starts]
    return ChainRate(sum(each.followed for each in slices), sum(each.judged for each in slices))


def exactly_follows(swaps: pl.DataFrame, rows: np.ndarray) -> np.ndarray:
    """Whether single swaps follow to the wei from the swap before them; bool [n].

    Args:
        swaps: RAW_SWAPS_SCHEMA, sorted.
        rows: Positions of the swaps to test, none of them 0; the liquidity is that of the row before.
    """
    if not len(rows):
        return np.zeros(0, dtype=bool)
    price, liquidity, amount0, amount1 = (
        np.array([int(value) for value in swaps[name][rows].to_list()], dtype=object)
        for name in ("sqrt_price_x96", "liquidity", "amount0", "amount1")
    )
    before = np.array([int(value) for value in swaps["sqrt_price_x96"][rows - 1].to_list()], dtype=object)
    return _FOLLOWS(before, price, liquidity, amount0, amount1, swaps["fee"].to_numpy()[rows]).astype(bool)


def _rate_of_slice(swaps: pl.DataFrame) -> ChainRate:
    price, liquidity, amount0, amount1 = (
        np.array([int(value) for value in swaps[name]], dtype=object)
        for name in ("sqrt_price_x96", "liquidity", "amount0", "amount1")
    )
    judged = liquidity[1:] == liquidity[:-1]
    rows = np.flatnonzero(judged.astype(bool)) + 1
    follows = _FOLLOWS(
        price[rows - 1], price[rows], liquidity[rows], amount0[rows], amount1[rows], swaps["fee"].to_numpy()[rows]
    )
    return ChainRate(int(follows.astype(bool).sum()), len(rows))


def _follows(*row: int) -> bool:
    before, after, liquidity, amount0, amount1, fee = row
    # The event does not tell whether the input or the output was named: both are tried, the likelier first.
    for specified in sorted((amount0, amount1)):
        try:
            if swap_step(before, liquidity, specified, amount0 < 0, int(fee)) == (after, amount0, amount1):
                return True
        except SwapMathError:
            continue
    return False


_FOLLOWS = np.frompyfunc(_follows, 6, 1)
