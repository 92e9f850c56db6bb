"""Human prices and the pool's id."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apeagent_pipeline.amm.pool_id import pool_id
from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.amm.price import price_from_sqrt_price, sqrt_price_x96_from_price


def test_the_preset_has_the_id_that_base_gives_it() -> None:
    assert pool_id(BASE_ETH_USDC.key) == BASE_ETH_USDC.pool_id


def test_another_fee_is_another_pool() -> None:
    assert pool_id(BASE_ETH_USDC.key.model_copy(update={"fee": 3_000, "tick_spacing": 60})) != BASE_ETH_USDC.pool_id


@given(st.floats(1e-3, 1e9))
def test_a_price_survives_the_way_through_the_contracts_number(price: float) -> None:
    root = sqrt_price_x96_from_price(price, BASE_ETH_USDC)
    assert price_from_sqrt_price(float(root), BASE_ETH_USDC) == pytest.approx(price, rel=1e-12)


def test_numbers_arrays_and_polars_columns_give_the_same_price() -> None:
    roots = [float(sqrt_price_x96_from_price(price, BASE_ETH_USDC)) for price in (2_500.0, 3_300.5)]
    frame = pl.DataFrame({"root": roots}).select(price_from_sqrt_price(pl.col("root"), BASE_ETH_USDC))
    assert frame["root"].to_list() == pytest.approx([2_500.0, 3_300.5], rel=1e-12)
    assert price_from_sqrt_price(np.array(roots), BASE_ETH_USDC) == pytest.approx([2_500.0, 3_300.5], rel=1e-12)


@pytest.mark.parametrize("price", [0.0, -1.0, float("nan"), float("inf"), 1e60, 1e-60])
def test_an_impossible_price_is_refused_by_name(price: float) -> None:
    with pytest.raises(ValueError, match="price"):
        sqrt_price_x96_from_price(price, BASE_ETH_USDC)
