"""Does each swap follow from the one before it? A replay of a day by the pool's own arithmetic.

The price before a swap, its amounts and the price after it determine each other to the wei. A missing swap therefore
leaves a pair of neighbours that does not fit. A swap that crosses initialised ticks also depends on their liquidity.
Earlier crossings, ModifyLiquidity events and the pool's storage tell it; where they do not, it is solved for.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations, pairwise
from typing import NamedTuple

import polars as pl

from apeagent_pipeline.amm.swap_math import FEE_UNIT, SwapMathError, range_step
from apeagent_pipeline.amm.ticks import MAX_SQRT_PRICE, MAX_TICK, MIN_SQRT_PRICE, MIN_TICK, sqrt_price_at_tick
from apeagent_pipeline.chain.events import SWAP_KEY

_Q128 = 1 << 128
_SCALE = 160
_UNLIMITED = 1 << 250
_MOST_SINGLE, _MOST_PAIRED = 256, 12
_MOST_STEPS = 600
_LARGEST_RATIO = 1_000


class PoolState(NamedTuple):
    """What the PoolManager stores of a pool and every swap changes."""

    sqrt_price_x96: int
    tick: int
    liquidity: int


class Gap(NamedTuple):
    """Two neighbouring swaps of which the second does not follow from the first.

    Attributes:
        first: Block of the swap before; 0 if only the state before is known.
        last: Block of the swap after.
        certain: False if the second swap crossed so many ticks of unknown liquidity that both may be right.
    """

    first: int
    last: int
    certain: bool


class Replay(NamedTuple):
    """Result of `replay`.

    Attributes:
        pairs: Swaps that have a state before them.
        exact: Swaps that follow to the wei.
        gaps: The others, unless the one unknown liquidity was solved for and fits both amounts.
        state: After the last event; None without a swap.
        fee_growth: Fees of all swaps for one unit of liquidity, token0 and token1, Q128; None unless all are exact.
    """

    pairs: int
    exact: int
    gaps: list[Gap]
    state: PoolState | None
    fee_growth: tuple[int, int] | None


class _Swap(NamedTuple):
    block: int
    log_index: int
    sqrt_price_x96: int
    tick: int
    liquidity: int
    amount0: int
    amount1: int
    fee: int


class _Walk(NamedTuple):
    sqrt_price_x96: int
    liquidity: int
    amount_in: int
    amount_out: int
    growth: int


def replay(
    swaps: pl.DataFrame,
    changes: pl.DataFrame,
    tick_spacing: int,
    start: PoolState | None = None,
    ticks: Mapping[int, int] | None = None,
) -> Replay:
    """Replay swaps and liquidity changes in their order.

    Args:
        swaps: RAW_SWAPS_SCHEMA of one pool without hooks, sorted.
        changes: LIQUIDITY_SCHEMA of the same blocks, sorted.
        tick_spacing: Of the pool.
        start: State before the first event; None if unknown: the first swap is then not judged.
        ticks: Net liquidity of every initialised tick before the first event; None if unknown.
    """
    rows, pending = list(_rows(swaps)), _changes(changes)
    if start is not None and not start.sqrt_price_x96:
        start = None  # not initialised yet: the first price is that of another event
    # A source that tells of no liquidity change at all may not have that event: liquidity may change unseen.
    book = _Ticks(tick_spacing, ticks, sees_changes=bool(pending) or ticks is not None)
    before = [start, *(PoolState(row.sqrt_price_x96, row.tick, row.liquidity) for row in rows[:-1])] if rows else []
    fast = _fast_fees(rows, before)
    result = _replay(rows, pending, book, before, fast)
    if result.gaps and ticks is None:
        # What later swaps told of a tick holds for earlier ones too.
        book.rewind()
        result = _replay(rows, pending, book, before, fast)
    return result if rows else result._replace(state=_after(start, pending))


def _replay(
    rows: list["_Swap"],
    pending: list[tuple[int, int, int, int, int]],
    book: "_Ticks",
    before: list[PoolState | None],
    fast: list[int | None],
) -> Replay:
    at, exact, growth0, growth1, pairs = 0, 0, 0, 0, 0
    gaps: list[Gap] = []
    for i, (row, state) in enumerate(zip(rows, before, strict=True)):
        while at < len(pending) and pending[at][:2] < (row.block, row.log_index):
            _, _, lower, upper, delta = pending[at]
            book.change(lower, upper, delta)
            if state is not None and lower <= state.tick < upper:
                state = state._replace(liquidity=state.liquidity + delta)  # noqa: PLW2901
            at += 1
        if state is None:
            continue
        pairs += 1
        growth = fast[i] if fast[i] is not None else book.explain(state, row)
        if growth is None or growth < 0:
            gaps += [Gap(rows[i - 1].block if i else 0, row.block, growth is None)] * (growth != _SOLVED)
        else:
            exact += 1
            paid0 = row.amount0 < 0
            growth0, growth1 = growth0 + growth * paid0, growth1 + growth * (not paid0)
    last = PoolState(rows[-1].sqrt_price_x96, rows[-1].tick, rows[-1].liquidity) if rows else None
    state = _after(last, pending[at:])
    return Replay(pairs, exact, gaps, state, (growth0, growth1) if exact == len(rows) else None)


def _after(state: PoolState | None, pending: list[tuple[int, int, int, int, int]]) -> PoolState | None:
    """The state after liquidity changes that no swap follows."""
    for _, _, lower, upper, delta in pending:
        if state is not None and lower <= state.tick < upper:
            state = state._replace(liquidity=state.liquidity + delta)
    return state


_SOLVED, _UNKNOWN = -1, -2
"""Instead of fees: a liquidity that fits was solved for; too many liquidities are unknown to judge."""


def _rows(swaps: pl.DataFrame) -> Iterator[_Swap]:
    names = [*SWAP_KEY, "sqrt_price_x96", "tick", "liquidity", "amount0", "amount1", "fee"]
    for block, index, price, tick, *rest in swaps.select(names).iter_rows():
        liquidity, amount0, amount1, fee = map(int, rest)
        yield _Swap(block, index, int(price), tick, liquidity, amount0, amount1, fee)


def _changes(changes: pl.DataFrame) -> list[tuple[int, int, int, int, int]]:
    names = [*SWAP_KEY, "tick_lower", "tick_upper", "liquidity_delta"]
    return [(*row[:4], int(row[4])) for row in changes.select(names).iter_rows()]


def _fast_fees(rows: list[_Swap], before: list[PoolState | None]) -> list[int | None]:
    """Fee growth of each swap that follows inside one range of its own liquidity; None for the others."""
    prices = [state.sqrt_price_x96 if state else 0 for state in before]
    if not rows:
        return []
    return [_fee_in_range(price, row) for price, row in zip(prices, rows, strict=True)]


def _fee_in_range(before: int, row: _Swap) -> int | None:
    after, liquidity, amount0, amount1, fee = row.sqrt_price_x96, row.liquidity, row.amount0, row.amount1, row.fee
    if not before:
        return None
    down = amount0 < 0
    amount_in, amount_out = (-amount0, amount1) if down else (-amount1, amount0)
    if before == after and amount_in == amount_out == 0:
        return 0
    if not liquidity or amount_in < 0 or (after > before if down else after < before):
        return None
    end = MIN_SQRT_PRICE + 1 if down else MAX_SQRT_PRICE - 1
    # The event does not tell whether input, output or the price was named: all are tried.
    for target, specified in ((end, -amount_in), (end, amount_out), (after, -_UNLIMITED)):
        if not specified:
            continue
        try:
            step = range_step(before, target, liquidity, specified, fee)
        except (SwapMathError, ZeroDivisionError):
            continue
        paid = step.amount_in + step.fee_amount
        if (step.sqrt_price_x96, paid, step.amount_out) == (after, amount_in, amount_out):
            return step.fee_amount * _Q128 // liquidity
    return None


class _Ticks:
    """Net liquidity of ticks, as far as known: from storage, from events, and from swaps that crossed them."""

    def __init__(self, spacing: int, nets: Mapping[int, int] | None, sees_changes: bool) -> None:
        self._sees_changes = sees_changes
        self._spacing = spacing
        self._base = dict(nets or {})
        self._moved: dict[int, int] = {}
        self._all_known = nets is not None

    def rewind(self) -> None:
        """Go back to the first event, with what was learned since."""
        self._moved = {}

    def change(self, lower: int, upper: int, delta: int) -> None:
        """A position changed. An unknown tick stays unknown: what it held before is not in the event."""
        for tick, change in ((lower, delta), (upper, -delta)):
            self._moved[tick] = self._moved.get(tick, 0) + change

    def _learn(self, nets: Mapping[int, int]) -> None:
        if not self._sees_changes:
            return
        self._base |= {tick: net - self._moved.get(tick, 0) for tick, net in nets.items()}

    def explain(self, state: PoolState, row: _Swap) -> int | None:
        """Fee growth of a swap, _SOLVED or _UNKNOWN; None if it contradicts the state before it."""
        down = row.amount0 < 0
        amount_in = -row.amount0 if down else -row.amount1
        if amount_in < 0 or not MIN_SQRT_PRICE <= state.sqrt_price_x96 < MAX_SQRT_PRICE:
            return None
        ahead = self._between(state, row, down)
        unknown = [] if self._all_known else [tick for tick in ahead if tick not in self._base]
        known = {
            tick: self._base.get(tick, 0) + self._moved.get(tick, 0)
            for tick in ahead
            if self._all_known or tick in self._base
        }
        sign = -1 if down else 1
        rest = sign * (row.liquidity - state.liquidity) - sum(known.values())
        tries: Iterable[dict[int, int]] = [{}] if rest == 0 else [{tick: rest} for tick in unknown[:_MOST_SINGLE]]
        for found in tries:
            growth = self._follows(state, row, known | found)
            if growth is not None:
                self._learn(dict.fromkeys(unknown, 0) | found)
                return growth
        if len(unknown) > _MOST_PAIRED:
            return _UNKNOWN if _price_fits(state, row) else None
        if self._solve(state, row, known, unknown, rest):
            return _SOLVED
        return _UNKNOWN if len(unknown) > (2 if self._sees_changes else 1) and _price_fits(state, row) else None

    def _between(self, state: PoolState, row: _Swap, down: bool) -> list[int]:
        """Ticks that the swap may have crossed, in its direction."""
        spacing = self._spacing
        if down:
            ticks = range(state.tick // spacing * spacing, row.tick - 1, -spacing)
            found = [tick for tick in ticks[: 4 * _MOST_STEPS] if tick >= MIN_TICK]
            return [tick for tick in found if sqrt_price_at_tick(tick) >= row.sqrt_price_x96]
        first = (state.tick // spacing + 1) * spacing
        return [tick for tick in range(first, row.tick + 1, spacing)[: 4 * _MOST_STEPS] if tick <= MAX_TICK]

    def _follows(self, state: PoolState, row: _Swap, nets: Mapping[int, int]) -> int | None:
        down = row.amount0 < 0
        amount_in, amount_out = (-row.amount0, row.amount1) if down else (-row.amount1, row.amount0)
        end = MIN_SQRT_PRICE + 1 if down else MAX_SQRT_PRICE - 1
        for limit, specified in ((end, -amount_in), (end, amount_out), (row.sqrt_price_x96, -_UNLIMITED)):
            walk = (
                self._walk(state, down=down, specified=specified, limit=limit, row=row, nets=nets)
                if specified
                else None
            )
            if walk and walk[:4] == (row.sqrt_price_x96, row.liquidity, amount_in, amount_out):
                return walk.growth
        return None

    def _walk(
        self, state: PoolState, *, down: bool, specified: int, limit: int, row: _Swap, nets: Mapping[int, int]
    ) -> _Walk | None:
        """The swap loop of ``Pool.sol`` with these initialised ticks; None where the contract reverts."""
        price, tick, liquidity = state
        stops = sorted(tick for tick, net in nets.items() if net)
        remaining, paid, received, growth = specified, 0, 0, 0
        for _ in range(_MOST_STEPS):
            if not remaining or price == limit:
                return _Walk(price, liquidity, paid, received, growth)
            stop, initialised = self._next_stop(stops, tick, down)
            at_stop = sqrt_price_at_tick(stop)
            target = max(at_stop, limit) if down else min(at_stop, limit)
            try:
                price, amount_in, amount_out, fee = range_step(price, target, liquidity, remaining, row.fee)
            except (SwapMathError, ZeroDivisionError):
                return None
            remaining += amount_in + fee if specified < 0 else -amount_out
            paid, received = paid + amount_in + fee, received + amount_out
            growth += fee * _Q128 // liquidity if liquidity else 0
            if price != at_stop:
                # Inside a range nothing is left to do: the amount is used up, or the limit is reached.
                return _Walk(price, liquidity, paid, received, growth)
            if initialised:
                liquidity += -nets[stop] if down else nets[stop]
                if liquidity < 0:
                    return None
            tick = stop - 1 if down else stop
            if price < row.sqrt_price_x96 if down else price > row.sqrt_price_x96:
                return None  # further than the swap went
        return None

    def _next_stop(self, stops: list[int], tick: int, down: bool) -> tuple[int, bool]:
        # As in `amm.pool.Pool`: the contract also stops at every border of a word of its bitmap.
        compressed = tick // self._spacing
        if down:
            border = max((compressed & ~0xFF) * self._spacing, MIN_TICK)
            at = bisect_right(stops, compressed * self._spacing) - 1
            return (stops[at], True) if at >= 0 and stops[at] >= border else (border, False)
        border = min(((compressed + 1) | 0xFF) * self._spacing, MAX_TICK)
        at = bisect_left(stops, (compressed + 1) * self._spacing)
        return (stops[at], True) if at < len(stops) and stops[at] <= border else (border, False)

    def _solve(self, state: PoolState, row: _Swap, known: Mapping[int, int], unknown: list[int], rest: int) -> bool:
        """Whether one unknown liquidity, between two ticks or before the first, makes both amounts right."""
        down = row.amount0 < 0
        if not known and not unknown:
            return False
        sign = -1 if down else 1
        order = sorted([*known, *unknown], reverse=down)
        places: Iterable[tuple[int | None, int]] = [
            *combinations(sorted(unknown, reverse=down), 2),
            *((None, tick) for tick in order if not self._sees_changes),
        ]
        for first, last in places:
            # The unknown liquidity x stands from `first` on, and ends at `last`.
            prices = [state.sqrt_price_x96, *map(sqrt_price_at_tick, order), row.sqrt_price_x96]
            constants, flags = [], []
            liquidity, unsure = (0, 1) if first is None else (state.liquidity, 0)
            for tick in (None, *order):
                if tick is not None and tick == first:
                    liquidity, unsure = 0, 1
                elif tick is not None and tick == last:
                    after = order[order.index(tick) + 1 :]
                    liquidity = row.liquidity - sign * sum(known.get(each, 0) for each in after)
                    unsure = 0
                elif tick is not None:
                    liquidity += sign * known.get(tick, 0)
                constants.append(liquidity)
                flags.append(unsure)
            if _fits(prices, constants, flags, row, max(state.liquidity, row.liquidity, abs(rest))):
                return True
        return False


def _fits(prices: list[int], constants: list[int], flags: list[int], row: _Swap, largest: int) -> bool:
    """Whether the same unknown liquidity follows from the amount paid and from the amount received."""
    down = row.amount0 < 0
    amount_in, amount_out = (-row.amount0, row.amount1) if down else (-row.amount1, row.amount0)
    net_in = amount_in * (FEE_UNIT - row.fee) // FEE_UNIT
    found, slack = [], 0
    for amount, is_token0 in ((net_in, down), (amount_out, not down)):
        sums = [0, 0]
        for (here, there), constant, flag in zip(pairwise(prices), constants, flags, strict=True):
            low, high = min(here, there), max(here, there)
            each = ((high - low) << 96 + _SCALE) // (high * low) if is_token0 else ((high - low) << _SCALE) >> 96
            sums[0] += constant * each
            sums[1] += flag * each
        units = len(prices) + 2
        if not sums[1]:
            return False
        found.append(((amount << _SCALE) - sums[0]) // sums[1])
        slack += (units << _SCALE) // sums[1] + 1
    return abs(found[0] - found[1]) <= slack and -slack <= found[0] <= _LARGEST_RATIO * largest + slack


def _price_fits(state: PoolState, row: _Swap) -> bool:
    """Whether the price paid, fee taken off, lies between the prices before and after."""
    paid, received = (-row.amount0, row.amount1) if row.amount0 < 0 else (-row.amount1, row.amount0)
    net = paid * (FEE_UNIT - row.fee) // FEE_UNIT
    token0, token1 = (net, received) if row.amount0 < 0 else (received, net)
    low, high = sorted((state.sqrt_price_x96, row.sqrt_price_x96))
    units = 4
    return (low * low * max(token0 - units, 0) >> 192) <= token1 + units and token1 - units <= (
        high * high * (token0 + units) >> 192
    )
