"""Swaps of a small seeded market, exact by the pool's arithmetic, in the schema of `raw_swaps`."""

import datetime as dt
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.amm.price import sqrt_price_x96_from_price
from apeagent_pipeline.amm.swap_math import swap_step
from apeagent_pipeline.amm.ticks import tick_at_sqrt_price


def simulate_swaps(n: int, seed: int = 0) -> pl.DataFrame:
    """`n` swaps; a third of them follow a move of the price between swaps, a third a change of liquidity."""
    rng = np.random.default_rng(seed)
    root, liquidity = sqrt_price_x96_from_price(3_000.0, BASE_ETH_USDC), 50_000_000_000_000_000
    seconds = np.cumsum(rng.choice([0, 2, 8, 30, 120], n))
    start = dt.datetime(2025, 1, 21, tzinfo=dt.UTC)
    rows = []
    for k in range(n):
        if rng.random() < 1 / 3:
            root = int(root * np.exp(rng.normal(0, 2e-4)))
        if rng.random() < 1 / 3:
            liquidity = int(5e16 * np.exp(rng.normal(0, 0.1)))
        amount = int(rng.choice([300_000_000, int(np.exp(rng.normal(4, 2)) * 1e6) + 1_000]))
        sells = bool(rng.random() < 0.5)
        step = swap_step(root, liquidity, amount if sells else -amount, sells, BASE_ETH_USDC.fee)
        root = step.sqrt_price_x96
        rows.append((step.amount0, step.amount1, root, liquidity, tick_at_sqrt_price(root), int(seconds[k])))
    amount0, amount1, roots, liquidities, ticks, since = zip(*rows, strict=True)
    return pl.DataFrame(
        {
            "block_number": pl.Series([25_000_000 + s // 2 for s in since], dtype=pl.Int64),
            "block_timestamp": pl.Series(
                [start + dt.timedelta(seconds=s) for s in since], dtype=pl.Datetime("us", "UTC")
            ),
            "amount0": [str(a) for a in amount0],
            "amount1": [str(a) for a in amount1],
            "sqrt_price_x96": [str(r) for r in roots],
            "liquidity": [str(x) for x in liquidities],
            "tick": pl.Series(ticks, dtype=pl.Int32),
        }
    ).with_columns(log_index=pl.int_range(pl.len(), dtype=pl.Int64).over("block_number"))


@pytest.fixture(scope="session")
def swaps() -> Callable[..., pl.DataFrame]:
    return simulate_swaps
