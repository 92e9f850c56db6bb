"""The same market in tokens of other decimals is the same market, from the raw swaps to the synthetic ones."""

import math
from datetime import date

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from apeagent_pipeline.amm.pool_id import pool_id
from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC, DynamicFeeError, PoolSpec
from apeagent_pipeline.amm.price import sqrt_price_x96_from_price
from apeagent_pipeline.amm.ticks import ticks_at_sqrt_prices
from apeagent_pipeline.chain.completeness import chain_rate
from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.chain.source import EmbeddedSource
from apeagent_pipeline.distillation.canary_words import Side
from apeagent_pipeline.distillation.chain_of_draft import Asset, DraftAnswer
from apeagent_pipeline.distillation.execution import execute
from apeagent_pipeline.gan.quality.scores import domain_checks
from apeagent_pipeline.gan.swap_execution import synthetic_windows
from apeagent_pipeline.market.features import swap_features
from apeagent_pipeline.market.windows import FREE_FEATURES, TrainingWindows, WindowsConfig, make_training_windows

DECIMALS = [(8, 18), (18, 18), (6, 8), (6, 18)]
HUMAN = ["price", "amount1_usdc", "volume_usdc", "volatility", "volume_ma", "liquidity_usage"]
SAME = ["block_number", "log_index", "block_timestamp", "seconds_since_previous", "side"]


def with_decimals(decimals0: int, decimals1: int) -> PoolSpec:
    pool = BASE_ETH_USDC
    token0 = pool.token0.model_copy(update={"address": "0x" + "0" * 39 + "1", "decimals": decimals0})
    token1 = pool.token1.model_copy(update={"decimals": decimals1})
    pool = pool.model_copy(update={"token0": token0, "token1": token1})
    return pool.model_copy(update={"pool_id": pool_id(pool.key)})


def rescaled(raw: pl.DataFrame, pool: PoolSpec) -> pl.DataFrame:
    """The swaps of an 18-and-6 pool as the chain would have them in the units of another one.

    The square-root price is that of smallest units, and liquidity the geometric mean of both reserves in them.
    """
    more0, more1 = pool.token0.decimals - 18, pool.token1.decimals - 6
    shifts = {
        "amount0": more0,
        "amount1": more1,
        "sqrt_price_x96": (more1 - more0) // 2,
        "liquidity": (more0 + more1) // 2,
    }
    values = {
        name: [int(value) * 10**shift if shift >= 0 else round(int(value) / 10**-shift) for value in raw[name]]
        for name, shift in shifts.items()
    }
    ticks = ticks_at_sqrt_prices(np.array(values["sqrt_price_x96"], dtype=object))
    return raw.with_columns(
        *(pl.Series(name, [str(value) for value in column]) for name, column in values.items()),
        pl.Series("tick", ticks.astype(np.int32)),
    )


@pytest.fixture(scope="module")
def raw() -> pl.DataFrame:
    source = EmbeddedSource(BASE_ETH_USDC, 42)
    days = [source.read_day(date.fromordinal(FIRST_DAY.toordinal() + i)) for i in range(2)]
    # Below a cent, a token of 8 decimals no longer holds what was swapped. In other decimals the ranges of prices begin
    # elsewhere, so all of them have the same liquidity here.
    swaps = pl.concat(days).filter(pl.col("amount1").cast(pl.Float64).abs() > 1e4)
    return swaps.with_columns(liquidity=pl.lit("32000000000000000"))


@pytest.fixture(scope="module")
def features(raw: pl.DataFrame) -> pl.DataFrame:
    return swap_features(raw, BASE_ETH_USDC)


def windows_of(features: pl.DataFrame, pool: PoolSpec) -> TrainingWindows:
    return make_training_windows(features, pool, WindowsConfig(train_share=0.6, valid_share=0.2))


