"""The whole pool: crossing ticks, price limits, liquidity."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apeagent_pipeline.amm.pool import Pool
from apeagent_pipeline.amm.swap_math import SwapMathError, swap_step
from apeagent_pipeline.amm.ticks import Q96, sqrt_price_at_tick, tick_at_sqrt_price


def make_pool(*positions: tuple[int, int, int], tick: int = 0) -> Pool:
    pool = Pool(sqrt_price_at_tick(tick), fee=500, tick_spacing=10)
    for lower, upper, liquidity in positions:
        pool.modify_liquidity(lower, upper, liquidity)
    return pool


@given(st.integers(1, 10**15), st.booleans(), st.booleans())
def test_inside_one_range_the_pool_and_the_single_step_agree(
    amount: int, zero_for_one: bool, exact_input: bool
) -> None:
    pool = make_pool((-2_000, 2_000, 10**18), tick=37)
    specified = -amount if exact_input else amount
    expected = swap_step(pool.sqrt_price_x96, pool.liquidity, specified, zero_for_one, 500)
    assert pool.swap(zero_for_one, specified) == expected[1:]
    assert pool.sqrt_price_x96 == expected.sqrt_price_x96


def test_crossing_a_tick_changes_the_liquidity_and_crossing_back_restores_it() -> None:
    pool = make_pool((-1_000, 1_000, 10**18), (-100, 100, 3 * 10**18))
    assert pool.liquidity == 4 * 10**18
    pool.swap(True, -(10**24), sqrt_price_at_tick(-150))
    assert (pool.tick, pool.liquidity) == (-150, 10**18)
    pool.swap(False, -(10**24), sqrt_price_at_tick(5))
    assert (pool.tick, pool.liquidity) == (5, 4 * 10**18)
    pool.swap(False, -(10**24), sqrt_price_at_tick(100))
    assert (pool.tick, pool.liquidity) == (100, 10**18)


def test_stopping_exactly_on_an_initialised_tick_from_above_leaves_the_tick_below_as_the_contract_does() -> None:
    pool = make_pool((-1_000, 1_000, 10**18), (-100, 100, 10**18))
    pool.swap(True, -(10**24), sqrt_price_at_tick(-100))
    assert pool.sqrt_price_x96 == sqrt_price_at_tick(-100)
    assert (pool.tick, pool.liquidity) == (-101, 10**18)
    assert tick_at_sqrt_price(pool.sqrt_price_x96) == -100


def test_a_swap_over_the_border_of_the_bitmap_rounds_there_as_the_contract_does() -> None:
    # A word of the bitmap holds 256 spacings: upwards the contract stops at tick 2,550, downwards at 2,560. With next
    # to no liquidity the additional rounding shows in the amounts.
    for start, border, end in [(2_500, 2_550, 2_600), (2_600, 2_560, 2_500)]:
        zero_for_one = end < start

        def swap_to(*limits: int, start: int = start, zero_for_one: bool = zero_for_one) -> tuple[int, int]:
            pool = make_pool((-10_000, 10_000, 1_000), tick=start)
            deltas = [pool.swap(zero_for_one, -(10**6), sqrt_price_at_tick(limit)) for limit in limits]
            return sum(delta.amount0 for delta in deltas), sum(delta.amount1 for delta in deltas)

        assert swap_to(end) == swap_to(border, end)
        elsewhere = [stop for stop in range(2_510, 2_600, 10) if stop != border]
        assert any(swap_to(end) != swap_to(stop, end) for stop in elsewhere)


swaps = st.tuples(st.booleans(), st.integers(1, 10**19), st.booleans())


@settings(max_examples=60)
@given(st.lists(swaps, min_size=1, max_size=25))
def test_the_pool_never_pays_out_more_than_it_was_given(steps: list[tuple[bool, int, bool]]) -> None:
    positions = [(-5_000, 5_000, 10**18), (-300, 200, 5 * 10**18), (-50, 60, 10**19), (100, 900, 2 * 10**18)]
    pool = Pool(Q96, fee=500, tick_spacing=10)
    balance0 = balance1 = 0
    for position in positions:
        paid = pool.modify_liquidity(*position)
        balance0, balance1 = balance0 - paid.amount0, balance1 - paid.amount1
    for zero_for_one, amount, exact_input in steps:
        try:
            delta = pool.swap(zero_for_one, -amount if exact_input else amount)
        except SwapMathError:
            continue
        balance0, balance1 = balance0 - delta.amount0, balance1 - delta.amount1
        assert balance0 >= 0
        assert balance1 >= 0
        in_range = sum(liquidity for lower, upper, liquidity in positions if lower <= pool.tick < upper)
        assert pool.liquidity == in_range
    for lower, upper, liquidity in positions:
        taken = pool.modify_liquidity(lower, upper, -liquidity)
        balance0, balance1 = balance0 - taken.amount0, balance1 - taken.amount1
    assert balance0 >= 0
    assert balance1 >= 0
    assert pool.liquidity == 0


@settings(max_examples=50)
@given(st.lists(swaps, min_size=2, max_size=15))
def test_amounts_of_each_swap_follow_from_the_two_prices_while_liquidity_stays(
    steps: list[tuple[bool, int, bool]],
) -> None:
    pool = make_pool((-2_000, 2_000, 10**22), tick=1_003)  # no border of the bitmap is near
    states = [(pool.sqrt_price_x96, None, None)]
    for zero_for_one, amount, exact_input in steps:
        delta = pool.swap(zero_for_one, -amount if exact_input else amount)
        states.append((pool.sqrt_price_x96, zero_for_one, delta))
    for (before, _, _), (after, zero_for_one, delta) in pairwise(states):
        found = [swap_step(before, 10**22, specified, zero_for_one, 500) for specified in delta]
        assert (after, *delta) in found


def test_a_swap_that_cannot_be_is_refused_and_leaves_the_pool_as_it_was() -> None:
    pool = make_pool((-1_000, 1_000, 10**18))
    state = (pool.sqrt_price_x96, pool.tick, pool.liquidity)
    for zero_for_one, amount, limit in [
        (True, 0, None),
        (True, -1, pool.sqrt_price_x96),
        (False, -1, pool.sqrt_price_x96),
        (True, -1, 1),
        (False, -1, 1 << 160),
    ]:
        with pytest.raises(SwapMathError):
            pool.swap(zero_for_one, amount, limit)
    assert (pool.sqrt_price_x96, pool.tick, pool.liquidity) == state


@pytest.mark.parametrize(
    ("lower", "upper", "delta"),
    [(5, 100, 1), (100, -100, 1), (-100, 100, -1), (-887_280, 100, 1), (-100, 100, 1 << 127)],
)
def test_a_liquidity_change_that_cannot_be_is_refused(lower: int, upper: int, delta: int) -> None:
    pool = make_pool()
    with pytest.raises(SwapMathError):
        pool.modify_liquidity(lower, upper, delta)
    assert pool.liquidity == 0
    assert not pool._initialized


def test_liquidity_above_the_price_is_paid_in_token0_and_below_it_in_token1() -> None:
    pool = make_pool()
    above, below = pool.modify_liquidity(100, 200, 10**18), pool.modify_liquidity(-200, -100, 10**18)
    assert above.amount0 < 0 == above.amount1
    assert below.amount1 < 0 == below.amount0
    assert pool.liquidity == 0
