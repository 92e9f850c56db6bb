"""A whole pool: its price, its ticks with their liquidity, and swaps that cross them.

Follows ``Pool.sol`` and ``TickBitmap.sol`` of Uniswap v4-core in every rounding. Left out, because no Swap event shows
them: fees owed to positions, the protocol fee, and hooks.
"""

from bisect import bisect_left, bisect_right, insort
from typing import NamedTuple

from apeagent_pipeline.amm.swap_math import SwapMathError, amount0_delta, amount1_delta, range_step
from apeagent_pipeline.amm.ticks import (
    MAX_SQRT_PRICE,
    MAX_TICK,
    MIN_SQRT_PRICE,
    MIN_TICK,
    sqrt_price_at_tick,
    tick_at_sqrt_price,
)

_INT128 = 1 << 127
_UINT128 = 1 << 128


class BalanceDelta(NamedTuple):
    """Amounts from the caller's side: negative is paid into the pool, positive received."""

    amount0: int
    amount1: int


class Pool:
    """State of one pool with a fixed fee.

    Attributes:
        sqrt_price_x96: Current square-root price, Q64.96.
        tick: Current tick. After a swap that stops exactly on an initialised tick on its way down it is one below
            that tick, as in the contract.
        liquidity: Liquidity in range.
        fee: Hundredths of a basis point.
        tick_spacing: Ticks that carry liquidity are multiples of it.
    """

    def __init__(self, sqrt_price_x96: int, fee: int, tick_spacing: int) -> None:
        """A pool without liquidity.

        Raises:
            ValueError: if the price lies outside the contract's range.
        """
        self.sqrt_price_x96 = sqrt_price_x96
        self.tick = tick_at_sqrt_price(sqrt_price_x96)
        self.liquidity = 0
        self.fee = fee
        self.tick_spacing = tick_spacing
        self._gross: dict[int, int] = {}
        self._net: dict[int, int] = {}
        self._initialized: list[int] = []
        spacings = MAX_TICK // tick_spacing - (-MAX_TICK // tick_spacing) + 1
        self._max_liquidity_per_tick = (_UINT128 - 1) // spacings

    def modify_liquidity(self, tick_lower: int, tick_upper: int, liquidity_delta: int) -> BalanceDelta:
        """Add liquidity between two ticks, or take it away.

        Returns:
            What the provider pays (negative) or receives (positive); fees of the position are not counted.

        Raises:
            SwapMathError: if the ticks are not usable, more liquidity is removed than lies there, or a tick would hold
                more than the contract allows.
        """
        if not MIN_TICK <= tick_lower < tick_upper <= MAX_TICK:
            raise SwapMathError(f"ticks must be ascending inside [{MIN_TICK}, {MAX_TICK}]: {tick_lower}, {tick_upper}")
        if tick_lower % self.tick_spacing or tick_upper % self.tick_spacing:
            raise SwapMathError(f"ticks {tick_lower} and {tick_upper} must be multiples of {self.tick_spacing}")
        for tick in (tick_lower, tick_upper):
            gross = self._gross.get(tick, 0) + liquidity_delta
            if not 0 <= gross <= self._max_liquidity_per_tick:
                raise SwapMathError(
                    f"liquidity at tick {tick} would become {gross}, outside [0, {self._max_liquidity_per_tick}]"
                )
        in_range = tick_lower <= self.tick < tick_upper
        if in_range and self.liquidity + liquidity_delta < 0:
            raise SwapMathError(f"cannot remove {-liquidity_delta}: only {self.liquidity} is in range")
        self._update_tick(tick_lower, liquidity_delta, liquidity_delta)
        self._update_tick(tick_upper, liquidity_delta, -liquidity_delta)

        lower, upper = sqrt_price_at_tick(tick_lower), sqrt_price_at_tick(tick_upper)
        adds = liquidity_delta > 0
        sign, size = (-1, liquidity_delta) if adds else (1, -liquidity_delta)
        if self.tick < tick_lower:
            return BalanceDelta(sign * amount0_delta(lower, upper, size, adds), 0)
        if not in_range:
            return BalanceDelta(0, sign * amount1_delta(lower, upper, size, adds))
        self.liquidity += liquidity_delta
        return BalanceDelta(
            sign * amount0_delta(self.sqrt_price_x96, upper, size, adds),
            sign * amount1_delta(lower, self.sqrt_price_x96, size, adds),
        )

    def swap(self, zero_for_one: bool, amount_specified: int, sqrt_price_limit_x96: int | None = None) -> BalanceDelta:
        """Swap until the amount is used up or the price limit is reached.

        Args:
            zero_for_one: True if the swapper pays token0 (the price falls).
            amount_specified: Negative: exact input. Positive: exact output.
            sqrt_price_limit_x96: Price at which the swap stops at the latest; None for the end of the price range.

        Returns:
            The amounts of the Swap event, from the swapper's side.

        Raises:
            SwapMathError: where the contract reverts; the pool is then unchanged.
        """
        if amount_specified == 0:
            raise SwapMathError("amount_specified must not be zero")
        limit = self._checked_limit(zero_for_one, sqrt_price_limit_x96)
        remaining, calculated = amount_specified, 0
        price, tick, liquidity = self.sqrt_price_x96, self.tick, self.liquidity
        while remaining and price != limit:
            start = price
            tick_next, initialized = self._next_tick_in_word(tick, zero_for_one)
            tick_next = min(max(tick_next, MIN_TICK), MAX_TICK)
            sqrt_next = sqrt_price_at_tick(tick_next)
            target = max(sqrt_next, limit) if zero_for_one else min(sqrt_next, limit)
            price, amount_in, amount_out, fee_amount = range_step(start, target, liquidity, remaining, self.fee)
            if amount_specified > 0:
                remaining -= amount_out
                calculated -= amount_in + fee_amount
            else:
                remaining += amount_in + fee_amount
                calculated += amount_out
            if price == sqrt_next:
                if initialized:
                    liquidity += -self._net[tick_next] if zero_for_one else self._net[tick_next]
                tick = tick_next - 1 if zero_for_one else tick_next
            elif price != start:
                tick = tick_at_sqrt_price(price)
        specified = amount_specified - remaining
        if max(abs(specified), abs(calculated)) >= _INT128:
            raise SwapMathError("an amount of the swap does not fit 128 bits")
        self.sqrt_price_x96, self.tick, self.liquidity = price, tick, liquidity
        exact_input = amount_specified < 0
        return (
            BalanceDelta(specified, calculated) if zero_for_one == exact_input else BalanceDelta(calculated, specified)
        )

    def _checked_limit(self, zero_for_one: bool, limit: int | None) -> int:
        if limit is None:
            limit = MIN_SQRT_PRICE + 1 if zero_for_one else MAX_SQRT_PRICE - 1
        lowest, highest = (
            (MIN_SQRT_PRICE, self.sqrt_price_x96) if zero_for_one else (self.sqrt_price_x96, MAX_SQRT_PRICE)
        )
        if not lowest < limit < highest:
            raise SwapMathError(f"the price limit {limit} must lie between {lowest} and {highest}, ends excluded")
        return limit

    def _next_tick_in_word(self, tick: int, downwards: bool) -> tuple[int, bool]:
        # The contract looks at one word of its bitmap (256 spacings) at a time and also stops at the word's border.
        # Rounding happens at every stop, so these stops have to be the same ones.
        compressed = tick // self.tick_spacing
        if downwards:
            border = (compressed & ~0xFF) * self.tick_spacing
            at = bisect_right(self._initialized, compressed * self.tick_spacing) - 1
            found = at >= 0 and self._initialized[at] >= border
        else:
            border = ((compressed + 1) | 0xFF) * self.tick_spacing
            at = bisect_left(self._initialized, (compressed + 1) * self.tick_spacing)
            found = at < len(self._initialized) and self._initialized[at] <= border
        return (self._initialized[at], True) if found else (border, False)

    def _update_tick(self, tick: int, gross_delta: int, net_delta: int) -> None:
        was = self._gross.get(tick, 0)
        now = was + gross_delta
        if now == 0:
            if was:
                del self._gross[tick], self._net[tick]
                self._initialized.pop(bisect_left(self._initialized, tick))
            return
        if was == 0:
            insort(self._initialized, tick)
        self._gross[tick] = now
        self._net[tick] = self._net.get(tick, 0) + net_delta