@pytest.mark.parametrize("decimals", DECIMALS)
def test_features_windows_and_synthetic_swaps_do_not_depend_on_decimals(
    raw: pl.DataFrame, features: pl.DataFrame, decimals: tuple[int, int]
) -> None:
    pool = with_decimals(*decimals)
    found = swap_features(rescaled(raw, pool), pool)
    assert_frame_equal(found.select(HUMAN), features.select(HUMAN), rel_tol=1e-9, abs_tol=1e-12)
    smallest = 10.0 ** -min(decimals[0], 18)
    assert (found["amount0_eth"] - features["amount0_eth"]).abs().max() <= smallest
    assert found.select(SAME).equals(features.select(SAME))
    assert (found["tick_change"] - features["tick_change"]).abs().max() <= 1

    ours, theirs = windows_of(found, pool), windows_of(features, BASE_ETH_USDC)
    assert ours.scaler["rows"] == theirs.scaler["rows"]
    np.testing.assert_allclose(ours.free_features(), theirs.free_features(), rtol=1e-6, atol=1e-10)

    ends = theirs.starts("train")[::40] + theirs.context - 1
    rows = theirs.free_features()[ends[:, None] + 1 + np.arange(theirs.length)]
    made = synthetic_windows(ours, ends, rows, pool)
    expected = synthetic_windows(theirs, ends, rows, BASE_ETH_USDC)
    assert_frame_equal(made.select(HUMAN), expected.select(HUMAN), rel_tol=1e-6, abs_tol=1e-7)
    # Each amount is right to the smallest unit of either token; that of the 6 decimals is worth 1e-6 / price.
    either = max(smallest, 1e-6 / expected["price"].min())
    np.testing.assert_allclose(made["amount0_eth"], expected["amount0_eth"], rtol=1e-6, atol=2 * either)
    assert made["seconds_since_previous"].equals(expected["seconds_since_previous"])
    # A few smallest units have no effective price.
    checks = domain_checks(made.filter(pl.col("amount0_eth").abs() > 1_000 / 10 ** decimals[0]), pool)
    assert checks == {"price_matches_tick": 1.0, "opposite_signs": 1.0, "effective_price": 1.0}


@pytest.mark.parametrize("decimals", [(18, 6), *DECIMALS])
def test_a_market_in_other_decimals_is_as_deep_and_its_swaps_follow_from_one_another(decimals: tuple[int, int]) -> None:
    pool = with_decimals(*decimals)
    swaps = EmbeddedSource(pool, 42).read_day(FIRST_DAY)
    found = chain_rate(swaps)
    assert found.judged > swaps.height // 2
    assert found.rate is not None
    assert found.rate > 0.99
    features = swap_features(swaps, pool)
    assert 2_000 < features["price"].median() < 4_500
    assert 20 < features["volume_usdc"].median() < 500
    assert 1e-6 < features["liquidity_usage"].median() < 1e-2
    # A price that stands between two swaps stands exactly; a rounding error would be a move, and no atom for the GAN.
    moves = windows_of(features, pool).free_features()[:, FREE_FEATURES.index("move")]
    assert 0.95 < (moves == 0).mean() < 0.99
    assert np.abs(moves[moves != 0]).min() > 1e-9


@pytest.mark.parametrize("decimals", DECIMALS)
@pytest.mark.parametrize(
    ("side", "asset", "amount"), [("BUY", "ETH", 0.5), ("SELL", "ETH", 1.25), ("BUY", "USDC", 300.0)]
)
def test_a_trade_of_the_backtest_costs_the_same(
    decimals: tuple[int, int], side: Side, asset: Asset, amount: float
) -> None:
    fills = []
    for pool in (BASE_ETH_USDC, with_decimals(*decimals)):
        units = 10**pool.token0.decimals, 10**pool.token1.decimals
        root = sqrt_price_x96_from_price(3_000.0, pool)
        liquidity = int(3e4 * math.sqrt(units[0] * units[1]))
        fill = execute(DraftAnswer((), side, amount, asset), root, liquidity, pool)
        assert fill is not None
        fills.append((fill.eth / units[0], fill.usdc / units[1]))
    assert fills[1] == pytest.approx(fills[0], rel=1e-5)


def test_a_pool_with_hooks_is_used_with_a_warning(raw: pl.DataFrame, caplog: pytest.LogCaptureFixture) -> None:
    hooked = BASE_ETH_USDC.model_copy(update={"hooks": "0x" + "0" * 38 + "c0"})
    windows_of(swap_features(raw, hooked), hooked)
    assert f"{hooked.pool_id} has hooks ({hooked.hooks})" in caplog.text


def test_a_pool_with_a_dynamic_fee_is_read_and_refused_where_one_fee_is_needed(raw: pl.DataFrame) -> None:
    dynamic = BASE_ETH_USDC.model_copy(update={"fee": 0x800000, "hooks": "0x" + "0" * 38 + "80"})
    features = swap_features(raw, dynamic)
    assert features.height == raw.height
    with pytest.raises(DynamicFeeError, match=r"dynamic fee.*windows, synthetic swaps and the backtest"):
        windows_of(features, dynamic)
