"""The market behind the embedded chain."""

from datetime import date, timedelta
from itertools import pairwise

import numpy as np
import pytest

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.amm.price import sqrt_price_x96_from_price
from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.chain.market_simulation import BLOCKS_PER_DAY, SimulatedSwap, anchor_price, simulate_day

DAYS = [FIRST_DAY + timedelta(days=i) for i in range(6)]


@pytest.fixture(scope="module")
def week() -> list[list[SimulatedSwap]]:
    return [simulate_day(42, day, BASE_ETH_USDC) for day in DAYS]


def test_the_same_seed_gives_the_same_day_and_another_seed_another(week: list[list[SimulatedSwap]]) -> None:
    assert simulate_day(42, DAYS[3], BASE_ETH_USDC) == week[3]
    assert simulate_day(43, DAYS[3], BASE_ETH_USDC) != week[3]


def test_each_day_ends_exactly_at_the_price_at_which_the_next_begins(week: list[list[SimulatedSwap]]) -> None:
    for day, swaps in zip(DAYS, week, strict=True):
        closing = sqrt_price_x96_from_price(anchor_price(42, day + timedelta(days=1)), BASE_ETH_USDC)
        assert swaps[-1].sqrt_price_x96 == closing


def test_blocks_ascend_and_stay_inside_the_day(week: list[list[SimulatedSwap]]) -> None:
    for swaps in week:
        blocks = [swap.block for swap in swaps]
        assert blocks == sorted(blocks)
        assert blocks[0] >= 0
        assert blocks[-1] < BLOCKS_PER_DAY


def test_the_facts_of_real_swaps_hold(week: list[list[SimulatedSwap]]) -> None:
    for swaps in week:
        assert 900 <= len(swaps) <= 3_200
    gaps = np.concatenate([2 * np.diff([swap.block for swap in swaps]) for swaps in week])
    assert 0.1 < np.mean(gaps == 0) < 0.2
    assert 8 <= np.median(gaps) <= 24
    assert 250 <= np.quantile(gaps, 0.99) <= 700
    usdc = np.array([abs(swap.amount1) / 1e6 for swaps in week for swap in swaps])
    assert 90 <= np.median(usdc) <= 260
    assert np.quantile(usdc, 0.01) < 0.5
    assert 1_000 < np.quantile(usdc, 0.99) < 4_000
    for atom in (300, 320, 620):
        assert np.mean(usdc == atom) > 0.003
    buys = np.array([swap.amount0 > 0 for swaps in week for swap in swaps], dtype=float)
    assert 0.42 < buys.mean() < 0.58
    assert np.corrcoef(buys[1:], buys[:-1])[0, 1] > 0.15
    moves = [2 * np.diff(np.log([float(swap.sqrt_price_x96) for swap in swaps])) for swaps in week]
    assert np.mean([np.corrcoef(np.abs(move[1:]), np.abs(move[:-1]))[0, 1] for move in moves]) > 0.1
    changed = np.mean([a.liquidity != b.liquidity for swaps in week for a, b in pairwise(swaps)])
    assert 0.12 < changed < 0.4
    assert len({swap.sender for swaps in week for swap in swaps}) == 5


def test_a_window_sees_rising_falling_and_flat_markets(week: list[list[SimulatedSwap]]) -> None:
    roots = np.concatenate([[float(swap.sqrt_price_x96) for swap in swaps] for swaps in week])
    change = roots[24:] ** 2 / roots[:-24] ** 2 - 1
    assert np.mean(change > 0.002) > 0.1
    assert np.mean(change < -0.002) > 0.1
    assert np.mean(np.abs(change) < 0.001) > 0.1


def test_prices_stay_in_a_plausible_world_for_years() -> None:
    prices = [anchor_price(seed, FIRST_DAY + timedelta(days=i)) for seed in (1, 42) for i in range(0, 900, 25)]
    assert 1_800 < min(prices) < max(prices) < 4_500


def test_there_is_no_market_before_its_first_day() -> None:
    with pytest.raises(ValueError, match="2025-01-20"):
        simulate_day(42, date(2025, 1, 20), BASE_ETH_USDC)
