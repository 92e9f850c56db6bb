"""What the pool's arithmetic leaves open, rebuilt from events alone."""

import numpy as np
import polars as pl
import pytest

from apeagent_pipeline.amm.pool import Pool
from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.amm.price import sqrt_price_x96_from_price
from apeagent_pipeline.market.free_features import with_free_features

POOL = BASE_ETH_USDC
WIDE = 400_000


def swaps_over_borders(borders: dict[int, int], largest: float) -> pl.DataFrame:
    """Swaps around the first price of a pool whose liquidity rises by so much at so many spacings above it."""
    pool = Pool(sqrt_price_x96_from_price(3_000, POOL), POOL.static_fee, POOL.tick_spacing)
    first = pool.tick // POOL.tick_spacing * POOL.tick_spacing
    pool.modify_liquidity(-WIDE, WIDE, 3 * 10**16)
    for above, more in borders.items():
        pool.modify_liquidity(first + above * POOL.tick_spacing, WIDE, more)
    rng, rows = np.random.default_rng(0), []
    for _ in range(600):
        sells = bool(rng.random() < 0.5 + 0.2 * np.sign(pool.tick - first))
        size = int(rng.uniform(1, largest) * 10**6)  # in USDC: paid by a buyer, received by a seller
        delta = pool.swap(sells, size if sells else -size)
        side = "SELL" if sells else "BUY"
        rows.append([delta.amount1 / 1e6, pool.sqrt_price_x96, pool.liquidity, pool.tick, side])
    table = pl.DataFrame(rows, ["amount1_usdc", "sqrt_price_x96", "liquidity", "tick", "side"], orient="row")
    return table.with_columns(
        pl.col("sqrt_price_x96", "liquidity").cast(pl.String),
        volume_usdc=pl.col("amount1_usdc").abs(),
        amount0_eth=pl.lit(1.0),
        seconds_since_previous=0,
        segment=0,
    )


@pytest.mark.parametrize("more", [2 * 10**16, 10**15])
def test_a_swap_that_crosses_a_border_starts_where_the_swap_before_ended(more):
    """However the liquidity differs on both sides, upwards and downwards."""
    table = with_free_features(swaps_over_borders({0: more}, largest=600), POOL)
    crossed = table.filter(pl.col("liquidity_change") != 0)
    assert set(crossed["side"]) == {"BUY", "SELL"}
    assert crossed.height > 50
    assert (table["move"][1:] == 0).all()


def test_a_liquidity_that_changes_twice_on_the_way_looks_like_a_move():
    table = with_free_features(swaps_over_borders({0: 2 * 10**16, 1: 10**16}, largest=6_000), POOL)
    ranges = table["tick"] // POOL.tick_spacing
    several = (ranges.diff().abs() >= 2).fill_null(value=False)
    assert several.sum() > 50
    assert (table.filter(~several)["move"][1:] == 0).mean() > 0.99
    assert (table.filter(several)["move"] != 0).mean() > 0.3
