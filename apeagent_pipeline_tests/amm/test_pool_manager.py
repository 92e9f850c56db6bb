"""Our arithmetic against the contract itself: every swap equal to the wei."""

from bisect import bisect_right
from collections.abc import Iterator
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from apeagent_pipeline.amm.pool import BalanceDelta, Pool
from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC, PoolSpec
from apeagent_pipeline.amm.swap_math import SwapMathError, swap_step
from apeagent_pipeline.amm.ticks import MAX_TICK, sqrt_price_at_tick
from apeagent_pipeline.chain import market_simulation
from apeagent_pipeline.chain.devnet import Devnet, start_devnet
from apeagent_pipeline.chain.events import SWAP_TOPIC
from apeagent_pipeline.chain.market_simulation import SimulatedSwap

HUGE = 1 << 126


class Event(NamedTuple):
    """What the contract says of a swap, in the order of its event."""

    amount0: int
    amount1: int
    sqrt_price_x96: int
    liquidity: int
    tick: int
    fee: int


@pytest.fixture(scope="module")
def chain(devnet_cache: Path) -> Iterator[Devnet]:
    with start_devnet(devnet_cache) as running:
        yield running


@pytest.fixture(scope="module")
def new_pool(chain: Devnet) -> tuple[Devnet, PoolSpec]:
    return chain, chain.open_pool(400, 60, sqrt_price_at_tick(0) + 12_345)


def swap_event(chain: Devnet, receipt: dict[str, Any]) -> Event | None:
    """The Swap event of a transaction by web3's own decoder; None if the contract reverted."""
    if receipt["status"] == "0x0":
        return None
    (log,) = [each for each in receipt["logs"] if each["topics"][0] == SWAP_TOPIC]
    types = ["int128", "int128", "uint160", "uint128", "int24", "uint24"]
    return Event(*chain.web3.codec.decode(types, bytes.fromhex(log["data"][2:])))


