"""The chain rate."""

import polars as pl
import pytest

from apeagent_pipeline.amm.swap_math import swap_step
from apeagent_pipeline.chain import completeness
from apeagent_pipeline.chain.completeness import ChainRate, chain_rate
from apeagent_pipeline.chain.events import empty_raw_swaps


def test_a_complete_day_is_explained_swap_by_swap(two_days: pl.DataFrame) -> None:
    found = chain_rate(two_days)
    assert found.judged > two_days.height // 2
    assert found.rate is not None
    assert found.rate > 0.995


def test_missing_swaps_show(two_days: pl.DataFrame) -> None:
    found = chain_rate(two_days.gather_every(2))
    assert found.rate is not None
    assert found.rate < 0.2


@pytest.mark.parametrize("rows", [0, 1])
def test_nothing_to_judge_is_told_as_such(two_days: pl.DataFrame, rows: int) -> None:
    frame = two_days.head(rows) if rows else empty_raw_swaps()
    assert chain_rate(frame) == ChainRate(0, 0)
    assert chain_rate(frame).rate is None


def test_slices_change_nothing(two_days: pl.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = chain_rate(two_days)
    for rows in (1, 7, two_days.height - 1, two_days.height):
        monkeypatch.setattr(completeness, "_SLICE_ROWS", rows)
        assert chain_rate(two_days) == whole


def test_each_swap_is_judged_by_its_own_fee(two_days: pl.DataFrame) -> None:
    root, liquidity = int(two_days["sqrt_price_x96"][0]), 10**17
    rows = []
    for fee in [100, 3_000, 500, 0, 123_456] * 20:
        sells = len(rows) % 2 == 0
        swap = swap_step(root, liquidity, -(10**17) if sells else -(3 * 10**8), sells, fee)
        root = swap.sqrt_price_x96
        values = root, swap.amount0, swap.amount1, liquidity
        rows.append((*map(str, values), fee))
    names = ["sqrt_price_x96", "amount0", "amount1", "liquidity", "fee"]
    swaps = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String()) | {"fee": pl.Int32()}, orient="row")
    assert chain_rate(swaps) == ChainRate(99, 99)
    assert chain_rate(swaps.with_columns(fee=pl.lit(500, pl.Int32()))).followed < 30
