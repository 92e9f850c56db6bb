"""The chain rate."""

import polars as pl
import pytest

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
