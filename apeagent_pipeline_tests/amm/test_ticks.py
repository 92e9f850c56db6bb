"""Ticks and square-root prices."""

from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apeagent_pipeline.amm import ticks
from apeagent_pipeline.amm.ticks import (
    MAX_SQRT_PRICE,
    MAX_TICK,
    MIN_SQRT_PRICE,
    MIN_TICK,
    Q96,
    sqrt_price_at_tick,
    tick_at_sqrt_price,
    ticks_at_sqrt_prices,
)

any_tick = st.integers(MIN_TICK, MAX_TICK)
any_sqrt_price = st.integers(MIN_SQRT_PRICE, MAX_SQRT_PRICE - 1)


def test_the_ends_and_the_middle_of_the_price_range_are_the_contracts_constants() -> None:
    assert sqrt_price_at_tick(MIN_TICK) == MIN_SQRT_PRICE
    assert sqrt_price_at_tick(MAX_TICK) == MAX_SQRT_PRICE
    assert sqrt_price_at_tick(0) == Q96


def test_known_prices_of_the_contracts_own_tests() -> None:
    assert sqrt_price_at_tick(MIN_TICK + 1) == 4295343490
    assert sqrt_price_at_tick(MAX_TICK - 1) == 1461373636630004318706518188784493106690254656249
    assert sqrt_price_at_tick(50) == 79426470787362580746886972461
    assert sqrt_price_at_tick(-250_000) == 295440463448801648376846


def test_every_constant_of_the_table_is_the_rounded_power() -> None:
    with localcontext() as context:
        context.prec = 120
        base = Decimal("1.0001").sqrt()
        expected = [int((Decimal(2) ** 128 / base ** (2**k)).to_integral_value()) for k in range(20)]
    assert list(ticks._INVERSE_POWERS_X128) == expected


@given(st.integers(MIN_TICK, MAX_TICK - 1))
def test_a_tick_is_found_again_from_its_price_and_just_below_it_is_the_tick_before(tick: int) -> None:
    assert tick_at_sqrt_price(sqrt_price_at_tick(tick)) == tick
    assert sqrt_price_at_tick(tick) < sqrt_price_at_tick(tick + 1)
    if tick > MIN_TICK:
        assert tick_at_sqrt_price(sqrt_price_at_tick(tick) - 1) == tick - 1


@given(any_sqrt_price)
def test_a_price_lies_between_its_tick_and_the_next(sqrt_price: int) -> None:
    tick = tick_at_sqrt_price(sqrt_price)
    assert sqrt_price_at_tick(tick) <= sqrt_price < sqrt_price_at_tick(tick + 1)


@given(
    st.lists(st.one_of(any_sqrt_price, st.integers(MIN_TICK + 1, MAX_TICK - 1).map(sqrt_price_at_tick)), max_size=30)
)
def test_a_column_of_prices_gives_the_same_ticks_as_one_price_at_a_time(prices: list[int]) -> None:
    found = ticks_at_sqrt_prices(np.array(prices, dtype=object))
    assert found.dtype == np.int64
    assert found.tolist() == [tick_at_sqrt_price(price) for price in prices]


@pytest.mark.parametrize("sqrt_price", [MIN_SQRT_PRICE - 1, MAX_SQRT_PRICE, 0, -1])
def test_an_impossible_price_is_named_instead_of_getting_a_tick(sqrt_price: int) -> None:
    with pytest.raises(ValueError, match=str(sqrt_price)):
        tick_at_sqrt_price(sqrt_price)
    with pytest.raises(ValueError, match=str(sqrt_price)):
        ticks_at_sqrt_prices(np.array([Q96, sqrt_price], dtype=object))


def test_an_impossible_tick_is_named() -> None:
    with pytest.raises(ValueError, match="887273"):
        sqrt_price_at_tick(MAX_TICK + 1)
