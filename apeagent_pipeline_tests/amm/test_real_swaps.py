"""The arithmetic against what the PoolManager on Base really answered."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from apeagent_pipeline.amm.swap_math import SwapMathError, swap_step
from apeagent_pipeline.amm.ticks import ticks_at_sqrt_prices

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "base_eth_usdc_swaps_2025-01-23_2025-02-04.csv"


@pytest.fixture(scope="module")
def swaps() -> pl.DataFrame:
    if not SAMPLE.exists():
        pytest.skip(f"the real sample is not at {SAMPLE}")
    return pl.read_csv(SAMPLE, infer_schema=False).unique(maintain_order=True)


def integers(column: pl.Series) -> np.ndarray:
    return np.array([int(value) for value in column], dtype=object)


def test_every_real_row_has_the_tick_of_its_price(swaps: pl.DataFrame) -> None:
    found = ticks_at_sqrt_prices(integers(swaps["sqrt_price_x96"]))
    assert found.tolist() == swaps["tick"].cast(pl.Int64).to_list()


def test_consecutive_real_swaps_are_reproduced_to_the_wei(swaps: pl.DataFrame) -> None:
    swaps = swaps.sort(pl.col("block_number").cast(pl.Int64), maintain_order=True)
    price, liquidity = integers(swaps["sqrt_price_x96"]), integers(swaps["liquidity"])
    amount0, amount1 = integers(swaps["amount0"]), integers(swaps["amount1"])
    same_block = (swaps["block_number"] == swaps["block_number"].shift(1)).fill_null(False).to_numpy()
    same_liquidity = np.append(False, liquidity[1:] == liquidity[:-1])
    reproduced = candidates = 0
    for row in np.flatnonzero(same_block & same_liquidity):
        sells = bool(amount0[row] < 0)
        candidates += 1
        for specified in (amount0[row] if sells else amount1[row], amount1[row] if sells else amount0[row]):
            try:
                step = swap_step(price[row - 1], liquidity[row], specified, sells, 500)
            except SwapMathError:
                continue
            if step == (price[row], amount0[row], amount1[row]):
                reproduced += 1
                break
    assert candidates > 300
    assert reproduced / candidates > 0.9
