"""Synthetic windows replayed on the contract itself: the swaps it makes are the rows, to the smallest unit."""

from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
from threadpoolctl import threadpool_limits

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC, PoolSpec
from apeagent_pipeline.amm.swap_math import swap_step
from apeagent_pipeline.amm.ticks import sqrt_price_at_tick, tick_at_sqrt_price
from apeagent_pipeline.chain.archive import SwapArchive
from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.chain.devnet import Devnet, start_devnet
from apeagent_pipeline.chain.source import EmbeddedSource
from apeagent_pipeline.gan import swap_execution
from apeagent_pipeline.gan.sampling import SamplingConfig, sample_windows
from apeagent_pipeline.gan.training import train_gan
from apeagent_pipeline.market.features import swap_features
from apeagent_pipeline.market.windows import TrainingWindows, WindowsConfig, make_training_windows
from apeagent_pipeline_tests.amm.test_pool_manager import HUGE, Event, swap_event
from apeagent_pipeline_tests.gan.conftest import TINY, free_rows

WINDOWS = 100


class Execution(NamedTuple):
    """A swap as the package executed it, in smallest units."""

    start: int
    liquidity_before: int
    liquidity: int
    amount_specified: int
    sells: bool
    end: int
    amount0: int
    amount1: int


@pytest.fixture(scope="module")
def chain(devnet_cache: Path) -> Iterator[Devnet]:
    with start_devnet(devnet_cache) as running:
        yield running


@pytest.fixture
def executions(monkeypatch: pytest.MonkeyPatch) -> list[list[Execution]]:
    """What the package executes from now on: for every step the swaps of all windows.

    The table of synthetic windows has neither the price before a swap nor, in its floats, single wei.
    """
    steps: list[list[Execution]] = []
    execute_swaps = swap_execution.execute_swaps

    def recorded(root: Any, before: Any, after: Any, amount: Any, sells: Any, *, pool: PoolSpec) -> Any:
        swap = execute_swaps(root, before, after, amount, sells, pool=pool)
        columns = (root, before, after, amount, sells.tolist(), *swap)
        steps.append([Execution(*row) for row in zip(*columns, strict=True)])
        return swap

    monkeypatch.setattr(swap_execution, "execute_swaps", recorded)
    return steps


def replay(chain: Devnet, pool: PoolSpec, swaps: list[Execution]) -> list[Event | None]:
    """What the contract emits for the swaps, made one after another by nothing but transactions.

    Before a swap, somebody trades to the price from which the row starts, and the wide position of the pool is changed
    to the liquidity of the row. Where the liquidity changes on the way of the swap, a second position ends there.
    """
    lower, upper, _ = chain.opening_position
    price, _, liquidity = chain.state(pool)
    transactions, places = [], []
    for swap in swaps:
        if swap.start != price:
            falls = swap.start < price
            transactions.append(chain.swap_transaction(falls, -HUGE, sqrt_price_limit_x96=swap.start, pool=pool))
        border = border_of_change(swap, pool)
        wide = swap.liquidity if border is None else min(swap.liquidity_before, swap.liquidity)
        if wide != liquidity:
            transactions.append(chain.liquidity_transaction(lower, upper, wide - liquidity, pool=pool))
        more = None
        if border is not None:
            falling_ends_high = swap.sells == (swap.liquidity < swap.liquidity_before)
            more = (border, upper) if falling_ends_high else (lower, border)
            size = abs(swap.liquidity - swap.liquidity_before)
            transactions.append(chain.liquidity_transaction(*more, size, pool=pool))
        places.append(len(transactions))
        transactions.append(chain.swap_transaction(swap.sells, swap.amount_specified, pool=pool))
        if more is not None:
            transactions.append(chain.liquidity_transaction(*more, -size, pool=pool))
        price, liquidity = swap.end, wide
    sent = [
        each for first in range(0, len(transactions), 100) for each in chain.send(transactions[first : first + 100])
    ]
    return [swap_event(chain, receipt) for receipt in chain.receipts([sent[place] for place in places])]


