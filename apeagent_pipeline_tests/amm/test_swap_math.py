"""Swaps inside one range of liquidity."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apeagent_pipeline.amm.swap_math import (
    RangeStep,
    SwapMathError,
    amount0_delta,
    amount1_delta,
    range_step,
    swap_step,
)
from apeagent_pipeline.amm.ticks import Q96, sqrt_price_at_tick

sqrt_prices = st.integers(-250_000, 250_000).map(sqrt_price_at_tick)
liquidities = st.integers(10**9, 10**24)
amounts = st.integers(1, 10**20)
fees = st.sampled_from([0, 100, 500, 3_000, 10_000])


def test_the_contracts_own_examples() -> None:
    # test/libraries/SwapMath.t.sol of v4-core: price 1, target price 1.01 or 10, liquidity 2 ether, fee 600.
    price, near, far = Q96, 79_623_317_895_830_914_510_639_640_423, 250_541_448_375_047_931_186_413_801_569
    ether = 10**18
    assert range_step(price, near, 2 * ether, -ether, 600) == RangeStep(
        near, 9_975_124_224_178_055, 9_925_619_580_021_728, 5_988_667_735_148
    )
    assert range_step(price, near, 2 * ether, ether, 600) == RangeStep(
        near, 9_975_124_224_178_055, 9_925_619_580_021_728, 5_988_667_735_148
    )
    step = range_step(price, far, 2 * ether, -ether, 600)
    assert (step.amount_in, step.fee_amount, step.amount_out) == (
        999_400_000_000_000_000,
        600_000_000_000_000,
        666_399_946_655_997_866,
    )
    step = range_step(price, far, 2 * ether, ether, 600)
    assert (step.amount_in, step.fee_amount, step.amount_out) == (
        2_000_000_000_000_000_000,
        1_200_720_432_259_356,
        ether,
    )


def test_one_eth_into_a_pool_of_real_size_moves_the_price_as_the_formula_says() -> None:
    # The size of a real swap: 1 ETH into 5e17 of liquidity, recomputed in fractions.
    price, liquidity = sqrt_price_at_tick(-195_000), 5 * 10**17
    after, paid, received = swap_step(price, liquidity, -(10**18), True, 500)
    less_fee = 10**18 * 999_500 // 10**6
    exact = Fraction(liquidity << 96) * price / ((liquidity << 96) + less_fee * price)
    assert 0 <= after - exact < 1
    assert paid == -(10**18)
    assert received == liquidity * (price - after) // Q96


@given(sqrt_prices, sqrt_prices, liquidities)
def test_rounding_up_is_at_most_two_units_above_rounding_down_and_never_below(a: int, b: int, liquidity: int) -> None:
    assert 0 <= amount0_delta(a, b, liquidity, True) - amount0_delta(b, a, liquidity, False) <= 2
    assert 0 <= amount1_delta(a, b, liquidity, True) - amount1_delta(b, a, liquidity, False) <= 1


@given(sqrt_prices, liquidities, amounts, st.booleans(), st.booleans(), fees)
def test_rounding_never_favours_the_swapper(
    price: int, liquidity: int, amount: int, zero_for_one: bool, exact_input: bool, fee: int
) -> None:
    try:
        after, amount0, amount1 = swap_step(price, liquidity, -amount if exact_input else amount, zero_for_one, fee)
    except SwapMathError:
        return
    paid, received = (-amount0, amount1) if zero_for_one else (-amount1, amount0)
    assert paid >= 0
    assert received >= 0
    # Reals: what the pool must hold at the new price, against what it now holds.
    lower, upper = Fraction(min(price, after), Q96), Fraction(max(price, after), Q96)
    token0, token1 = liquidity * (1 / lower - 1 / upper), liquidity * (upper - lower)
    owed_in, owed_out = (token0, token1) if zero_for_one else (token1, token0)
    assert paid * Fraction(1_000_000 - fee, 1_000_000) >= owed_in - 1 if exact_input else paid >= owed_in
    assert received <= owed_out
    assert (after <= price) if zero_for_one else (after >= price)


@given(sqrt_prices, liquidities, st.integers(10**3, 10**18), fees)
def test_swapping_there_and_back_never_earns_anything(price: int, liquidity: int, amount: int, fee: int) -> None:
    try:
        after, _, received = swap_step(price, liquidity, -amount, True, fee)
        if received == 0:
            return
        _, back, _ = swap_step(after, liquidity, -received, False, fee)
    except SwapMathError:
        return
    assert back <= amount


@given(sqrt_prices, liquidities, st.integers(2, 10**18), st.booleans(), fees)
def test_more_paid_in_never_gives_less_out_nor_a_smaller_move(
    price: int, liquidity: int, amount: int, zero_for_one: bool, fee: int
) -> None:
    try:
        small = swap_step(price, liquidity, -(amount - 1), zero_for_one, fee)
        large = swap_step(price, liquidity, -amount, zero_for_one, fee)
    except SwapMathError:
        return
    received = 2 if zero_for_one else 1
    assert large[received] >= small[received]
    assert abs(large.sqrt_price_x96 - price) >= abs(small.sqrt_price_x96 - price)


@given(st.lists(st.tuples(sqrt_prices, liquidities, amounts, st.booleans(), st.booleans()), min_size=1, max_size=10))
def test_arrays_give_what_single_swaps_give(rows: list[tuple[int, int, int, bool, bool]]) -> None:
    signed = [(p, liq, -a if exact_in else min(a, 10**6), z) for p, liq, a, z, exact_in in rows]
    try:
        single = [swap_step(p, liq, a, z, 500) for p, liq, a, z in signed]
    except SwapMathError:
        return
    price, liquidity, amount = (np.array([row[i] for row in signed], dtype=object) for i in range(3))
    many = swap_step(price, liquidity, amount, np.array([row[3] for row in signed]), 500)
    assert [tuple(row) for row in zip(*many, strict=True)] == [tuple(step) for step in single]
    assert all(column.dtype == object for column in many)


def test_a_pool_without_liquidity_or_a_range_too_small_is_an_error_not_a_price_of_zero() -> None:
    with pytest.raises(SwapMathError, match="positive"):
        swap_step(0, 10**18, -1, True, 500)
    price, limit = sqrt_price_at_tick(0), sqrt_price_at_tick(0)
    with pytest.raises(SwapMathError, match="100 %"):
        range_step(price, limit, 10**18, 1, 1_000_000)


def test_an_amount_of_zero_changes_nothing() -> None:
    assert swap_step(Q96, 10**18, 0, True, 500) == (Q96, 0, 0)