class Bench:
    """One pool on the chain and its model; random actions are done to both."""

    def __init__(self, chain: Devnet, spec: PoolSpec, pool: Pool, seed: int) -> None:
        self.chain, self.spec, self.pool = chain, spec, pool
        self.rng = np.random.default_rng(seed)
        self.home = pool.tick
        self.positions: list[tuple[int, int, int]] = []
        self.transactions: list[Any] = []
        self.expected: list[Event | BalanceDelta | None] = []
        self.seen = dict.fromkeys(("swaps", "reverted", "crossed", "inside one range", "exact output", "limited"), 0)

    def act(self) -> None:
        if self.rng.random() < 0.12:
            self.change_liquidity()
        else:
            self.swap()

    def near(self, tick: int) -> int:
        """A tick at any distance, mostly near."""
        away = int(np.exp(self.rng.uniform(0, np.log(4_000 + 200 * self.spec.tick_spacing))))
        return int(np.clip(tick + (away if self.rng.random() < 0.5 else -away), -MAX_TICK + 1, MAX_TICK - 1))

    def swap(self) -> None:
        pool, rng = self.pool, self.rng
        zero_for_one = bool(rng.random() < 0.5)
        size = rng.choice(["any", "fits the pool", "huge", "zero"], p=[0.5, 0.46, 0.03, 0.01])
        amount = {
            "any": int(np.exp(rng.uniform(0, np.log(1e26)))),
            "fits the pool": int(pool.liquidity * np.exp(rng.uniform(-25, -4))) + 1,
            "huge": HUGE << int(rng.integers(3)),
            "zero": 0,
        }[size]
        limit = None
        if abs(pool.tick - self.home) > 20_000:
            zero_for_one, amount, limit = pool.tick > self.home, HUGE, sqrt_price_at_tick(self.near(self.home))
        elif rng.random() < 0.7:
            limit = sqrt_price_at_tick(self.near(pool.tick)) + int(rng.integers(3)) - 1
            if rng.random() < 0.97:  # else it may lie on the wrong side
                zero_for_one = limit < pool.sqrt_price_x96
        specified = -amount if rng.random() < 0.5 else amount
        before = pool.sqrt_price_x96, pool.tick, pool.liquidity
        self.transactions.append(
            self.chain.swap_transaction(zero_for_one, specified, sqrt_price_limit_x96=limit, pool=self.spec)
        )
        try:
            delta = pool.swap(zero_for_one, specified, limit)
        except SwapMathError:
            assert (pool.sqrt_price_x96, pool.tick, pool.liquidity) == before
            self.expected.append(None)
            self.seen["reverted"] += 1
            return
        self.expected.append(Event(*delta, pool.sqrt_price_x96, pool.liquidity, pool.tick, self.spec.static_fee))
        self.seen["swaps"] += 1
        self.seen["exact output"] += specified > 0
        self.seen["limited"] += pool.sqrt_price_x96 == limit
        self.seen["crossed"] += crosses(self.ticks(), before[1], pool.tick)
        self.check_single_step(before, zero_for_one, specified, limit)

    def check_single_step(
        self, before: tuple[int, int, int], zero_for_one: bool, specified: int, limit: int | None
    ) -> None:
        """`swap_step` gives the same where its docstring says so."""
        pool, spacing = self.pool, self.spec.tick_spacing
        borders = range(-(MAX_TICK // spacing // 256 + 1) * 256 * spacing, MAX_TICK, 256 * spacing)
        stops = sorted({*self.ticks(), *borders, *(border - spacing for border in borders)})
        if crosses(stops, before[1], pool.tick) or pool.sqrt_price_x96 == limit or not pool.liquidity:
            return
        expected = self.expected[-1]
        assert isinstance(expected, Event)
        step = swap_step(before[0], before[2], specified, zero_for_one, self.spec.static_fee)
        assert step == (expected.sqrt_price_x96, expected.amount0, expected.amount1)
        self.seen["inside one range"] += 1

    def ticks(self) -> list[int]:
        return sorted({tick for lower, upper, _ in self.positions for tick in (lower, upper)})

    def change_liquidity(self) -> None:
        rng, spacing = self.rng, self.spec.tick_spacing
        if self.positions and rng.random() < 0.4:
            lower, upper, liquidity = self.positions.pop(int(rng.integers(len(self.positions))))
            share = liquidity if rng.random() < 0.7 else int(liquidity * rng.uniform(0.1, 0.9))
            if share < liquidity:
                self.positions.append((lower, upper, liquidity - share))
            change = (lower, upper, -share)
        else:
            ends = sorted(self.near(self.pool.tick) // spacing * spacing for _ in range(2))
            change = (ends[0], ends[1] + spacing, int(np.exp(rng.uniform(np.log(1e3), np.log(1e20)))))
            if rng.random() < 0.05:
                change = (ends[0] + 1 - spacing % 2, ends[1] + spacing, 1 << 127)  # too much, and off the spacing
        salt = hash(change[:2]) % (1 << 64)
        transaction = self.chain.liquidity_transaction(*change, pool=self.spec, salt=salt)
        self.transactions.append(transaction)
        try:
            self.expected.append(self.pool.modify_liquidity(*change))
        except SwapMathError:
            self.expected.append(None)
            self.seen["reverted"] += 1
            return
        if change[2] > 0:
            self.positions.append(change)

    def compare(self) -> None:
        """Let the contract do what the model did since the last time, and see whether it agrees."""
        receipts = self.chain.receipts(self.chain.send(self.transactions))
        for receipt, expected in zip(receipts, self.expected, strict=True):
            if isinstance(expected, BalanceDelta):
                assert receipt["status"] == "0x1"
            else:
                assert swap_event(self.chain, receipt) == expected
        state = self.chain.state(self.spec)
        assert state == (self.pool.sqrt_price_x96, self.pool.tick, self.pool.liquidity)
        self.transactions.clear()
        self.expected.clear()


def crosses(stops: list[int], tick_before: int, tick_after: int) -> bool:
    return bisect_right(stops, tick_before) != bisect_right(stops, tick_after)


@pytest.mark.parametrize(
    ("fee", "spacing", "tick", "seed"),
    [(500, 10, -196_600, 1), (3_000, 60, 0, 2), (100, 1, -276_325, 3), (0, 200, 120_000, 4), (990_000, 30, -5, 5)],
)
def test_random_swaps_are_those_of_the_contract_to_the_wei(
    chain: Devnet, fee: int, spacing: int, tick: int, seed: int
) -> None:
    pool = Pool(sqrt_price_at_tick(tick), fee, spacing)
    bench = Bench(chain, open_pool(chain, pool), pool, seed)
    for _ in range(8):
        bench.change_liquidity()
    for _ in range(10):
        for _ in range(50):
            bench.act()
        bench.compare()
    seen = bench.seen
    assert seen["swaps"] >= 400  # five pools: two thousand
    assert 150 < seen["exact output"] < seen["swaps"] - 150
    assert min(seen["crossed"], seen["inside one range"], seen["limited"]) >= 60
    assert seen["reverted"] >= 5


def open_pool(chain: Devnet, pool: Pool) -> PoolSpec:
    """The pool of the model on the chain, without liquidity: the preset one is emptied and its price moved."""
    if (pool.fee, pool.tick_spacing) != (BASE_ETH_USDC.fee, BASE_ETH_USDC.tick_spacing):
        return chain.open_pool(pool.fee, pool.tick_spacing, pool.sqrt_price_x96)
    chain.modify_liquidity(*chain.opening_position[:2], -chain.opening_position[2])
    falls = pool.sqrt_price_x96 < chain.state().sqrt_price_x96
    chain.swap(falls, -1, sqrt_price_limit_x96=pool.sqrt_price_x96)
    assert chain.state() == (pool.sqrt_price_x96, pool.tick, 0)
    return chain.pool


@pytest.mark.parametrize(("lower", "upper"), [(-600, 600), (60, 600), (-600, -60), (0, 60), (-60, 0)])
@pytest.mark.parametrize("liquidity", [1, 10**9 + 7, 10**24])
def test_liquidity_costs_and_gives_back_what_the_contract_says(
    new_pool: tuple[Devnet, PoolSpec], lower: int, upper: int, liquidity: int
) -> None:
    chain, spec = new_pool
    pool = Pool(sqrt_price_at_tick(0) + 12_345, spec.static_fee, spec.tick_spacing)
    for change in (liquidity, -(liquidity // 2), liquidity // 2 - liquidity):
        transaction = chain.liquidity_transaction(lower, upper, change, pool=spec)
        packed = bytes.fromhex(chain.rpc("eth_call", transaction, "latest")[2:])
        amounts = [int.from_bytes(half, "big", signed=True) for half in (packed[:16], packed[16:])]
        assert amounts == list(pool.modify_liquidity(lower, upper, change))
        assert chain.receipts(chain.send([transaction]))[0]["status"] == "0x1"


class RecordingPool(Pool):
    """A pool that remembers what was done to it."""

    def __init__(self, sqrt_price_x96: int, fee: int, tick_spacing: int) -> None:
        super().__init__(sqrt_price_x96, fee, tick_spacing)
        self.start = Pool(sqrt_price_x96, fee, tick_spacing)
        self.actions: list[tuple[str, tuple[Any, ...]]] = []

    def modify_liquidity(self, *arguments: int) -> BalanceDelta:
        self.actions.append(("modify_liquidity", arguments))
        return super().modify_liquidity(*arguments)

    def swap(self, *arguments: Any) -> BalanceDelta:
        self.actions.append(("swap", arguments))
        return super().swap(*arguments)


@pytest.fixture(scope="module")
def recorded_day() -> tuple[RecordingPool, list[SimulatedSwap]]:
    """A day of the embedded chain with everything that was done to its pool."""
    made: list[RecordingPool] = []

    def make(*arguments: int) -> RecordingPool:
        made.append(RecordingPool(*arguments))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(market_simulation, "Pool", make)
        simulated = market_simulation.simulate_day(42, date(2025, 1, 23), BASE_ETH_USDC)
    (model,) = made
    return model, simulated


def test_a_day_of_the_embedded_chain_is_what_the_contract_would_have_said(
    devnet_cache: Path, recorded_day: tuple[RecordingPool, list[SimulatedSwap]]
) -> None:
    model, simulated = recorded_day
    with start_devnet(devnet_cache) as chain:
        open_pool(chain, model.start)
        transactions = [
            chain.liquidity_transaction(*arguments)
            if action == "modify_liquidity"
            else chain.swap_transaction(*arguments[:2], sqrt_price_limit_x96=(*arguments, None)[2])
            for action, arguments in model.actions
        ]
        receipts = [
            receipt
            for first in range(0, len(transactions), 100)
            for receipt in chain.receipts(chain.send(transactions[first : first + 100]))
        ]
        assert {receipt["status"] for receipt in receipts} == {"0x1"}
        events = [
            swap_event(chain, receipt)
            for receipt, (action, _) in zip(receipts, model.actions, strict=True)
            if action == "swap"
        ]
    assert [event[:5] for event in events if event] == [swap[2:] for swap in simulated]
    assert len(simulated) > 900


def test_where_neighbouring_swaps_of_equal_liquidity_do_not_follow_there_is_a_reason(
    recorded_day: tuple[RecordingPool, list[SimulatedSwap]],
) -> None:
    # Otherwise the chain rate of a complete day would be exactly 1. The test above shows that the contract does it too.
    model, simulated = recorded_day
    swaps = [at for at, (action, _) in enumerate(model.actions) if action == "swap"]
    judged = 0
    reasons = []
    for i, (before, after) in enumerate(pairwise(simulated), start=1):
        if before.liquidity != after.liquidity:
            continue
        judged += 1
        start, falls = (before.sqrt_price_x96, before.liquidity), after.amount0 < 0
        steps = [swap_step(*start, amount, falls, 500) for amount in (after.amount0, after.amount1)]
        if (after.sqrt_price_x96, after.amount0, after.amount1) in steps:
            continue
        stopped_at_its_limit = len(model.actions[swaps[i]][1]) == 3
        between = [action for action, _ in model.actions[swaps[i - 1] : swaps[i]]]
        crossed_the_new_tick = "modify_liquidity" in between and before.tick // 10 != after.tick // 10
        reasons.append((stopped_at_its_limit, crossed_the_new_tick))
    assert judged > 1_000
    assert 0 < len(reasons) < 5
    assert all(any(each) for each in reasons)