def border_of_change(swap: Execution, pool: PoolSpec) -> int | None:
    """The tick at which the liquidity changes during the swap; None if it does not."""
    alone = swap_step(swap.start, swap.liquidity_before, swap.amount_specified, swap.sells, pool.static_fee)
    first, last = (tick_at_sqrt_price(each) // pool.tick_spacing for each in (swap.start, alone.sqrt_price_x96))
    if first == last or swap.liquidity == swap.liquidity_before:
        return None
    return (last + swap.sells) * pool.tick_spacing


def assert_replays(
    chain: Devnet, pool: PoolSpec, synthetic: pl.DataFrame, executions: list[list[Execution]]
) -> list[Execution]:
    """The contract emits every row: both amounts, price, liquidity and tick are equal."""
    swaps = [swap for window in zip(*executions, strict=True) for swap in window]
    table = synthetic.select("sqrt_price_x96", "liquidity", "tick").iter_rows()
    rows = [
        Event(swap.amount0, swap.amount1, int(price), int(liquidity), tick, pool.fee)
        for swap, (price, liquidity, tick) in zip(swaps, table, strict=True)
    ]
    emitted = replay(chain, pool, swaps)
    assert [(i, *both) for i, both in enumerate(zip(emitted, rows, strict=True)) if both[0] != both[1]] == []
    # The floats of the table are the nearest to the integers of the event.
    amounts = np.array([event[:2] for event in emitted if event], dtype=object)
    for name, column, token in zip(("amount0_eth", "amount1_usdc"), amounts.T, (pool.token0, pool.token1), strict=True):
        assert synthetic[name].to_list() == (column.astype(float) / 10.0**token.decimals).tolist()
    assert [swap.sells for swap in swaps] == (synthetic["side"] == "SELL").to_list()
    return swaps


def histories(market: str, request: pytest.FixtureRequest) -> pl.DataFrame:
    if market == "real":
        return SwapArchive(request.getfixturevalue("real_swaps"), BASE_ETH_USDC).swaps
    source = EmbeddedSource(BASE_ETH_USDC, 42)
    return pl.concat([source.read_day(FIRST_DAY + timedelta(days=day)) for day in range(2)])


@pytest.mark.parametrize("market", ["embedded", "real"])
def test_sampled_windows_are_the_swaps_the_contract_makes(
    chain: Devnet, executions: list[list[Execution]], market: str, request: pytest.FixtureRequest
) -> None:
    features = swap_features(histories(market, request), BASE_ETH_USDC)
    windows = make_training_windows(features, BASE_ETH_USDC, WindowsConfig())
    config = SamplingConfig(n_windows=WINDOWS, conditions=["train", "valid", "holdout"])
    with threadpool_limits(1):  # more threads mostly wait for each other in a network this small
        synthetic = sample_windows(train_gan(windows, TINY, seed=1), windows, BASE_ETH_USDC, config, seed=5)
    swaps = assert_replays(chain, BASE_ETH_USDC, synthetic, executions)
    assert len(swaps) == 24 * WINDOWS
    crossing = [swap for swap in swaps if border_of_change(swap, BASE_ETH_USDC) is not None]
    assert {swap.sells for swap in crossing} == {True, False}
    assert {swap.liquidity > swap.liquidity_before for swap in crossing} == {True, False}
    sizes = np.array([abs(swap.amount1) / 1e6 for swap in swaps])
    assert np.quantile(sizes, 0.05) < 1 < 1_000 < np.quantile(sizes, 0.99)
    held = [swap.start == before.end for before, swap in pairwise(swaps)]
    assert 0.02 < np.mean(held) < 0.95


@pytest.mark.parametrize(("fee", "spacing"), [(500, 10), (100, 1)])
def test_windows_at_a_border_of_the_tick_bitmap_are_rounded_as_the_contract_rounds(
    chain: Devnet, executions: list[list[Execution]], fee: int, spacing: int
) -> None:
    pool, border, count = chain.pool, -197_120, 40
    if (fee, spacing) != (pool.fee, pool.tick_spacing):
        pool = chain.open_pool(fee, spacing, sqrt_price_at_tick(border))
    rng = np.random.default_rng(spacing)
    starts = [sqrt_price_at_tick(border - int(below)) for below in rng.integers(-15, 30, count)]
    last = pl.DataFrame(
        {
            "block_number": 25_000_000,
            "log_index": np.arange(count),
            "segment": np.arange(count),
            "price": 2_750.0,
            "tick": np.full(count, border),
            "volume_usdc": 100.0,
            "liquidity": "3000000000000000",
            "sqrt_price_x96": [str(start) for start in starts],
        }
    )
    rows = np.stack([free_rows(24, rng) for _ in starts])
    windows = TrainingWindows(last, {"context": 1, "length": 24})
    synthetic = swap_execution.synthetic_windows(windows, np.arange(count), rows, pool)
    swaps = assert_replays(chain, pool, synthetic, executions)
    within_one_word = [
        swap_step(swap.start, swap.liquidity, swap.amount_specified, swap.sells, fee) == swap[5:]
        for swap in swaps
        if border_of_change(swap, pool) is None
    ]
    assert within_one_word.count(False) > 30
