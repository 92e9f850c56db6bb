import math

import polars as pl
import pytest

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.market.features import HISTORY_SWAPS, SWAP_FEATURES_SCHEMA, FeaturesError, swap_features


def test_exact_integers_keep_every_digit(swaps):
    raw = swaps(50)
    features = swap_features(raw, BASE_ETH_USDC)
    assert features.schema == pl.Schema(SWAP_FEATURES_SCHEMA)
    assert features["sqrt_price_x96"].to_list() == raw["sqrt_price_x96"].to_list()
    assert features["liquidity"].to_list() == raw["liquidity"].to_list()


def test_price_and_tick_say_the_same(swaps):
    features = swap_features(swaps(200), BASE_ETH_USDC)
    raw_price = features["price"].to_numpy() / 10.0 ** (18 - 6)
    ticks = [math.floor(math.log(price) / math.log(1.0001)) for price in raw_price]
    assert features["tick"].to_list() == ticks


def test_a_day_that_sees_the_day_before_has_the_features_of_one_long_day(swaps):
    raw = swaps(300)
    whole = swap_features(raw, BASE_ETH_USDC)
    second = swap_features(raw[200:], BASE_ETH_USDC, previous=raw[:200])
    for name in SWAP_FEATURES_SCHEMA:
        if whole[name].dtype == pl.Float64:
            assert (whole[name][200:] - second[name]).abs().max() <= 1e-12 * whole[name].abs().max(), name
        else:
            assert whole[name][200:].to_list() == second[name].to_list(), name


def test_only_the_very_first_swap_lacks_what_needs_a_previous_one(swaps):
    features = swap_features(swaps(30), BASE_ETH_USDC)
    nulls = {name: count for name, count in features.null_count().row(0, named=True).items() if count}
    assert nulls == {"seconds_since_previous": 1, "volatility": 1, "tick_change": 1}


def test_volatility_and_volume_average_are_those_of_their_documentation(swaps):
    features = swap_features(swaps(120), BASE_ETH_USDC)
    returns = features["price"].log().diff()[-24:].to_numpy()
    assert features["volatility"][-1] == pytest.approx(math.sqrt((returns**2).mean()), rel=1e-9)
    assert features["volume_ma"][-1] == pytest.approx(features["volume_usdc"][-50:].mean(), rel=1e-9)
    assert HISTORY_SWAPS >= 50


def test_sides_are_those_of_the_swapper(swaps):
    features = swap_features(swaps(100), BASE_ETH_USDC)
    buys = features["side"] == "BUY"
    assert ((features["amount0_eth"] > 0) == buys).all()
    assert ((features["amount1_usdc"] < 0) == buys).all()


def test_an_empty_day_gives_an_empty_table(swaps):
    features = swap_features(swaps(10).clear(), BASE_ETH_USDC, previous=swaps(10))
    assert features.height == 0
    assert features.schema == pl.Schema(SWAP_FEATURES_SCHEMA)


def test_wrong_columns_values_and_order_are_named(swaps):
    raw = swaps(20)
    with pytest.raises(FeaturesError, match=r"lack the columns \['liquidity'\]"):
        swap_features(raw.drop("liquidity"), BASE_ETH_USDC)
    with pytest.raises(FeaturesError, match=r"amount1='NaN' in block \d+ is not a whole number"):
        swap_features(raw.with_columns(amount1=pl.lit("NaN")), BASE_ETH_USDC)
    with pytest.raises(FeaturesError, match="missing values"):
        swap_features(raw.with_columns(tick=pl.lit(None, dtype=pl.Int32)), BASE_ETH_USDC)
    with pytest.raises(FeaturesError, match="increasing"):
        swap_features(raw.reverse(), BASE_ETH_USDC)
    with pytest.raises(FeaturesError, match="increasing"):
        swap_features(pl.concat([raw, raw[-1:]]), BASE_ETH_USDC)
